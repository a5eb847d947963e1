"""Which samples a split names: a stored split, an official list, or a file of keys."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PurePosixPath

from kinetics_bench.data.views import seeded_rng
from kinetics_tools.core.errors import EvaluationError, lookup, nearest
from kinetics_tools.core.files import digest
from kinetics_tools.core.keys import candidate_keys, file_keys, label_folder, source_video
from kinetics_tools.core.text import read_text
from kinetics_tools.shards.reader import Sample, ShardFolder

_OFFICIAL = re.compile(r"(ucf101|hmdb51)/([123])")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The samples of a split.

    Attributes:
        name: the split.
        samples: those that the shards hold, all with a label.
        missing: key -> reason, of those that belong to the split and are not in the shards.
        labels: class names; a sample's `label_id` is its label's index here. All labels of the
            shards, or the classes that were asked for, in the order of the shards' labels.
        missing_labels: key -> label, of those in `missing` whose label is known.
        out_of_scope: class -> clips, of the classes that an official list has and the shards do not
            have at all. They are not in `missing`.
        classes: those that were asked for; None: all.
        num_unclassed: missing clips that may be of `classes` or not: the shards do not say their
            label. They are not in `missing`.
    """

    name: str
    samples: Sequence[Sample]
    missing: Mapping[str, str]
    labels: tuple[str, ...]
    missing_labels: Mapping[str, str] = field(default_factory=dict)
    out_of_scope: Mapping[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    num_unclassed: int = 0

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Keys of `samples`, sorted."""
        return tuple(sorted(sample.key for sample in self.samples))

    @property
    def keys_sha256(self) -> str:
        """SHA-256 of the sorted keys, hex: equal for equal sets of samples."""
        return digest(self.keys)

    @cached_property
    def contents_sha256(self) -> str:
        """SHA-256 of key, label and bytes of each sample, in their order, hex."""
        return digest(
            [
                [sample.key, sample.label, sample.label_id]
                + [at and at.sha256 for at in (sample.rgb_at, sample.flow_at)]
                for sample in self.samples
            ]
        )

    @property
    def num_expected(self) -> int:
        """Clips that the split has, here or missing."""
        return len(self.samples) + len(self.missing)

    @cached_property
    def label_ids(self) -> Mapping[str, int]:
        """Key -> label id, of the samples and of the missing clips whose label is known."""
        ids = {label: number for number, label in enumerate(self.labels)}
        here = {s.key: s.label_id for s in self.samples if s.label_id is not None}
        return here | {key: ids[label] for key, label in self.missing_labels.items()}

    @property
    def empty_classes(self) -> tuple[str, ...]:
        """The labels of which there is no sample."""
        there = {sample.label_id for sample in self.samples}
        return tuple(label for at, label in enumerate(self.labels) if at not in there)

    def in_labels(self, labels: Sequence[str], whose: str) -> Selection:
        """The same clips with the label ids of another list of labels, matched by name.

        A name with underscores for its spaces, as a folder of clips has it, is the same name.

        Args:
            labels: class names in index order, of which the clips may have some.
            whose: what has these labels, for the message.

        Raises:
            EvaluationError: a clip has a label that is not among them.
        """
        if tuple(labels) == self.labels:
            return self
        names = {label_folder(label): label for label in labels}
        names |= {label: label for label in labels}  # an exact match comes first
        own = {s.label: None for s in self.samples if s.label is not None}
        own |= dict.fromkeys(self.missing_labels.values())
        found = {label: names.get(label, names.get(label_folder(label))) for label in own}
        unknown = [label for label, name in found.items() if name is None]
        if unknown:
            near = nearest(unknown[0], labels)
            raise EvaluationError(
                f"split {self.name!r} has clips of {unknown[0]!r}, which is not among the "
                f"{len(labels)} classes of {whose}"
                + (f" (nearest: {near!r})" if near else "")
                + (f", nor are {len(unknown) - 1} more" if len(unknown) > 1 else "")
                + "; choose classes that it knows with --classes"
            )
        known = {label: name for label, name in found.items() if name is not None}
        return self._labelled(tuple(labels), known)

    def only(self, classes: Sequence[str]) -> Selection:
        """The clips of some classes, which become its labels, in the order of these.

        Raises:
            UnknownNameError: there is no such class.
            EvaluationError: no clip is of them.
        """
        names = {lookup("class", name, dict.fromkeys(self.labels, name)): name for name in classes}
        labels = {key: label for key, label in self.missing_labels.items() if label in names}
        chosen = replace(
            self,
            samples=[sample for sample in self.samples if sample.label in names],
            missing={key: why for key, why in self.missing.items() if key in labels},
            missing_labels=labels,
            classes=tuple(label for label in self.labels if label in names),
            num_unclassed=len(self.missing.keys() - self.missing_labels.keys()),
        )
        if not chosen.samples:
            raise EvaluationError(
                f"split {self.name!r} has no clip of {', '.join(list(names)[:3])}"
                f"{f' or {len(names) - 3} more classes' if len(names) > 3 else ''}"
            )
        return chosen._labelled(chosen.classes or (), names)

    def _labelled(self, labels: tuple[str, ...], names: Mapping[str, str]) -> Selection:
        """The same clips with other labels; `names` maps these clips' labels to them."""
        ids = {label: number for number, label in enumerate(labels)}
        named = ((sample, names[str(sample.label)]) for sample in self.samples)
        return replace(
            self,
            samples=[replace(each, label=name, label_id=ids[name]) for each, name in named],
            missing_labels={key: names[label] for key, label in self.missing_labels.items()},
            labels=labels,
        )


def select(
    data: ShardFolder,
    split: str,
    *,
    role: str,
    streams: Sequence[str] = ("rgb", "flow"),
    flow: str = "tvl1",
    splits: Path | None = None,
) -> Selection:
    """The samples that `split` names.

    Args:
        data: the shards.
        split: a split stored there; `ucf101/1` to `/3` or `hmdb51/1` to `/3`; or the path of a file
            of keys: one per line, `*` and `?` allowed, empty lines and lines from `#` ignored.
        role: `train`, `test` or `val`: which list of an official split; `val` takes the test list.
        streams: `rgb`, `flow` or both: the shards to read.
        flow: name of the flow, one of `data.flows`.
        splits: folder of the official lists under their published file names, or the folder above
            `ucf101/` and `hmdb51/`.

    Raises:
        EvaluationError: the split does not exist, is empty, a line of the file matches nothing, or
            a sample has no label.
        ShardError: some samples lack a stream.
        UnknownNameError: there is no such flow.
    """
    stored = [split] if split in data.splits else data.splits
    official = None if split in data.splits else _OFFICIAL.fullmatch(split)
    if split not in data.splits and not official and not Path(split).is_file():
        raise EvaluationError(
            f"no {role} split {split!r}: {data.folder} holds {', '.join(data.splits) or 'none'}; "
            "other choices are ucf101/1 to 3, hmdb51/1 to 3 (with the folder of their lists), or "
            "the path of a file of keys"
        )
    listed = official and _official(splits, official[1], int(official[2]), role)
    chosen = _stored(data, split, stored, streams, flow)
    if listed:
        chosen = _listed(chosen, listed)
    elif split not in data.splits:
        chosen = _matching(chosen, Path(split))
    unlabelled = next((sample.key for sample in chosen.samples if sample.label_id is None), None)
    if unlabelled is not None:
        raise EvaluationError(
            f"{role} split {split!r} cannot be used: sample {unlabelled} has no label"
        )
    if not chosen.samples:
        raise EvaluationError(
            f"{role} split {split!r} has no sample with stream {' and '.join(streams)} in "
            f"{data.folder}"
        )
    return chosen


def hold_out(selection: Selection, share: float, *, seed: int) -> tuple[Selection, Selection]:
    """What is left of a selection, and what is held out of it: whole videos, of every class some.

    Of each class with several videos about `share` of the clips are held out, of at least one
    video, and never all. The choice depends on the seed and the keys alone.

    Raises:
        EvaluationError: no class has two videos.
    """
    videos: dict[str, list[Sample]] = {}
    for sample in selection.samples:
        videos.setdefault(source_video(sample.key, sample.label), []).append(sample)
    left = Counter(sample.label for sample in selection.samples)
    wanted = {label: max(1, round(share * num)) for label, num in left.items()}
    names = sorted(videos)
    held: set[str] = set()
    for number in seeded_rng(seed, 0, "held-out videos").permutation(len(names)).tolist():
        clips = Counter(sample.label for sample in videos[names[number]])
        is_wanted = any(wanted[label] > 0 for label in clips)
        if is_wanted and all(left[label] > num for label, num in clips.items()):
            held.add(names[number])
            left -= clips
            for label, num in clips.items():
                wanted[label] -= num
    if not held:
        raise EvaluationError(
            f"of split {selection.name} no clips can be held out: no class has two videos"
        )
    keys = {sample.key for name in held for sample in videos[name]}
    return (
        replace(selection, samples=[s for s in selection.samples if s.key not in keys]),
        replace(
            selection,
            name=f"held out of {selection.name}",
            samples=[s for s in selection.samples if s.key in keys],
            missing={},
            missing_labels={},
            out_of_scope={},
            num_unclassed=0,
        ),
    )


def require_disjoint(
    train: Selection, test: Selection, *, role: str = "test", allow_videos: bool = False
) -> None:
    """Raise EvaluationError if a key, or a video that clips were cut from, is in both.

    Args:
        train: the clips of a training.
        test: the clips of its test, or those that are held out of it.
        role: what the second ones are, `test` or `val`.
        allow_videos: only keys may not be shared.
    """
    shared = sorted(set(train.keys) & set(test.keys))
    if shared:
        raise EvaluationError(
            f"--train-split {train.name} and --{role}-split {test.name} share {len(shared)} keys, "
            f"such as {shared[0]}: an accuracy on training clips would be meaningless"
        )
    videos = {} if allow_videos else shared_videos(train.keys, test.keys)
    if videos:
        key = min(videos)
        raise EvaluationError(
            f"{len(videos)} of the {len(test.samples)} clips of --{role}-split {test.name} are of "
            f"videos that clips of --train-split {train.name} are of too, such as {key} of "
            f"{videos[key]}: split by video, or give --allow-overlap, which tells the accuracy "
            "without them too"
        )


def require_unseen(weights: str, trained_on: Collection[str], test: Selection) -> None:
    """Raise EvaluationError if weights were trained on a clip of the test, or of its videos.

    Args:
        weights: what they are, for the message.
        trained_on: keys of the clips that they were trained on.
        test: the clips of the test.
    """
    seen = sorted(set(trained_on) & set(test.keys))
    if seen:
        raise EvaluationError(
            f"{weights} was trained on {len(seen)} of the {len(test.samples)} clips of "
            f"--test-split {test.name}, such as {seen[0]}: an accuracy on training clips would be "
            "meaningless; choose another split (or give --allow-overlap, which marks the result)"
        )
    videos = shared_videos(trained_on, test.keys)
    if videos:
        key = min(videos)
        raise EvaluationError(
            f"{weights} was trained on other clips of the videos of {len(videos)} of the "
            f"{len(test.samples)} clips of --test-split {test.name}, such as {key} of "
            f"{videos[key]}: choose another split, or give --allow-overlap, which tells the "
            "accuracy without them too"
        )


def shared_videos(seen: Iterable[str], keys: Iterable[str]) -> dict[str, str]:
    """Those of `keys` that are of a video of which `seen` has a clip: key -> the video.

    A video is what `source_video` says of a key alone: of HMDB-51 the clips of one action in one
    film, which its authors keep together. (Their splits do share films: of the test clips of split
    1, 2 and 3, 451, 525 and 516 of 1,530 are of a film that has another action in the training.)
    """
    videos = {source_video(key) for key in seen}
    named = ((key, source_video(key)) for key in keys)
    return {key: video for key, video in named if video in videos}


def require_coverage(chosen: Selection, least: float) -> None:
    """Raise EvaluationError if fewer than the share `least` of a split's clips are there."""
    num, expected = len(chosen.samples), chosen.num_expected
    if num / expected < least:
        key = min(chosen.missing)
        raise EvaluationError(
            f"split {chosen.name!r} has {num:,} of its {expected:,} clips "
            f"({100 * num / expected:.4g} %), fewer than --min-coverage {100 * least:g} %; missing "
            f"is {key} ({chosen.missing[key]}), for example"
        )


def _stored(
    data: ShardFolder, name: str, splits: Sequence[str], streams: Sequence[str], flow: str
) -> Selection:
    """The samples of stored splits, some of which may have no label."""
    parts = [data.samples(split, streams, flow=flow) for split in splits]
    return Selection(
        name=name,
        samples=parts[0] if len(parts) == 1 else [sample for part in parts for sample in part],
        missing={key: why for split in splits for key, why in data.missing(split).items()},
        labels=data.labels,
        missing_labels={
            key: label for split in splits for key, label in data.missing_labels(split).items()
        },
    )


def _listed(stored: Selection, listed: Mapping[str, PurePosixPath]) -> Selection:
    """The samples of listed files, whatever suffix these had when the shards were made."""
    present = {sample.key: sample.label for sample in stored.samples}
    found: set[str] = set()
    absent: dict[str, str] = {}  # its folder, by key
    # Folder of a class -> its label. A class of which a clip is or was expected here is in scope.
    labels: dict[str, str | None] = {label_folder(label): label for label in stored.labels}
    for official, path in listed.items():
        candidates = dict.fromkeys((official, *candidate_keys(path)))
        key = next(filter(present.__contains__, candidates), None)
        if key is not None:
            found.add(key)
            labels.setdefault(path.parent.name, present[key])
            continue
        gap = next(filter(stored.missing.__contains__, candidates), None)
        if gap is not None:
            labels.setdefault(path.parent.name, stored.missing_labels.get(gap))
        absent[gap or official] = path.parent.name
    missing = [key for key, folder in absent.items() if folder in labels]
    return replace(
        stored,
        samples=[sample for sample in stored.samples if sample.key in found],
        missing={key: stored.missing.get(key, "not in the shards") for key in missing},
        missing_labels={
            key: label for key in missing if (label := labels[absent[key]]) is not None
        },
        out_of_scope=Counter(folder for folder in absent.values() if folder not in labels),
    )


def _matching(stored: Selection, path: Path) -> Selection:
    lines = [line.strip() for line in read_text(path, raises=EvaluationError).splitlines()]
    patterns = [line for line in lines if line and not line.startswith("#")]
    if not patterns:
        raise EvaluationError(f"{path} names no key")
    keys = frozenset(sample.key for sample in stored.samples) | stored.missing.keys()
    matched: set[str] = set()
    for pattern in patterns:
        hits = keys_matching(pattern, keys)
        if not hits:
            number = lines.index(pattern) + 1
            raise EvaluationError(f"{path}, line {number}: {pattern!r} matches no sample")
        matched |= hits
    return replace(
        stored,
        name=path.name,
        samples=[sample for sample in stored.samples if sample.key in matched],
        missing={key: why for key, why in stored.missing.items() if key in matched},
        missing_labels={k: label for k, label in stored.missing_labels.items() if k in matched},
    )


def keys_matching(pattern: str, keys: frozenset[str]) -> set[str]:
    """The keys that a line of a file of keys means: itself, or all that `*` and `?` fit."""
    if not set(pattern) & set("*?"):
        return {pattern} if pattern in keys else set()
    # Keys have no brackets: a bracket in a pattern is an ordinary character.
    plain = pattern.replace("[", "[[]")
    return {key for key in keys if fnmatchcase(key, plain)}


def _official(
    splits: Path | None, dataset: str, number: int, role: str
) -> dict[str, PurePosixPath]:
    """Key -> file, as the list of a role names it."""
    if splits is None:
        raise EvaluationError(
            f"{dataset}/{number} needs the official lists: give their folder (--splits DIR)"
        )
    folder = splits / dataset if (splits / dataset).is_dir() else splits
    chosen = {"ucf101": _ucf101, "hmdb51": _hmdb51}[dataset](folder, number)
    everything = [path for paths in chosen.values() for path in paths]
    keys = file_keys(everything)
    return {keys[path]: path for path in chosen["train" if role == "train" else "test"]}


def _ucf101(folder: Path, number: int) -> dict[str, list[PurePosixPath]]:
    """Role -> files. `trainlist01.txt`: lines `Class/file.avi label`; testlists have no label."""
    return {
        role: [
            PurePosixPath(line.split()[0])
            for line in _read(folder / f"{role}list{number:02d}.txt").splitlines()
            if line.strip()
        ]
        for role in ("train", "test")
    }


def _hmdb51(folder: Path, number: int) -> dict[str, list[PurePosixPath]]:
    """Role -> files. `<class>_test_split1.txt`: lines `file.avi N`, 1 train, 2 test, 0 unused."""
    lists = sorted(folder.glob(f"*_test_split{number}.txt"))
    if not lists:
        raise EvaluationError(f"{folder} holds no HMDB-51 list *_test_split{number}.txt")
    chosen: dict[str, list[PurePosixPath]] = {"train": [], "test": [], "neither": []}
    for path in lists:
        label = path.name.removesuffix(f"_test_split{number}.txt")
        for at, line in enumerate(_read(path).splitlines(), 1):
            if not line.strip():
                continue
            name, use = (*line.rsplit(maxsplit=1), "")[:2]
            if use not in ("0", "1", "2"):
                raise EvaluationError(f"{path}, line {at}, is not FILE.avi and 0, 1 or 2")
            role = {"1": "train", "2": "test"}.get(use, "neither")
            chosen[role].append(PurePosixPath(label) / name.strip())
    return chosen


def _read(path: Path) -> str:
    if not path.exists():
        raise EvaluationError(f"{path} is missing: the folder of the official lists holds it")
    return read_text(path, raises=EvaluationError)

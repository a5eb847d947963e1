"""Which samples a split names: a stored split, an official list, or a file of keys."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PurePosixPath

from kinetics_bench.data.views import seeded_rng
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.core.files import digest
from kinetics_tools.core.keys import candidate_keys, file_keys, source_video
from kinetics_tools.core.text import read_text
from kinetics_tools.shards.reader import Sample, ShardFolder

_OFFICIAL = re.compile(r"(ucf101|hmdb51)/([123])")


@dataclass(frozen=True)
class Selection:
    """The samples of a split.

    Attributes:
        name: the split.
        samples: those that the shards hold, all with a label.
        missing: key -> reason, of those that belong to the split and are not in the shards.
    """

    name: str
    samples: Sequence[Sample]
    missing: Mapping[str, str]

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
    if split in data.splits:
        chosen = Selection(split, *_stored(data, [split], streams, flow))
    elif match := _OFFICIAL.fullmatch(split):
        listed = _official(splits, match[1], int(match[2]), role)
        samples, missing = _stored(data, data.splits, streams, flow)
        chosen = _listed(split, samples, missing, listed)
    elif Path(split).is_file():
        samples, missing = _stored(data, data.splits, streams, flow)
        chosen = _matching(Path(split), samples, missing)
    else:
        raise EvaluationError(
            f"no split {split!r} for --{role}-split: {data.folder} holds "
            f"{', '.join(data.splits) or 'none'}; other choices are ucf101/1 to 3, hmdb51/1 to 3 "
            "(with --splits DIR), or the path of a file of keys"
        )
    unlabelled = next((sample.key for sample in chosen.samples if sample.label_id is None), None)
    if unlabelled is not None:
        raise EvaluationError(
            f"split {split!r} cannot be used for --{role}-split: sample {unlabelled} has no label"
        )
    if not chosen.samples:
        raise EvaluationError(
            f"split {split!r} has no sample with stream {' and '.join(streams)} in {data.folder}"
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
        Selection(
            f"held out of {selection.name}", [s for s in selection.samples if s.key in keys], {}
        ),
    )


def require_disjoint(train: Selection, test: Selection, *, role: str = "test") -> None:
    """Raise EvaluationError if a key is in both; `role`: the second one's."""
    shared = sorted(set(train.keys) & set(test.keys))
    if shared:
        raise EvaluationError(
            f"--train-split {train.name} and --{role}-split {test.name} share {len(shared)} keys, "
            f"such as {shared[0]}: an accuracy on training clips would be meaningless"
        )


def require_unseen(weights: str, trained_on: Collection[str], test: Selection) -> None:
    """Raise EvaluationError if weights were trained on a clip of the test.

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
            "meaningless; choose another split (evaluate: or give --allow-overlap, which marks the "
            "result)"
        )


def _stored(
    data: ShardFolder, names: Sequence[str], streams: Sequence[str], flow: str
) -> tuple[Sequence[Sample], dict[str, str]]:
    parts = [data.samples(name, streams, flow=flow) for name in names]
    samples = parts[0] if len(parts) == 1 else [sample for part in parts for sample in part]
    missing = {key: why for name in names for key, why in data.missing(name).items()}
    return samples, missing


def _listed(
    name: str,
    samples: Sequence[Sample],
    missing: Mapping[str, str],
    listed: Mapping[str, PurePosixPath],
) -> Selection:
    """The samples of listed files, whatever suffix these had when the shards were made."""
    present = {sample.key for sample in samples}
    found: set[str] = set()
    absent: dict[str, str] = {}
    for official, path in listed.items():
        candidates = dict.fromkeys((official, *candidate_keys(path)))
        key = next(filter(present.__contains__, candidates), None)
        if key is not None:
            found.add(key)
            continue
        gap = next(filter(missing.__contains__, candidates), official)
        absent[gap] = missing.get(gap, "not in the shards")
    return Selection(name, [sample for sample in samples if sample.key in found], absent)


def _matching(path: Path, samples: Sequence[Sample], missing: Mapping[str, str]) -> Selection:
    lines = [line.strip() for line in read_text(path, raises=EvaluationError).splitlines()]
    patterns = [line for line in lines if line and not line.startswith("#")]
    if not patterns:
        raise EvaluationError(f"{path} names no key")
    keys = frozenset(sample.key for sample in samples) | missing.keys()
    matched: set[str] = set()
    for pattern in patterns:
        hits = _hits(pattern, keys)
        if not hits:
            number = lines.index(pattern) + 1
            raise EvaluationError(f"{path}, line {number}: {pattern!r} matches no sample")
        matched |= hits
    found = [sample for sample in samples if sample.key in matched]
    return Selection(path.name, found, {key: why for key, why in missing.items() if key in matched})


def _hits(pattern: str, keys: frozenset[str]) -> set[str]:
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
        raise EvaluationError(f"{dataset}/{number} needs the official lists: give --splits DIR")
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
        raise EvaluationError(f"{path} is missing: --splits DIR holds the official lists")
    return read_text(path, raises=EvaluationError)

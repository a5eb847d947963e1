"""Shards as folders of JPEGs, the layout that denseflow, mmaction2 and TSN read.

    FOLDER/<split>/<label, spaces to underscores>/<key>/img_00001.jpg, flow_x_00001.jpg, flow_y_...
    FOLDER/<split>_list_rawframes.txt        one line per clip: <label>/<key> num_frames label_id
    FOLDER/<split>_list_rawframes_flow.txt   the same with the number of fields, one fewer

A clip's folder gets its name when it is whole. A file in it says what it was made from, so that
running again makes only what is missing or was made from something else. Clips of an earlier export
that the shards do not have now, or have with another label, are removed first, and the lists too:
whenever a run is stopped, no picture lies under a wrong label. Files that no export made stay.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence, Set
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kinetics_tools.core import engine
from kinetics_tools.core.errors import OutError, lookup
from kinetics_tools.core.files import (
    below,
    digest,
    hold_lock,
    name_in_errors,
    remove_leftovers,
    scratch_folder,
    write_text,
)
from kinetics_tools.core.keys import label_folder, require_own_folders
from kinetics_tools.core.units import Crash
from kinetics_tools.media.opencv import encode_jpeg
from kinetics_tools.shards.reader import Sample, ShardFolder
from kinetics_tools.shards.records import RGB

logger = logging.getLogger(__name__)
MADE_FROM = ".made-from"
BLOCK = 128  # frames in memory at once
BLOCK_BYTES = 2**28  # of them together
_PICTURE = re.compile(r"(img|flow_[xy])_\d{5,}\.jpg")  # any layout's
_FEWER = {"": 0, "_flow": 1}  # a list's kind: how many fewer than frames it counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What is written, and how.

    Attributes:
        flow: name of the flow.
        start_index: number of the first picture: 1 for mmaction2 and TSN, 0 for denseflow.
        images: whether the frames are written beside the flow.
        quality: of JPEG, 1 to 100.
    """

    flow: str
    start_index: int = 1
    images: bool = True
    quality: int = 95


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export left.

    Attributes:
        num_clips: whole in FOLDER now.
        num_made: of them, by this run.
        num_removed: of an earlier export, that this run removed.
        num_crashed: left to another run, since the process that made them died.
        lists: paths of the list files.
    """

    num_clips: int
    num_made: int
    num_removed: int
    num_crashed: int
    lists: tuple[Path, ...]


Unit = tuple[str, Sample]  # a split, and a sample in it


class Export:
    """An export into a folder, which is locked for it; see `open_export`.

    Attributes:
        todo: the samples that this run exports, with their splits.
        clips: iterator that exports those in `todo` and yields each when it is whole, or left to
            another run. First it removes what earlier exports left of other clips. It raises
            ShardError where a shard is damaged, or does not match; OSError when the disk is full.
    """

    def __init__(
        self, folder: Path, splits: Sequence[str], units: Sequence[Unit], layout: Layout, jobs: int
    ) -> None:
        self._folder, self._splits, self._units, self._layout = folder, splits, units, layout
        self.todo = [unit for unit in units if not _is_whole(folder, *unit, layout)]
        _refuse_others(folder / _clip_folder(*unit) for unit in self.todo)
        self.clips = self._make_clips(jobs)
        self._counts: Counter[str] = Counter()

    def _make_clips(self, jobs: int) -> Generator[Unit, None, None]:
        with scratch_folder(self._folder) as scratch:
            expected = {self._folder / _clip_folder(*unit) for unit in self._units}
            for split in self._splits:
                self._counts["removed"] += _remove_others(self._folder, split, expected, scratch)
            work = partial(export_clip, folder=self._folder, scratch=scratch, layout=self._layout)
            with closing(engine.run(self.todo, work, jobs=jobs)) as exported:
                for unit, result in exported:
                    self._counts["crashed" if isinstance(result, Crash) else "made"] += 1
                    yield unit

    def finish(self) -> Exported:
        """Write the lists of the clips that are whole; say what FOLDER holds."""
        return Exported(
            num_clips=len(self._units) - self._counts["crashed"],
            num_made=self._counts["made"],
            num_removed=self._counts["removed"],
            num_crashed=self._counts["crashed"],
            lists=tuple(_write_lists(self._folder, self._splits, self._units, self._layout)),
        )


@contextmanager
def open_export(
    shards: ShardFolder,
    folder: Path,
    layout: Layout,
    *,
    splits: Sequence[str] = (),
    jobs: int = 0,
) -> Iterator[Export]:
    """Lock FOLDER for the block, and find which samples are to be exported; may be repeated.

        with open_export(shards, folder, layout) as export:
            for split, sample in export.clips:
                print(sample.key)
            exported = export.finish()

    Codes are written as they are stored: floor(255 (v + bound) / (2 bound)), where denseflow rounds
    to the nearest; a reader that takes 127.5 for no motion is off by half a code.

    Args:
        shards: to read.
        folder: to fill.
        layout: what is written, and how.
        splits: of those in `shards`; empty for all of them.
        jobs: processes at once; 0 works in this one.

    Raises:
        UnknownNameError: there is no such split or flow.
        ShardError: some samples lack a stream.
        OutError: `folder` is in use, or a clip's folder there was not made by an export.
        KineticsError: two labels would share a folder.
    """
    require_own_folders(shards.labels)
    known = {name: name for name in shards.splits}
    splits = tuple(lookup("split", split, known) for split in splits or shards.splits)
    streams = (RGB, "flow") if layout.images else ("flow",)
    units = [
        (split, sample)
        for split in splits
        for sample in shards.samples(split, streams, flow=layout.flow)
    ]
    with hold_lock(folder):
        remove_leftovers(folder, deep=False)  # of lists; there may be 100 million pictures
        export = Export(folder, splits, units, layout, jobs)
        _log_other_splits(folder, shards.splits)
        with closing(export.clips):
            yield export


def _clip_folder(split: str, sample: Sample) -> Path:
    return below(Path(), split, label_folder(sample.label), sample.key)


def _fingerprint(sample: Sample, layout: Layout) -> str:
    """Digest of everything that a clip's pictures are made from."""
    places = (sample.rgb_at if layout.images else None, sample.flow_at)
    made_from = [None if place is None else place.sha256 for place in places]
    return digest({"layout": asdict(layout), "members": made_from, "codec": sample.codec})


def _is_whole(folder: Path, split: str, sample: Sample, layout: Layout) -> bool:
    made_from = folder / _clip_folder(split, sample) / MADE_FROM
    return made_from.is_file() and made_from.read_text() == _fingerprint(sample, layout)


def _refuse_others(clips: Iterable[Path]) -> None:
    """Raise OutError if one of the clips' folders is there, but was not made by an export."""
    for clip in clips:
        if clip.exists() and not (clip / MADE_FROM).is_file():
            raise OutError(f"{clip} was not made by an export; move it away")


def _log_other_splits(folder: Path, splits: Collection[str]) -> None:
    """Say which splits of other shards earlier exports left there: they may be wanted."""
    for split in sorted(folder.iterdir()):
        if split.name not in splits and any(split.glob(f"*/*/{MADE_FROM}")):
            logger.info("%s is a split of other shards; it is left alone", split)


# What earlier exports left


def _remove_others(folder: Path, split: str, expected: Set[Path], scratch: Path) -> int:
    """Remove a split's clips of earlier exports that are not expected, and its lists.

    A class without clips would be a class to a reader: where a class has no other clips, its folder
    goes with them, at once. Return how many clips are removed.
    """
    classes: dict[Path, set[Path]] = defaultdict(set)
    for made_from in (folder / split).glob(f"*/*/{MADE_FROM}"):
        clip = made_from.parent
        classes[clip.parent].add(clip)
    if classes:  # else no export was here, and the lists would be others'
        for kind in _FEWER:
            _list_path(folder, split, kind).unlink(missing_ok=True)
    num_removed = 0
    for name, clips in classes.items():
        others = clips - expected
        num_removed += len(others)
        if others == set(name.iterdir()) and not any(map(_foreign, others)):
            _discard(name, scratch)
            continue
        for clip in others:
            if _foreign(clip):
                _empty(clip, scratch)
                (clip / MADE_FROM).unlink()
            else:
                _discard(clip, scratch)
    return num_removed


def _foreign(clip: Path) -> list[Path]:
    """What is in a clip's folder, and was not made by an export."""
    return [
        path
        for path in clip.iterdir()
        if path.name != MADE_FROM and not _PICTURE.fullmatch(path.name)
    ]


@contextmanager
def _set_aside(path: Path, scratch: Path) -> Iterator[None]:
    """Remove a folder, but after the block: a kill would leave half of it in its place."""
    old = Path(tempfile.mkdtemp(prefix="old-", dir=scratch))
    path.rename(old / path.name)
    yield
    shutil.rmtree(old, ignore_errors=True)


def _discard(path: Path, scratch: Path) -> None:
    with _set_aside(path, scratch):
        pass


def _empty(clip: Path, scratch: Path) -> None:
    """Remove a clip's pictures from its folder, which holds other files too.

    MADE_FROM stays, but says nothing: whenever this is stopped, the clip is not whole, and is ours.
    """
    nothing = scratch / f"{MADE_FROM}-{os.getpid()}"
    nothing.write_text("")
    nothing.replace(clip / MADE_FROM)
    for path in clip.iterdir():
        if _PICTURE.fullmatch(path.name):
            path.unlink()


# One clip


def export_clip(unit: Unit, *, folder: Path, scratch: Path, layout: Layout) -> None:
    """Write a clip's folder, in place of one that was made from something else.

    Raises:
        ShardError: the sample cannot be read.
        OSError: the disk is full.
    """
    split, sample = unit
    final, new = (parent / _clip_folder(split, sample) for parent in (folder, scratch / "new"))
    shutil.rmtree(new, ignore_errors=True)  # of an attempt that died
    new.mkdir(parents=True)
    try:
        for name, jpeg in _pictures(sample, layout):
            with name_in_errors(new / name):
                (new / name).write_bytes(jpeg)
        (new / MADE_FROM).write_text(_fingerprint(sample, layout))
        _put(new, final, scratch)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _put(new: Path, final: Path, scratch: Path) -> None:
    """Give a clip's folder its name; what lies beside the old pictures stays there."""
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists() and _foreign(final):
        _empty(final, scratch)
        for path in sorted(new.iterdir(), reverse=True):  # MADE_FROM, whose name has a dot, is last
            path.rename(final / path.name)
        return
    with _set_aside(final, scratch) if final.exists() else nullcontext():
        new.rename(final)


def _pictures(sample: Sample, layout: Layout) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each picture of a clip."""
    to_jpeg = partial(encode_jpeg, quality=layout.quality)
    num_fields = sample.num_frames - 1
    for number, codes in _in_blocks(sample.codes, num_fields):
        for axis, name in enumerate("xy"):
            yield _name(f"flow_{name}", number, layout), to_jpeg(codes[..., axis])
    if not layout.images:
        return
    for number, frame in _in_blocks(sample.rgb, sample.num_frames):
        yield _name("img", number, layout), to_jpeg(frame)


def _in_blocks(
    read: Callable[[Sequence[int]], npt.NDArray[np.uint8]], total: int
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """All pictures of a clip with their numbers; memory holds BLOCK_BYTES, or one."""
    if total == 0:
        return
    at_once = min(max(BLOCK_BYTES // read([0]).nbytes, 1), BLOCK)
    for start in range(0, total, at_once):
        numbers = range(start, min(start + at_once, total))
        yield from zip(numbers, read(numbers), strict=True)


def _name(kind: str, number: int, layout: Layout) -> str:
    return f"{kind}_{number + layout.start_index:05d}.jpg"


def _list_path(folder: Path, split: str, kind: str) -> Path:
    return folder / f"{split}_list_rawframes{kind}.txt"


def _write_lists(
    folder: Path, splits: Iterable[str], units: Iterable[Unit], layout: Layout
) -> Iterator[Path]:
    """Write the lists of the clips that are whole; yield their paths."""
    samples: dict[str, list[Sample]] = {split: [] for split in splits}
    for split, sample in units:
        if _is_whole(folder, split, sample, layout):
            samples[split].append(sample)
    for split, own in samples.items():
        for kind, fewer in _FEWER.items():
            if kind or layout.images:
                path = _list_path(folder, split, kind)
                write_text(path, "".join(_line(sample, fewer) for sample in own))
                yield path


def _line(sample: Sample, fewer: int) -> str:
    words = [f"{label_folder(sample.label)}/{sample.key}", str(sample.num_frames - fewer)]
    if sample.label_id is not None:
        words.append(str(sample.label_id))
    return " ".join(words) + "\n"

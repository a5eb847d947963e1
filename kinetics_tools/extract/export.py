"""Shards as folders of JPEGs, the layout that denseflow, mmaction2 and TSN read.

    FOLDER/<split>/<label, spaces to underscores>/<key>/img_00001.jpg, flow_x_00001.jpg, flow_y_...
    FOLDER/<split>_list_rawframes.txt        one line per clip: <label>/<key> num_frames label_id
    FOLDER/<split>_list_rawframes_flow.txt   the same with the number of fields, one fewer

A clip's folder gets its name when it is whole. A file in it says what it was made from, so that
running again makes only what is missing or was made from something else.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from kinetics_tools.core import engine
from kinetics_tools.core.errors import OutError, lookup
from kinetics_tools.core.files import digest, hold_lock, name_in_errors, scratch_folder, write_text
from kinetics_tools.core.keys import label_folder, require_own_folders
from kinetics_tools.core.units import Crash
from kinetics_tools.media.opencv import encode_jpeg
from kinetics_tools.shards.reader import Sample, ShardFolder
from kinetics_tools.shards.records import RGB

MADE_FROM = ".made-from"
BLOCK = 128  # frames in memory at once


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
        num_crashed: left to another run, since the process that made them died.
        lists: paths of the list files.
    """

    num_clips: int
    num_made: int
    num_crashed: int
    lists: tuple[Path, ...]


Unit = tuple[str, Sample]  # a split, and a sample in it


class Export:
    """An export into a folder, which is locked for it; see `open_export`.

    Attributes:
        todo: the samples that this run exports, with their splits.
        clips: iterator that exports those in `todo` and yields each when it is whole, or left to
            another run. It raises ShardError where a shard is damaged, or does not match; OSError
            when the disk is full.
    """

    def __init__(self, folder: Path, units: Sequence[Unit], layout: Layout, jobs: int) -> None:
        self._folder, self._units, self._layout = folder, units, layout
        self.todo = [unit for unit in units if not _is_whole(folder, *unit, layout)]
        self.clips = self._make_clips(jobs)
        self._counts: Counter[str] = Counter()

    def _make_clips(self, jobs: int) -> Generator[Unit, None, None]:
        with scratch_folder(self._folder) as scratch:
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
            num_crashed=self._counts["crashed"],
            lists=tuple(_write_lists(self._folder, self._units, self._layout)),
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
        OutError: `folder` is in use.
        KineticsError: two labels would share a folder.
    """
    require_own_folders(shards.labels)
    known = {name: name for name in shards.splits}
    streams = (RGB, "flow") if layout.images else ("flow",)
    units = [
        (split, sample)
        for split in splits or shards.splits
        for sample in shards.samples(lookup("split", split, known), streams, flow=layout.flow)
    ]
    with hold_lock(folder):
        export = Export(folder, units, layout, jobs)
        with closing(export.clips):
            yield export


def _clip_folder(split: str, sample: Sample) -> Path:
    return Path(split, label_folder(sample.label), sample.key)


def _fingerprint(sample: Sample, layout: Layout) -> str:
    """Digest of everything that a clip's pictures are made from."""
    places = (sample.rgb_at if layout.images else None, sample.flow_at)
    made_from = [None if place is None else place.sha256 for place in places]
    return digest({"layout": asdict(layout), "members": made_from, "codec": sample.codec})


def _is_whole(folder: Path, split: str, sample: Sample, layout: Layout) -> bool:
    made_from = folder / _clip_folder(split, sample) / MADE_FROM
    return made_from.is_file() and made_from.read_text() == _fingerprint(sample, layout)


def export_clip(unit: Unit, *, folder: Path, scratch: Path, layout: Layout) -> None:
    """Write a clip's folder, in place of one that was made from something else.

    A folder is moved to scratch before it is deleted: a kill would leave half of it in its place.

    Raises:
        OutError: a folder with that name was not made by an export.
        ShardError: the sample cannot be read.
        OSError: the disk is full.
    """
    split, sample = unit
    final, new, old = (
        parent / _clip_folder(split, sample)
        for parent in (folder, scratch / "new", scratch / "old")
    )
    for leftover in (new, old):  # of an attempt that died
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        for name, jpeg in _pictures(sample, layout):
            with name_in_errors(new / name):
                (new / name).write_bytes(jpeg)
        (new / MADE_FROM).write_text(_fingerprint(sample, layout))
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            if not (final / MADE_FROM).is_file():
                raise OutError(f"{final} was not made by an export; move it away")
            old.parent.mkdir(parents=True, exist_ok=True)
            final.rename(old)
        new.rename(final)
    finally:
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _pictures(sample: Sample, layout: Layout) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each picture of a clip."""
    to_jpeg = partial(encode_jpeg, quality=layout.quality)
    num_fields = sample.num_frames - 1
    for start in range(0, num_fields, BLOCK):
        numbers = range(start, min(start + BLOCK, num_fields))
        for number, codes in zip(numbers, sample.codes(numbers), strict=True):
            for axis, name in enumerate("xy"):
                yield _name(f"flow_{name}", number, layout), to_jpeg(codes[..., axis])
    if not layout.images:
        return
    for start in range(0, sample.num_frames, BLOCK):
        numbers = range(start, min(start + BLOCK, sample.num_frames))
        for number, frame in zip(numbers, sample.rgb(numbers), strict=True):
            yield _name("img", number, layout), to_jpeg(frame)


def _name(kind: str, number: int, layout: Layout) -> str:
    return f"{kind}_{number + layout.start_index:05d}.jpg"


def _write_lists(folder: Path, units: Iterable[Unit], layout: Layout) -> Iterator[Path]:
    """Write the lists of the clips that are whole; yield their paths."""
    splits: dict[str, list[Sample]] = {}
    for split, sample in units:
        own = splits.setdefault(split, [])
        if _is_whole(folder, split, sample, layout):
            own.append(sample)
    kinds = {"": 0, "_flow": 1} if layout.images else {"_flow": 1}
    for split, samples in splits.items():
        for kind, fewer in kinds.items():
            path = folder / f"{split}_list_rawframes{kind}.txt"
            write_text(path, "".join(_line(sample, fewer) for sample in samples))
            yield path


def _line(sample: Sample, fewer: int) -> str:
    words = [f"{label_folder(sample.label)}/{sample.key}", str(sample.num_frames - fewer)]
    if sample.label_id is not None:
        words.append(str(sample.label_id))
    return " ".join(words) + "\n"

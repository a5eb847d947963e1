"""The CVDF mirror: Kinetics' clips, cut and packed into tars of about a thousand each.

A path list names the tars of a split. Only the tars themselves say which clip is in which tar, so
the members of every tar that was read are remembered, and a tar that is known to hold nothing
wanted is not read again. Tars are streamed, each once, and never stored: a clip is written to the
scratch folder when it arrives, and goes from there to a worker while the next clips arrive.

The tasks of a job share the tars. Each task writes to OUT what it found in its tars, and which of
them it could not read: a clip that is in no task's tars can go on to the next source.

Limits, whatever is wanted: on disk, 32 clips or 256 MiB of clips that wait for a worker (at least
one clip, and one that is being written; none is larger than 1 GiB), beside those that workers have;
in memory, the buffers of one connection, the keys of one tar, and the wanted segments.
"""

import logging
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, urljoin, urlsplit

from kinetics_tools.core import http_client
from kinetics_tools.core.console import size_text
from kinetics_tools.core.errors import KineticsError, Reason, SourceError
from kinetics_tools.core.http_client import Remote
from kinetics_tools.core.keys import is_key
from kinetics_tools.core.prefetch import prefetch
from kinetics_tools.core.text import decode_text
from kinetics_tools.core.units import Part
from kinetics_tools.dataset.ledger import History
from kinetics_tools.dataset.manifest import Segment
from kinetics_tools.download.sources.base import Source, SourceUnit, ready_clip
from kinetics_tools.download.sources.mirror_index import (
    NOT_SAID,
    Contents,
    Search,
    TarIndex,
    of_tar,
    short_hash,
)
from kinetics_tools.download.sources.tar_stream import TarVideo, videos

logger = logging.getLogger(__name__)

OFFICIAL = "https://s3.amazonaws.com/kinetics"
SPLITS = ("train", "val", "test")
MAX_WAITING_CLIPS = 32
MAX_WAITING_BYTES = 2**28
MIN_SAVED_BYTES = 2**24
PARALLEL_REQUESTS = 8  # for sizes
MAX_FAILURES = 3  # tars in a row that could not be read: the mirror is down
ID_LENGTH = 11
SHARED = ".mirror"  # in OUT: what each task found in its tars, for the others
_OFFICIAL = re.compile(r"^https?://s3\.amazonaws\.com/kinetics/")
_PARTS = re.compile(r"(https?://[^/]*)?(.*?)(\?[^?=/]+=.*)?", re.IGNORECASE)
_TAR = re.compile(r"\.(tar|tgz)\b", re.IGNORECASE)
_SAFE = "/:@!$&'()*+,;=~%"  # what `quote` leaves as it is in a path
_OTHER_KEY = re.compile(r".{11}_\d{6}_\d{6}")
_DOWN = frozenset({Reason.NETWORK, Reason.SERVER, Reason.RATE_LIMITED})


def make(
    cache: Path,
    out: Path,
    *,
    base: str = OFFICIAL,
    lists: Mapping[str, str] | None = None,
    is_kinetics400: bool = True,
) -> tuple[Source, ...]:
    """The sources that `--source cvdf` means: the mirror and, for Kinetics-400, its replacements.

    Args:
        cache: the user's cache folder.
        out: the folder to fill.
        base: the mirror's address; the files of Kinetics-400 are below its `400/`.
        lists: addresses of path lists by split; they replace or extend those of Kinetics-400.
        is_kinetics400: whether the manifest is of Kinetics-400, whose path lists are known.

    Raises:
        KineticsError: `base` is not an http(s) address.
    """
    base = base.rstrip("/")
    if urlsplit(base).scheme not in ("http", "https"):
        raise KineticsError(f"the mirror's address {base!r} does not begin with http(s)://")
    known = {split: f"{base}/400/{split}/k400_{split}_path.txt" for split in SPLITS}
    mirror = Mirror(
        cache=cache,
        out=out,
        base=base,
        lists=(known if is_kinetics400 else {}) | dict(lists or {}),
    )
    if not is_kinetics400:
        return (mirror,)
    return mirror, Replacement(address=f"{base}/400/replacement_for_corrupted_k400.tgz")


def parse_list(content: bytes, address: str, base: str = OFFICIAL) -> list[str]:
    """The addresses in a path list, each once.

    Args:
        content: the list's bytes: one address per line, absolute or relative to `address`. Its
            path may be written as the file is named, with spaces and the like, or quoted.
        address: of the list.
        base: replaces the official address at the beginning of a line.

    Raises:
        KineticsError: a line is not an address, or the list is empty.
    """
    found: dict[str, None] = {}
    lines = decode_text(content, address, errors="surrogateescape").splitlines()
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        whole = _absolute(_OFFICIAL.sub(lambda _: f"{base.rstrip('/')}/", line), address)
        if whole is None:
            raise KineticsError(
                f"{address}, line {number}: {line[:80]!r} is not an address; "
                "a path list has the address of one tar per line"
            )
        found[whole] = None
    if not found:
        raise KineticsError(f"{address} names no tar; give a path list with one address per line")
    return list(found)


def _absolute(line: str, address: str) -> str | None:
    """The http(s) address that a line of the list at `address` means, quoted, or None.

    A `?` begins a query only where `name=value` follows, and a `%` an escape only where two
    hexadecimal digits do; any other, and each `#`, is a part of the file's name.
    """
    if re.search(r"[\x00-\x1f\x7f<>\"]", line):
        return None
    match = _PARTS.fullmatch(line)
    assert match is not None  # it matches every line
    host, path, query = (part or "" for part in match.groups())
    if re.search(r"\s", host) or (not host and " " in path and not _TAR.search(path)):
        return None  # the second is a sentence, of a page that is no list
    escaped = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", path)
    name = quote(escaped, safe=_SAFE, errors="surrogateescape")
    parameters = quote(query, safe=f"?{_SAFE}", errors="surrogateescape")
    try:
        whole = urljoin(address, f"{host}{name}{parameters}")
        parts = urlsplit(whole)
    except ValueError:
        return None
    return whole if parts.scheme in ("http", "https") and parts.netloc else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReadyClips(Source):
    """A source of ready clips in tars.

    Attributes:
        timeout_s: how long to wait for a byte.
        pauses_s: before each further try.
    """

    timeout_s: float = http_client.TIMEOUT_S
    pauses_s: Sequence[float] = http_client.PAUSES_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror(_ReadyClips):
    """`cvdf`: the tars that the path lists name.

    Attributes:
        cache: the user's cache folder.
        out: the folder to fill, which all tasks of a job see.
        lists: the path list's address, by split.
        base: replaces the official address in the lists' lines.
    """

    by_video: ClassVar[bool] = False
    name: str = field(default="cvdf", init=False)
    cache: Path
    out: Path
    lists: Mapping[str, str]
    base: str = OFFICIAL

    def check(self, segments: Sequence[Segment]) -> None:
        """See that every split has a path list.

        Raises:
            KineticsError: one has none.
        """
        for split in {segment.split: None for segment in segments}:
            if split not in self.lists:
                raise KineticsError(
                    f"the mirror has no path list for split {split!r}; give one with "
                    f"--cvdf-list {split}=ADDRESS, or --labels kinetics400 if it is of that"
                )

    def units(
        self, segments: Sequence[Segment], part: Part, scratch: Path
    ) -> Generator[SourceUnit, None, None]:
        """Yield each wanted clip as it arrives, then the segments that the mirror does not have.

        A part reads its share of the path list. Segments that only another part's tars may still
        hold get no unit.

        Raises:
            KineticsError: a split has no path list, or the file at its address is not one.
            OSError: the disk is full.
        """
        self.check(segments)
        by_split: dict[str, dict[str, Segment]] = {}
        for segment in segments:
            by_split.setdefault(segment.split, {})[segment.key] = segment
        lists = {split: self._list(split) for split in by_split}  # all lists before any tar
        index = TarIndex(self.cache / "cvdf", self.out / SHARED if part.count > 1 else None)
        searches = []
        for split, tars in lists.items():
            if isinstance(tars, SourceError):
                yield SourceUnit(tuple(by_split[split].values()), error=tars)
                continue
            answers = self._request_sizes(part.of(tars))
            searches.append(Search(split, by_split[split], tars, part, answers, index))
        self._announce(searches)
        yield from _prefetched(self._read(searches, scratch))

    def _announce(self, searches: Sequence[Search]) -> None:
        turns = [(search, address) for search in searches for address in search]
        sizes = [search.size(address) for search, address in turns]
        num_unknown = sizes.count(None)
        logger.info(
            "%s: %d clips wanted; %d of %d tars to read, at most %s%s",
            self.name,
            sum(len(search.wanted) for search in searches),
            len(turns),
            sum(len(search.own) for search in searches),
            size_text(sum(size or 0 for size in sizes)),
            f" and {num_unknown} tars of unknown size" if num_unknown else "",
        )

    def _list(self, split: str) -> list[str] | SourceError:
        """The addresses of a split's tars, or why they cannot be fetched now."""
        address = self.lists[split]
        path = self.cache / "cvdf" / f"{short_hash(address)}.txt"
        try:
            http_client.fetch(address, path, timeout_s=self.timeout_s, pauses_s=self.pauses_s)
        except SourceError as error:
            if not path.exists():
                failure = of_tar(address, error)
                return SourceError(failure.reason, f"no path list: {failure.detail}")
            logger.warning("%s; using the copy of an earlier run", error.detail)
        return parse_list(path.read_bytes(), address, self.base)

    def _request_sizes(self, addresses: Sequence[str]) -> dict[str, Remote | SourceError]:
        """Size and version of each tar, or why they are unknown.

        After the first tar for which no answer comes, no other is requested.
        """
        is_down = threading.Event()

        def request(address: str) -> Remote | SourceError:
            if is_down.is_set():
                return SourceError(Reason.NETWORK, "not requested: the mirror does not answer")
            try:
                return http_client.size_of(
                    address, timeout_s=self.timeout_s, pauses_s=tuple(self.pauses_s)[:1]
                )
            except SourceError as error:
                if error.reason is Reason.NETWORK:
                    is_down.set()
                return error

        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            return dict(zip(addresses, pool.map(request, addresses), strict=True))

    def _read(
        self, searches: Iterable[Search], scratch: Path
    ) -> Generator[SourceUnit | None, None, None]:
        """Read the tars; None for a member that is not wanted."""
        for search in searches:
            failures: list[SourceError] = []  # in a row
            for address in search:
                if len(failures) >= MAX_FAILURES:
                    search.learn(address, Contents(error=_given_up(failures)))
                    continue
                yield from self._read_tar(search, address, scratch)
                error = search.broken.get(address)
                failures = [*failures, error] if error and error.reason in _DOWN else []
            yield from self._rest(search)

    def _read_tar(
        self, search: Search, address: str, scratch: Path
    ) -> Generator[SourceUnit | None, None, None]:
        seen: list[str] = []
        remote = NOT_SAID
        is_complete = False
        error = None
        try:
            with http_client.open_stream(
                address, timeout_s=self.timeout_s, pauses_s=self.pauses_s
            ) as stream:
                remote = stream.remote
                for member in videos(stream):
                    segment = search.wanted.get(member.stem)
                    yield None if segment is None else _save(segment, member, scratch)
                    if is_key(member.stem):
                        seen.append(member.stem)
                    if segment is not None:
                        search.found(segment.key)
                    if not search.may_be_in(address) and _has_long_rest(remote, stream.position):
                        return
                is_complete = True
        except SourceError as failure:
            error = of_tar(address, failure)
        finally:
            contents = Contents(remote, is_complete, tuple(seen), error, num_given=len(seen))
            search.learn(address, contents)

    def _rest(self, search: Search) -> Iterator[SourceUnit]:
        """The segments that were not found, after all of this task's tars."""
        missing, num_waiting = search.rest()
        if num_waiting:
            logger.info(
                "%s: %d clips of split %s wait for the tars of other tasks",
                self.name,
                num_waiting,
                search.split,
            )
        for error, segments in missing:
            yield SourceUnit(segments, error=error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement(_ReadyClips):
    """`cvdf-replacement`: CVDF's replacements for the clips that are corrupt in its tars.

    Attributes:
        address: of the tar. Its members are named by key, or by video alone.
    """

    name: str = field(default="cvdf-replacement", init=False)
    address: str

    def wants(self, history: History) -> bool:
        """Whether the mirror's clip was damaged."""
        return history.failed_with("cvdf") is Reason.DAMAGED

    def units(
        self,
        segments: Sequence[Segment],
        part: Part,  # noqa: ARG002 - these are the part's segments already
        scratch: Path,
    ) -> Generator[SourceUnit, None, None]:
        """Yield each wanted clip as it arrives, then the segments that are not in the tar.

        Raises:
            OSError: the disk is full.
        """
        if segments:
            yield from _prefetched(self._read(segments, scratch))

    def _read(
        self, segments: Sequence[Segment], scratch: Path
    ) -> Generator[SourceUnit | None, None, None]:
        wanted = {segment.key: segment for segment in segments}
        error = SourceError(Reason.GONE, "not among the replacements")
        try:
            with http_client.open_stream(
                self.address, timeout_s=self.timeout_s, pauses_s=self.pauses_s
            ) as stream:
                size = size_text(stream.remote.size or 0)
                logger.info("%s: %d clips wanted; reading %s", self.name, len(wanted), size)
                match = _matcher(segments)
                for member in videos(stream):
                    segment = wanted.get(match(member.stem))
                    yield None if segment is None else _save(segment, member, scratch)
                    if segment is not None:
                        del wanted[segment.key]
                        if not wanted:
                            return
        except SourceError as broken:
            error = of_tar(self.address, broken)
        yield SourceUnit(tuple(wanted.values()), error=error)


def _matcher(segments: Sequence[Segment]) -> Callable[[str], str]:
    """A function from a replacement's name to the key of its segment, "" where it has none.

    A name that is only a video's id means the one segment of that video, where it has one.
    """
    keys = {segment.key for segment in segments}
    by_video: dict[str, set[str]] = {}
    for segment in segments:
        by_video.setdefault(segment.youtube_id, set()).add(segment.key)

    def match(stem: str) -> str:
        if stem in keys:
            return stem
        own = by_video.get(stem[:ID_LENGTH], set())
        return next(iter(own)) if len(own) == 1 and not _OTHER_KEY.fullmatch(stem) else ""

    return match


def _prefetched(
    units: Generator[SourceUnit | None, None, None],
) -> Generator[SourceUnit, None, None]:
    """Units, read in a thread within the limits that this module states."""
    with closing(
        prefetch(units, _num_bytes, max_items=MAX_WAITING_CLIPS, max_bytes=MAX_WAITING_BYTES)
    ) as waiting:
        yield from waiting


def _num_bytes(unit: SourceUnit) -> int:
    return sum(file.path.stat().st_size for files in unit.files.values() for file in files)


def _save(segment: Segment, member: TarVideo, scratch: Path) -> SourceUnit:
    """Write a clip to the scratch folder; its name there is its key."""
    path = scratch / f"{segment.key}{member.suffix}"
    member.save(path)
    return SourceUnit((segment,), {segment.key: (ready_clip(path),)})


def _has_long_rest(remote: Remote, position: int) -> bool:
    """Whether to leave out the rest of a tar; a short one is read, so that all of it is known."""
    return remote.size is None or remote.size - position > MIN_SAVED_BYTES


def _given_up(failures: Sequence[SourceError]) -> SourceError:
    last = failures[-1]
    detail = f"given up after {len(failures)} tars in a row, the last {last.detail}"
    return SourceError(last.reason, detail)

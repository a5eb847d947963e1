"""The CVDF mirror: Kinetics' clips, cut and packed into tars of about a thousand each.

A path list names the tars of a split. Nothing says which clip is in which tar but the tars
themselves, so the members of every tar that was read are remembered, and a tar that is known to
hold nothing wanted is not read again. Tars are streamed, each once, and never stored: a clip goes
to the scratch folder when it comes, and from there to a worker, while the next ones come.

The tasks of a job share the tars out. What each saw in its own, and which of them it could not
read, the others find in OUT: a clip that is in nobody's tars can go on to the next source.

What this needs, whatever is wanted: on disk, 32 clips or 256 MiB of clips that wait for a worker
(one clip at least, and one that is being written; none is larger than 1 GiB), beside those in the
workers' hands; in memory, one connection's buffers, the keys of one tar, and the wanted segments.
"""

import logging
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from kinetics_tools.core import http_client
from kinetics_tools.core.console import size_text
from kinetics_tools.core.errors import KineticsError, Reason, SourceError
from kinetics_tools.core.http_client import Remote
from kinetics_tools.core.keys import is_key
from kinetics_tools.core.prefetch import prefetch
from kinetics_tools.core.units import Part
from kinetics_tools.dataset.ledger import History
from kinetics_tools.dataset.manifest import Segment
from kinetics_tools.download.sources.base import Footage, Opened, Source, SourceUnit
from kinetics_tools.download.sources.mirror_index import (
    NOT_SAID,
    Contents,
    Memory,
    Search,
    of_tar,
    short_hash,
)
from kinetics_tools.download.sources.tar_stream import TarVideo, videos

logger = logging.getLogger(__name__)

OFFICIAL = "https://s3.amazonaws.com/kinetics"
SPLITS = ("train", "val", "test")
CLIPS_AHEAD = 32
BYTES_AHEAD = 2**28
SHORT_REST_BYTES = 2**24
ASKED_AT_ONCE = 8  # sizes
GIVE_UP_AFTER = 3  # tars in a row that could not be had: the mirror is down
ID_LENGTH = 11
SHARED = ".mirror"  # in OUT: what tasks tell each other of tars
_OFFICIAL = re.compile(r"^https?://s3\.amazonaws\.com/kinetics/")
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
    """The sources that `--source cvdf` names: the mirror and, for Kinetics-400, its replacements.

    Args:
        cache: the user's cache folder.
        out: the folder to fill.
        base: the mirror's address, of which `400/...` are the files of Kinetics-400.
        lists: addresses of path lists by split, beside or instead of those of Kinetics-400.
        is_kinetics400: whether the lists of Kinetics-400 are those of the manifest.

    Raises:
        KineticsError: `base` is no address.
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
        content: of the list: an address a line, absolute or relative to the list's own.
        address: the list's own.
        base: takes the place of the official address at the beginning of a line.

    Raises:
        KineticsError: a line is no address, or there is none.
    """
    found: dict[str, None] = {}
    lines = content.decode("utf-8-sig", "replace").splitlines()
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        whole = _absolute(_OFFICIAL.sub(lambda _: f"{base.rstrip('/')}/", line), address)
        if whole is None:
            raise KineticsError(
                f"{address}, line {number}: {line[:80]!r} is not an address; "
                "a path list has the address of one tar a line"
            )
        found[whole] = None
    if not found:
        raise KineticsError(f"{address} names no tar; give a path list with one address a line")
    return list(found)


def _absolute(line: str, address: str) -> str | None:
    """The http(s) address that a line of the list at `address` means, or None."""
    if not line.isprintable() or re.search(r"[\s<>\"]", line):
        return None
    try:
        whole = urljoin(address, line)
        parts = urlsplit(whole)
    except ValueError:
        return None
    return whole if parts.scheme in ("http", "https") and parts.netloc else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """`cvdf`: the tars that the path lists name.

    Attributes:
        cache: the user's cache folder.
        out: the folder to fill, which all tasks of a job see.
        lists: the path list's address, by split.
        base: stands in for the official address in the lists' lines.
        timeout_s: how long to wait for a byte.
        pauses_s: before each further try.
    """

    cache: Path
    out: Path
    lists: Mapping[str, str]
    base: str = OFFICIAL
    timeout_s: float = http_client.TIMEOUT_S
    pauses_s: Sequence[float] = http_client.PAUSES_S
    name: str = field(default="cvdf", init=False)
    by_video: bool = field(default=False, init=False)

    def wants(self, history: History) -> bool:  # noqa: ARG002 - it may have any clip
        """True: it may have any clip."""
        return True

    def check(self, segments: Sequence[Segment]) -> None:
        """Look for a split of which no path list is known.

        Raises:
            KineticsError: there is one.
        """
        for split in {segment.split: None for segment in segments}:
            if split not in self.lists:
                raise KineticsError(
                    f"the mirror has no path list for split {split!r}; give one with "
                    f"--cvdf-list {split}=ADDRESS, or --labels kinetics400 if it is of that"
                )

    def lockout(self) -> None:
        """Never: who is refused by the mirror is told so at each of its files."""

    def units(
        self, segments: Sequence[Segment], part: Part, scratch: Path
    ) -> Generator[SourceUnit, None, None]:
        """Yield each wanted clip as it comes, then what the mirror does not have.

        Shares are of the path list: those segments that only another task's tars can still hold
        get no unit.

        Raises:
            KineticsError: no path list for a split, or what is there is none.
            OSError: the disk is full.
        """
        self.check(segments)
        by_split: dict[str, dict[str, Segment]] = {}
        for segment in segments:
            by_split.setdefault(segment.split, {})[segment.key] = segment
        lists = {split: self._list(split) for split in by_split}  # all lists before any tar
        memory = Memory(self.cache / "cvdf", self.out / SHARED if part.count > 1 else None)
        searches = []
        for split, tars in lists.items():
            if isinstance(tars, SourceError):
                yield SourceUnit(tuple(by_split[split].values()), error=tars)
                continue
            answers = self._ask(part.of(tars))
            searches.append(Search(split, by_split[split], tars, part, answers, memory))
        self._announce(searches)
        yield from _ahead(self._read(searches, scratch))

    def open(self, unit: SourceUnit, into: Path) -> Opened:  # noqa: ARG002 - the clip lies there
        """Nothing beyond the ready clip."""
        return _NoFootage()

    def versions(self) -> Mapping[str, str]:
        """None that matter."""
        return {}

    def _announce(self, searches: Sequence[Search]) -> None:
        turns = [(search, address) for search in searches for address in search]
        sizes = [search.size(address) for search, address in turns]
        unsaid = sizes.count(None)
        logger.info(
            "%s: %d clips wanted; %d of %d tars to read, at most %s%s",
            self.name,
            sum(len(search.wanted) for search in searches),
            len(turns),
            sum(len(search.own) for search in searches),
            size_text(sum(size or 0 for size in sizes)),
            f" and {unsaid} tars that do not say their size" if unsaid else "",
        )

    def _list(self, split: str) -> list[str] | SourceError:
        """The addresses of a split's tars, or why they cannot be had now."""
        address = self.lists[split]
        path = self.cache / "cvdf" / f"{short_hash(address)}.txt"
        try:
            http_client.fetch(address, path, timeout_s=self.timeout_s, pauses_s=self.pauses_s)
        except SourceError as error:
            if not path.exists():
                failure = of_tar(address, error)
                return SourceError(failure.reason, f"no path list: {failure.detail}")
            logger.warning("%s; going on with the copy of an earlier run", error.detail)
        return parse_list(path.read_bytes(), address, self.base)

    def _ask(self, addresses: Sequence[str]) -> dict[str, Remote | SourceError]:
        """What the mirror says of tars, or why it says nothing; the network is given up once."""
        is_down = threading.Event()

        def ask(address: str) -> Remote | SourceError:
            if is_down.is_set():
                return SourceError(Reason.NETWORK, "not asked: the mirror does not answer")
            try:
                return http_client.size_of(
                    address, timeout_s=self.timeout_s, pauses_s=tuple(self.pauses_s)[:1]
                )
            except SourceError as error:
                if error.reason is Reason.NETWORK:
                    is_down.set()
                return error

        with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
            return dict(zip(addresses, pool.map(ask, addresses), strict=True))

    def _read(
        self, searches: Iterable[Search], scratch: Path
    ) -> Generator[SourceUnit | None, None, None]:
        """Read what has to be read; None for a member that is not wanted."""
        for search in searches:
            failures: list[SourceError] = []  # in a row
            for address in search:
                if len(failures) >= GIVE_UP_AFTER:
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
                    yield None if segment is None else _saved(segment, member, scratch)
                    if is_key(member.stem):
                        seen.append(member.stem)
                    if segment is not None:
                        search.found(segment.key)
                    if not search.may_be_in(address) and _is_long(remote, stream.position):
                        return
                is_complete = True
        except SourceError as failure:
            error = of_tar(address, failure)
        finally:
            contents = Contents(remote, is_complete, tuple(seen), error, num_given=len(seen))
            search.learn(address, contents)

    def _rest(self, search: Search) -> Iterator[SourceUnit]:
        """What was not found, once all own tars had their turn."""
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
class Replacement:
    """`cvdf-replacement`: CVDF's second edition of the clips that came corrupt in its tars.

    Attributes:
        address: of the tar. Its members are named by key, or by video alone.
        timeout_s: how long to wait for a byte.
        pauses_s: before each further try.
    """

    address: str
    timeout_s: float = http_client.TIMEOUT_S
    pauses_s: Sequence[float] = http_client.PAUSES_S
    name: str = field(default="cvdf-replacement", init=False)
    by_video: bool = field(default=True, init=False)

    def wants(self, history: History) -> bool:
        """Whether the mirror's clip came damaged."""
        return history.failed_with("cvdf") is Reason.DAMAGED

    def check(self, segments: Sequence[Segment]) -> None:
        """Nothing can be wrong."""

    def lockout(self) -> None:
        """Never: who is refused by the mirror is told so at each of its files."""

    def units(
        self,
        segments: Sequence[Segment],
        part: Part,  # noqa: ARG002 - the caller shares videos out
        scratch: Path,
    ) -> Generator[SourceUnit, None, None]:
        """Yield each wanted clip as it comes, then what is not in the tar.

        Raises:
            OSError: the disk is full.
        """
        if segments:
            yield from _ahead(self._read(segments, scratch))

    def open(self, unit: SourceUnit, into: Path) -> Opened:  # noqa: ARG002 - the clip lies there
        """Nothing beyond the ready clip."""
        return _NoFootage()

    def versions(self) -> Mapping[str, str]:
        """None that matter."""
        return {}

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
                    yield None if segment is None else _saved(segment, member, scratch)
                    if segment is not None:
                        del wanted[segment.key]
                        if not wanted:
                            return
        except SourceError as broken:
            error = of_tar(self.address, broken)
        yield SourceUnit(tuple(wanted.values()), error=error)


def _matcher(segments: Sequence[Segment]) -> Callable[[str], str]:
    """Tells the key of the segment that a replacement's name means; empty for none.

    A name that is no key means the one segment that its video has among `segments`.
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


class _NoFootage:
    """A mirror's clip is ready; there is nothing to cut it from."""

    def footage(self, segment: Segment) -> Iterator[Footage]:
        raise SourceError(Reason.GONE, f"the mirror has no video of {segment.key}")


def _ahead(units: Generator[SourceUnit | None, None, None]) -> Generator[SourceUnit, None, None]:
    """Units, read in a thread within the bounds that this module states."""
    with closing(
        prefetch(units, _num_bytes, max_items=CLIPS_AHEAD, max_bytes=BYTES_AHEAD)
    ) as ahead:
        yield from ahead


def _num_bytes(unit: SourceUnit) -> int:
    return sum(path.stat().st_size for path in unit.ready.values())


def _saved(segment: Segment, member: TarVideo, scratch: Path) -> SourceUnit:
    """A clip, brought to the scratch folder under a name of ours."""
    path = scratch / f"{segment.key}{member.suffix}"
    member.save(path)
    return SourceUnit((segment,), ready={segment.key: path})


def _is_long(remote: Remote, position: int) -> bool:
    """Whether the rest of a tar is worth saving; else it is read, and all of the tar known."""
    return remote.size is None or remote.size - position > SHORT_REST_BYTES


def _given_up(failures: Sequence[SourceError]) -> SourceError:
    last = failures[-1]
    detail = f"given up after {len(failures)} tars in a row, the last {last.detail}"
    return SourceError(last.reason, detail)

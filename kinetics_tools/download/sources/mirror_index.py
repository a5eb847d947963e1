"""Which tars of a mirror to read for the wanted clips, and what is known of each tar.

Only the tars themselves say which clip is in which tar. The members that were seen in each are
remembered, so that a tar in which no wanted clip can be is not read again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from kinetics_tools.core.errors import TRANSIENT, OutError, Reason, SourceError
from kinetics_tools.core.files import read_json, write_json
from kinetics_tools.core.http_client import Remote
from kinetics_tools.core.schema import Count, Quantity, parse
from kinetics_tools.core.units import Part
from kinetics_tools.dataset.manifest import Segment

NOT_SAID = Remote(None, "")


@dataclass(frozen=True, slots=True)
class Contents:
    """What is known of a tar.

    Attributes:
        remote: size and version of the tar that was read.
        is_complete: whether it was read to its end.
        stems: names without suffix of the members that were read, in order; only those that can be
            keys.
        error: why the last reading failed before all wanted clips had come; None where it did not.
        num_given: how many of the members came before that error.
    """

    remote: Remote = NOT_SAID
    is_complete: bool = False
    stems: tuple[str, ...] = ()
    error: SourceError | None = None
    num_given: int = 0


@dataclass(frozen=True, slots=True)
class TarIndex:
    """The contents of tars, one small file per tar. If it is lost, tars are read again.

    Attributes:
        cache: folder of this user, for all jobs; without errors, which belong to one job.
        shared: folder of one job, whose tasks may each have another cache; None for a job of one
            part.
    """

    cache: Path
    shared: Path | None = None

    def get(self, address: str) -> Contents | None:
        """What is known of a tar, of any version; None for nothing."""
        known = None if self.shared is None else _read(self.shared / _file_name(address))
        return known or _read(self.cache / _file_name(address))

    def update(self, address: str, contents: Contents) -> None:
        """Store the more complete of what was known and what was read now, with the new error."""
        known = self.get(address)
        if (
            known is not None
            and contents.remote in (known.remote, NOT_SAID)
            and (known.is_complete, len(known.stems)) >= (contents.is_complete, len(contents.stems))
        ):
            contents = replace(known, error=contents.error, num_given=contents.num_given)
        _write(self.cache / _file_name(address), address, replace(contents, error=None))
        if self.shared is not None:
            _write(self.shared / _file_name(address), address, contents)


def _file_name(address: str) -> str:
    return f"{short_hash(address)}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class _StoredError:
    """A SourceError in a file; `after`: how many members came before it."""

    reason: Reason
    detail: str
    after: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """The file of a tar. The job's own lies in OUT, which may come from a stranger."""

    address: str
    size: Quantity | None
    etag: str
    complete: bool
    members: tuple[str, ...]
    error: _StoredError | None = None


def _write(path: Path, address: str, contents: Contents) -> None:
    error = None
    if contents.error is not None:
        error = _StoredError(
            reason=contents.error.reason,
            detail=contents.error.detail,
            after=contents.num_given,
        )
    stored = _Stored(
        address=address,
        size=contents.remote.size,
        etag=contents.remote.etag,
        complete=contents.is_complete,
        members=contents.stems,
        error=error,
    )
    left_out = {"error"} if error is None else set()
    write_json(path, {name: v for name, v in asdict(stored).items() if name not in left_out})


def _read(path: Path) -> Contents | None:
    """What `_write` wrote; None where it is absent or damaged, so that it is written again."""
    try:
        stored = parse(read_json(path), _Stored)
    except (FileNotFoundError, OutError, ValueError):
        return None
    contents = Contents(Remote(stored.size, stored.etag), stored.complete, stored.members)
    if stored.error is None:
        return contents
    error = SourceError(stored.error.reason, stored.error.detail)
    return replace(contents, error=error, num_given=stored.error.after)


class Search:
    """The search for the wanted segments of one split, in one run.

    Iterating over it gives the tars to read: first those that are known to hold a wanted clip, so
    that the search may end before the unknown ones.

    Attributes:
        split: its name.
        wanted: segments that were not found yet, by key.
        own: addresses of this task's tars.
        broken: those of them that could not be read, and why.
    """

    def __init__(
        self,
        split: str,
        wanted: dict[str, Segment],
        tars: Sequence[str],
        part: Part,
        answers: Mapping[str, Remote | SourceError],
        index: TarIndex,
    ) -> None:
        self.split = split
        self.wanted = wanted
        self.own = part.of(tars)
        self.broken: dict[str, SourceError] = {}
        self._index = index
        self._tars = tars
        self._answers = answers
        self._place: dict[str, str] = {}  # the first tar known to hold a wanted key
        self._known_in: dict[str, set[str]] = {}
        self._unread: set[str] = set()  # tars that may hold more than is known of them
        for address in tars:
            self._look_up(address)
        self._nowhere = wanted.keys() - self._place.keys()

    def _look_up(self, address: str) -> None:
        answer = self._answers.get(address)
        contents = self._index.get(address)
        if isinstance(answer, SourceError) and answer.reason is Reason.GONE:
            self.learn(address, Contents(error=of_tar(address, answer)))
        if contents is not None and answer is not None:
            is_same = answer == contents.remote != NOT_SAID
            contents = contents if is_same else None
        stems = contents.stems if contents else ()
        here = {stem for stem in stems if stem in self.wanted and stem not in self._place}
        self._place |= dict.fromkeys(here, address)
        self._known_in[address] = here
        if contents is None or not contents.is_complete:
            self._unread.add(address)

    def __iter__(self) -> Iterator[str]:
        """Yield each tar that may still hold a wanted clip when its turn comes."""
        turns = sorted(self.own, key=lambda a: (a in self._unread, not self._known_in[a]))
        return (a for a in turns if a not in self.broken and self.may_be_in(a))

    def size(self, address: str) -> int | None:
        """A tar's size in bytes; None where the mirror does not say it."""
        answer = self._answers[address]
        return answer.size if isinstance(answer, Remote) else None

    def may_be_in(self, address: str) -> bool:
        """Whether a tar, or its unread rest, may hold a wanted clip."""
        return bool(self._known_in[address] or (address in self._unread and self._nowhere))

    def found(self, key: str) -> None:
        """Remove a segment from those that are wanted."""
        del self.wanted[key]
        self._nowhere.discard(key)
        if key in self._place:
            self._known_in[self._place[key]].discard(key)

    def learn(self, address: str, contents: Contents) -> None:
        """Remember what one of its own tars has, for later runs and for other tasks."""
        if contents.error is not None:
            self.broken[address] = contents.error
        self._index.update(address, contents)

    def rest(self) -> tuple[list[tuple[SourceError, tuple[Segment, ...]]], int]:
        """The segments that were not found, after all of this task's tars.

        Returns:
            segments by the reason why they are missing, and how many others may be in the tars of
            other tasks.
        """
        others = self._others() if self.wanted else _OtherTars()
        errors = {key: self._error(key, others) for key in self.wanted}
        missing: dict[str, tuple[SourceError, list[Segment]]] = {}
        for key, error in errors.items():
            if error is not None:
                missing.setdefault(str(error), (error, []))[1].append(self.wanted[key])
        num_waiting = sum(error is None for error in errors.values())
        return [(error, tuple(segments)) for error, segments in missing.values()], num_waiting

    def _others(self) -> _OtherTars:
        """What other tasks have found in their tars so far."""
        others = _OtherTars()
        own = set(self.own)
        for address in self._tars:
            if address not in own:
                others.add(self._index.get(address), self.wanted)
        return others

    def _error(self, key: str, others: _OtherTars) -> SourceError | None:
        """Why a segment was not found; None where another task's tars may have it."""
        place = self._place.get(key)
        if place in self.broken:
            return self.broken[place]
        if others.are_unread or key in others.stems:
            return None
        broken = others.broken.get(key) or next(iter(self.broken.values()), others.doubt)
        if broken is not None:
            return broken
        if place is not None:
            return SourceError(Reason.SERVER, "the mirror changed while it was read")
        return SourceError(Reason.GONE, f"in none of the {len(self._tars)} tars of the mirror")


@dataclass(slots=True)
class _OtherTars:
    """Which wanted clips are in the tars of other tasks.

    Attributes:
        are_unread: some tar was not read yet, or only as far as its own task needed.
        stems: wanted keys that their tasks can give.
        broken: wanted keys that their tasks could not give, and why.
        doubt: why one of the tars, which may hold any key, could not be read to its end.
    """

    are_unread: bool = False
    stems: set[str] = field(default_factory=set)
    broken: dict[str, SourceError] = field(default_factory=dict)
    doubt: SourceError | None = None

    def add(self, contents: Contents | None, wanted: Container[str]) -> None:
        """Add what is known of one tar."""
        if contents is None:
            self.are_unread = True
            return
        given = contents.stems
        if contents.error is not None:
            given, lost = given[: contents.num_given], given[contents.num_given :]
            self.broken |= {stem: contents.error for stem in lost if stem in wanted}
        self.stems.update(stem for stem in given if stem in wanted)
        if not contents.is_complete:
            self.are_unread |= contents.error is None
            self.doubt = self.doubt or contents.error


def of_tar(address: str, error: SourceError) -> SourceError:
    """Why a tar could not be read, as a transient reason: an absent tar is in the path list."""
    reason = error.reason if error.reason in TRANSIENT else Reason.SERVER
    name = urlsplit(address).path.rpartition("/")[2]
    return SourceError(reason, error.detail if name in error.detail else f"{name}: {error.detail}")


def short_hash(address: str) -> str:
    """The name of an address in the cache: 24 hex digits of its SHA-256."""
    return hashlib.sha256(address.encode()).hexdigest()[:24]

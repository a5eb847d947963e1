"""Which tars of a mirror to read for what is wanted of it, and what their being read says.

Nothing says which clip is in which tar but the tars themselves. What was seen in each is
remembered, so that a tar is read only where it is not known to be of no use.
"""

import hashlib
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kinetics_tools.core.errors import TRANSIENT, Reason, SourceError
from kinetics_tools.core.files import write_json
from kinetics_tools.core.http_client import Remote
from kinetics_tools.core.units import Part
from kinetics_tools.dataset.manifest import Segment

NOT_SAID = Remote(None, "")


@dataclass(frozen=True, slots=True)
class Contents:
    """What is known of a tar.

    Attributes:
        remote: the version that was read.
        is_complete: whether it was read to its end.
        stems: its members' names without suffix, in its order, as far as it was read; only those
            that can be keys.
        error: why it could not be read to where it mattered, when that was last tried.
        num_given: how many of the members came before that error.
    """

    remote: Remote = NOT_SAID
    is_complete: bool = False
    stems: tuple[str, ...] = ()
    error: SourceError | None = None
    num_given: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """The contents of tars, a small file each. Losing it costs only bytes.

    Attributes:
        cache: of this user, for all jobs; without errors, which are of one job.
        shared: of the tasks of one job, which may have a cache each. None for a job of one part.
    """

    cache: Path
    shared: Path | None = None

    def recall(self, address: str) -> Contents | None:
        """What is known of a tar, whatever its version."""
        known = None if self.shared is None else _read(self.shared / _file_name(address))
        return known or _read(self.cache / _file_name(address))

    def remember(self, address: str, contents: Contents) -> None:
        """Keep the better of what is known and what was seen now, and how that ended."""
        known = self.recall(address)
        if (
            known is not None
            and contents.remote in (known.remote, NOT_SAID)
            and (known.is_complete, len(known.stems)) >= (contents.is_complete, len(contents.stems))
        ):
            contents = replace(known, error=contents.error, num_given=contents.num_given)
        value: dict[str, Any] = {
            "address": address,
            "size": contents.remote.size,
            "etag": contents.remote.etag,
            "complete": contents.is_complete,
            "members": contents.stems,
        }
        write_json(self.cache / _file_name(address), value)
        if self.shared is not None:
            if contents.error is not None:
                value["error"] = {
                    "reason": contents.error.reason,
                    "detail": contents.error.detail,
                    "after": contents.num_given,
                }
            write_json(self.shared / _file_name(address), value)


def _file_name(address: str) -> str:
    return f"{short_hash(address)}.json"


def _read(path: Path) -> Contents | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        contents = Contents(
            Remote(value["size"], value["etag"]),
            value["complete"],
            tuple(map(str, value["members"])),
        )
        if "error" not in value:
            return contents
        said = value["error"]
        error = SourceError(Reason(said["reason"]), said["detail"])
        return replace(contents, error=error, num_given=int(said["after"]))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None  # a file that is not ours to read is written anew


class Search:
    """The search for what is wanted of one split, in one run.

    Iterating over it gives the tars to read, in the order in which to read them: first those that
    are known to hold something wanted, so that the search may end before the unknown ones.

    Attributes:
        split: its name.
        wanted: segments that were not found yet, by key.
        own: this task's tars.
        broken: those of them that could not be read to where it mattered, and why.
    """

    def __init__(
        self,
        split: str,
        wanted: dict[str, Segment],
        tars: Sequence[str],
        part: Part,
        answers: Mapping[str, Remote | SourceError],
        memory: Memory,
    ) -> None:
        self.split = split
        self.wanted = wanted
        self.own = part.of(tars)
        self.broken: dict[str, SourceError] = {}
        self._memory = memory
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
        contents = self._memory.recall(address)
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
        """Yield the tars to read, as what is wanted stands at each one's turn."""
        turns = sorted(self.own, key=lambda a: (a in self._unread, not self._known_in[a]))
        return (a for a in turns if a not in self.broken and self.may_be_in(a))

    def size(self, address: str) -> int | None:
        """A tar's bytes, where the mirror says them."""
        answer = self._answers[address]
        return answer.size if isinstance(answer, Remote) else None

    def may_be_in(self, address: str) -> bool:
        """Whether reading a tar, or reading on in it, may give something wanted."""
        return bool(self._known_in[address] or (address in self._unread and self._nowhere))

    def found(self, key: str) -> None:
        """Take a segment off the list."""
        del self.wanted[key]
        self._nowhere.discard(key)
        if key in self._place:
            self._known_in[self._place[key]].discard(key)

    def learn(self, address: str, contents: Contents) -> None:
        """Remember what reading one of its own tars gave, for later runs and for other tasks."""
        if contents.error is not None:
            self.broken[address] = contents.error
        self._memory.remember(address, contents)

    def rest(self) -> tuple[list[tuple[SourceError, tuple[Segment, ...]]], int]:
        """What was not found, once all own tars had their turn.

        Returns:
            the segments by why they were not found, and how many others wait for other tasks.
        """
        others = self._others() if self.wanted else _Others()
        verdicts = {key: self._verdict(key, others) for key in self.wanted}
        missing: dict[str, tuple[SourceError, list[Segment]]] = {}
        for key, error in verdicts.items():
            if error is not None:
                missing.setdefault(str(error), (error, []))[1].append(self.wanted[key])
        num_waiting = sum(error is None for error in verdicts.values())
        return [(error, tuple(segments)) for error, segments in missing.values()], num_waiting

    def _others(self) -> "_Others":
        """What is known of other tasks' tars by now."""
        others = _Others()
        own = set(self.own)
        for address in self._tars:
            if address not in own:
                others.add(self._memory.recall(address), self.wanted)
        return others

    def _verdict(self, key: str, others: "_Others") -> SourceError | None:
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
class _Others:
    """What other tasks' tars hold of what is wanted.

    Attributes:
        are_unread: some tar was not read yet, or only as far as its task had use for it.
        stems: wanted keys that their tasks can give.
        broken: why their tasks could not give other wanted keys.
        doubt: why one of the tars, which may hold any key, could not be read to its end.
    """

    are_unread: bool = False
    stems: set[str] = field(default_factory=set)
    broken: dict[str, SourceError] = field(default_factory=dict)
    doubt: SourceError | None = None

    def add(self, contents: Contents | None, wanted: Container[str]) -> None:
        """Take one of the tars into account."""
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
    """Why a tar could not be read, as a reason that may pass: one that is absent is listed."""
    reason = error.reason if error.reason in TRANSIENT else Reason.SERVER
    name = urlsplit(address).path.rpartition("/")[2]
    return SourceError(reason, error.detail if name in error.detail else f"{name}: {error.detail}")


def short_hash(address: str) -> str:
    """A file's name for what is known of an address."""
    return hashlib.sha256(address.encode()).hexdigest()[:24]

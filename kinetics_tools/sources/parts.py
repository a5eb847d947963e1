"""Which parts of a mirror to read for what is wanted of it, and what their being read says.

Nothing says which clip is in which part but the parts themselves. What was seen in each is
remembered, so that a part is read only where it is not known to be of no use.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kinetics_tools.engine import Part
from kinetics_tools.errors import TRANSIENT, Reason, SourceError
from kinetics_tools.files import write_json
from kinetics_tools.manifest import Segment
from kinetics_tools.web import Remote


@dataclass(frozen=True, slots=True)
class Contents:
    """What is known of a part.

    Attributes:
        remote: the version that was read.
        is_complete: whether it was read to its end.
        stems: its members' names without suffix, in its order, as far as it was read; only those
            that can be keys.
    """

    remote: Remote
    is_complete: bool
    stems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """The contents of parts that were read, a small file each. Losing it costs only bytes."""

    folder: Path

    def recall(self, address: str) -> Contents | None:
        """What is known of a part, whatever its version."""
        try:
            value = json.loads(self._path(address).read_text(encoding="utf-8"))
            return Contents(
                Remote(value["size"], value["etag"]),
                value["complete"],
                tuple(map(str, value["members"])),
            )
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None  # a file that is not ours to read is written anew

    def remember(self, address: str, contents: Contents) -> None:
        """Keep the better of what is known and what was seen now."""
        known = self.recall(address)
        if (
            known is not None
            and known.remote == contents.remote
            and (known.is_complete, len(known.stems)) >= (contents.is_complete, len(contents.stems))
        ):
            return
        value: dict[str, Any] = {
            "address": address,
            "size": contents.remote.size,
            "etag": contents.remote.etag,
            "complete": contents.is_complete,
            "members": contents.stems,
        }
        write_json(self._path(address), value)

    def _path(self, address: str) -> Path:
        return self.folder / f"{short_hash(address)}.json"


class Share:
    """One split in one run: what is wanted of it, and which parts may still have it.

    Iterating over it gives the parts to read, in the order in which to read them: first those that
    are known to hold something wanted, so that the search may end before the unknown ones.

    Attributes:
        split: its name.
        wanted: segments that were not found yet, by key.
        own: this task's parts.
        broken: those of them that could not be read to where it mattered, and why.
        memory: of the parts' contents.
    """

    def __init__(
        self,
        split: str,
        wanted: dict[str, Segment],
        parts: Sequence[str],
        part: Part,
        answers: Mapping[str, Remote | SourceError],
        memory: Memory,
    ) -> None:
        self.split = split
        self.wanted = wanted
        self.own = part.of(parts)
        self.broken: dict[str, SourceError] = {}
        self.memory = memory
        self._parts = parts
        self._answers = answers
        self._place: dict[str, str] = {}  # the first part known to hold a wanted key
        self._known_in: dict[str, set[str]] = {}
        self._unread: set[str] = set()  # parts that may hold more than is known of them
        for address in parts:
            self._look_up(address)
        self._nowhere = wanted.keys() - self._place.keys()

    def _look_up(self, address: str) -> None:
        answer = self._answers.get(address)
        if isinstance(answer, SourceError) and answer.reason is Reason.GONE:
            self.broken[address] = of_part(address, answer)
        contents = self.memory.recall(address)
        if contents is not None and answer is not None:
            is_same = answer == contents.remote != Remote(None, "")
            contents = contents if is_same else None
        stems = contents.stems if contents else ()
        here = {stem for stem in stems if stem in self.wanted and stem not in self._place}
        self._place |= dict.fromkeys(here, address)
        self._known_in[address] = here
        if contents is None or not contents.is_complete:
            self._unread.add(address)

    def __iter__(self) -> Iterator[str]:
        """Yield the parts to read, as what is wanted stands at each one's turn."""
        turns = sorted(self.own, key=lambda a: (a in self._unread, not self._known_in[a]))
        return (a for a in turns if a not in self.broken and self.may_be_in(a))

    def size(self, address: str) -> int | None:
        """A part's bytes, where the mirror says them."""
        answer = self._answers[address]
        return answer.size if isinstance(answer, Remote) else None

    def may_be_in(self, address: str) -> bool:
        """Whether reading a part, or reading on in it, may give something wanted."""
        return bool(self._known_in[address] or (address in self._unread and self._nowhere))

    def found(self, key: str) -> None:
        """Take a segment off the list."""
        del self.wanted[key]
        self._nowhere.discard(key)
        if key in self._place:
            self._known_in[self._place[key]].discard(key)

    def rest(self) -> tuple[list[tuple[SourceError, tuple[Segment, ...]]], int]:
        """What was not found, once all own parts had their turn.

        Returns:
            the segments by why they were not found, and how many others wait for other tasks.
        """
        with_others = self._with_others() if self.wanted else None
        verdicts = {key: self._verdict(key, with_others) for key in self.wanted}
        missing: dict[str, tuple[SourceError, list[Segment]]] = {}
        for key, error in verdicts.items():
            if error is not None:
                missing.setdefault(str(error), (error, []))[1].append(self.wanted[key])
        num_waiting = sum(error is None for error in verdicts.values())
        return [(error, tuple(segments)) for error, segments in missing.values()], num_waiting

    def _with_others(self) -> set[str] | None:
        """The wanted keys that other tasks' parts hold; None while not all is known of those."""
        found: set[str] = set()
        own = set(self.own)
        for address in self._parts:
            if address in own:
                continue
            contents = self.memory.recall(address)
            if contents is None or not contents.is_complete:
                return None
            found.update(stem for stem in contents.stems if stem in self.wanted)
        return found

    def _verdict(self, key: str, with_others: set[str] | None) -> SourceError | None:
        """Why a segment was not found; None where another task's parts may have it."""
        place = self._place.get(key)
        if place in self.broken:
            return self.broken[place]
        if with_others is None or key in with_others:
            return None
        if self.broken:
            return next(iter(self.broken.values()))
        if place is not None:
            return SourceError(Reason.SERVER, "the mirror changed while it was read")
        return SourceError(Reason.GONE, f"in none of the {len(self._parts)} parts of the mirror")


def of_part(address: str, error: SourceError) -> SourceError:
    """Why a part could not be read, as a reason that may pass: one that is absent is listed."""
    reason = error.reason if error.reason in TRANSIENT else Reason.SERVER
    name = urlsplit(address).path.rpartition("/")[2]
    return SourceError(reason, error.detail if name in error.detail else f"{name}: {error.detail}")


def short_hash(address: str) -> str:
    """A file's name for what is known of an address."""
    return hashlib.sha256(address.encode()).hexdigest()[:24]

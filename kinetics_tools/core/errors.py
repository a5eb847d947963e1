"""All errors that are not bugs.

    KineticsError                    catch this one; raised where no other fits
      ManifestError                  the input table is wrong            stops the run, exit 2
      UnknownNameError               no such method, arch, recipe ...    stops the run, exit 2
      OutError                       an output folder cannot be used     stops the run, exit 2
      ShardError                     a shard breaks the schema           stops the run, exit 2
        StoreError                   a store elsewhere gives no shard    stops the run, exit 2
      EvaluationError                a result would be meaningless       stops the run, exit 2
      SourceError(reason)            a source did not give the video     becomes a ledger line
      MediaError(path, detail)       a video cannot be read or written   becomes a ledger line

A message is one line: what is wrong, where, and what to do. `detail` holds the last message of the
tool that failed. A wrong argument in Python code is a `ValueError`; anything else is a bug and is
not caught.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
MAX_KNOWN = 30  # names in a message; Kinetics-700 has 700 classes


class Reason(StrEnum):
    """Why a clip could not be downloaded. The sets below say which reasons are worth a retry."""

    GONE = "gone"
    PRIVATE = "private"
    TERMINATED = "terminated"
    COPYRIGHT = "copyright"
    GEO_BLOCKED = "geo-blocked"
    AGE_GATED = "age-gated"
    MEMBERS_ONLY = "members-only"
    TOO_SHORT = "too-short"
    RATE_LIMITED = "rate-limited"
    BOT_CHECK = "bot-check"
    REFUSED = "refused"
    NO_RUNTIME = "no-runtime"
    NO_FORMATS = "no-formats"
    ABSENT = "absent"
    NETWORK = "network"
    SERVER = "server"
    DAMAGED = "damaged"
    KILLED = "killed"


IDENTITY = frozenset({Reason.RATE_LIMITED, Reason.BOT_CHECK, Reason.REFUSED})
TOOL = frozenset({Reason.NO_RUNTIME, Reason.NO_FORMATS})
TRANSIENT = frozenset({Reason.ABSENT, Reason.NETWORK, Reason.SERVER, Reason.DAMAGED, Reason.KILLED})
PERMANENT = frozenset(Reason) - IDENTITY - TOOL - TRANSIENT
RETRYABLE = IDENTITY | TOOL | TRANSIENT
REASON_CLASSES: Mapping[str, frozenset[Reason]] = {
    "permanent": PERMANENT,
    "identity": IDENTITY,
    "tool": TOOL,
    "transient": TRANSIENT,
}


class KineticsError(Exception):
    """Base of all errors that a user can fix."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The message as it is printed: one line but where a table has many faults."""
        return (str(self),)


class ManifestError(KineticsError):
    """The input table cannot be used. Its arguments are lines: the message, then bad rows."""

    def __str__(self) -> str:
        return "\n".join(self.lines)

    @property
    def lines(self) -> tuple[str, ...]:
        """The message and the bad rows."""
        return tuple(map(str, self.args))


class UnknownNameError(KineticsError):
    """A name that is not in a registry."""


class OutError(KineticsError):
    """An output folder cannot be used: changed recipe, another run in it, no space left."""


class ShardError(KineticsError):
    """A shard, its sidecar or the index breaks the schema."""


class StoreError(ShardError):
    """A store elsewhere (s3://, https:// ...) does not give a file, or the address is wrong."""


class EvaluationError(KineticsError):
    """A result would be meaningless."""


class SourceError(KineticsError):
    """A source did not give a video."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class MediaError(KineticsError):
    """A video cannot be read or written."""

    def __init__(self, path: Path, detail: str, *, reason: Reason = Reason.DAMAGED) -> None:
        super().__init__(path, detail)
        self.path = path
        self.detail = detail
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are sent between processes; by default the keyword argument would be lost.
        return _media_error, (self.path, self.detail, self.reason), self.__dict__

    def __str__(self) -> str:
        return f"{self.path}: {self.detail}"


def _media_error(path: Path, detail: str, reason: Reason) -> MediaError:
    return MediaError(path, detail, reason=reason)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The one-line message for an unknown name, with the nearest known one."""
    names = sorted(known)
    near = nearest(name, names)
    hint = f" Did you mean {near!r}?" if near else ""
    more = f" and {len(names) - MAX_KNOWN} more" if len(names) > MAX_KNOWN else ""
    return f"unknown {kind} {name[:80]!r}.{hint} Known: {', '.join(names[:MAX_KNOWN])}{more}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like `name`; None if none is."""
    return next(iter(get_close_matches(name, known, n=1)), None)


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Return `table[name]`, or raise UnknownNameError naming the nearest choice."""
    if name in table:
        return table[name]
    raise UnknownNameError(unknown_name(kind, name, table))

"""One rate limit for all workers, parts and runs on a host that use one identity at a site.

A site counts the requests of an identity (a source address, a proxy, cookies), not of a process. So
the limit is a token bucket in one small file, changed under a lock. A token is taken when the
request is sent, not before: nothing is lost when a waiting process is killed, and when the site
refuses one request, all processes pause at once.

Times are those of the kernel's clock since boot, which does not change with the wall clock. Only a
lockout is also stored as wall time, for the first run after a reboot.
"""

from __future__ import annotations

import json
import math
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kinetics_tools.core.errors import Reason, SourceError
from kinetics_tools.core.files import OTHER_CACHE_DIR, digest, file_lock
from kinetics_tools.core.system import boot_id, boot_time_s

MAX_REFUSALS = 3  # in a row: the identity is locked out
COOL_DOWN_INTERVALS = 10  # after the first refusal; twice that after the second
MAX_LOCKOUT_S = 86_400.0  # also where a site asks for more
POLL_S = 5.0  # a waiting process notices a lockout after this time
# A generator of its own: a common seed must not wake all workers at the same moment.
_JITTER = random.Random()


class LockedOut(SourceError):
    """The identity is locked out, so no request was sent: it says nothing about the video."""


@dataclass(frozen=True, slots=True)
class RateLimiter:
    """How often an identity may send requests. A value: it is sent to workers, on any host.

    Call `wait()` before a video is requested; afterwards `refused()` where the site refused the
    identity at any step, or `granted()` where the request had any other end.

    Attributes:
        path: beginning of the names of its files. The host's name follows, so that hosts with a
            common home folder are limited separately.
        interval_s: mean time between requests; 0 for no limit. In any W seconds there are at most
            `burst` + W / `interval_s` requests.
        lockout_s: length of the lockout after three refusals in a row.
        burst: how many requests may be sent at once after a quiet time.
    """

    path: Path
    interval_s: float
    lockout_s: float
    burst: int = 3

    def wait(self) -> None:
        """Return when the next request may be sent.

        Raises:
            LockedOut: the identity is locked out; the detail says until when.
        """
        while True:
            with self._held() as state:
                left_s = self._take(state)
            if left_s == 0:
                return
            # A late process still finds its token, so jitter costs nothing on average.
            jitter_s = _JITTER.uniform(0, self.interval_s / 2)
            time.sleep(min(left_s + jitter_s, POLL_S))

    def refused(
        self, reason: Reason, retry_after_s: float | None = None, *, detail: str = ""
    ) -> None:
        """Pause all processes: for a cool-down, or a lockout after the third refusal in a row.

        Args:
            reason: the identity error.
            retry_after_s: the pause that the site asks for; the longer one counts.
            detail: the last message of the tool.
        """
        asked_s = max(retry_after_s or 0.0, 0.0)
        with self._held() as state:
            now = boot_time_s()
            if now < state.paused_until_s:
                # Requested before the pause began: it is the same refusal again.
                if not state.is_locked:
                    self._pause(state, min(asked_s, self.lockout_s))
                return
            if now - state.paused_until_s > self.lockout_s:
                state.num_refused = 0  # the last refusal is too long ago
            state.num_refused += 1
            state.reason, state.detail = reason, detail
            state.is_locked = state.num_refused >= MAX_REFUSALS
            if state.is_locked:
                state.num_refused = 0
                self._pause(state, min(max(asked_s, self.lockout_s), MAX_LOCKOUT_S))
            else:
                cool_down_s = COOL_DOWN_INTERVALS * state.num_refused * self.interval_s
                self._pause(state, min(max(cool_down_s, asked_s), self.lockout_s))

    def granted(self) -> None:
        """The site did not refuse: the count of refusals in a row starts again at 0."""
        with self._held() as state:
            # In a pause: requested before the refusal, so it does not end the count.
            if boot_time_s() >= state.paused_until_s:
                state.num_refused = 0

    def locked_s(self) -> float:
        """How many seconds the identity is still locked out; 0 when it is free."""
        return self._seen().locked_s()

    def lockout(self) -> LockedOut | None:
        """What `wait` would raise now: the reason, the last message, and until when."""
        state = self._seen()
        return state.lockout() if state.locked_s() > 0 else None

    def _take(self, state: _State) -> float:
        """Take a token and return 0; where there is none, the seconds until there is one."""
        now = boot_time_s()
        if now < state.paused_until_s:
            if state.is_locked:
                raise state.lockout()
            return state.paused_until_s - now
        slot_s = state.full_at_s - (self.burst - 1) * self.interval_s
        if now < slot_s:
            return slot_s - now
        state.full_at_s = max(state.full_at_s, now) + self.interval_s
        return 0.0

    def _pause(self, state: _State, seconds: float) -> None:
        """Pause for at least `seconds` from now; after it one request may be sent, not a burst."""
        state.paused_until_s = max(state.paused_until_s, boot_time_s() + seconds)
        state.paused_until_wall_s = time.time() + state.paused_until_s - boot_time_s()
        drained_s = state.paused_until_s + (self.burst - 1) * self.interval_s
        state.full_at_s = max(state.full_at_s, drained_s)

    def _seen(self) -> _State:
        """The state now. Its file is only ever replaced whole: reading it needs no lock."""
        stored = self._read()
        state = self._valid_now(stored)
        if state != stored:
            with self._held() as state:
                pass  # stored as it is limited now
        return state

    @contextmanager
    def _held(self) -> Iterator[_State]:
        """Yield the state under the lock, and store it as the block leaves it."""
        with file_lock(self._file(".lock"), OTHER_CACHE_DIR):
            stored = self._read()
            state = self._valid_now(stored)
            try:
                yield state
            finally:
                # Also where only limited times differ: limited again from a later now, they would
                # never come.
                if state != stored:
                    # One scratch name is enough: there is one writer at a time.
                    scratch = self._file(".new")
                    scratch.write_text(json.dumps(asdict(state)), encoding="utf-8")
                    scratch.replace(self._file(".json"))

    def _read(self) -> _State:
        """The stored state; a new one where there is no file or it is damaged."""
        try:
            return _parse(self._file(".json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError, TypeError, KeyError, OverflowError):
            return _State(boot_id())

    def _valid_now(self, state: _State) -> _State:
        """The state in this boot, without pauses that are longer than this limiter's own.

        A longer pause comes from a damaged file, or from a run with a longer interval.
        """
        now = boot_time_s()
        if state.boot_id != boot_id():
            return self._after_reboot(state, now)
        longest_s = max(self.lockout_s, MAX_LOCKOUT_S) if state.is_locked else self.lockout_s
        paused_until_s = min(state.paused_until_s, now + longest_s)
        full_at_s = max(paused_until_s, now) + self.burst * self.interval_s
        return replace(
            state, paused_until_s=paused_until_s, full_at_s=min(state.full_at_s, full_at_s)
        )

    def _after_reboot(self, state: _State, now: float) -> _State:
        """A lockout survives a reboot, by the wall clock, for at most `lockout_s`."""
        fresh = _State(boot_id())
        if state.is_locked:
            left_s = min(state.paused_until_wall_s - time.time(), self.lockout_s)
            if left_s > 0:
                fresh.is_locked, fresh.reason, fresh.detail = True, state.reason, state.detail
                fresh.paused_until_s = now + left_s
                fresh.paused_until_wall_s = time.time() + left_s
        return fresh

    def _file(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}-{socket.gethostname()}{suffix}")


def rate_limit_path(cache: Path, identity: str) -> Path:
    """`RateLimiter.path` of an identity, in the user's cache folder; a hash hides its secrets."""
    return cache / "pace" / digest(identity)[:16]


@dataclass(slots=True)
class _State:
    """The stored state. Times are in seconds since boot, except the wall clock's.

    Attributes:
        boot_id: of the boot since which times count.
        full_at_s: when the bucket is full; each request moves it by one interval.
        paused_until_s: no request may be sent before.
        paused_until_wall_s: the same by the wall clock.
        is_locked: whether the pause is a lockout, for whose end no process waits.
        num_refused: refusals in a row.
        reason: of the last refusal.
        detail: of the last refusal: the last message of the tool.
    """

    boot_id: str
    full_at_s: float = 0.0
    paused_until_s: float = 0.0
    paused_until_wall_s: float = 0.0
    is_locked: bool = False
    num_refused: int = 0
    reason: Reason = Reason.RATE_LIMITED
    detail: str = ""

    def locked_s(self) -> float:
        """Seconds left of a lockout; 0 for none."""
        return max(self.paused_until_s - boot_time_s(), 0.0) if self.is_locked else 0.0

    def lockout(self) -> LockedOut:
        """The error that names the end of the lockout."""
        end_s = time.time() + self.locked_s()
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(end_s))
        said = f"{self.detail}; " if self.detail else ""
        return LockedOut(self.reason, f"{said}locked out until {until}")


def _parse(text: str) -> _State:
    values = json.loads(text)
    state = _State(
        boot_id=str(values["boot_id"]),
        full_at_s=float(values["full_at_s"]),
        paused_until_s=float(values["paused_until_s"]),
        paused_until_wall_s=float(values["paused_until_wall_s"]),
        is_locked=bool(values["is_locked"]),
        num_refused=int(values["num_refused"]),
        reason=Reason(values["reason"]),
        detail=str(values["detail"]),
    )
    times = (state.full_at_s, state.paused_until_s, state.paused_until_wall_s)
    if not all(map(math.isfinite, times)):
        raise ValueError("not a time")
    return state

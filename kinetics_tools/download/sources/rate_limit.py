"""One pace for everything on a host that asks a site under one identity: workers, parts, runs.

The site sees an identity (a source address, a proxy, cookies), not our processes, so what they may
do is kept in one small file, changed under a lock. A slot is taken at the moment of asking, never
ahead: nothing is lost when a process dies in its sleep, and a refusal holds everybody at once.

Times are on the kernel's clock since boot, which no change of the wall clock moves. Only a lock-out
is also kept as wall time, for the first run after a reboot.
"""

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
from kinetics_tools.core.files import digest, file_lock
from kinetics_tools.core.system import boot_id, boot_time_s

STRIKES = 3  # so many refusals in a row: the site has locked us out
COOL_DOWN_INTERVALS = 10  # after the first refusal; twice that after the second
MAX_LOCKOUT_S = 86_400.0  # whatever a site asks for
LOOK_AGAIN_S = 5.0  # a sleeper hears so soon of a lock-out
# Of its own: a seed that somebody sets must not wake all workers at the same moment.
_JITTER = random.Random()


class LockedOut(SourceError):
    """The identity is left in peace for now: nothing was asked, so it says nothing of a video."""


@dataclass(frozen=True, slots=True)
class RateLimiter:
    """How often an identity may ask. A value: sent to workers, on any host.

    `wait()` before asking for a video; then `refused()` where the site, at whatever step, turned
    the identity away, `granted()` when it came to any other end.

    Attributes:
        path: how the names of its files begin. The host's name follows, so that hosts which share
            a home are paced apart.
        interval_s: from one request to the next on average; 0 for no spacing. In any W seconds
            there are at most `burst` + W / `interval_s` requests.
        lockout_s: how long the site is left alone after three refusals in a row.
        burst: so many may ask at once after a quiet time.
    """

    path: Path
    interval_s: float
    lockout_s: float
    burst: int = 3

    def wait(self) -> None:
        """Return when the next request may be made.

        Raises:
            LockedOut: the identity is locked out; the detail says until when.
        """
        while True:
            with self._held() as state:
                left_s = self._take(state)
            if left_s == 0:
                return
            # Who comes late still finds the slot there, so jitter costs nothing on average.
            jitter_s = _JITTER.uniform(0, self.interval_s / 2)
            time.sleep(min(left_s + jitter_s, LOOK_AGAIN_S))

    def refused(
        self, reason: Reason, retry_after_s: float | None = None, *, detail: str = ""
    ) -> None:
        """Hold everybody: for a cool-down, or locked out when this is the third in a row.

        Args:
            reason: the identity error.
            retry_after_s: how long the site itself asks for; the longer time counts.
            detail: the tool's last words.
        """
        asked_s = max(retry_after_s or 0.0, 0.0)
        with self._held() as state:
            now = boot_time_s()
            if now < state.paused_until_s:
                # Asked before the pause began, so it is the same refusal once more.
                if not state.is_locked:
                    self._pause(state, min(asked_s, self.lockout_s))
                return
            if now - state.paused_until_s > self.lockout_s:
                state.num_refused = 0  # too long ago to be one row
            state.num_refused += 1
            state.reason, state.detail = reason, detail
            state.is_locked = state.num_refused >= STRIKES
            if state.is_locked:
                state.num_refused = 0
                self._pause(state, min(max(asked_s, self.lockout_s), MAX_LOCKOUT_S))
            else:
                cool_down_s = COOL_DOWN_INTERVALS * state.num_refused * self.interval_s
                self._pause(state, min(max(cool_down_s, asked_s), self.lockout_s))

    def granted(self) -> None:
        """Say that the site gave what was asked: refusals after this begin a new row."""
        with self._held() as state:
            # While everybody is held: asked before the refusal, so it says nothing after it.
            if boot_time_s() >= state.paused_until_s:
                state.num_refused = 0

    def locked_s(self) -> float:
        """How many seconds the identity is still locked out; 0 when it is free."""
        with self._held() as state:
            return state.locked_s()

    def lockout(self) -> LockedOut | None:
        """What `wait` would raise now: the reason, the tool's last words, and until when."""
        with self._held() as state:
            return state.lockout() if state.locked_s() > 0 else None

    def _take(self, state: "_State") -> float:
        """Take the slot that is free, and return 0; else return the seconds until there is one."""
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

    def _pause(self, state: "_State", seconds: float) -> None:
        """Hold everybody for `seconds` from now at least; then one may try, not a whole burst."""
        state.paused_until_s = max(state.paused_until_s, boot_time_s() + seconds)
        state.paused_until_wall_s = time.time() + state.paused_until_s - boot_time_s()
        drained_s = state.paused_until_s + (self.burst - 1) * self.interval_s
        state.full_at_s = max(state.full_at_s, drained_s)

    @contextmanager
    def _held(self) -> Iterator["_State"]:
        """Yield the state under the lock, and keep what the block made of it."""
        with file_lock(self._file(".lock")):
            kept = self._read()
            state = self._mended(kept)
            try:
                yield state
            finally:
                # Mended times too: measured from another now each time, they would never come.
                if state != kept:
                    # One scratch name will do: there is one writer at a time.
                    scratch = self._file(".new")
                    scratch.write_text(json.dumps(asdict(state)), encoding="utf-8")
                    scratch.replace(self._file(".json"))

    def _read(self) -> "_State":
        """What the file says; a new state where there is none or it makes no sense."""
        try:
            return _parse(self._file(".json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError, TypeError, KeyError, OverflowError):
            return _State(boot_id())

    def _mended(self, state: "_State") -> "_State":
        """As it holds now: in this boot, and nobody held longer than we would hold him ourselves.

        A longer time is of a damaged file, or of a run with a longer interval.
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

    def _after_reboot(self, state: "_State", now: float) -> "_State":
        """What outlives a reboot: a lock-out, by the wall clock as far as it can be trusted."""
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
    """`RateLimiter.path` of an identity, in the user's cache folder. Its name tells no secret."""
    return cache / "pace" / digest(identity)[:16]


@dataclass(slots=True)
class _State:
    """What the file holds. Times in seconds since boot, but for the wall clock's.

    Attributes:
        boot_id: of the boot since which times count.
        full_at_s: when the whole burst is there again; each request moves it one interval on.
        paused_until_s: until then nobody may ask.
        paused_until_wall_s: the same by the wall clock.
        is_locked: the pause is a lock-out: nobody waits for its end.
        num_refused: refusals in a row.
        reason: of the last refusal.
        detail: of the last refusal, the tool's last words.
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
        """Seconds that are left of a lock-out."""
        return max(self.paused_until_s - boot_time_s(), 0.0) if self.is_locked else 0.0

    def lockout(self) -> LockedOut:
        """The error that says until when."""
        end_s = time.time() + self.locked_s()
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(end_s))
        words = f"{self.detail}; " if self.detail else ""
        return LockedOut(self.reason, f"{words}locked out until {until}")


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

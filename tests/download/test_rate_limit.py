"""The rate limit holds across processes, kills, refusals, reboots and clocks that jump."""

import json
import multiprocessing
import pickle
import re
import socket
import time
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_tools.core.errors import Reason, SourceError
from kinetics_tools.download.sources.rate_limit import (
    MAX_LOCKOUT_S,
    MAX_REFUSALS,
    LockedOut,
    RateLimiter,
    rate_limit_path,
)
from support import wait_until

SPAWN = multiprocessing.get_context("spawn")
HOUR_S = 3600.0


def make_limiter(
    folder: Path, *, interval_s: float = 0.0, lockout_s: float = HOUR_S
) -> RateLimiter:
    return RateLimiter(
        rate_limit_path(folder, "cookies.txt"), interval_s=interval_s, lockout_s=lockout_s
    )


def state_file(limiter: RateLimiter) -> Path:
    return limiter.path.with_name(f"{limiter.path.name}-{socket.gethostname()}.json")


def edit(limiter: RateLimiter, **values: object) -> None:
    path = state_file(limiter)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def lock_out(limiter: RateLimiter) -> None:
    for _ in range(MAX_REFUSALS):
        limiter.wait()
        limiter.refused(Reason.BOT_CHECK, detail="Sign in to confirm you're not a bot")


def ask_often(limiter: RateLimiter, seconds: float, asked: Path) -> None:
    """Ask until the time is over; write down when each request could go."""
    end = time.monotonic() + seconds
    with asked.open("a") as file:
        while time.monotonic() < end:
            limiter.wait()
            file.write(f"{time.monotonic()}\n")
            file.flush()


def hold_for_ever(limiter: RateLimiter, held: Path) -> None:
    with limiter._held():
        held.touch()
        time.sleep(600)


def start_asking(
    limiter: RateLimiter, asked: Path, *, count: int, seconds: float
) -> list[SpawnProcess]:
    processes = [
        SPAWN.Process(target=ask_often, args=(limiter, seconds, asked), daemon=True)
        for _ in range(count)
    ]
    for process in processes:
        process.start()
    return processes


def times(asked: Path) -> list[float]:
    return sorted(map(float, asked.read_text().split())) if asked.exists() else []


def test_processes_together_keep_the_rate_of_one(tmp_path: Path) -> None:
    limiter = make_limiter(tmp_path, interval_s=0.05)
    start = time.monotonic()
    for process in start_asking(limiter, tmp_path / "asked", count=4, seconds=1.0):
        process.join()
        assert process.exitcode == 0
    took_s = time.monotonic() - start
    num_asked = len(times(tmp_path / "asked"))
    assert 4 <= num_asked <= limiter.burst + took_s / limiter.interval_s


def test_a_burst_may_go_at_once_and_no_more(tmp_path: Path) -> None:
    limiter = make_limiter(tmp_path, interval_s=HOUR_S)
    for _ in range(limiter.burst):
        limiter.wait()
    with limiter._held() as state:
        assert HOUR_S - 60 < limiter._take(state) <= HOUR_S


def test_a_refusal_holds_everybody_at_once(tmp_path: Path) -> None:
    limiter = make_limiter(tmp_path, interval_s=0.01)
    processes = start_asking(limiter, tmp_path / "asked", count=3, seconds=2.0)
    wait_until(lambda: len(times(tmp_path / "asked")) > 2 * len(processes))
    limiter.refused(Reason.RATE_LIMITED, 0.8)
    refused = time.monotonic()
    for process in processes:
        process.join()
    held = [t for t in times(tmp_path / "asked") if refused < t < refused + 0.79]
    # Who was let go just before the refusal may have written it down just after.
    assert len(held) <= len(processes)


def test_after_a_pause_one_goes_first_not_a_burst(tmp_path: Path) -> None:
    limiter = make_limiter(tmp_path, interval_s=1, lockout_s=0.05)
    limiter.refused(Reason.RATE_LIMITED)
    limiter.wait()
    with limiter._held() as state:
        assert limiter._take(state) > 0


def test_three_refusals_in_a_row_lock_the_identity_out(tmp_path: Path) -> None:
    limiter = make_limiter(tmp_path)
    lock_out(limiter)
    with pytest.raises(LockedOut) as caught:
        limiter.wait()
    assert caught.value.reason is Reason.BOT_CHECK
    named = r"Sign in .* not a bot; locked out until \d{4}-\d\d-\d\d \d\d:\d\d"
    assert re.fullmatch(named, caught.value.detail)
    assert HOUR_S - 60 < limiter.locked_s() <= HOUR_S
    assert str(limiter.lockout()) == str(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy)) == (LockedOut, str(caught.value))
    other = RateLimiter(rate_limit_path(tmp_path, "other cookies"), interval_s=0, lockout_s=HOUR_S)
    other.wait()
    assert other.lockout() is None


def test_an_answer_ends_the_row(tmp_path: Path) -> None:
    limiter = make_limiter(tmp_path)
    for _ in range(MAX_REFUSALS):
        limiter.refused(Reason.RATE_LIMITED)
        limiter.refused(Reason.RATE_LIMITED)
        limiter.granted()
    assert limiter.locked_s() == 0


def test_an_answer_to_who_had_asked_before_the_refusal_does_not_end_the_row(
    tmp_path: Path,
) -> None:
    limiter = make_limiter(tmp_path, interval_s=60)
    for _ in range(MAX_REFUSALS):
        limiter.refused(Reason.RATE_LIMITED)
        limiter.granted()  # another worker's, a moment later
        with limiter._held() as state:  # the pause is over, unless it is a lockout
            if not state.is_locked:
                state.paused_until_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert limiter.locked_s() > 0


def test_refusals_of_requests_that_were_under_way_are_one_refusal(tmp_path: Path) -> None:
    limiter = make_limiter(tmp_path, interval_s=60)
    for _ in range(MAX_REFUSALS + 1):
        limiter.refused(Reason.RATE_LIMITED)
    assert limiter.locked_s() == 0


@pytest.mark.parametrize(
    ("num_before", "asked_s", "pause_s"),
    [(0, None, 100), (1, None, 200), (0, 900, 900), (0, 5, 100), (1, 9e9, 3600), (2, 5, 3600)],
)
def test_how_long_a_refusal_holds(
    tmp_path: Path, num_before: int, asked_s: float | None, pause_s: float
) -> None:
    limiter = make_limiter(tmp_path, interval_s=10)
    for _ in range(num_before):
        limiter.refused(Reason.RATE_LIMITED)
        with limiter._held() as state:  # the pause is over
            state.paused_until_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    limiter.refused(Reason.RATE_LIMITED, asked_s)
    with limiter._held() as state:
        left_s = state.paused_until_s - time.clock_gettime(time.CLOCK_BOOTTIME)
    assert pause_s - 30 < left_s <= pause_s
    assert (limiter.locked_s() > 0) == (num_before == MAX_REFUSALS - 1)


def test_a_lockout_is_as_long_as_the_site_asks_for_up_to_a_day(tmp_path: Path) -> None:
    limiter = make_limiter(tmp_path)
    for asked_s in (None, None, 1e12):
        limiter.refused(Reason.RATE_LIMITED, asked_s)
    assert MAX_LOCKOUT_S - 60 < limiter.locked_s() <= MAX_LOCKOUT_S


def test_refusals_long_ago_are_not_of_this_row(tmp_path: Path) -> None:
    limiter = make_limiter(tmp_path)
    limiter.refused(Reason.RATE_LIMITED)
    limiter.refused(Reason.RATE_LIMITED)
    with limiter._held() as state:
        state.paused_until_s -= HOUR_S + 1
    limiter.refused(Reason.RATE_LIMITED)
    assert limiter.locked_s() == 0


def test_a_killed_sleeper_takes_no_slot_with_it(tmp_path: Path) -> None:
    limiter = make_limiter(tmp_path, interval_s=HOUR_S)
    for _ in range(limiter.burst):
        limiter.wait()
    before = state_file(limiter).read_text()
    asked = tmp_path / "asked"
    (process,) = start_asking(limiter, asked, count=1, seconds=1)
    wait_until(asked.exists)
    time.sleep(0.3)  # into its sleep
    process.kill()
    process.join()
    assert not times(asked)
    assert state_file(limiter).read_text() == before


def test_a_killed_holder_of_the_lock_leaves_the_pace_usable(tmp_path: Path) -> None:
    limiter = make_limiter(tmp_path)
    held = tmp_path / "held"
    process = SPAWN.Process(target=hold_for_ever, args=(limiter, held), daemon=True)
    process.start()
    wait_until(held.exists)
    process.kill()
    process.join()
    limiter.wait()


def test_a_jump_of_the_wall_clock_does_nothing(tmp_path: Path) -> None:
    limiter = make_limiter(tmp_path)
    lock_out(limiter)
    for jump_s in (-1e9, 1e9):
        edit(limiter, paused_until_wall_s=time.time() + jump_s)
        assert HOUR_S - 60 < limiter.locked_s() <= HOUR_S


@pytest.mark.parametrize(("wall_left_s", "left_s"), [(600, 600), (1e9, HOUR_S), (-5, 0)])
def test_a_lockout_outlives_a_reboot_but_not_by_a_wrong_clock(
    tmp_path: Path, wall_left_s: float, left_s: float
) -> None:
    limiter = make_limiter(tmp_path)
    lock_out(limiter)
    edit(limiter, boot_id="the one before", paused_until_wall_s=time.time() + wall_left_s)
    first_s = limiter.locked_s()
    assert left_s - 60 < first_s <= left_s
    if left_s:
        assert limiter.locked_s() < first_s
        with pytest.raises(SourceError, match=r"not a bot; locked out until"):
            limiter.wait()
    else:
        limiter.wait()


@given(st.lists(st.sampled_from(["granted", "refused"]), max_size=12))
@settings(max_examples=40)
def test_only_a_row_of_refusals_locks(
    tmp_path_factory: pytest.TempPathFactory, answers: list[str]
) -> None:
    limiter = make_limiter(tmp_path_factory.mktemp("limiter"), interval_s=1e-5)
    row = 0
    for answer in answers:
        if row == MAX_REFUSALS:
            with pytest.raises(SourceError):
                limiter.wait()
            return
        limiter.wait()
        if answer == "granted":
            limiter.granted()
            row = 0
        else:
            limiter.refused(Reason.RATE_LIMITED)
            row += 1
        assert (limiter.locked_s() > 0) == (row == MAX_REFUSALS)


numbers = st.floats() | st.integers() | st.none() | st.text(max_size=3)


@given(
    st.binary(max_size=80)
    | st.fixed_dictionaries(
        {
            "boot_id": st.just("") | st.just("this"),
            "full_at_s": numbers,
            "paused_until_s": numbers,
            "paused_until_wall_s": numbers,
            "is_locked": st.booleans(),
            "num_refused": numbers,
            "reason": st.sampled_from(["rate-limited", "hunger"]),
            "detail": st.text(max_size=3),
        }
    )
)
@settings(max_examples=80)
def test_whatever_the_file_holds_nobody_waits_longer_than_we_would_have_said(
    tmp_path_factory: pytest.TempPathFactory, content: bytes | dict[str, object]
) -> None:
    limiter = make_limiter(tmp_path_factory.mktemp("limiter"), interval_s=0.001, lockout_s=0.002)
    limiter.wait()
    if isinstance(content, bytes):
        state_file(limiter).write_bytes(content)
    else:
        mine = json.loads(state_file(limiter).read_text())["boot_id"]
        edit(limiter, **content | {"boot_id": mine if content["boot_id"] else "the one before"})
    if limiter.lockout() is None:
        limiter.wait()
    else:
        assert limiter.locked_s() <= MAX_LOCKOUT_S  # 0 when the 2 ms have passed since

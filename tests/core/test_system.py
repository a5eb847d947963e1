"""What only Linux has is used where it is there, and done without elsewhere."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kinetics_tools.core import system


def test_slurm_may_grant_fewer_processors_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    bound = system.num_processors()
    for granted, number in (("1", 1), ("1000", bound), ("", bound)):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", granted)
        assert system.num_processors() == number


def test_processors_are_those_the_process_is_bound_to_else_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    assert system.num_processors() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert system.num_processors() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert system.num_processors() == 1


def test_without_cpuinfo_no_flag_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_info = tmp_path / "cpuinfo"
    monkeypatch.setattr(system, "_CPU_INFO", cpu_info)
    assert system.cpu_flags() == frozenset()
    cpu_info.write_text("flags\t: fpu avx512_bf16\n")
    assert "avx512_bf16" in system.cpu_flags()
    assert "bf16" not in system.cpu_flags()


def test_a_process_is_running_until_it_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert system.is_running(other.pid)
        other.communicate(b"\n")
    assert not system.is_running(other.pid)
    assert system.is_running(os.getpid())
    assert system.is_running(1)  # of another user, unless this one is root
    assert not system.is_running(10**30)


def test_the_clock_since_boot_is_the_wall_clock_where_no_boot_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as linux:
        linux.setattr(system, "_BOOT_ID", tmp_path / "boot_id")
        (tmp_path / "boot_id").write_text("b0071d\n")
        linux.setattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC, raising=False)
        assert system.boot_id() == "b0071d"
        assert abs(system.boot_time_s() - time.monotonic()) < 60
        linux.delattr(time, "CLOCK_BOOTTIME")
        assert system.boot_id() == ""
        assert abs(system.boot_time_s() - time.time()) < 60
    monkeypatch.setattr(system, "_BOOT_ID", tmp_path / "none")
    assert system.boot_id() == ""
    assert abs(system.boot_time_s() - time.time()) < 60


def test_a_file_in_memory_has_no_name_and_holds_what_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for _ in range(2):
        file = system.open_memory_file()
        assert os.write(file, b"clip") == 4
        assert os.pread(file, 9, 0) == b"clip"
        assert os.fstat(file).st_nlink == 0
        os.close(file)
        monkeypatch.delattr(os, "memfd_create", raising=False)  # as on macOS


def test_libraries_have_their_own_symbols_only_in_the_block() -> None:
    before = sys.getdlopenflags()
    with pytest.raises(ZeroDivisionError), system.own_symbols_first():
        assert sys.getdlopenflags() == before | getattr(os, "RTLD_DEEPBIND", 0)
        1 / 0  # noqa: B018
    assert sys.getdlopenflags() == before


def test_the_cache_is_where_the_user_keeps_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert system.cache_dir() == tmp_path / "kinetics-tools"
    assert system.cache_dir(Path("here")) == Path("here")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert system.cache_dir() == Path("/home/me/.cache/kinetics-tools")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert system.cache_dir() == Path("/home/me/.cache/kinetics-tools")

"""What all commands share: help, suggestions, progress, exit codes."""

import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinetics_tools import __version__
from kinetics_tools.core import cli, console, system
from kinetics_tools.core.cli import Parser
from kinetics_tools.extract.cli import build_parser
from support import environment, run_command

COMMANDS = ("kinetics-download", "extract-flow", "run-benchmark")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_version(name: str) -> None:
    shown = run_command(name, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("usage: ")
    for option in ("--seed", "--tmp-dir", "--version"):
        assert option in shown.stdout
    assert "None)" not in shown.stdout
    assert run_command(name, "--version").stdout.strip() == __version__


def test_a_closed_pipe_is_not_a_crash() -> None:
    code = (
        "import sys; from kinetics_tools.core import cli\n"
        "def main():\n"
        "    sys.stdin.read()\n"  # until the pipe is closed
        "    print('row\\n' * 100_000)\n"
        "    return 0\n"
        "cli.run(main)"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    assert command.stdin is not None
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    command.stdin.close()
    assert command.stderr.read() == b""
    assert command.wait(60) == 141


# Children have the streams too; 5: each is there, and is not a file of ours.
CHILD = "import os; os._exit(sum(os.fstat(n).st_nlink >= 0 for n in (0, 1, 2)) + 2)"
CLOSED = (">&-", "2>&-", "<&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full")


@pytest.mark.parametrize("streams", CLOSED)
@pytest.mark.parametrize(
    ("main", "code"),
    [
        ("print('row\\n' * {rows}) or 0", 0),
        ("logging.getLogger('kinetics_tools').info('a line') or 3", 3),
        ("(_ for _ in ()).throw(KineticsError('unusable'))", 2),
        ("cli.Parser('x', 'X.').parse_args(['--nope'])", 2),
        ("os.kill(os.getpid(), 15)", 143),
        (f"subprocess.run([sys.executable, '-c', {CHILD!r}], check=False).returncode", 5),
    ],
)
def test_closed_and_full_streams_change_no_exit_code_but_that_of_output_that_is_lost(
    streams: str, main: str, code: int, tmp_path: Path
) -> None:
    for rows in (1, 100_000):
        program = (
            "import logging, os, subprocess, sys; from kinetics_tools.core import cli\n"
            "from kinetics_tools.core.errors import KineticsError\n"
            f"def main():\n"
            f"    file = open('ours.txt', 'w')\n"  # it must not become a standard stream
            f"    return {main.format(rows=rows)}\n"
            "cli.run(main)"
        )
        (tmp_path / "program.py").write_text(program)
        shell = f"exec {sys.executable} program.py {streams}"
        told = subprocess.run(
            ["/bin/sh", "-c", shell],
            cwd=tmp_path,
            capture_output=True,
            env=environment(),
            check=False,
        )
        is_lost = streams == ">/dev/full" and "print" in main
        assert told.returncode == (2 if is_lost else code)
        assert b"Traceback" not in told.stderr
        assert (tmp_path / "ours.txt").read_text() == ""
        if is_lost:
            said = b"error: standard output, or a file of this run: No space left on device; "
            assert told.stderr.startswith(said)


@pytest.mark.parametrize(
    ("main", "said"),
    [
        ("[open('/dev/null') for _ in range(100)]", "Too many open files; allow more open files"),
        ("os.fork()", "Resource temporarily unavailable; give fewer --jobs"),
        (
            "(_ for _ in ()).throw(RuntimeError('can\\'t start new thread'))",
            "no thread can be started; give fewer --jobs",
        ),
        ("bytes(2**60)", "Cannot allocate memory; give fewer --jobs"),
    ],
)
def test_a_limit_of_the_machine_is_one_line(main: str, said: str) -> None:
    program = (
        "import os, resource; from kinetics_tools.core import cli\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))\n"
        "def fork(): raise BlockingIOError(11, os.strerror(11))\n"  # root has no such limit
        "os.fork = fork\n"
        f"cli.run(lambda: {main})"
    )
    words = [sys.executable, "-c", program]
    told = subprocess.run(words, capture_output=True, text=True, env=environment(), check=False)
    assert told.returncode == 2
    assert told.stderr.startswith(f"error: {said} (") or told.stderr.startswith(f"error: {said}, ")
    assert told.stderr.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_a_number_out_of_range_is_one_line(name: str) -> None:
    option = "--workers" if name == "run-benchmark" else "--jobs"
    folders = () if name == "run-benchmark" else ("CLIPS", "OUT")
    for number in ("99999999999", "9" * 5000, "-1", "1e3", ""):
        told = run_command(name, *folders, f"{option}={number}")
        assert told.returncode == 2
        assert f"is not a whole number from {int(option == '--jobs')} to 4096" in told.stderr
        assert (told.stderr.count("\n"), len(told.stderr) < 300) == (1, True)


@pytest.mark.parametrize("granted", ["0", "00", "x", "", "-1", "9" * 5000])
def test_slurms_number_of_processors_is_taken_only_if_it_is_one(
    granted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    here = system.num_processors()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", granted)
    assert system.num_processors() == here >= 1
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert system.num_processors() == 1


def test_an_error_is_one_short_line_whatever_it_quotes() -> None:
    program = (
        "import logging; from kinetics_tools.core import cli\n"
        "from kinetics_tools.core.errors import OutError\n"
        "def main():\n"
        "    logging.getLogger('kinetics_tools.x').info('a %s', 'name\\nerror: forged')\n"
        "    raise OutError('bad \\n\\x1b[2J name ' + 'x' * 100_000)\n"
        "cli.run(main)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert said.returncode == 2
    logged, told = said.stderr.splitlines()
    assert logged.endswith("a name\\nerror: forged")
    assert told.startswith("error: bad \\n\\x1b[2J name xxx")
    assert told.endswith("x ...")
    assert len(told) < console.MAX_TOLD + 20
    said = run_command("extract-flow", "clips", "out", "--engine", "ra\ny" * 5000)
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    assert len(said.stderr) < console.MAX_TOLD + 20


def test_each_bad_row_of_a_manifest_has_a_line_of_its_own(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("label,youtube_id,time_start,time_end,split\n" + "yoga,a,1,0,val\n" * 12)
    said = run_command("kinetics-download", str(table), str(tmp_path / "out"))
    assert said.returncode == 2
    first, *rows, last = said.stderr.splitlines()
    assert first.startswith(f"error: {table}: 12 bad rows; fix them, or skip them with")
    assert [row.split(":")[0] for row in rows] == [f"  line {line}" for line in range(2, 12)]
    assert last == "  and 2 more"


def test_abbreviated_options_are_refused() -> None:
    said = run_command("kinetics-download", "m.csv", "out", "--forc")
    assert said.returncode == 2
    assert "unrecognized arguments: --forc" in said.stderr


def test_a_first_argument_is_a_verb_unless_it_is_a_path() -> None:
    assert cli.take_verb(["report", "out"], ("report",)) == ("report", ["out"])
    assert cli.take_verb(["./report", "out"], ("report",)) == (None, ["./report", "out"])
    assert cli.take_verb([], ("report",)) == (None, [])


def test_progress_without_a_terminal_is_logged_also_while_nothing_is_finished(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "LOG_EVERY_S", 0.01)

    def words() -> Iterator[str]:
        for word, said in (
            ("ab", "0 of 3 after .*, working"),
            ("c", "2 of 3 after .*, about .* left"),
        ):
            end = time.monotonic() + 20
            while not any(re.fullmatch(f"letters: {said}", line) for line in caplog.messages):
                assert time.monotonic() < end, caplog.messages
                time.sleep(0.01)
            yield word

    with caplog.at_level(logging.INFO):
        assert list(console.progress(words(), total=3, what="letters", size=len)) == ["ab", "c"]


def test_a_bug_is_a_traceback_and_exit_code_1() -> None:
    code = "from kinetics_tools.core import cli; cli.run(lambda: 1 // 0)"
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert said.returncode == 1
    assert "ZeroDivisionError" in said.stderr


def test_all_commands_have_the_same_run_options() -> None:
    parser = Parser("make", "Make things.")
    run = parser.add_run(jobs="things at once", made="thing")
    cli.add_cache_dir(run)
    options = parser.parse_args(["--jobs", "3", "--engine", "ray", "--task", "1/4", "--force"])
    assert (options.jobs, options.engine, options.task, options.force) == (3, "ray", "1/4", True)
    defaults = parser.parse_args([])
    assert (defaults.jobs, defaults.engine, defaults.task) == (None, "local", None)
    assert not (defaults.force or defaults.dry_run)
    shown = build_parser().format_help()
    for option in ("--jobs N", "--engine", "--task I/N", "--force", "--dry-run"):
        assert option in parser.format_help()
        assert option in shown


def test_an_unknown_engine_is_one_line_with_the_nearest_name() -> None:
    said = run_command("extract-flow", "clips", "out", "--engine", "rat")
    assert said.returncode == 2
    assert "Did you mean 'ray'?" in said.stderr
    assert said.stderr.count("\n") == 1

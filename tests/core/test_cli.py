"""What all commands share: help, suggestions, progress, exit codes."""

import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from kinetics_tools import __version__
from kinetics_tools.core import cli, console
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

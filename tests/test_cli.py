"""The manner of the commands: help, suggestions, progress, exit codes."""

import logging
import re
import subprocess
import sys

import pytest
from support import environment, run_command

from kinetics_tools import __version__, cli

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


def test_abbreviations_are_not_guessed() -> None:
    said = run_command("kinetics-download", "m.csv", "out", "--forc")
    assert said.returncode == 2
    assert "unrecognized arguments: --forc" in said.stderr


def test_a_verb_is_a_verb_and_a_file_of_its_name_is_not() -> None:
    assert cli.take_verb(["report", "out"], ("report",)) == ("report", ["out"])
    assert cli.take_verb(["./report", "out"], ("report",)) == (None, ["./report", "out"])
    assert cli.take_verb([], ("report",)) == (None, [])


def test_progress_without_a_terminal_is_a_line_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "LOG_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO):
        assert list(cli.progress("abc", total=3, what="videos")) == ["a", "b", "c"]
    assert re.fullmatch(r"videos: 1 of 3, about \d+ s left", caplog.messages[0])


def test_a_bug_is_a_traceback_and_exit_1() -> None:
    code = "from kinetics_tools import cli; cli.run(lambda: 1 // 0)"
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert said.returncode == 1
    assert "ZeroDivisionError" in said.stderr

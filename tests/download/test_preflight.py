"""The check before a long job: with the things it looks for, and without them."""

import os
import stat
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yt_dlp.networking.impersonate

from kinetics_tools.core.errors import Reason, SourceError
from kinetics_tools.download import preflight
from kinetics_tools.download.preflight import Finding, Level, PreflightJob
from kinetics_tools.download.sources.js_runtime import SOLVER, Solver, release, solver
from kinetics_tools.media.recipe import ClipRecipe
from support import run_command

MakeJob = Callable[..., PreflightJob]


@pytest.fixture
def make_job(tmp_path: Path, ffmpeg: Path, recipe: ClipRecipe) -> MakeJob:
    def make(**changes: Any) -> PreflightJob:
        usual: dict[str, Any] = {
            "out": tmp_path / "new" / "out",
            "cache": tmp_path / "cache",
            "binary": ffmpeg,
            "recipe": recipe,
        }
        return PreflightJob(**usual | changes)

    return make


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def put_program(folder: Path, name: str, says: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def about(findings: list[Finding], word: str) -> Finding:
    (found,) = (finding for finding in findings if word in finding.what)
    return found


def test_a_job_that_lacks_nothing_is_well_and_nothing_is_written(
    make_job: MakeJob, tmp_path: Path
) -> None:
    findings = preflight.check(make_job())
    assert [finding.level for finding in findings] == [Level.OK] * 4
    assert preflight.is_ready(findings)
    assert list(tmp_path.iterdir()) == []


def test_a_finding_is_one_line() -> None:
    assert str(Finding(Level.OK, "deno 2.9")) == "ok      deno 2.9"
    assert str(Finding(Level.MISSING, "no deno", "get it")) == "missing no deno: get it"


def test_folders_that_cannot_be_written_are_missing(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    findings = preflight.check(make_job(out=tmp_path / "file" / "out", cache=Path("/proc/cache")))
    assert about(findings, "OUT").level is Level.MISSING
    assert "Not a directory" in about(findings, "OUT").what
    assert about(findings, "--cache-dir").level is Level.MISSING
    assert not preflight.is_ready(findings)


def test_too_small_a_disk_is_missing(make_job: MakeJob) -> None:
    findings = preflight.check(make_job(needed_bytes=1e18))
    assert about(findings, "free").level is Level.MISSING
    assert "1000000 TB needed" in about(findings, "free").what


def test_an_ffmpeg_that_makes_no_clip_is_missing(make_job: MakeJob, tmp_path: Path) -> None:
    poor = put_program(tmp_path, "ffmpeg", "Unknown encoder libx264")
    poor.write_text("#!/bin/sh\necho 'Unknown encoder libx264' >&2\nexit 1\n")
    found = about(preflight.check(make_job(binary=poor)), "ffmpeg ")
    assert found.level is Level.MISSING
    assert "Unknown encoder libx264" in found.what


def test_ffmpeg_8_1_is_named_and_does_no_harm(make_job: MakeJob) -> None:
    found = about(preflight.check(make_job(recipe=ClipRecipe(ffmpeg="n8.1.2"))), "ffmpeg ")
    assert found.level is Level.OK
    assert "--download-sections hangs" in found.what
    other = about(preflight.check(make_job(recipe=ClipRecipe(ffmpeg="8.10"))), "ffmpeg ")
    assert "hangs" not in other.what


def test_an_old_release_of_ytdlp_is_old_but_no_reason_to_stop(make_job: MakeJob) -> None:
    version, released = release()
    for days, level in ((90, Level.OK), (91, Level.OLD)):
        findings = preflight.check(make_job(ytdlp={}), today=released + timedelta(days=days))
        assert about(findings, f"yt-dlp {version}").level is level
        assert preflight.is_ready(findings)
    assert "91 days old" in about(findings, "yt-dlp").what


def js_runtime(make_job: MakeJob, **parameters: Any) -> Finding:
    findings = preflight.check(make_job(ytdlp=parameters, is_youtube=True))
    return next(f for f in findings if "JavaScript" in f.what or "may not use it" in f.what)


def test_no_javascript_runtime_is_missing(make_job: MakeJob, programs: Path) -> None:
    assert not any(programs.iterdir())
    found = js_runtime(make_job, js_runtimes={"node": {}, "bun": {}})
    if found.level is not Level.OK:  # deno may be installed beside this Python
        assert found.what == "no JavaScript runtime for yt-dlp"
        assert "yt-dlp[default,deno]" in found.advice


@pytest.mark.parametrize(
    ("name", "says", "level", "words"),
    [
        ("node", "v22.1.0", Level.OK, "node 22.1.0"),
        ("node", "v20.20.2", Level.MISSING, "yt-dlp needs 22.0.0 or later"),
        ("bun", "1.2.11", Level.OK, "bun 1.2.11"),
        ("bun", "1.0.0", Level.MISSING, "yt-dlp needs 1.2.11 or later"),
        ("deno", "deno 2.9.8 (stable)", Level.OK, "deno 2.9.8"),
        ("deno", "deno 2.2.0 (stable)", Level.MISSING, "yt-dlp needs 2.3.0 or later"),
    ],
)
def test_a_runtime_must_be_new_enough(
    make_job: MakeJob, tmp_path: Path, name: str, says: str, level: Level, words: str
) -> None:
    program = put_program(tmp_path, name, says)
    found = js_runtime(make_job, js_runtimes={name: {"path": str(program)}})
    assert found.level is level
    assert words in str(found)


def test_a_runtime_on_path_that_is_not_enabled_is_offered(
    make_job: MakeJob, programs: Path
) -> None:
    put_program(programs, "node", "v24.0.0")
    assert js_runtime(make_job, js_runtimes={"node": {}}).level is Level.OK
    found = js_runtime(make_job, js_runtimes={"quickjs": {"path": "/nonexistent/qjs"}})
    if "deno" not in found.what.partition(" ")[0]:
        assert (found.level, found.advice) == (Level.MISSING, "add --js-runtimes node")


def test_a_folder_may_be_named_as_the_place_of_a_runtime(make_job: MakeJob, programs: Path) -> None:
    put_program(programs, "deno", "deno 2.9.8")
    found = js_runtime(make_job, js_runtimes={"deno": {"path": str(programs)}})
    assert str(programs / "deno") in found.what


def test_solver_scripts_must_fit_the_release() -> None:
    assert Solver("0.8.3", "0.8.0", may_be_fetched=False).fits
    assert not Solver("0.7.0", "0.8.0", may_be_fetched=False).fits
    assert not Solver(None, "0.8.0", may_be_fetched=False).fits


def test_the_solver_is_judged_as_it_is_installed(make_job: MakeJob) -> None:
    scripts = solver({})
    assert scripts.wanted is not None
    found = about(preflight.check(make_job(ytdlp={}, is_youtube=True)), SOLVER)
    assert found.level is (Level.OK if scripts.fits else Level.MISSING)
    assert scripts.fits or scripts.wanted in found.advice
    remote = {"remote_components": {"ejs:github"}}
    found = about(preflight.check(make_job(ytdlp=remote, is_youtube=True)), SOLVER)
    assert found.level is Level.OK


def test_cookies_must_be_a_file_that_ytdlp_reads(make_job: MakeJob, tmp_path: Path) -> None:
    cookies = tmp_path / "cookies.txt"

    def finding() -> Finding:
        return about(preflight.check(make_job(ytdlp={"cookiefile": str(cookies)})), "--cookies")

    assert finding().level is Level.MISSING
    assert "cannot be read" in finding().what
    cookies.write_text("<html>secret\n")
    assert "line 1 is not of Netscape format" in finding().what
    text = "# Netscape HTTP Cookie File\n.youtube.com\tTRUE\t/\tTRUE\t4102444800\tA\tsecret\n"
    cookies.write_text(text)
    assert finding().level is Level.OK
    assert cookies.read_text() == text


def test_lines_of_a_cookies_file_are_not_shown(
    make_job: MakeJob, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cookies = tmp_path / "cookies.txt"
    cookies.write_text("# Netscape HTTP Cookie File\nthe-secret\n")
    findings = preflight.check(make_job(ytdlp={"cookiefile": str(cookies)}))
    assert "secret" not in "".join([*map(str, findings), *capfd.readouterr()])


@pytest.mark.parametrize(
    ("host", "expires", "problem"),
    [
        (".example.org", 4102444800, "the cookies are not for www.youtube.com"),
        (".google.com", 0, "the cookies are not for www.youtube.com"),
        (".youtube.com.example.org", 0, "the cookies are not for www.youtube.com"),
        (".youtube.com", 1000, "the cookies for www.youtube.com have expired"),
        (".youtube.com", 0, ""),
        ("www.youtube.com", 4102444800, ""),
    ],
)
def test_a_check_and_a_run_say_when_youtube_gets_no_cookie(
    tmp_path: Path, host: str, expires: int, problem: str
) -> None:
    table, cookies = tmp_path / "list.csv", tmp_path / "cookies.txt"
    table.write_text("label,youtube_id,time_start,time_end,split\na,aaaaaaaaaaa,0,10,val\n")
    row = f"{host}\t{str(host.startswith('.')).upper()}\t/\tTRUE\t{expires}\tSID\tSECRET\n"
    cookies.write_text(f"{row}.other.org\tTRUE\t/\tTRUE\t0\tSID\tSECRET\n")
    words = ("kinetics-download", table, tmp_path / "out", "--cookies", cookies)
    nowhere = ("--proxy", "http://127.0.0.1:9", "--ytdlp-option", "extractor-retries=0")
    check, run = run_command(*words, "--check"), run_command(*words, *nowhere)
    assert f"ok      --cookies {cookies}\n" in check.stdout
    for said in (check.stdout, run.stderr):
        assert problem in said
        assert problem or "the cookies" not in said
    assert run.returncode == 4, run.stderr
    assert "SECRET" not in check.stdout + check.stderr + run.stdout + run.stderr


@pytest.mark.parametrize("options", [["--check"], []])
def test_a_cookie_file_that_cannot_be_used_is_one_line_with_its_name(
    tmp_path: Path, options: list[str]
) -> None:
    table, cookies = tmp_path / "list.csv", tmp_path / "cookies.txt"
    table.write_text("label,youtube_id,time_start,time_end,split\na,aaaaaaaaaaa,0,10,val\n")
    cookies.write_text("youtube.com    TRUE    /    TRUE    4102444800    SID    SECRET\n")
    words = ("kinetics-download", table, tmp_path / "out", "--cookies", cookies)
    said = run_command(*words, *options)
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr.startswith(f"error: --cookies {cookies} cannot be used (line 1 has spaces")
    assert said.stderr.count("\n") == 1
    assert "SECRET" not in said.stderr


def test_a_browser_without_cookies_is_missing(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    findings = preflight.check(
        make_job(ytdlp={"cookiesfrombrowser": ("firefox", None, None, None)})
    )
    assert about(findings, "--cookies-from-browser firefox").level is Level.MISSING


def test_an_impersonation_that_cannot_be_had_is_missing(make_job: MakeJob) -> None:
    target = yt_dlp.networking.impersonate.ImpersonateTarget("nobody")
    found = about(preflight.check(make_job(ytdlp={"impersonate": target})), "--impersonate nobody")
    assert found.level is Level.MISSING
    assert "curl-cffi" in found.advice


def test_a_lock_out_is_told_and_is_no_reason_to_stop(make_job: MakeJob) -> None:
    lockout = SourceError(Reason.BOT_CHECK, "not before 12:30; Sign in to confirm")
    found = about(preflight.check(make_job(ytdlp={}, is_youtube=True, lockout=lockout)), "YouTube")
    assert found.level is Level.WARNING
    assert "bot-check: not before 12:30" in found.what
    assert about(preflight.check(make_job(ytdlp={}, is_youtube=True)), "YouTube").level is Level.OK


def test_other_sources_need_no_runtime(make_job: MakeJob) -> None:
    assert not any("JavaScript" in finding.what for finding in preflight.check(make_job(ytdlp={})))


def test_the_environment_is_left_as_it_was(make_job: MakeJob) -> None:
    before = dict(os.environ)
    preflight.check(make_job(ytdlp={}, is_youtube=True))
    assert dict(os.environ) == before


def test_the_command_says_what_it_found_and_ends(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("label,youtube_id,time_start,time_end,split\na,abc,0,10,val\n")
    words = ("kinetics-download", table, tmp_path / "out", "--check", "--tmp-dir", tmp_path / "new")
    said = run_command(*words, "--source", f"dir:{tmp_path}")
    assert (said.returncode, said.stderr) == (0, "")
    assert all(line.startswith("ok ") for line in said.stdout.splitlines())
    said = run_command(*words, "--js-runtimes", "node:/nonexistent", "--no-check-certificates")
    assert said.returncode == 2
    assert any(line.startswith("missing ") for line in said.stdout.splitlines())
    assert "JavaScript runtime" in said.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.csv"]

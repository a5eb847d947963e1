"""The main job, whole: sample videos -> clips -> flow -> I3D -> results page."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support import environment


@pytest.mark.full
def test_the_demo_learns_the_sample_and_is_not_done_twice(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "kinetics_bench.demo", str(tmp_path / "demo")]
    subprocess.run(words, check=True, env=environment(), cwd=tmp_path)
    run = tmp_path / "demo" / "run"
    scores = {s: json.loads((run / s / "result.json").read_text()) for s in ("flow", "joint")}
    assert scores["joint"]["score"]["num_scored"] == 36
    assert scores["joint"]["score"]["top1"] >= 0.8
    assert (run / "report.html").is_file()

    before = (run / "flow" / "checkpoint.pt").stat().st_mtime_ns
    subprocess.run(words, check=True, env=environment(), cwd=tmp_path)
    assert (run / "flow" / "checkpoint.pt").stat().st_mtime_ns == before

"""A whole run to which everything happens: its store stutters, its shards change, it is killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from kinetics_bench.evaluation.results import Predictions
from mirror import MirrorServer, serve
from support import command, environment, wait_until
from tiny import key_file, tiny_shards

RGB_SHARD = "/shards/all/rgb-000000.tar"


@pytest.fixture
def server() -> Iterator[MirrorServer]:
    with serve() as known:
        for path in tiny_shards().rglob("[!.]*.*"):
            known.put(f"/shards/{path.relative_to(tiny_shards())}", path.read_bytes())
        yield known


def stutter(server: MirrorServer) -> None:
    """Four of its next answers are none: refused or cut off. A sample is tried five times."""
    server.files[RGB_SHARD].statuses += [503, 0, 429, 0, 500]
    server.files[RGB_SHARD].breaks += [None, None, 1500]


def of_three(*words: object) -> list[str]:
    """A command as three processes: for two training clips and five test clips, never even."""
    torchrun = shutil.which("torchrun", path=str(Path(command("run-benchmark")[0]).parent))
    assert torchrun is not None
    ours = command("run-benchmark", *words, "--device", "cpu", "--workers", 2, "--cache-bytes", 0)
    return [torchrun, "--standalone", "--no-python", "--nproc-per-node", "3", *ours]


def environment_of_three() -> dict[str, str]:
    own = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "KINETICS_TOOLS_TIMEOUT_S": "5"}
    return environment() | own


def run(words: Sequence[str]) -> tuple[int, list[str]]:
    """Exit code, and the errors that are not about another process of the three."""
    done = subprocess.run(
        words, env=environment_of_three(), capture_output=True, text=True, check=False, timeout=600
    )
    assert not re.search('File ".*kinetics_', done.stderr), done.stderr  # torchrun has its own
    return done.returncode, errors_of(done.stderr.splitlines())


def errors_of(lines: Iterable[str]) -> list[str]:
    errors = [line for line in lines if line.startswith("error: ")]
    return [line for line in errors if "the processes of this run lost each other" not in line]


def children(pid: int) -> set[int]:
    """The processes that `pid` started."""
    found = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found |= set(map(int, task.read_text().split()))
        except OSError:  # it has ended
            continue
    return found


def readers(torchrun: int) -> set[int]:
    """The processes that read clips: forks of those that torchrun started."""
    return {
        each
        for rank in children(torchrun)
        for each in children(rank)
        if words_of(each) == words_of(rank) != b""
    }


def words_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def scored_keys(folder: Path) -> tuple[str, ...]:
    result = json.loads((folder / "result.json").read_text())
    scored = Predictions.read(folder / "predictions.parquet", {})
    assert result["score"]["num_scored"] == result["score"]["num_expected"] == len(scored.keys)
    assert result["cost"]["num_processes"] == 3
    return scored.keys


@pytest.mark.full
def test_whatever_happens_each_key_is_scored_once(server: MirrorServer, tmp_path: Path) -> None:
    whole, address = server.files[RGB_SHARD].content, f"{server.address}/shards"
    work_dir = tmp_path / "run"
    training = of_three(
        *("--arch", "i3d", "--stream", "rgb", "--recipe", "sample", "--epochs", 1),
        *("--data", address, "--work-dir", work_dir),
        *("--train-split", key_file(tmp_path, "train.txt", "ann_*")),
        *("--test-split", key_file(tmp_path, "test.txt", "ben_*", "cyd_*", "dan_left")),
    )
    evaluation = of_three(
        *("evaluate", work_dir, "--data", address),
        *("--test-split", key_file(tmp_path, "other.txt", "cyd_*", "dan_*")),
    )

    # A shard is cut short: an error names it, and nothing is scored.
    server.put(RGB_SHARD, whole[: len(whole) // 2])
    code, errors = run(training)
    assert code != 0
    assert errors and all(f"{server.address}{RGB_SHARD}" in line for line in errors), errors
    assert not list(work_dir.rglob("predictions.parquet"))

    # It is put right, and the store stutters: the run ends as one that nothing happened to.
    server.put(RGB_SHARD, whole)
    stutter(server)
    assert run([*training, "--resume"]) == (0, [])
    keys = ("ben_left", "ben_right", "cyd_left", "cyd_right", "dan_left")
    assert scored_keys(work_dir / "rgb") == keys

    # The store hangs, and readers are killed: an error says so, and nothing is left running.
    server.put(RGB_SHARD, whole)
    server.files[RGB_SHARD].hangs = True
    with subprocess.Popen(
        evaluation, env=environment_of_three(), stderr=subprocess.PIPE, text=True
    ) as running:
        said: list[str] = []
        assert running.stderr is not None
        listener = threading.Thread(target=said.extend, args=(running.stderr,))
        listener.start()
        wait_until(lambda: readers(running.pid) or running.poll() is not None, seconds=120)
        known = children(running.pid) | readers(running.pid)
        for reader in readers(running.pid):
            with suppress(ProcessLookupError):  # the run ends the others once one is gone
                os.kill(reader, signal.SIGKILL)
        running.wait(120)
        listener.join()
    assert running.returncode != 0
    errors = errors_of(said)  # a process whose readers had not begun gives up on its store
    killed = [line for line in errors if "a process that reads clips has ended" in line]
    rest = [line for line in errors if line not in killed]
    assert killed and all(f"{server.address}{RGB_SHARD}" in line for line in rest), said
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in known), seconds=30)

    # It answers again.
    server.files[RGB_SHARD].hangs = False
    stutter(server)
    assert run(evaluation) == (0, [])
    (folder,) = {path.parent for path in work_dir.rglob("evaluate-*/**/predictions.parquet")}
    assert scored_keys(folder) == ("cyd_left", "cyd_right", "dan_left", "dan_right")

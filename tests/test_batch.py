"""Extraction in batch jobs: lent devices, a Ray cluster, a Slurm array. The same bytes always."""

import contextlib
import getpass
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from extractions import extract, killed, plan_for, run
from kinetics_tools.core import ray_engine
from kinetics_tools.core.units import WorkerResources
from kinetics_tools.extract.clips import read_clips
from kinetics_tools.extract.plan import ExtractPlan, plan_shards
from kinetics_tools.extract.run import summarise
from kinetics_tools.extract.worker import make_shard
from kinetics_tools.flow import methods
from kinetics_tools.flow.methods import FlowRecipe, make_method
from kinetics_tools.shards.records import FolderRecords
from support import ROOT, command, environment, run_command, tree, wait_until

Gray = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.float32]

SLURM = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs=2 Gres=gpu:2
PartitionName=all Nodes=node Default=YES MaxTime=10
"""


@dataclass
class FakeGPU:
    """A method that runs on GPUs only in name, and sees who is at it when."""

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    seen: ClassVar[list[tuple[str, int]]] = []
    at_work: ClassVar[list[int]] = []

    def as_json(self) -> dict[str, Any]:
        return {}

    def prepare(self, device: str) -> None:
        pass

    def flows(self, frames: Iterator[Gray], device: str, threads: int) -> Iterator[Flow]:
        self.at_work.append(threads)
        before = next(frames)
        for after in frames:
            self.seen.append((device, len(self.at_work)))
            time.sleep(0.005)  # let go of the interpreter, as a GPU's work does
            yield (np.stack([after, before], axis=-1) / 255).astype(np.float32)
            before = after
        self.at_work.pop()


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_clips_are_computed_at_once_on_processors_and_take_turns_on_a_gpu(
    device: str, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(methods.METHODS, "fake", FakeGPU)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    FakeGPU.seen.clear()
    recipe = FlowRecipe(method="fake", parameters={})
    plan = plan_for(videos, tmp_path / "out", flow=recipe, name="fake", samples_per_shard=6)
    (unit,) = plan_shards(read_clips(videos).clips, plan)

    made = make_shard(
        unit, plan=plan, scratch=tmp_path / "scratch", resources=WorkerResources(device, 4)
    )

    assert made == len(FakeGPU.seen) == 6 * 24
    assert {name for name, _ in FakeGPU.seen} == {device}
    most = max(number for _, number in FakeGPU.seen)
    assert most == 1 if device == "cuda:0" else most > 1
    assert list((tmp_path / "scratch").iterdir()) == []
    kind = device.partition(":")[0]
    assert summarise([unit.state(plan, FolderRecords(plan.out))]).devices == {
        kind: 1
    }  # results on another kind differ


def test_a_clip_that_is_alone_has_all_threads(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    @dataclass
    class Seen(FakeGPU):
        def flows(self, frames: Iterator[Gray], device: str, threads: int) -> Iterator[Flow]:
            given.append(threads)
            return super().flows(frames, device, threads)

    monkeypatch.setitem(methods.METHODS, "fake", Seen)
    recipe = FlowRecipe(method="fake", parameters={})
    plan = plan_for(videos, tmp_path / "out", flow=recipe, name="fake", samples_per_shard=6)
    (unit,) = plan_shards(read_clips(videos).clips[:1], plan)

    make_shard(unit, plan=plan, scratch=tmp_path / "scratch", resources=WorkerResources("cpu", 4))

    assert given == [4]


def test_what_compiles_does_so_once_before_the_processes_start(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[str] = []

    @dataclass
    class Compiled(FakeGPU):
        def prepare(self, device: str) -> None:
            prepared.append(device)

    monkeypatch.setitem(methods.METHODS, "fake", Compiled)
    changes: dict[str, Any] = {"flow": FlowRecipe(method="fake", parameters={}), "name": "fake"}
    assert run(videos, tmp_path / "out", **changes).num_made == 6 * 24
    assert prepared == ["cpu"]
    run(videos, tmp_path / "out", **changes)
    assert prepared == ["cpu"], "there was nothing to do"


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cuda:0,1", "device 'cuda:0,1': Ray gives each task its GPU; with --engine ray choose"),
        ("gpu", "choose auto, cpu or cuda"),
    ],
)
def test_a_gpu_by_number_is_not_for_ray(
    device: str, words: str, videos: Path, tmp_path: Path
) -> None:
    options = ("--engine", "ray", "--device", device)
    done = run_command("extract-flow", videos, tmp_path / "out", *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


TWO_NODES = """
import dataclasses, json, os, pathlib, sys, threading
from ray.cluster_utils import Cluster
from extractions import extract
from kinetics_tools.extract.clips import read_clips
from support import wait_until
from test_batch import opencv_plan
if __name__ == "__main__":
    videos, out = map(pathlib.Path, sys.argv[1:])
    node = {"num_cpus": 1, "num_gpus": 1}  # said to be there; what a node has, it finds itself
    cluster = Cluster(initialize_head=True, head_node_args=node)
    other = cluster.add_node(**node)
    os.environ["RAY_ADDRESS"] = cluster.address
    summaries = []
    plan = dataclasses.replace(
        opencv_plan(videos, out), devices=("auto",), jobs=None, engine="ray"
    )
    run = threading.Thread(
        target=lambda: summaries.append(extract(read_clips(videos), plan))
    )
    run.start()
    at_work = lambda: [path.name for path in out.glob(".scratch/*/all-*")]
    wait_until(lambda: len(at_work()) == 2, seconds=90)
    begun = {*at_work()}
    cluster.remove_node(other, allow_graceful=False)
    while run.is_alive():
        begun |= {*at_work()}
        run.join(0.02)
    print(json.dumps([sorted(begun), summaries[0].num_made, summaries[0].is_indexed]))
    cluster.shutdown()
"""


def opencv_plan(videos: Path, out: Path) -> ExtractPlan:
    """A plan of shards that take some seconds each, and no GPU."""
    recipe = FlowRecipe(method="opencv-tvl1", parameters=make_method("opencv-tvl1").as_json())
    plan = plan_for(videos, out, flow=recipe, name="opencv")
    return replace(plan, rgb=replace(plan.rgb, short_side=72))


@pytest.mark.full
def test_a_node_that_is_lost_leaves_the_same_tree(videos: Path, tmp_path: Path) -> None:
    plan = opencv_plan(videos, tmp_path / "one")
    extract(read_clips(videos), plan)
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES, videos, tmp_path / "many"],
        env=environment() | ray_engine._LOCAL_RAY_ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    begun, num_made, is_indexed = json.loads(done.stdout.splitlines()[-1])
    # Three shards, and again the one that the lost node was at.
    assert len(begun) == 4
    assert len({name.rpartition("-")[0] for name in begun}) == 3
    assert (num_made, is_indexed) == (6 * 24, True)
    assert tree(tmp_path / "many", without=(".part",)) == tree(tmp_path / "one")


LENDING = """
import pathlib, sys
from extractions import extract, plan_for
from kinetics_tools.extract.clips import read_clips
if __name__ == "__main__":
    videos, out = map(pathlib.Path, sys.argv[1:])
    plan = plan_for(videos, out, devices=("cpu", "cpu"), jobs=4)
    extract(read_clips(videos), plan)
"""


@pytest.mark.full
def test_ten_kills_with_lent_devices_give_the_same_tree(videos: Path, tmp_path: Path) -> None:
    run(videos, tmp_path / "one")
    many = tmp_path / "many"
    words = [sys.executable, "-c", LENDING, str(videos), str(many)]

    states = killed(words, environment(), many, times=10)

    assert len(states) >= 3

    assert tree(many) == tree(tmp_path / "one")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def program(name: str) -> str:
    """Where a program of Slurm's is; the test that asks for it is only run when it is wanted."""
    found = shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")
    assert found is not None, f"{name} is not installed: Debian has it in slurm-wlm and munge"
    return found


MakeVideo = Callable[..., Path]


@pytest.fixture
def videos(tmp_path: Path, make_video: MakeVideo) -> Path:
    """A folder of two class folders with six videos of 25 frames: three shards of two."""
    root = tmp_path / "videos"
    for label in ("running", "walking"):
        (root / label).mkdir(parents=True)
        for number, size in enumerate(("64x48", "48x64", "56x56")):
            video = make_video(seconds=1, fps="25", size=size)
            shutil.copy(video, root / label / f"{label}_{number}.mp4")
    return root


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Slurm of one node on loopback, with two devices that it takes for GPUs; its environment."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(bytes(range(128)))
    key.chmod(0o600)
    config = folder / "slurm.conf"
    config.write_text(
        SLURM.format(
            folder=folder,
            host=socket.gethostname().partition(".")[0],
            user=getpass.getuser(),
            controller_port=free_port(),
            node_port=free_port(),
        )
    )
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    known = environment() | {"SLURM_CONF": str(config)}
    names = {"pid": "munge.pid", "socket": "munge.socket", "log": "munge.log", "seed": "munge.seed"}
    files = [
        f"--{name}{'' if name == 'socket' else '-file'}={folder / file}"
        for name, file in names.items()
    ]
    daemons = (
        [program("munged"), "--foreground", "--force", f"--key-file={key}", *files],
        [program("slurmctld"), "-D", "-f", str(config)],
        [program("slurmd"), "-D", "-f", str(config), "-N", "node"],
    )
    with contextlib.ExitStack() as stack:
        for words in daemons:
            process = subprocess.Popen(
                words, env=known, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait, 60)
            stack.callback(process.send_signal, signal.SIGTERM)
        info = [program("sinfo"), "--noheader", "--format=%T"]

        def is_up() -> bool:
            said = subprocess.run(info, env=known, capture_output=True, text=True, check=False)
            return said.stdout.strip() == "idle"

        wait_until(is_up, seconds=60)
        yield known


def script_of_docs(name: str, folder: Path) -> Path:
    """A batch script of docs/scaling.md, written into `folder`."""
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    found = re.search(rf"```bash\n(#!\S+\n# {re.escape(name)}\n.*?)```", page, re.DOTALL)
    assert found is not None
    (folder / name).write_text(found[1])
    return folder / name


@pytest.mark.slurm
def test_the_array_job_of_the_docs_gives_the_same_tree(
    videos: Path, tmp_path: Path, slurm: dict[str, str]
) -> None:
    run(videos, tmp_path / "one")
    script = script_of_docs("extract-flow.sbatch", tmp_path)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "srun").symlink_to(program("srun"))
    ours = programs / "extract-flow"
    ours.write_text(f'#!/bin/sh\nexec {shlex.join(command("extract-flow"))} "$@"\n')
    ours.chmod(0o755)
    out = tmp_path / "many"
    options = ("--short-side", "keep", "--samples-per-shard", "2")
    submit = [program("sbatch"), "--wait", "--array=0-1", "--cpus-per-task=1", "--time=5"]
    submit += [f"--output={tmp_path}/task-%a.log", str(script), str(videos), str(out), *options]

    def submitted() -> dict[str, str]:
        done = subprocess.run(
            submit,
            env=slurm | {"PATH": f"{programs}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        logs = {path.name: path.read_text() for path in sorted(tmp_path.glob("task-*.log"))}
        assert done.returncode == 0, (done.stderr, logs)
        return logs

    logs = submitted()

    assert tree(out) == tree(tmp_path / "one")
    assert set(logs) == {"task-0.log", "task-1.log"}
    parts = [re.search(r"(\d) of (\d) samples of part (\S+) in", text) for text in logs.values()]
    said = [part.groups() for part in parts if part is not None]
    assert said == [("4", "4", "0-of-2"), ("2", "2", "1-of-2")]
    assert any(f"index: {out}/dataset.json" in text for text in logs.values())
    again = submitted()
    assert not any("computed now" in text for text in again.values())
    assert tree(out) == tree(tmp_path / "one")


@pytest.mark.slurm
def test_the_scripts_of_the_docs_end_as_told(tmp_path: Path, slurm: dict[str, str]) -> None:
    """With programs of a few words in place of ours: exit codes, and what torchrun is given."""
    programs = tmp_path / "programs"
    programs.mkdir()

    def submit(name: str, *options: str, program_text: str) -> int:
        program_name = "torchrun" if name == "run-benchmark" else name
        (programs / program_name).write_text(f"#!/bin/sh\n{program_text}\n")
        (programs / program_name).chmod(0o755)
        script = script_of_docs(f"{name}.sbatch", tmp_path)
        words = [program("sbatch"), "--wait", "--cpus-per-task=1", "--time=5", *options]
        words += [f"--output={tmp_path}/{name}.log", str(script), "--word"]
        path = f"{programs}:/usr/bin:/bin"
        return subprocess.run(words, env=slurm | {"PATH": path}, check=False).returncode

    for name in ("kinetics-download", "extract-flow"):
        for code, told in {3: 0, 4: 4, 75: 75}.items():
            assert submit(name, "--array=0-0", program_text=f"exit {code}") == told

    said = f'echo "$@" > {tmp_path}/said'
    assert submit("run-benchmark", "--nodes=1", "--gpus-per-node=2", program_text=said) == 0
    words = (tmp_path / "said").read_text().split()
    host = socket.gethostname().partition(".")[0]
    assert words[words.index("--nnodes") + 1] == "1"
    assert words[words.index("--rdzv-endpoint") + 1] in (f"{host}:29500", "node:29500")
    assert words[-5:] == ["run-benchmark", "--resume", "--workers", "14", "--word"]

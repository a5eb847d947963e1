"""A compiled training is the same training, up to the order of its sums."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kinetics_bench.device import open_machine
from kinetics_bench.recipes import OneCycle
from kinetics_bench.training.checkpoint import CHECKPOINT, Checkpoint
from kinetics_bench.training.trainer import train
from kinetics_tools.core.errors import EvaluationError
from support import command, environment
from tiny import key_file, tiny_shards
from trainings import CPU, assert_same, job

COMPILED = replace(CPU, compiled=True)
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++")


@pytest.mark.full
@needs_compiler
@pytest.mark.parametrize(("arch", "stream"), [("i3d", "flow"), ("convnet-lstm", "rgb")])
def test_a_compiled_step_is_that_of_an_eager_one(arch: str, stream: str, tmp_path: Path) -> None:
    given = job(tmp_path / "eager", arch=arch, stream=stream)
    # Rates so low that the weights, and with them the losses of later steps, stay alike.
    schedule = OneCycle(epochs=2, peak_lr=1e-6)
    given = replace(given, recipe=replace(given.recipe, schedule=schedule, dropout=0.0))
    eager = train(given, CPU)
    compiled = train(replace(given, folder=tmp_path / "compiled"), COMPILED)
    assert eager.step == compiled.step > 0
    for one, other in zip(eager.history, compiled.history, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-3)
    for name, values in eager.net.items():
        torch.testing.assert_close(compiled.net[name], values, atol=2e-3, rtol=2e-2)


@pytest.mark.full
@needs_compiler
def test_a_compiled_training_is_its_own(tmp_path: Path) -> None:
    given = job(tmp_path / "once")
    once = train(given, COMPILED)
    again = train(replace(given, folder=tmp_path / "again"), COMPILED)
    assert_same(once.net, again.net)
    said = r"not the same compiler \(torch.compile there, none now\)"
    with pytest.raises(EvaluationError, match=said):
        train(given, CPU)


def test_a_checkpoint_of_before_was_not_compiled(tmp_path: Path) -> None:
    given = job(tmp_path)
    done = train(given, CPU)
    assert done.identity["compiler"] == "none"
    done.identity = {what: value for what, value in done.identity.items() if what != "compiler"}
    done.write(given.folder / CHECKPOINT)
    train(given, CPU)
    assert "compiler" not in Checkpoint.read(given.folder / CHECKPOINT).identity


@pytest.mark.parametrize("other", ["sync_batch_norm", "activation_checkpointing"])
def test_what_does_not_go_together_is_refused(other: str) -> None:
    refused = pytest.raises(EvaluationError, match="--compile does not go together with --")
    with refused, open_machine("cpu", "none", compiled=True, **{other: True}):
        pass


@pytest.mark.full
def test_without_a_compiler_it_says_so_in_one_line(tmp_path: Path) -> None:
    train = key_file(tmp_path, "train.txt", "ann_*", "ben_*")
    test = key_file(tmp_path, "test.txt", "dan_*")
    words = command(
        *("run-benchmark", "--arch", "i3d", "--stream", "rgb", "--recipe", "small", "--compile"),
        *("--data", tiny_shards(), "--train-split", train, "--test-split", test, "--epochs", 1),
        *("--work-dir", tmp_path / "run", "--device", "cpu", "--cache-dir", tmp_path / "cache"),
    )
    bare = environment() | {"CXX": "no-such-compiler", "PATH": str(tmp_path)}
    bare["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "inductor")
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=bare)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: torch cannot compile the network (No working C++ compiler")
    assert last.endswith("leave out --compile")
    assert "Traceback" not in done.stderr

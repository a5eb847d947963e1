"""Which device is taken, and what torchrun said."""

import socket
import subprocess
import sys

import pytest

from kinetics_bench.device import open_machine
from kinetics_tools.core.errors import EvaluationError
from support import environment


@pytest.mark.parametrize(
    "told",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
        {"WORLD_SIZE": "2", "RANK": "-1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
        {"WORLD_SIZE": "many", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
        {"WORLD_SIZE": "9" * 5000, "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"},
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "abc"},
    ],
)
def test_variables_that_torchrun_did_not_set_are_one_line(
    told: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(EvaluationError, match="torchrun did not set; start many") as caught,
        open_machine("cpu", "none"),
    ):
        pass
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda:99999", "cpu:0", "c" * 5000])
def test_an_unknown_device_is_one_line(name: str) -> None:
    with (
        pytest.raises(EvaluationError, match="is not auto, cpu, cuda or cuda:N") as caught,
        open_machine(name, "none"),
    ):
        pass
    assert len(str(caught.value)) < 300


TWO = """
import os, sys
from kinetics_bench.device import open_machine
from kinetics_tools.core.errors import EvaluationError
import torch
try:
    with open_machine("cpu", "none") as machine:
        machine.barrier()
        print("met", flush=True)
        if machine.rank == 1:
            os._exit(7)
        {call}
except EvaluationError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "call", ["machine.barrier()", "machine.gather(1)", "machine.all_reduce_sum([torch.ones(9)])"]
)
def test_a_process_whose_other_has_ended_says_so_in_one_line(call: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO.format(call=call)],
            env=environment() | own | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    (said, errors), _ = (each.communicate(timeout=120) for each in both)
    assert both[0].returncode == 0, errors
    met, error = said.splitlines()
    assert met == "met"
    assert error.startswith("the processes of this run lost each other: one has ended")


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        own = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        done = subprocess.run(
            [sys.executable, "-c", TWO.format(call="pass")],
            env=environment() | own | {"MASTER_PORT": place.partition(":")[2]},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"the processes of this run do not meet at {place} (")
    assert done.stdout.count("\n") == 1

"""Which device is taken, and what torchrun said."""

import pytest

from kinetics_bench.device import open_machine
from kinetics_tools.core.errors import EvaluationError


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

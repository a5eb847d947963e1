"""Runs are passed around: whatever a stranger wrote in one, it is one line, and nothing is run."""

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostile import hostile_values, places, replaced
from kinetics_bench.evaluation.evaluate import extents_of
from kinetics_bench.evaluation.fusion import fuse
from kinetics_bench.evaluation.report import write_report
from kinetics_bench.evaluation.results import PREDICTIONS, RESULT
from kinetics_bench.evaluation.rows import find_row, find_rows
from kinetics_bench.inference.features import FeatureRecord, NetworkRecord, read_record
from kinetics_bench.inference.networks import RUN, networks_of_run, read_request
from kinetics_bench.inference.videos import Span
from kinetics_bench.protocols import PROTOCOLS
from kinetics_bench.training.checkpoint import CHECKPOINT, Checkpoint
from kinetics_bench.weights.init import load_init
from kinetics_tools.core.errors import EvaluationError, KineticsError
from support import unpack_written_by_0_1
from trainings import RECIPE

HEALTH = list(HealthCheck)
NETWORK = NetworkRecord(
    arch="i3d",
    stream="rgb",
    weights_sha256="0" * 64,
    recipes={"training": "1" * 64, "rgb": "2" * 64},
    sampling=RECIPE.sampling,
    short_side=64,
    crop_px=56,
    precision="float32",
)
FEATURES = FeatureRecord(
    video="/videos/a.mp4",
    video_sha256="0" * 64,
    from_s=0.0,
    duration_s=None,
    identity="3" * 64,
    rows=2,
    features=1024,
    sha256="4" * 64,
    frames=16,
    fps=25,
    start_s=[0.0, 0.32],
    end_s=[0.32, 0.64],
    network=NETWORK,
)
NUM_TRIED = (60, pytest.param(2000, marks=pytest.mark.full))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, which has one network, and the json of features beside it."""
    folder = tmp_path_factory.mktemp("written")
    unpack_written_by_0_1(folder)
    FEATURES.write(folder / "run" / "features.json")
    flow = find_row(folder / "run" / "flow")
    result, predictions = fuse([flow, flow], (1, 2))
    result.write(folder / "run" / "fused", predictions)
    return folder


def read_run(run: Path) -> None:
    request = read_request(run)
    assert request.streams
    networks_of_run(run)


def read_features(run: Path) -> None:
    there = read_record(run / "features.json")
    if isinstance(there, FeatureRecord):
        there.differing(Span(), NETWORK)


def read_checkpoint(run: Path) -> None:
    checkpoint = Checkpoint.read(run / "flow" / CHECKPOINT)
    extents_of(checkpoint, PROTOCOLS["whole"])
    assert checkpoint.data.clip_recipe
    assert checkpoint.data.flow_recipe


def init_of_checkpoint(run: Path) -> None:
    path = str(run / "flow" / CHECKPOINT)
    load_init(path, arch="i3d", stream="flow", num_classes=2, cache=run / "cache")


FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "request": (RUN, read_run),
    "result": (f"flow/{RESULT}", lambda run: find_rows([run])),
    "result on a page": (f"flow/{RESULT}", lambda run: write_report([run], run / "page.html")),
    "fused result": (f"fused/{RESULT}", lambda run: find_rows([run / "fused"])),
    "features": ("features.json", read_features),
}
TENSORS = st.sampled_from([torch.zeros(2), torch.zeros(0), torch.tensor(float("nan"))])
CHECKPOINTS = {"read": read_checkpoint, "as initial weights": init_of_checkpoint}


def require_one_line(use: Callable[[Path], object], run: Path, done: str) -> None:
    before = {path for path in run.parent.rglob("*") if not path.is_relative_to(run)}
    try:
        use(run)
    except KineticsError as error:
        assert "\n" not in str(error), (done, str(error))
        assert len(str(error)) < 2000, (done, str(error))
        assert str(run) in str(error) or "--init" in str(error), (done, str(error))
    assert {p for p in run.parent.rglob("*") if not p.is_relative_to(run)} == before, done


def try_json(name: str, whole: Path, tmp_path: Path, num_examples: int) -> None:
    file, use = FILES[name]
    value = json.loads((whole / "run" / file).read_text())
    everywhere = sorted(places(value), key=repr)
    run = Path(shutil.copytree(whole / "run", tmp_path / "given" / "run"))

    @settings(max_examples=num_examples, deadline=None, suppress_health_check=HEALTH)
    @given(st.sampled_from(everywhere), hostile_values(tmp_path))
    def one(at: tuple[Any, ...], hostile: Any) -> None:
        (run / file).write_text(json.dumps(replaced(value, at, hostile)))
        require_one_line(use, run, f"{file} {at}: {hostile!r}")

    one()


def small(value: Any) -> Any:
    """A copy of a checkpoint's values that is small as a file: each tensor stores one number."""
    if isinstance(value, dict):
        return {name: small(each) for name, each in value.items()}
    if isinstance(value, list):
        return [small(each) for each in value]
    return (
        torch.zeros((), dtype=value.dtype).expand(value.shape) if torch.is_tensor(value) else value
    )


def try_checkpoint(name: str, whole: Path, tmp_path: Path, num_examples: int) -> None:
    run = Path(shutil.copytree(whole / "run", tmp_path / "given" / "run"))
    path = run / "flow" / CHECKPOINT
    values = small(torch.load(path, weights_only=True))
    # Few tensors stand for all.
    few = {key: values["net"][key] for key in sorted(values["net"])[:2]}
    state = dict(list(values["optimizer"]["state"].items())[:1])
    shown = {**values, "net": few, "optimizer": {"state": state, "param_groups": []}}
    everywhere = sorted(places(shown), key=repr)

    @settings(max_examples=num_examples, deadline=None, suppress_health_check=HEALTH)
    @given(st.sampled_from(everywhere), hostile_values(tmp_path) | TENSORS)
    def one(at: tuple[Any, ...], hostile: Any) -> None:
        torch.save(replaced(values, at, hostile), path)
        require_one_line(CHECKPOINTS[name], run, f"{at}: {hostile!r}"[:300])

    one()


def test_what_was_not_changed_is_read(written: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(written / "run", tmp_path / "run"))
    for use in (*(use for _, use in FILES.values()), *CHECKPOINTS.values()):
        use(run)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("num", NUM_TRIED)
def test_no_value_in_a_file_of_a_run_is_a_traceback(
    num: int, name: str, written: Path, tmp_path: Path
) -> None:
    try_json(name, written, tmp_path, num // 5 if "page" in name else num)


PLAIN_TYPES = (pa.string(), pa.int64(), pa.int8(), pa.float32(), pa.bool_(), pa.binary(), pa.null())
LIST_TYPES = (pa.list_(pa.float32()), pa.list_(pa.float64()), pa.list_(pa.string()))
COLUMN_TYPES = st.sampled_from((*PLAIN_TYPES, *LIST_TYPES))


def try_predictions(whole: Path, tmp_path: Path, num_examples: int) -> None:
    run = Path(shutil.copytree(whole / "run", tmp_path / "given" / "run"))
    path = run / "flow" / PREDICTIONS
    table = pq.read_table(path)
    rows = {name: table[name].to_pylist() for name in table.column_names}

    @settings(max_examples=num_examples, deadline=None, suppress_health_check=HEALTH)
    @given(st.data(), hostile_values(tmp_path) | st.just(float("nan")))
    def one(data: st.DataObject, hostile: Any) -> None:
        name = data.draw(st.sampled_from(table.column_names))
        changed = {each: list(values) for each, values in rows.items()}
        how = data.draw(st.sampled_from(["value", "type", "gone", "twice", "renamed", "none"]))
        number = data.draw(st.integers(0, len(changed[name]) - 1))
        values: Any = changed.pop(name)
        if how == "value":
            values[number] = [hostile] * 2 if name == "logits" else hostile
        if how == "twice":
            changed = {each: [*own, own[number]] for each, own in changed.items()}
            values.append(values[number])
        if how == "none":
            changed, values = {each: [] for each in changed}, []
        if how != "gone":
            changed[str(hostile) if how == "renamed" else name] = values
        types = dict(zip(table.column_names, table.schema.types, strict=True))
        if how == "type":
            types[name] = data.draw(COLUMN_TYPES)
        try:
            arrays = {each: pa.array(own, types.get(each)) for each, own in changed.items()}
            pq.write_table(pa.table(arrays), path)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError, ValueError):
            return  # Parquet cannot hold it
        require_one_line(lambda run: find_rows([run]), run, f"{how} {name}: {hostile!r}"[:300])

    one()


@pytest.mark.parametrize("num", NUM_TRIED)
def test_no_value_in_predictions_is_a_traceback(num: int, written: Path, tmp_path: Path) -> None:
    try_predictions(written, tmp_path, num)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", ["run.json", "flow/checkpoint.pt", f"flow/{PREDICTIONS}"])
def test_what_is_not_a_file_is_one_line(
    name: str, kind: str, written: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(written / "run", tmp_path / "run"))
    path = run / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    use = (lambda run: find_rows([run])) if name.endswith(PREDICTIONS) else read_run
    with pytest.raises(KineticsError) as caught:
        use(run)
    assert str(path) in str(caught.value)


def test_a_small_table_of_many_logits_is_refused_before_they_are_read(
    written: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(written / "run", tmp_path / "run"))
    path = run / "flow" / PREDICTIONS
    table = pq.read_table(path)
    many = pa.array([[0.0] * 2_000_000] * len(table), pa.list_(pa.float32()))
    pq.write_table(table.set_column(2, "logits", many), path)
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(EvaluationError, match=r"is not of the result\.json beside it"):
        find_rows([run])
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("num", NUM_TRIED)
def test_no_value_in_a_checkpoint_is_a_traceback(
    num: int, name: str, written: Path, tmp_path: Path
) -> None:
    # A network is built for each that is used.
    try_checkpoint(name, written, tmp_path, num if name == "read" else num // 5)

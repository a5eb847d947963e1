"""Shards are passed around: whatever a stranger wrote in one, nothing outside it is touched."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostile import hostile_values, places, replaced
from kinetics_tools.core.errors import KineticsError
from kinetics_tools.extract.export import Layout, open_export
from kinetics_tools.shards.reader import ShardFolder
from kinetics_tools.shards.records import FolderRecords
from kinetics_tools.shards.writer import write_index
from shard_maker import Maker

FILES = ("dataset.json", "recipe.json", "train/rgb-000000.json", "train/index.parquet")


def exchange(shards: Path, name: str, hostile: Any, data: st.DataObject) -> str:
    """Put a hostile value into a file; return what was done."""
    path = shards / name
    if path.suffix == ".json":
        value = json.loads(path.read_text())
        at = data.draw(st.sampled_from(sorted(places(value), key=repr)))
        path.write_text(json.dumps(replaced(value, at, hostile)))
        return f"{name} {at}: {hostile!r}"
    table = pd.read_parquet(path).astype(object)
    column = data.draw(st.sampled_from(sorted(table.columns)))
    if data.draw(st.booleans()):
        table = table.rename(columns={column: str(hostile).encode(errors="replace").decode()})
    else:
        kept = [] if data.draw(st.booleans()) else list(table[column][1:])
        values = [*[hostile] * (len(table) - len(kept)), *kept]
        table[column] = pd.Series(values, dtype=object)
    try:
        table.to_parquet(path, index=False)
    except (OverflowError, ValueError, TypeError, NotImplementedError):  # Parquet cannot hold it
        if column in table:
            table[column] = table[column].map(ascii)
        table.rename(columns=ascii).to_parquet(path, index=False)
    return f"{name} {column}: {hostile!r}"


def read_all(shards: Path, _: Path) -> None:
    data = ShardFolder(shards)
    for split in data.splits:
        for sample in data.samples(split, ["rgb"]):
            sample.rgb([0])


def index(shards: Path, _: Path) -> None:
    write_index(FolderRecords(shards))


def export(shards: Path, out: Path) -> None:
    with open_export(ShardFolder(shards), out, Layout(flow="tvl1")) as exported:
        list(exported.clips)
        exported.finish()


COMMANDS: tuple[Callable[[Path, Path], None], ...] = (read_all, export, index, export)


def outside(root: Path) -> set[Path]:
    """What lies beside the folder that the commands are given."""
    return {path for path in root.rglob("*") if not path.is_relative_to(root / "given")}


def try_all(root: Path, whole: Path, name: str, hostile: Any, data: st.DataObject) -> None:
    shards, out = root / "given" / "shards", root / "given" / "out"
    shutil.rmtree(root / "given", ignore_errors=True)
    shutil.copytree(whole, shards)
    done = exchange(shards, name, hostile, data)
    before = outside(root)
    for command in COMMANDS:
        try:
            command(shards, out)
        except KineticsError as error:
            assert "\n" not in str(error), (done, str(error))
            assert len(str(error)) < 2000, done
    assert outside(root) == before, done
    beside = {path.name for path in (root / "given").iterdir()}
    assert beside <= {"shards", "out"}, done


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    maker = Maker(folder / "shards", folder / "scratch", ffmpeg)
    maker.flow(maker.rgb("train", 0, {"bb": 3, "-a": 2}, missing="gone"))
    maker.index()
    return folder / "shards"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files that nobody may touch."""
    folder = tmp_path_factory.mktemp("root")
    for place in ("victim", "given-not", "victim/abseiling/key", "shards", "out"):
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / "precious.txt").write_text("precious")
    return folder


def test_no_value_in_a_file_of_shards_reaches_outside(root: Path, whole: Path) -> None:
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(FILES), hostile_values(root), st.data())
    def run(name: str, hostile: Any, data: st.DataObject) -> None:
        try_all(root, whole, name, hostile, data)

    run()


@pytest.mark.full
@pytest.mark.parametrize("name", FILES)
def test_no_value_of_many_reaches_outside(name: str, root: Path, whole: Path) -> None:
    @settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
    @given(hostile_values(root), st.data())
    def run(hostile: Any, data: st.DataObject) -> None:
        try_all(root, whole, name, hostile, data)

    run()

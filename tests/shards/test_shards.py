import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from kinetics_tools.core.errors import OutError, ShardError, UnknownNameError
from kinetics_tools.flow.codecs import CODECS
from kinetics_tools.shards import index, writer
from kinetics_tools.shards.reader import ShardFolder, read_samples
from kinetics_tools.shards.records import (
    Dataset,
    FolderRecords,
    ShardLayout,
    StreamRecipe,
    shard_path,
)
from shard_maker import (
    HASHED,
    HEIGHT,
    LABELS,
    RECIPES,
    WIDTH,
    Maker,
    codes,
    folder,
    maker,
    pictures,
)
from support import DAMAGES, damage_file, environment, tree

__all__ = ["folder", "maker"]  # fixtures


def write_index(folder: Path) -> Dataset:
    return writer.write_index(FolderRecords(folder))


def test_samples_come_back_with_their_frames_flow_and_labels(folder: Path) -> None:
    data = ShardFolder(folder)
    assert data.labels == LABELS
    assert data.splits == ("train", "val")
    assert data.flows == ("tvl1",)
    assert data.flow_bound("tvl1") == 20
    assert data.recipes["rgb"].parameters["short_side"] == 16
    assert data.missing("train") == {"gone": "missing"}
    assert data.num_expected("train") == 4

    samples = list(read_samples(folder, "train"))

    assert [(s.key, s.num_frames) for s in samples] == [("bb", 5), ("-a", 4), ("c", 3)]
    for sample in samples:
        assert sample.label_id is not None
        assert sample.label == LABELS[sample.label_id] == LABELS[len(sample.key) % 2]
        rgb, flow = sample.rgb(), sample.flow()
        assert str(rgb.dtype) == "uint8"
        assert str(flow.dtype) == "float32"
        assert rgb.shape == (sample.num_frames, HEIGHT, WIDTH, 3)
        expected = pictures(sample.key, sample.num_frames)
        assert abs(rgb.astype(int) - expected).max() <= 4
        stored = codes(sample.num_frames)
        np.testing.assert_allclose(flow, (stored / 255 - 0.5) * 40, atol=1e-5)


def test_frames_are_read_by_number_in_any_order(folder: Path) -> None:
    sample = next(read_samples(folder, "train"))

    assert np.array_equal(sample.rgb([3, 0, 3]), sample.rgb()[[3, 0, 3]])
    assert np.array_equal(sample.flow([2, 1]), sample.flow()[[2, 1]])
    with pytest.raises(ShardError, match="bb: has no frame 5"):
        sample.rgb([5])


def test_a_sample_has_only_the_streams_asked_for_and_can_be_sent_to_a_process(folder: Path) -> None:
    (sample,) = ShardFolder(folder).samples("val", ["rgb"])

    copy = pickle.loads(pickle.dumps(sample))

    assert np.array_equal(copy.rgb(), sample.rgb())
    assert len(pickle.dumps(sample)) < 1000
    with pytest.raises(ValueError, match="without stream flow"):
        sample.flow()


def test_samples_are_a_sequence_though_each_is_made_when_it_is_asked_for(folder: Path) -> None:
    for streams in (["rgb"], ["flow"], ["rgb", "flow"]):
        samples = ShardFolder(folder).samples("train", streams)
        whole = list(samples)
        assert len(samples) == len(whole) == 3
        assert [samples[n] for n in range(-3, 3)] == whole * 2
        for part in (slice(None), slice(1, 3), slice(None, None, -1), slice(2, 2), slice(-1, None)):
            assert list(samples[part]) == whole[part]
        assert samples.index(whole[1]) == 1 and whole[2] in samples
        assert list(pickle.loads(pickle.dumps(samples))) == whole
        for number in (3, -4):
            with pytest.raises(IndexError):
                samples[number]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.drop(columns="frames"), "no frames"),
        (lambda t: t.assign(frames=t["frames"].astype("float64")), "column frames is 'double'"),
        (lambda t: t.assign(frames=t["frames"].astype("string")), "frames is 'large_string'"),
        (lambda t: t.assign(frames=0), "column frames"),
        (lambda t: t.assign(key=[b"1", b"2", b"3"]), "column key is 'binary'"),
        (lambda t: t.assign(key=t["key"].iloc[0]), "a key is there twice"),
        (lambda t: t.assign(key=t["key"] + "/.."), "column key"),
        (lambda t: t.assign(label="other"), "another label"),
        (lambda t: t.assign(label_id=[0, 1, None]), "label"),
        (lambda t: t.assign(label=None), "another label"),
        (lambda t: t.assign(rgb_size=pd.array([None, 1, 1], "Int64")), "only a part of its place"),
        (lambda t: t.assign(rgb_shard="../x-000000.tar"), "column rgb_shard"),
        (lambda t: t.assign(rgb_offset=2**62), "column rgb_offset"),
        (lambda t: t.assign(rgb_offset=np.uint64(2**64 - 1)), "column rgb_offset"),
        (lambda t: t.assign(frames=pd.Timestamp("2020-01-01")), "column frames is 'timestamp"),
        (lambda t: t.assign(key=[{"x\n\x1b[31m" * 1000: 1}] * 3), "column key is 'struct"),
    ],
)
def test_an_index_whose_columns_are_something_else_is_one_line(
    folder: Path, tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], said: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    path = copy / "train" / "index.parquet"
    change(pd.read_parquet(path)).to_parquet(path, index=False)
    with pytest.raises(ShardError, match=said) as caught:
        ShardFolder(copy).samples("train")
    said = str(caught.value)
    assert said.isprintable() and len(said) < 1000 and "extract-flow index" in said


def test_columns_that_are_twice_there_are_one_line(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    path = copy / "train" / "index.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("frames", table["frames"]), path)
    with pytest.raises(ShardError, match="it has two frames"):
        ShardFolder(copy).samples("train")


def test_a_small_index_does_not_become_large_before_it_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    """Dictionaries whose one long value all rows repeat, in a column that is ours or is not."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    path = copy / "train" / "index.parquet"
    whole = pq.read_table(path)
    num = 200_000
    rows = pa.table(
        {n: pa.concat_arrays([whole[n].combine_chunks()[:1]] * num) for n in whole.column_names}
    )
    rows = rows.set_column(0, "key", pa.array([f"key{n}" for n in range(num)]))
    for name, value in (
        ("other", b"x" * 100_000),
        ("key", b"x" * 100_000),
        ("rgb_sha256", "x" * 1000),
    ):
        index = pa.array([0] * num, pa.int32())
        long = pa.DictionaryArray.from_arrays(index, pa.array([value]))
        at = rows.column_names.index(name) if name in rows.column_names else -1
        hostile = rows.append_column(name, long) if at < 0 else rows.set_column(at, name, long)
        pq.write_table(hostile, path, store_schema=False)
        assert path.stat().st_size < 10**7
        code = (
            "import resource, sys\n"
            "from kinetics_tools import KineticsError\n"
            "from kinetics_tools.shards import ShardFolder\n"
            "import pandas, pyarrow.parquet\n"
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "before = peak()\n"
            "try:\n"
            "    print(len(ShardFolder(sys.argv[1]).samples('train')))\n"
            "except KineticsError as error:\n"
            "    print(str(error)[-200:])\n"
            "print(peak() - before)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, copy], env=environment(), capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        said, kib = done.stdout.splitlines()
        assert (said == str(num)) is (name == "other")
        assert int(kib) < 300 * 1024


def test_an_index_is_read_once_for_any_number_of_selections(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def read_table(path: Path, labels: Sequence[str]) -> Any:
        read.append(path)
        return index.read_table(path, labels)

    monkeypatch.setattr("kinetics_tools.shards.reader.read_table", read_table)
    data = ShardFolder(folder)

    for streams in (["rgb"], ["flow"], ["rgb", "flow"]):
        assert len(data.samples("train", streams)) == 3

    assert read == [folder / "train" / "index.parquet"]


def test_the_same_contents_give_the_same_bytes(maker: Maker, tmp_path: Path, ffmpeg: Path) -> None:
    other = Maker(tmp_path / "other", tmp_path / "scratch", ffmpeg)
    for each in (maker, other):
        each.flow(each.rgb("train", 0, {"bb": 5, "-a": 4}))
        each.index()

    names = sorted(p.relative_to(maker.folder) for p in maker.folder.rglob("*") if p.is_file())

    assert len([name for name in names if not name.name.startswith(".")]) == 7
    for name in names:
        assert (maker.folder / name).read_bytes() == (other.folder / name).read_bytes(), name


def test_plain_webdataset_reads_rgb_and_flow(folder: Path) -> None:
    rgb = list(webdataset.WebDataset(str(folder / "train" / "rgb-000000.tar"), shardshuffle=False))
    flow = list(
        webdataset.WebDataset(str(folder / "train" / "flow-tvl1-000000.tar"), shardshuffle=False)
    )

    assert [s["__key__"].removeprefix("./") for s in rgb] == ["bb", "-a"]
    assert [s["__key__"] for s in rgb] == [s["__key__"] for s in flow]
    about = json.loads(rgb[0]["json"])
    assert about == {"frames": 5, "key": "bb", "label": "abseiling", "label_id": 0, "x": "y"}
    assert rgb[0]["mp4"][4:8] == b"ftyp"
    assert np.array_equal(CODECS["ffv1"].decode(flow[1]["flow.mkv"], None), codes(4))


def test_reading_imports_neither_webdataset_nor_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; "
        "from kinetics_tools.shards.reader import read_samples; "
        f"s = next(read_samples(Path({str(folder)!r}), 'train')); s.rgb(); s.flow(); "
        "print(*{'webdataset', 'torch', 'cv2'} & {*sys.modules})"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == []


def test_an_exchanged_shard_is_an_error_and_never_a_wrong_sample(folder: Path) -> None:
    samples = list(read_samples(folder, "train"))
    first, second = (folder / "train" / f"flow-tvl1-00000{n}.tar" for n in (0, 1))
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())

    with pytest.raises(ShardError, match=r"flow-tvl1-000000.tar does not hold bb.flow.mkv where"):
        samples[0].flow()
    first.write_bytes(data[: len(data) // 4])
    with pytest.raises(ShardError, match="does not hold"):
        samples[1].flow()
    first.unlink()
    with pytest.raises(ShardError, match=r"flow-tvl1-000000\.tar is gone"):
        samples[0].flow()


def test_damage_within_a_member_names_shard_and_key(folder: Path) -> None:
    sample = next(read_samples(folder, "train"))
    assert sample.flow_at is not None
    shard = Path(str(sample.flow_at.shard))
    data = bytearray(shard.read_bytes())
    middle = sample.flow_at.offset + sample.flow_at.size // 2
    data[middle : middle + 40] = bytes(40)
    shard.write_bytes(data)

    with pytest.raises(ShardError, match=r"flow-tvl1-000000\.tar: bb\.flow\.mkv is damaged"):
        sample.flow([0])


def test_flow_made_from_other_rgb_is_not_used(maker: Maker) -> None:
    old = maker.rgb("train", 0, {"bb": 5, "c": 4})
    maker.flow(old)
    maker.rgb("train", 0, {"bb": 6, "c": 4})
    dataset = maker.index()

    assert dataset.splits["train"].present == {"rgb": 2, "flow-tvl1": 1}
    data = ShardFolder(maker.folder)
    assert len(data.samples("train", ["rgb"])) == 2
    with pytest.raises(ShardError, match=r"do not match, 1 of 2 samples have no flow-tvl1, .* bb"):
        data.samples("train")


def test_flow_with_another_number_of_fields_is_an_error(maker: Maker) -> None:
    rgb = maker.rgb("train", 0, {"bb": 5})
    maker.flow(replace(rgb, members=(replace(rgb.members[0], frames=4),)))
    sidecar_path = shard_path(maker.folder, "train", "flow-tvl1", 0).with_suffix(".json")
    sidecar_path.write_text(sidecar_path.read_text().replace('"frames": 4', '"frames": 5'))
    maker.index()

    with pytest.raises(ShardError, match=r"bb.flow.mkv has 3 pictures, not 4; rgb and flow"):
        next(read_samples(maker.folder, "train")).flow()


def test_a_shard_of_another_recipe_is_refused(folder: Path) -> None:
    path = folder / "val" / "flow-tvl1-000000.json"
    sidecar = json.loads(path.read_text())
    path.write_text(json.dumps(sidecar | {"recipe": "0" * 64}))

    with pytest.raises(ShardError, match=r"val/flow-tvl1-000000.tar was made with another recipe"):
        write_index(folder)


@pytest.mark.parametrize("name", ["dataset.json", "recipe.json", "train/rgb-000000.json"])
def test_another_schema_version_is_an_error_that_names_both(folder: Path, name: str) -> None:
    path = folder / name
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 7'))

    with pytest.raises(ShardError, match=f"{name} has schema version 7, this program reads 1"):
        ShardFolder(folder) if name == "dataset.json" else write_index(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "dataset.json",
            "is not a dataset (Object missing required field labels); write it with: "
            "extract-flow index",
        ),
        (
            "train/rgb-000000.json",
            "is not a sidecar (Object missing required field keys); move it away and run",
        ),
    ],
)
def test_a_record_that_lacks_a_field_is_an_error_in_one_line(
    folder: Path, name: str, words: str
) -> None:
    value = json.loads((folder / name).read_text())
    kept = {field: each for field, each in value.items() if field not in ("labels", "keys")}
    (folder / name).write_text(json.dumps(kept))

    with pytest.raises(ShardError) as caught:
        ShardFolder(folder) if name == "dataset.json" else write_index(folder)

    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_said_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no dataset.json\); make them with: extract-flow CLIPS"):
        ShardFolder(tmp_path)
    with pytest.raises(ShardError, match="holds no shards"):
        write_index(tmp_path)
    data = ShardFolder(folder)
    with pytest.raises(UnknownNameError, match=r"unknown split 'tain'\. Did you mean 'train'"):
        data.samples("tain")
    with pytest.raises(UnknownNameError, match=r"unknown flow 'tvl'\. Did you mean 'tvl1'"):
        data.samples("train", flow="tvl")


def test_a_shard_that_is_not_whole_is_left_out_of_the_index(folder: Path) -> None:
    shard = folder / "train" / "rgb-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])

    train = write_index(folder).splits["train"]

    assert (train.present, train.expected) == ({"rgb": 2, "flow-tvl1": 2}, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": ("abseiling", "boxing")}, "another label list (2 labels) than this run (2)"),
        ({"layout": ShardLayout(samples_per_shard=2, seed=1)}, "seed = 0, in this run: seed = 1"),
        (
            {"recipes": HASHED | {"rgb": StreamRecipe.of({"fps": 25, "short_side": 32})}},
            "short_side = 16, in this run: short_side = 32; use the same, or choose another OUT",
        ),
        (
            {"recipes": {"flow-tvl1": StreamRecipe.of(RECIPES["flow-tvl1"] | {"bound": 9.0})}},
            "bound = 20.0, in this run: bound = 9.0; use the same, or give the new flow its own",
        ),
    ],
)
def test_a_run_that_disagrees_with_the_shards_there_is_refused(
    folder: Path, maker: Maker, changes: dict[str, object], words: str
) -> None:
    before = (folder / "recipe.json").read_bytes()

    with pytest.raises(OutError) as caught:
        maker.register(**changes)

    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (folder / "recipe.json").read_bytes() == before


def test_a_recipe_may_change_while_no_shard_was_made_with_it(maker: Maker) -> None:
    maker.register()
    changed = HASHED | {"rgb": StreamRecipe.of({"fps": 25, "short_side": 32})}

    maker.register(recipes=changed)

    recipe = json.loads((maker.folder / "recipe.json").read_text())["recipes"]["rgb"]
    assert recipe["short_side"] == 32


@pytest.mark.parametrize("kind", [*DAMAGES, "gone"])
def test_a_lost_recipe_is_written_again_from_what_follows_from_it(
    folder: Path, maker: Maker, kind: str
) -> None:
    path = folder / "recipe.json"
    before = json.loads(path.read_text())
    indexed = tree(folder, without=("recipe.json",))

    def lose() -> None:
        path.unlink() if kind == "gone" else damage_file(path, kind)

    def told() -> dict[str, Any]:
        value: dict[str, Any] = json.loads(path.read_text())
        for split in value["splits"].values():
            split["keys"] = ""  # the maker gives none
        return value

    lose()
    write_index(folder)
    assert told() == before
    assert tree(folder, without=("recipe.json",)) == indexed

    lose()
    maker.register()
    assert told() == before
    lose()
    with pytest.raises(OutError, match="samples_per_shard = 2, in this run: samples_per_shard"):
        maker.register(layout=ShardLayout(samples_per_shard=9, seed=0))


@pytest.mark.parametrize("kind", [*DAMAGES, "gone"])
def test_shards_of_which_nothing_says_how_they_were_made_are_refused(
    folder: Path, maker: Maker, kind: str
) -> None:
    for name in ("recipe.json", "dataset.json"):
        (folder / name).unlink() if kind == "gone" else damage_file(folder / name, kind)

    with pytest.raises(OutError, match=r"its recipe\.json is (gone|damaged), .* another OUT$"):
        maker.register()
    with pytest.raises(OutError, match=r"its recipe\.json is (gone|damaged), .* another OUT$"):
        write_index(folder)


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_follows_from_the_sidecars_is_written_again(
    folder: Path, maker: Maker, kind: str
) -> None:
    before = tree(folder)
    damage_file(folder / "dataset.json", kind)
    with pytest.raises(ShardError, match="write it with: extract-flow index") as caught:
        ShardFolder(folder)
    assert "\n" not in str(caught.value)
    maker.register()  # a run is not stopped by it
    damage_file(folder / "train" / "index.parquet", kind)
    write_index(folder)
    assert tree(folder) == before


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_index_or_sidecar_is_one_line_that_says_what_to_do(
    folder: Path, kind: str
) -> None:
    damage_file(folder / "train" / "index.parquet", kind)
    with pytest.raises(
        ShardError, match=r"index\.parquet is damaged \(.*\); write it again"
    ) as caught:
        ShardFolder(folder).samples("train")
    assert "\n" not in str(caught.value)

    damage_file(folder / "train" / "rgb-000001.json", kind)
    with pytest.raises(ShardError, match="move it away and run extract-flow again") as caught:
        write_index(folder)
    assert "\n" not in str(caught.value)
    (folder / "train" / "rgb-000001.json").unlink()
    write_index(folder)
    assert [sample.key for sample in ShardFolder(folder).samples("train")] == ["bb", "-a"]


def test_shards_beyond_the_expected_are_removed(folder: Path) -> None:
    writer.remove_beyond(folder, "train", 1)

    names = sorted(path.name for path in (folder / "train").iterdir())
    assert names == [
        *("flow-tvl1-000000.json", "flow-tvl1-000000.tar", "index.parquet"),
        *("rgb-000000.json", "rgb-000000.tar"),
    ]


def test_an_index_that_expands_to_much_is_refused_before_it_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "MAX_INDEX_BYTES", 100)
    monkeypatch.setattr(pq, "read_table", None)
    with pytest.raises(ShardError, match="expands to more than 100 bytes"):
        ShardFolder(folder).samples("train")


def test_a_long_text_that_all_rows_of_an_index_share_is_refused_before_it_is_repeated(
    folder: Path,
) -> None:
    path = folder / "train" / "index.parquet"
    table = pq.read_table(path)
    labels = pa.array(["x" * 1_000_000] * len(table)).dictionary_encode().cast(pa.string())
    at = table.column_names.index("label")
    pq.write_table(table.set_column(at, "label", labels), path)
    assert path.stat().st_size < 100_000
    with pytest.raises(ShardError, match="column label has a text of 1000000 bytes"):
        ShardFolder(folder).samples("train")

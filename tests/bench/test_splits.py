"""Splits: stored ones, official lists, files of keys."""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import pandas as pd
import pytest

from kinetics_bench.data.splits import Selection, _official, require_disjoint, select
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.core.keys import candidate_keys, file_keys
from kinetics_tools.shards.reader import ShardFolder
from tiny import LABELS, SUBJECTS, copy_of_shards, key_file, tiny_shards


def chosen(split: object, **options: object) -> Selection:
    values = {"role": "test", "streams": ("rgb",), "flow": "opencv-tvl1"} | options
    return select(ShardFolder(tiny_shards()), str(split), **values)  # type: ignore[arg-type]


def test_a_stored_split_is_all_its_samples() -> None:
    selection = chosen("all")
    assert selection.keys == tuple(sorted(f"{s}_{label}" for s in SUBJECTS for label in LABELS))
    assert selection.missing == {}


def test_an_index_is_read_once_however_many_splits_are_selected(tmp_path: Path) -> None:
    shards = copy_of_shards(tmp_path)
    data = ShardFolder(shards)
    first, second = (key_file(tmp_path, name, f"{name[:3]}_*") for name in ("ann.txt", "ben.txt"))
    train = select(data, str(first), role="train", streams=("rgb",), flow="opencv-tvl1")
    (shards / "dataset.json").unlink()
    (shards / "all" / "index.parquet").unlink()
    test = select(data, str(second), role="test", flow="opencv-tvl1")
    assert train.keys == ("ann_left", "ann_right")
    assert test.keys == ("ben_left", "ben_right")


def test_a_file_of_keys_takes_wildcards_and_comments(tmp_path: Path) -> None:
    keys = key_file(tmp_path, "test.txt", "# held out", "", "ann_*", "be?_left", "ann_left")
    assert chosen(keys).keys == ("ann_left", "ann_right", "ben_left")
    assert chosen(keys).name == "test.txt"
    assert chosen(keys, streams=("flow",)).keys == ("ann_left", "ann_right", "ben_left")


def test_a_line_that_matches_nothing_is_named(tmp_path: Path) -> None:
    keys = key_file(tmp_path, "test.txt", "ann_*", "eve_*", "moe_left")
    with pytest.raises(EvaluationError, match=r"test.txt, line 2: 'eve_\*' matches no sample"):
        chosen(keys)
    with pytest.raises(EvaluationError, match="names no key"):
        chosen(key_file(tmp_path, "empty.txt", "", "# nothing"))
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EvaluationError, match="is a file in UTF-16; save it as UTF-8"):
        chosen(binary)


def test_the_message_for_an_unknown_split_lists_the_known() -> None:
    with pytest.raises(EvaluationError, match=r"no test split 'val': .* holds all;"):
        chosen("val")


def test_training_and_test_may_not_share_a_clip(tmp_path: Path) -> None:
    train, test = (
        chosen(key_file(tmp_path, name, *patterns))
        for name, patterns in (("a.txt", ("ann_*", "ben_*")), ("b.txt", ("ben_*",)))
    )
    with pytest.raises(EvaluationError, match=r"share 2 keys, such as ben_left"):
        require_disjoint(train, test)


def test_an_official_list_takes_what_is_there_and_counts_the_rest(tmp_path: Path) -> None:
    # In the format of UCF-101's lists, with the files of this set.
    (tmp_path / "trainlist02.txt").write_text("left/ann_left.avi 1\nright/gone_right.avi 2\n")
    (tmp_path / "testlist02.txt").write_text("left/ben_left.avi\n")
    train = chosen("ucf101/2", role="train", splits=tmp_path)
    assert train.keys == ("ann_left",)
    assert train.missing == {"gone_right": "not in the shards"}
    assert chosen("ucf101/2", role="test", splits=tmp_path).keys == ("ben_left",)


@pytest.mark.parametrize("line", ["onlyoneword", "a.avi 3", "a.avi", " 1"])
def test_a_line_of_an_hmdb_list_that_is_not_one_is_named(line: str, tmp_path: Path) -> None:
    lists = tmp_path / "hmdb51"
    lists.mkdir()
    (lists / "left_test_split1.txt").write_text(f"ann_left.avi 1\n{line}\n")
    with pytest.raises(EvaluationError, match=r"left_test_split1\.txt, line 2, is not FILE"):
        chosen("hmdb51/1", role="train", splits=tmp_path)


def test_an_hmdb_list_says_what_each_clip_is_for(tmp_path: Path) -> None:
    lists = tmp_path / "hmdb51"
    lists.mkdir()
    (lists / "left_test_split1.txt").write_text(
        "ann_left.avi 1 \nben_left.avi 2 \ncyd_left.avi 0 \n"
    )
    (lists / "right_test_split1.txt").write_text("ann_right.avi 2 \n")
    assert chosen("hmdb51/1", role="train", splits=tmp_path).keys == ("ann_left",)
    assert chosen("hmdb51/1", role="test", splits=tmp_path).keys == ("ann_right", "ben_left")


# Names as HMDB-51 has them: with characters that no key has, and some too long for one.
STEMS = (
    "#122_Cleaning_Up_cartwheel_f_cm_np1_le_med_0",
    "Return_of_the_King_4_draw_sword_u_nm_np1_fr_med_2",
    "(HQ)_Rock_Climbing_-_Free_Solo_climb_f_cm_np1_ba_med_0",
    "A" * 100,
)


def named_shards(folder: Path, files: Mapping[str, str]) -> ShardFolder:
    """The tiny shards, with the keys that files of other names would have had in a set."""
    keys = file_keys(map(PurePosixPath, files.values()))
    shards = copy_of_shards(folder)
    path = shards / "all" / "index.parquet"
    index = pd.read_parquet(path)
    index["key"] = index["key"].map(lambda key: keys[PurePosixPath(files[key])])
    index.to_parquet(path, index=False)
    return ShardFolder(shards)


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".AVI", ".Mp4", ".webm", ".mpeg"])
def test_an_official_list_finds_a_clip_whatever_its_suffix_was(suffix: str, tmp_path: Path) -> None:
    old = [f"{s}_{label}" for label in LABELS for s in SUBJECTS]
    paths = [f"{key.partition('_')[2]}/{stem}" for key, stem in zip(old, STEMS * 2, strict=True)]
    data = named_shards(
        tmp_path, {key: f"{path}{suffix}" for key, path in zip(old, paths, strict=True)}
    )
    for label in LABELS:  # the stems of one class are those of the other: all keys are hashed
        (tmp_path / f"{label}_test_split1.txt").write_text(
            f"{STEMS[0]}.avi 1 \n{STEMS[1]}.avi 2 \n{STEMS[2]}.avi 1 \n{STEMS[3]}.avi 2 \n"
        )

    def select_all(role: str) -> Selection:
        return select(data, "hmdb51/1", role=role, streams=("rgb",), splits=tmp_path)

    train, test = select_all("train"), select_all("test")
    assert (len(train.samples), len(test.samples)) == (4, 4)
    assert (train.missing, test.missing) == ({}, {})
    assert len({*train.keys, *test.keys}) == 8
    assert {s.label for s in train.samples} == set(LABELS)


def test_a_clip_that_is_stored_twice_is_taken_once(tmp_path: Path) -> None:
    old = [f"{s}_{label}" for label in LABELS for s in SUBJECTS]
    files = {key: f"left/{key}.mp4" for key in old}
    files["ben_left"] = "left/ann_left.avi"
    data = named_shards(tmp_path, files)
    (tmp_path / "trainlist01.txt").write_text("left/ann_left.avi 1\nleft/cyd_left.avi 1\n")
    (tmp_path / "testlist01.txt").write_text("left/dan_left.avi\n")
    train = select(data, "ucf101/1", role="train", streams=("rgb",), splits=tmp_path)
    (expected,) = (k for k in train.keys if k.startswith("ann_left-"))
    assert train.keys == (expected, "cyd_left")
    assert (
        expected == file_keys(map(PurePosixPath, files.values()))[PurePosixPath(files["ben_left"])]
    )


def test_a_gap_is_found_under_the_key_that_the_shards_gave_it(tmp_path: Path) -> None:
    shards = copy_of_shards(tmp_path)
    keys = file_keys([PurePosixPath("left/#1.mp4")])
    (gap,) = keys.values()
    path = shards / "dataset.json"
    dataset = json.loads(path.read_text())
    dataset["splits"]["all"]["gaps"] = {gap: "damaged"}
    path.write_text(json.dumps(dataset))
    (tmp_path / "trainlist01.txt").write_text("left/#1.avi 1\nleft/ann_left.avi 1\nleft/#2.avi 1\n")
    (tmp_path / "testlist01.txt").write_text("left/dan_left.avi\n")
    train = select(ShardFolder(shards), "ucf101/1", role="train", streams=("rgb",), splits=tmp_path)
    (official,) = file_keys([PurePosixPath("left/#2.avi")]).values()
    assert train.missing == {gap: "damaged", official: "not in the shards"}


@pytest.mark.parametrize("suffix", [".mp4", ".AVI"])
def test_all_names_of_hmdb51_are_found_with_another_suffix(suffix: str, shared_data: Path) -> None:
    listed = {
        key: path
        for role in ("train", "test")
        for key, path in _official(shared_data / "annotations", "hmdb51", 1, role).items()
    }
    converted = set(file_keys(path.with_suffix(suffix) for path in listed.values()).values())
    assert len(converted - listed.keys()) > 600
    found = [next(k for k in candidate_keys(path) if k in converted) for path in listed.values()]
    assert len(set(found)) == len(listed) == 5100


def test_official_lists_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"give their folder \(--splits DIR\)"):
        chosen("ucf101/1")
    with pytest.raises(EvaluationError, match=r"trainlist01\.txt is missing"):
        chosen("ucf101/1", splits=tmp_path)
    with pytest.raises(EvaluationError, match="holds no HMDB-51 list"):
        chosen("hmdb51/1", splits=tmp_path)


@pytest.mark.parametrize(
    ("split", "role", "count"),
    [
        ("ucf101/1", "train", 9537),
        ("ucf101/1", "test", 3783),
        ("ucf101/3", "test", 3696),
        ("hmdb51/1", "train", 3570),
        ("hmdb51/2", "test", 1530),
    ],
)
def test_the_official_lists_have_their_official_counts(
    split: str, role: str, count: int, shared_data: Path
) -> None:
    with pytest.raises(EvaluationError, match="has no sample"):
        chosen(split, role=role, splits=shared_data / "annotations")
    dataset, _, number = split.partition("/")
    listed = _official(shared_data / "annotations", dataset, int(number), role)
    assert len(listed) == count


def test_a_file_of_keys_from_another_system_is_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "test.txt"
    path.write_bytes(b"\xef\xbb\xbfann_*\r\nben_left\r\n")
    assert chosen(path).keys == ("ann_left", "ann_right", "ben_left")

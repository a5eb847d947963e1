"""What an accuracy covers: bounds, weights of classes, classes out of scope, shared videos."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_bench import cli
from kinetics_bench.data.splits import (
    Selection,
    _official,
    require_coverage,
    require_disjoint,
    require_unseen,
    select,
    shared_videos,
)
from kinetics_bench.data.video_lists import VideoList, read_video_list
from kinetics_bench.evaluation.coverage import bounds, reweighted
from kinetics_bench.evaluation.folders import evaluation_folder
from kinetics_bench.evaluation.overlap import overlaps
from kinetics_bench.evaluation.results import Predictions, Score, score
from kinetics_bench.protocols import PROTOCOLS
from kinetics_tools.core.errors import EvaluationError, UnknownNameError
from kinetics_tools.core.keys import source_video
from kinetics_tools.download import official_lists
from kinetics_tools.shards.reader import Sample, ShardFolder
from support import MediaServer, run_command
from tiny import LABELS, SUBJECTS, copy_of_shards, key_file, tiny_shards

NUM_CLASSES = 7
CLIPS = st.lists(st.tuples(st.integers(0, NUM_CLASSES - 1), st.booleans()), min_size=1)
MISSING = st.lists(st.integers(0, NUM_CLASSES - 1))


def predictions(
    clips: list[tuple[int, bool]], missing: Mapping[str, int] | None = None
) -> Predictions:
    """Predictions of clips of a class that are right or not."""
    rows = {
        f"k{at:03d}": (label, np.eye(NUM_CLASSES)[label if right else (label + 1) % NUM_CLASSES])
        for at, (label, right) in enumerate(clips)
    }
    return Predictions.of(rows, dict.fromkeys(missing or {}, "gone"))


def told(clips: list[tuple[int, bool]], missing: list[int]) -> Score:
    labels = {f"lost{at}": label for at, label in enumerate(missing)}
    return score(predictions(clips, labels), labels)


# Bounds, weights


@given(CLIPS, MISSING)
def test_the_accuracy_and_the_one_of_every_outcome_lie_within_the_bounds(
    clips: list[tuple[int, bool]], missing: list[int]
) -> None:
    found = told(clips, missing)
    lower, upper = found.bounds
    assert 0 <= lower <= found.top1 <= upper <= 1
    for outcome, bound in ((False, lower), (True, upper)):
        assert told([*clips, *((label, outcome) for label in missing)], []).top1 == bound


@given(CLIPS)
def test_where_nothing_is_missing_all_numbers_are_the_accuracy(
    clips: list[tuple[int, bool]],
) -> None:
    found = told(clips, [])
    assert found.bounds == (found.top1, found.top1)
    assert found.reweighted == found.top1
    assert (found.num_unscored_classes, found.num_unscored_clips) == (0, 0)


@given(CLIPS, MISSING)
def test_weights_are_the_listed_counts_of_the_classes(
    clips: list[tuple[int, bool]], missing: list[int]
) -> None:
    table = pd.DataFrame(clips, columns=["label", "right"])
    of_class = table.groupby("label")["right"].mean()
    listed = pd.Series([*table["label"], *missing]).value_counts()
    there = listed[listed.index.isin(of_class.index)]
    found = told(clips, missing)
    assert found.reweighted == pytest.approx(np.average(of_class[there.index], weights=there))
    unscored = {*missing} - {*table["label"]}
    assert found.num_unscored_classes == len(unscored)
    assert found.num_unscored_clips == sum(label in unscored for label in missing)


def test_a_class_that_lost_its_clips_counts_as_the_list_says() -> None:
    # 8 of 10 of an easy class are scored, 2 of 10 of a hard one.
    found = told([(0, True)] * 8 + [(1, False)] * 2, [0] * 2 + [1] * 8)
    assert found.top1 == 0.8
    assert found.reweighted == 0.5
    assert found.bounds == (0.4, 0.9)


def test_a_missing_clip_of_unknown_class_is_never_guessed() -> None:
    clips = [(0, True), (1, False)]
    labels = {"lost0": 0, "lost1": 1}
    assert score(predictions(clips, labels), {"lost0": 0}).reweighted is None
    assert score(predictions(clips, labels)).reweighted is None
    assert score(predictions(clips, labels), labels).reweighted == 0.5


def test_the_pure_functions_take_numbers() -> None:
    assert bounds(3, 4, 8) == (3 / 8, 7 / 8)
    one = reweighted(np.array([True]), np.array([2]), [2, 5, 5])
    assert (one.top1, one.num_classes, one.num_clips) == (1.0, 1, 2)


# Selections


def chosen(split: object = "all", role: str = "test", **options: object) -> Selection:
    values = {"streams": ("rgb",), "flow": "opencv-tvl1"} | options
    return select(ShardFolder(tiny_shards()), str(split), role=role, **values)  # type: ignore[arg-type]


def ucf_lists(folder: Path) -> Path:
    """In UCF-101's format: three classes, of which the tiny shards have two."""
    names = {"train": ("ann", "ben", "cyd"), "test": ("dan", "eve")}
    for role, subjects in names.items():
        paths = [f"{label}/{subject}_{label}" for subject in subjects for label in LABELS]
        paths += [f"Flying/v_Flying_g{at:02d}_c01" for at in range(len(subjects) * 5)]
        text = "".join(f"{path}.avi 1\n" for path in paths)
        (folder / f"{role}list01.txt").write_text(text)
    return folder


def test_classes_that_the_shards_do_not_have_are_out_of_scope(tmp_path: Path) -> None:
    test = chosen("ucf101/1", splits=ucf_lists(tmp_path))
    assert test.keys == ("dan_left", "dan_right")
    assert test.missing == dict.fromkeys(("eve_left", "eve_right"), "not in the shards")
    assert test.missing_labels == {"eve_left": "left", "eve_right": "right"}
    assert test.out_of_scope == {"Flying": 10}
    assert test.num_expected == 4
    assert test.label_ids == {"dan_left": 0, "dan_right": 1, "eve_left": 0, "eve_right": 1}


def test_a_class_is_in_scope_if_a_clip_of_it_is_there_whatever_its_label_is_called(
    tmp_path: Path,
) -> None:
    (tmp_path / "trainlist01.txt").write_text("Going-Left/ann_left.avi 1\n")
    (tmp_path / "testlist01.txt").write_text("Going-Left/ben_left.avi\nGoing-Left/eve_left.avi\n")
    test = chosen("ucf101/1", splits=tmp_path)
    assert (test.out_of_scope, test.missing_labels) == ({}, {"eve_left": "left"})


def test_five_classes_of_ucf101_are_all_of_their_clips(tmp_path: Path, shared_data: Path) -> None:
    """As the issue tells it: 106 / 3783, failed 3677."""
    lists = shared_data / "annotations"
    listed = _official(lists, "ucf101", 1, "test") | _official(lists, "ucf101", 1, "train")
    classes = sorted({path.parent.name for path in listed.values()})[:3]
    files = {key: path for key, path in listed.items() if path.parent.name in classes}
    shards = copy_of_shards(tmp_path)
    index = pd.read_parquet(shards / "all" / "index.parquet")
    row = index.iloc[0].to_dict()
    rows = [
        row | {"key": key, "label": path.parent.name, "label_id": classes.index(path.parent.name)}
        for key, path in files.items()
    ]
    pd.DataFrame(rows).astype(index.dtypes).to_parquet(shards / "all" / "index.parquet")
    dataset = json.loads((shards / "dataset.json").read_text())
    (shards / "dataset.json").write_text(json.dumps(dataset | {"labels": classes}))
    test = select(ShardFolder(shards), "ucf101/1", role="test", streams=("rgb",), splits=lists)
    assert (len(test.samples), test.missing) == (len(test.keys), {})
    assert len(test.out_of_scope) == 98
    assert len(test.samples) + sum(test.out_of_scope.values()) == 3783


def test_only_some_classes_have_labels_of_their_own() -> None:
    right = chosen().only(["right"])
    assert right.keys == tuple(f"{subject}_right" for subject in SUBJECTS)
    assert (right.labels, right.classes) == (("right",), ("right",))
    assert {(sample.label, sample.label_id) for sample in right.samples} == {("right", 0)}
    both = chosen().only(["right", "left"])
    assert both.labels == ("left", "right")  # as the shards have them
    assert both.contents_sha256 == chosen().contents_sha256
    with pytest.raises(UnknownNameError, match=r"unknown class 'rihgt'. Did you mean 'right'\?"):
        chosen().only(["rihgt"])
    of_left = replace(chosen(), samples=[s for s in chosen().samples if s.label == "left"])
    with pytest.raises(EvaluationError, match="has no clip of right"):
        of_left.only(["right"])


def test_missing_clips_of_unknown_class_are_told_where_classes_are_chosen() -> None:
    part = replace(
        chosen(),
        missing={"a": "gone", "b": "gone", "c": "private"},
        missing_labels={"a": "left", "b": "right"},
    )
    left = part.only(["left"])
    assert (left.missing, left.missing_labels) == ({"a": "gone"}, {"a": "left"})
    assert left.num_unclassed == 1


def test_labels_are_matched_by_name() -> None:
    labels = ("down", "left", "right", "up")
    test = replace(chosen(), missing={"a": "gone"}, missing_labels={"a": "right"})
    found = test.in_labels(labels, "the network")
    assert {(sample.label, sample.label_id) for sample in found.samples} == {
        ("left", 1),
        ("right", 2),
    }
    assert found.label_ids["a"] == 2
    assert found.labels == labels
    assert test.in_labels(LABELS, "it") is test
    with pytest.raises(EvaluationError) as caught:
        test.in_labels(("down", "lefts", "up"), "weights.pt")
    assert str(caught.value) == (
        "split 'all' has clips of 'left', which is not among the 3 classes of weights.pt "
        "(nearest: 'lefts'), nor are 1 more; choose classes that it knows with --classes"
    )


def test_a_folders_name_of_a_class_is_its_name() -> None:
    def of(label: str) -> Selection:
        sample = replace(chosen().samples[0], label=label, label_id=0)
        return Selection(name="all", samples=[sample], missing={}, labels=(label,))

    names = ("arm wrestling", "arm_wrestling")
    for label, labels, number in (
        ("arm_wrestling", ("abseiling", "arm wrestling"), 1),
        ("arm wrestling", ("arm_wrestling",), 0),
        *((name, names, at) for at, name in enumerate(names)),
    ):
        (sample,) = of(label).in_labels(labels, "it").samples
        assert (sample.label_id, sample.label) == (number, labels[number])


def test_classes_without_clips_are_named() -> None:
    assert chosen().empty_classes == ()
    assert replace(chosen(), labels=(*LABELS, "up")).empty_classes == ("up",)


def test_a_split_of_which_too_few_clips_are_there_is_refused() -> None:
    part = replace(chosen(), missing={"lost": "gone", "other": "private"})
    require_coverage(part, 0.8)
    with pytest.raises(EvaluationError) as caught:
        require_coverage(part, 0.81)
    assert str(caught.value) == (
        "split 'all' has 8 of its 10 clips (80 %), fewer than --min-coverage 81 %; missing is "
        "lost (gone), for example"
    )


# Videos


def of_keys(*keys: str) -> Selection:
    samples = [Sample(key, "left", 0, 14, None, None, "", 0.0) for key in keys]
    return Selection(name="some", samples=samples, missing={}, labels=LABELS)


def test_two_segments_of_one_video_are_not_apart() -> None:
    train = of_keys("aaaaaaaaaaa_000000_000010", "v_Surfing_g07_c01", "clip_1")
    apart = of_keys("aaaaaaaaaab_000000_000010", "v_Surfing_g08_c01", "clip_2")
    shared = of_keys("aaaaaaaaaaa_000010_000020", "v_Surfing_g07_c04", "clip_2")
    require_disjoint(train, apart)
    require_unseen("w.pt", train.keys, apart)
    said = (
        r"2 of the 3 clips of --test-split some.* such as aaaaaaaaaaa_000010_000020 of aaaaaaaaaaa"
    )
    for check in (
        partial(require_disjoint, train, shared),
        partial(require_unseen, "w.pt", train.keys, shared),
    ):
        with pytest.raises(EvaluationError, match=said) as caught:
            check()
        assert "--allow-overlap" in str(caught.value)
    require_disjoint(train, shared, allow_videos=True)
    with pytest.raises(EvaluationError, match="share 3 keys"):
        require_disjoint(train, train, allow_videos=True)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("dataset", ["ucf101", "hmdb51"])
def test_official_splits_share_no_video(dataset: str, number: int, shared_data: Path) -> None:
    train, test = (
        _official(shared_data / "annotations", dataset, number, role) for role in ("train", "test")
    )
    assert shared_videos(train, test) == {}
    # By film alone those of HMDB-51 do, which is why its authors' groups are of film and action.
    films = {source_video(key, path.parent.name) for key, path in train.items()}
    shared = sum(source_video(key, path.parent.name) in films for key, path in test.items())
    assert shared == {"ucf101": [0, 0, 0], "hmdb51": [451, 525, 516]}[dataset][number - 1]


def test_no_video_of_kinetics_has_two_rows(shared_data: Path) -> None:
    found = read_video_list(str(shared_data / "annotations" / "kinetics400" / "val.csv"), Path())
    assert len(found.videos) == 19_906
    assert found.name == "val.csv"


@pytest.mark.parametrize(
    "line",
    [
        "-bcdefghijk",
        "-bcdefghijk_000010_000020",
        "train/arm_wrestling/-bcdefghijk_000010_000020.mp4 7",
        "val/-bcdefghijk_000010_000020.mp4,300,7",
        "  -bcdefghijk \r",
        "abseiling/-bcdefghijk_95_105.mp4 0",
        "-bcdefghijk_95_105",
        "abseiling/-bcdefghijk_000095_000105.mp4;3",
        "abseiling/-bcdefghijk_95_105.mp4 0 120 3",
    ],
)
def test_a_line_of_a_list_names_a_video(line: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"# mine\n\n{line}\n", newline="")
    assert read_video_list(str(path), tmp_path) == VideoList("list.txt", frozenset({"-bcdefghijk"}))


def test_a_list_may_be_a_manifest_of_any_kind(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    for text in (
        "label,youtube_id,time_start,time_end\nyoga,-bcdefghijk,1,11\n",
        "video-id,start-time,end-time,label-name\n-bcdefghijk,1,11,yoga\nbroken\n",
        '{"-bcdefghijk": {"annotations": {"label": "a", "segment": [1, 2]}, "subset": "val"}}',
    ):
        path.write_text(text)
        assert read_video_list(str(path), tmp_path).videos == {"-bcdefghijk"}


def test_a_list_of_videos_has_no_patterns(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("-bcdefghijk\ndaria_*\n")
    with pytest.raises(EvaluationError, match=r"list.txt has the pattern 'daria_\*'; a list of vi"):
        read_video_list(str(path), tmp_path)


def test_a_list_may_lie_elsewhere_or_be_official(
    media_server: MediaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    media_server.put("lists/seen.txt", b"-bcdefghijk_000010_000020.mp4 3\n")
    address = f"{media_server.address}/lists/seen.txt"
    found = read_video_list(address, tmp_path)
    assert found == VideoList(address, frozenset({"-bcdefghijk"}))
    with pytest.raises(EvaluationError, match="there is no such file"):
        read_video_list(f"{media_server.address}/none.txt", tmp_path)

    header = "label,youtube_id,time_start,time_end,split\n"
    rows = [f"class {at:03d},-bcdefgh{at:03d},0,10,train\n" for at in range(600)]
    media_server.put("k600.csv", (header + "".join(rows)).encode())
    official = f"{media_server.address}/k600.csv"
    monkeypatch.setitem(official_lists.ADDRESSES, "kinetics600", official)
    found = read_video_list("kinetics600/train", tmp_path)
    assert (found.name, len(found.videos)) == ("kinetics600/train", 600)
    assert "-bcdefgh007" in found.videos


def test_a_list_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing\n")
    for text, said in (
        (str(empty), "names no video"),
        (str(tmp_path / "none.txt"), "no such file, and no official list (kinetics400, "),
    ):
        with pytest.raises(EvaluationError) as caught:
            read_video_list(text, tmp_path)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_accuracy_without_shared_videos_is_beside() -> None:
    keys = ("aaaaaaaaaaa_000000_000010", "aaaaaaaaaaa_000010_000020", "ccccccccccc_000000_000010")
    rows = {key: (0, np.eye(2)[int(at < 2)]) for at, key in enumerate(keys)}  # the last is right
    some = Predictions.of(rows, {"aaaaaaaaaaa_000020_000030": "gone", "lost": "gone"})
    ids = {"lost": 0, "aaaaaaaaaaa_000020_000030": 0}
    other = VideoList("kinetics700/train", frozenset({"aaaaaaaaaaa", "ddddddddddd"}))
    (found,) = overlaps(some, ids, (), [other])
    assert (found.source, found.num_listed) == ("kinetics700/train", 2)
    assert (found.num_videos, found.num_clips) == (1, 2)
    assert found.without is not None
    assert (found.without.top1, found.without.num_scored, found.without.num_expected) == (1, 1, 2)
    assert score(some).top1 == pytest.approx(1 / 3)
    # Of the training only what is shared is told.
    assert overlaps(some, ids, ("eeeeeeeeeee_000000_000010",), []) == ()
    trained, listed = overlaps(some, ids, [*keys], [replace(other, videos=frozenset())])
    assert (trained.source, trained.num_clips, trained.without) == ("training", 3, None)
    assert (listed.num_clips, listed.without) == (0, None)


# The command


SHORT = ("--arch", "i3d", "--recipe", "sample", "--epochs", 1, "--stream", "rgb")


def told_by(work_dir: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((work_dir / "rgb/result.json").read_text())
    return values


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A run on one class of an official list: work-dir, lists, the lines that it printed."""
    folder = tmp_path_factory.mktemp("coverage")
    split = ("--train-split", "ucf101/1", "--test-split", "ucf101/1")
    names = folder / "classes.txt"
    names.write_text("# those that we have\nright\nleft\n")
    seen = folder / "seen.txt"
    seen.write_text("videos/dan_left.mp4 0\n")
    done = run_command(
        *("run-benchmark", *SHORT, "--data", tiny_shards(), *split),
        *("--splits", ucf_lists(folder), "--work-dir", folder / "work", "--classes", names),
        *("--pretrained-on", seen, "--min-coverage", "50%"),
    )
    assert done.returncode == 0, done.stderr
    assert "ucf101/1: 10 test clips are out of scope, of 1 classes" in done.stderr
    return folder / "work", folder, done.stdout


def test_a_run_tells_what_its_numbers_cover(run: tuple[Path, Path, str]) -> None:
    work_dir, _, stdout = run
    titles, row = (re.split(r"\s{2,}", line) for line in stdout.splitlines()[:2])
    cells = dict(zip(titles, row, strict=True))
    covers = cells["evaluated / in the list"]
    assert covers.startswith("2 / 4, 10 of 1 classes out of scope, 1 of videos in seen.txt (")
    result = told_by(work_dir)
    value, data = result["score"], result["data"]
    assert (value["num_expected"], value["num_scored"], value["num_failed"]) == (4, 2, 2)
    assert value["bounds"] == [value["top1"] / 2, value["top1"] / 2 + 0.5]
    assert value["reweighted"] == value["top1"]
    assert (data["classes"], data["out_of_scope"]) == (["left", "right"], {"Flying": 10})
    (overlap,) = data["overlaps"]
    assert (overlap["source"], overlap["num_clips"], overlap["num_listed"]) == ("seen.txt", 1, 1)
    assert overlap["without"]["num_scored"] == 1
    assert cells["bounds %"] == f"{50 * value['top1']:.1f} to {50 * value['top1'] + 50:.1f}"


def where(stdout: str) -> Path:
    """The folder of the results that were printed."""
    return Path(stdout.splitlines()[-1].removeprefix("report: ")).parent


@pytest.mark.full
def test_folders_of_evaluations_say_what_was_evaluated(
    run: tuple[Path, Path, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    work_dir = Path(shutil.copytree(run[0], tmp_path / "work"))
    one, other = (tmp_path / name for name in ("one", "other"))
    for path, pattern in ((one, "dan_*"), (other, "dan_left")):
        path.mkdir()
        key_file(path, "mine.txt", pattern)
    copy = Path(shutil.copytree(tiny_shards(), tmp_path / "copy"))

    def evaluated(*options: object) -> str:
        assert cli.run([str(word) for word in ("evaluate", work_dir, *options)]) == 0
        return where(capsys.readouterr().out).relative_to(work_dir).as_posix()

    assert evaluated("--protocol", "1x1") == "evaluate-1x1"
    assert evaluated("--classes", "right") == "evaluate-right"
    assert evaluated("--test-split", one / "mine.txt") == "evaluate-mine"
    # The same evaluation, whatever the path of the shards is.
    assert evaluated("--data", copy) == "."
    assert evaluated("--data", copy, "--protocol", "1x1") == "evaluate-1x1"
    # A hash where the words are those of another one.
    caplog.clear()
    unlike = evaluated("--test-split", other / "mine.txt")
    assert "mine.txt: 1 of 2 classes have no test clip, such as right" in caplog.text
    assert re.fullmatch(r"evaluate-mine-[0-9a-f]{8}", unlike)
    assert evaluated("--test-split", other / "mine.txt") == unlike
    names = {path.name for path in work_dir.glob("evaluate-*")}
    assert names == {"evaluate-1x1", "evaluate-right", "evaluate-mine", unlike}

    # What it covers is told again, of the predictions that are there.
    before = told_by(work_dir)
    times = (work_dir / "rgb" / "checkpoint.pt").stat().st_mtime_ns
    assert evaluated("--pretrained-on", key_file(tmp_path, "left.txt", "dan_left")) == "."
    (overlap,) = told_by(work_dir)["data"].pop("overlaps")
    assert (overlap["source"], overlap["num_clips"]) == ("left.txt", 1)
    assert told_by(work_dir)["score"] == before["score"]
    assert told_by(work_dir)["cost"] == before["cost"]
    assert (work_dir / "rgb" / "checkpoint.pt").stat().st_mtime_ns == times


def test_a_split_that_is_called_best_is_not_the_best_checkpoint(tmp_path: Path) -> None:
    names = [
        evaluation_folder(tmp_path, ("best-clips",), {}, PROTOCOLS["whole"], best=best).name
        for best in (False, True)
    ]
    assert names == ["evaluate-of-best-clips", "evaluate-best-best-clips"]


def test_shards_with_some_of_the_classes_are_evaluated_by_name(
    run: tuple[Path, Path, str], tmp_path: Path
) -> None:
    """Clips of class 0 there are of class 1 of the network."""
    shards = copy_of_shards(tmp_path)
    path = shards / "all" / "index.parquet"
    index = pd.read_parquet(path)
    index = index[index["label"] == "right"]
    index.assign(label_id=0).astype(index.dtypes).to_parquet(path, index=False)
    dataset = json.loads((shards / "dataset.json").read_text())
    dataset["splits"]["all"]["expected"] = 4
    (shards / "dataset.json").write_text(json.dumps(dataset | {"labels": ["right"]}))
    done = run_command(
        *("run-benchmark", "evaluate", run[0], "--data", shards, "--classes", "right"),
    )
    assert done.returncode == 0, done.stderr
    assert "clips of 1 of the network's 2 classes, scored against all of these" in done.stderr
    folder = where(done.stdout)
    assert folder.name == "evaluate-shards-right"
    result = told_by(folder)
    table = pd.read_parquet(folder / "rgb" / "predictions.parquet")
    assert (list(table["key"]), list(table["label_id"])) == (["dan_right"], [1])
    assert result["data"]["labels"] == ["left", "right"]
    assert len(table["logits"][0]) == 2
    unknown = run_command("run-benchmark", "evaluate", run[0], "--data", shards)
    assert unknown.returncode == 2
    assert "unknown class 'left'" in unknown.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--min-coverage", "0.6"), "has 2 of its 4 clips (50 %), fewer than --min-coverage 60 %"),
        (("--min-coverage", "most"), "'most' is no share, such as 0.95 or 95%"),
        (("--classes", "rihgt"), "unknown class 'rihgt'. Did you mean 'right'?"),
        (("--classes", ","), "--classes ,: no class is named there"),
        (("--pretrained-on", "kinetics701"), "no such file, and no official list"),
    ],
)
def test_what_cannot_be_is_one_line(
    options: tuple[str, ...], said: str, run: tuple[Path, Path, str]
) -> None:
    done = run_command("run-benchmark", "evaluate", run[0], *options)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert said in line


def test_a_training_on_a_part_of_the_classes_has_a_network_of_these(tmp_path: Path) -> None:
    train = key_file(tmp_path, "train.txt", "ann_*", "ben_*")
    test = key_file(tmp_path, "test.txt", "dan_*", "cyd_*")
    asked = ("run-benchmark", *SHORT, "--data", tiny_shards(), "--classes", "right")
    done = run_command(*asked, "--train-split", train, "--test-split", test, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    work_dir = tmp_path / "runs" / "i3d-rgb-sample+epochs-1+right"
    result = told_by(work_dir)
    assert result["data"]["labels"] == ["right"]
    assert (result["data"]["num_train"], result["score"]["num_scored"]) == (2, 2)
    assert json.loads((work_dir / "run.json").read_text())["classes"] == ["right"]


@pytest.mark.full
def test_a_training_on_videos_of_the_test_goes_on_only_if_it_is_asked_for(tmp_path: Path) -> None:
    shards = copy_of_shards(tmp_path)
    path = shards / "all" / "index.parquet"
    index = pd.read_parquet(path)
    old = sorted(index["key"])
    new = {key: f"{'abcdefghijk'[:10]}{key[0]}_{at:06d}_000010" for at, key in enumerate(old)}
    _rename(shards, index, new)
    train = key_file(tmp_path, "train.txt", *(new[f"{s}_left"] for s in SUBJECTS), new["ann_right"])
    test = key_file(tmp_path, "test.txt", new["ben_right"], new["dan_right"])
    asked = ("run-benchmark", *SHORT, "--data", shards, "--work-dir", tmp_path / "work")
    splits = ("--train-split", train, "--test-split", test)
    refused = run_command(*asked, *splits)
    assert refused.returncode == 2
    assert "2 of the 2 clips of --test-split test.txt are of videos" in refused.stderr
    assert not (tmp_path / "work" / "run.json").exists()
    done = run_command(*asked, *splits, "--allow-overlap")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].endswith("2 / 2, 2 OF TRAINED VIDEOS")
    data = told_by(tmp_path / "work")["data"]
    assert data["num_overlap"] == 0
    (overlap,) = data["overlaps"]
    assert (overlap["source"], overlap["num_videos"], overlap["without"]) == ("training", 2, None)


def _rename(shards: Path, index: pd.DataFrame, names: Mapping[str, str]) -> None:
    """Give the samples of one shard other keys: in the index, and in the headers of its tars."""
    import tarfile

    for tar in (shards / "all").glob("*.tar"):
        data = bytearray(tar.read_bytes())
        with tarfile.open(tar) as members:
            infos = members.getmembers()
        for info in infos:
            key, _, ext = info.name.partition(".")
            info.name = f"{names[key]}.{ext}"
            data[info.offset : info.offset + 512] = info.tobuf(tarfile.USTAR_FORMAT)
        tar.write_bytes(data)
    index = index.assign(key=index["key"].map(names))
    index.to_parquet(shards / "all" / "index.parquet", index=False)

"""run-benchmark as a user meets it: the real command on tiny real shards."""

import json
import re
import shutil
import subprocess
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import pytest

from kinetics_bench import cli
from kinetics_bench.archs.registry import ARCHS, CHANNELS
from kinetics_bench.archs.table import count
from kinetics_bench.evaluation.results import Predictions, Result
from kinetics_bench.inference.networks import read_request
from kinetics_bench.recipes import RECIPES
from kinetics_bench.training.checkpoint import Checkpoint
from kinetics_tools.core.errors import KineticsError
from kinetics_tools.core.keys import file_keys
from kinetics_tools.media import encode
from support import (
    DAMAGES,
    command,
    damage_file,
    environment,
    left_by_a_killed_process,
    run_command,
)
from tiny import (
    LABELS,
    copy_of_shards,
    damage,
    key_file,
    tiny_clips,
    tiny_recipe,
    tiny_shards,
)


def splits(folder: Path) -> tuple[object, ...]:
    train = key_file(folder, "train.txt", "ann_*", "ben_*", "cyd_*")
    return ("--train-split", train, "--test-split", key_file(folder, "test.txt", "dan_*"))


SHORT = ("--arch", "i3d", "--recipe", "sample", "--epochs", "4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A short joint run of the sample recipe: its work-dir, stdout and stderr."""
    folder = tmp_path_factory.mktemp("run")
    done = run_command(
        "run-benchmark",
        *(*SHORT, "--data", tiny_shards(), *splits(folder)),
        *("--work-dir", folder / "work"),
    )
    assert done.returncode == 0, done.stderr
    return folder / "work", done.stdout, done.stderr


def test_a_run_ends_with_a_table_and_the_reports_path(trained: tuple[Path, str, str]) -> None:
    work_dir, stdout, _ = trained
    lines = stdout.splitlines()
    assert re.split(r"\s{2,}", lines[0]) == [
        *(
            "stream",
            "protocol",
            "seed",
            "top-1 %",
            "95 % interval",
            "top-5 %",
            "mean-class %",
            "bounds %",
            "reweighted %",
            "evaluated / in the list",
        )
    ]
    assert [line.split()[0] for line in lines[1:4]] == ["rgb", "flow", "joint"]
    assert all(line.endswith("2 / 2") for line in lines[1:4])
    assert lines[4] == f"report: {work_dir / 'report.html'}"
    assert "<!doctype html>" in (work_dir / "report.html").read_text()


def test_a_run_keeps_predictions_and_a_record_of_each_row(trained: tuple[Path, str, str]) -> None:
    work_dir = trained[0]
    rows = {}
    for stream in ("rgb", "flow", "joint"):
        result = json.loads((work_dir / stream / "result.json").read_text())
        assert result["score"]["num_scored"] == 2
        assert result["origin"]["versions"]["torch"]
        rows[stream] = Predictions.read(work_dir / stream / "predictions.parquet", {})
    assert rows["joint"].keys == rows["rgb"].keys == ("dan_left", "dan_right")
    added = rows["rgb"].logits + rows["flow"].logits
    assert rows["joint"].logits.tolist() == added.tolist()
    result = json.loads((work_dir / "flow" / "result.json").read_text())
    assert result["recipes"]["flow-opencv-tvl1"]["method"] == "opencv-tvl1"
    assert result["cost"]["parameters"] == 12_668_032 - 398 * 1025  # two classes, not 400
    # Convolutions alone; the first one: 64 channels of 7x7x7x2, two operations each.
    assert result["cost"]["flops"] > 1e9


@pytest.mark.parametrize("size", ["64k", "4k"])
def test_a_small_dev_shm_stops_nothing(tmp_path: Path, size: str) -> None:
    """Containers have 64 MB there, less than one clip of 250 frames; here a clip has 900 kB."""
    unshare = (shutil.which("unshare") or "unshare", "-rm", "/bin/sh", "-c")
    mount = f"PATH=/bin:/sbin mount -t tmpfs -o size={size} tmpfs /dev/shm"
    try:
        subprocess.run([*unshare, mount], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the right to mount a file system: {error}")
    words = (*SHORT[:-1], "1", "--stream", "rgb", "--data", tiny_shards(), *splits(tmp_path))
    done = subprocess.run(
        [
            *(*unshare, f'{mount} && exec "$@"', "sh"),
            *command("run-benchmark", *words, "--workers", 2, "--work-dir", tmp_path / "work"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=300,  # without room a clip was lost, and awaited for ever
    )
    assert done.returncode == 0, done.stderr
    assert "2 / 2" in done.stdout
    # Once for the training, once for the evaluation.
    assert done.stderr.count("no processes can be started") == (2 if size == "4k" else 0)


def test_running_again_reuses_what_is_there(trained: tuple[Path, str, str]) -> None:
    work_dir, stdout, _ = trained
    again = run_command(
        "run-benchmark",
        *(*SHORT, "--data", tiny_shards()),
        *splits(work_dir.parent),
        *("--work-dir", work_dir),
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout == stdout
    for stream in ("rgb", "flow"):
        assert f"{stream}: reused, trained already" in again.stderr
        assert f"{stream}: reused, evaluated already" in again.stderr


@pytest.mark.full
def test_training_clips_that_are_missing_are_counted_logged_and_shown(tmp_path: Path) -> None:
    names = [f"{label}/{subject}_{label}.avi" for subject in ("ann", "ben") for label in LABELS]
    names += ["left/#gone_left.avi", "left/gone_left.avi"]
    (tmp_path / "trainlist01.txt").write_text("".join(f"{name} 1\n" for name in names))
    (tmp_path / "testlist01.txt").write_text("left/dan_left.avi\nright/lost_right.avi\n")
    split = ("--train-split", "ucf101/1", "--test-split", "ucf101/1", "--splits", tmp_path)

    done = run_command(
        "run-benchmark",
        *("--arch", "i3d", "--stream", "rgb", "--recipe", "sample", "--epochs", 1),
        *("--data", tiny_shards(), *split, "--work-dir", tmp_path / "work"),
    )

    assert done.returncode == 0, done.stderr
    (gone,) = file_keys([PurePosixPath("left/#gone_left.avi")]).values()
    said = f"ucf101/1: 2 of 6 training clips are not there, such as {gone}: not in the shards 2"
    assert said in done.stderr
    assert "ucf101/1: 1 of 2 test clips are not there, such as lost_right" in done.stderr
    result = json.loads((tmp_path / "work" / "rgb" / "result.json").read_text())
    assert result["data"]["num_train"] == 4
    assert result["data"]["missing_train"] == dict.fromkeys(
        (gone, "gone_left"), "not in the shards"
    )
    page = (tmp_path / "work" / "report.html").read_text()
    assert "ucf101/1: 4 / 6 clips (2 not in the shards)" in page
    again = run_command("run-benchmark", "evaluate", tmp_path / "work", "--protocol", "1x1")
    assert again.returncode == 0, again.stderr
    assert "ucf101/1: 1 of 2 test clips are not there" in again.stderr
    (other,) = (tmp_path / "work").glob("*/rgb/result.json")
    assert len(json.loads(other.read_text())["data"]["missing_train"]) == 2


@pytest.mark.full
def test_what_is_there_is_reused_only_if_labels_bytes_and_precision_are_the_same(
    tmp_path: Path,
) -> None:
    clips = Path(shutil.copytree(tiny_clips(), tmp_path / "clips"))
    shards, work_dir = tmp_path / "shards", tmp_path / "work"
    words = (*SHORT, "--stream", "rgb", "--data", shards, *splits(tmp_path), "--amp", "none")

    def run(*options: object) -> subprocess.CompletedProcess[str]:
        method = ("--method", "opencv-tvl1", "--short-side", "keep", "--jobs", 1)
        extracted = run_command("extract-flow", clips, shards, *method)
        assert extracted.returncode == 0, extracted.stderr
        return run_command("run-benchmark", *words, *options, "--work-dir", work_dir)

    def exchange(one: str, other: str) -> None:
        paths = [clips / each.partition("_")[2] / f"{each}.mp4" for each in (one, other)]
        contents = [path.read_bytes() for path in paths]
        for path, content in zip(paths, reversed(contents), strict=True):
            path.write_bytes(content)

    assert run().returncode == 0
    weights = (work_dir / "rgb" / "checkpoint.pt").read_bytes()
    before = read_predictions(work_dir / "rgb")

    exchange("dan_left", "dan_right")  # of the test split
    again = run()
    assert again.returncode == 0, again.stderr
    assert "rgb: reused, trained already" in again.stderr
    assert "evaluated again, not the same order, labels or bytes of the clips\n" in again.stderr
    np.testing.assert_allclose(
        read_predictions(work_dir / "rgb").logits, before.logits[::-1], atol=1e-5
    )
    for name in ("dan_left", "dan_right"):  # the same bytes, under the other label
        this, that = name.partition("_")[2], {"left": "right", "right": "left"}
        (clips / this / f"{name}.mp4").rename(clips / that[this] / f"{name}.mp4")
    again = run()
    assert "evaluated again, not the same order, labels or bytes of the clips\n" in again.stderr
    assert list(read_predictions(work_dir / "rgb").label_ids) == [1, 0]
    assert_one_line(
        run("--amp", "bfloat16"), "not the same precision (float32 there, bfloat16 now)", "--force"
    )

    exchange("ann_left", "ann_right")
    refused = run()
    told = (
        "another training, not the same order, labels or bytes of the training clips",
        "--force",
    )
    assert_one_line(refused, *told)
    assert_one_line(run("--resume"), *told)
    exchange("ann_left", "ann_right")
    (clips / "left" / "ben_left.mp4").rename(clips / "right" / "ben_left.mp4")
    assert_one_line(run(), *told)
    assert (work_dir / "rgb" / "checkpoint.pt").read_bytes() == weights


@pytest.mark.full
def test_an_evaluation_knows_the_weights_and_the_precision(
    trained: tuple[Path, str, str], tmp_path: Path
) -> None:
    work_dir = Path(shutil.copytree(trained[0], tmp_path / "copy"))
    row = json.loads((work_dir / "flow" / "result.json").read_text())
    other = "none" if row["cost"]["precision"] == "bfloat16" else "bfloat16"
    words = ("run-benchmark", "evaluate", work_dir, "--stream", "flow")
    done = run_command(*words, "--amp", other)
    assert "evaluated again, not the same precision\n" in done.stderr
    now = json.loads((work_dir / "flow" / "result.json").read_text())
    assert now["cost"]["precision"] == now["data"]["identity"]["precision"]
    assert now["cost"]["precision"] != row["cost"]["precision"]

    checkpoint = Checkpoint.read(work_dir / "flow" / "checkpoint.pt")
    checkpoint.net = {name: 2 * weights for name, weights in checkpoint.net.items()}
    checkpoint.write(work_dir / "flow" / "checkpoint.pt")
    done = run_command(*words, "--amp", other)
    assert "evaluated again, not the same weights\n" in done.stderr
    assert "evaluated already" in run_command(*words, "--amp", other).stderr


@pytest.mark.full
def test_evaluate_again_and_on_other_clips(trained: tuple[Path, str, str], tmp_path: Path) -> None:
    work_dir, stdout, _ = trained
    again = run_command("run-benchmark", "evaluate", work_dir)
    assert (again.returncode, again.stdout) == (0, stdout), again.stderr

    shards = copy_of_shards(tmp_path)
    damage(shards, "ann_left")
    keys = key_file(tmp_path, "other.txt", "ann_*", "ben_left")
    other = run_command(
        *("run-benchmark", "evaluate", work_dir, "--test-split", keys, "--data", shards),
        "--allow-overlap",
    )
    assert other.returncode == 0, other.stderr
    lines = other.stdout.splitlines()
    assert [re.split(r"\s{2,}", line)[-1] for line in lines[1:4]] == [
        "2 / 3, 2 TRAINED ON",
        "3 / 3, 3 TRAINED ON",
        "2 / 3, 2 TRAINED ON",
    ]
    folder = Path(lines[4].removeprefix("report: ")).parent
    assert folder.parent == work_dir
    failed = json.loads((folder / "joint" / "result.json").read_text())["failed"]
    assert list(failed) == ["ann_left"]
    assert "failed clips (1)" in (folder / "report.html").read_text().lower()
    # The run's own numbers stand as they were.
    assert run_command("run-benchmark", "evaluate", work_dir).stdout == stdout


def test_predict_names_classes_of_any_video(trained: tuple[Path, str, str], tmp_path: Path) -> None:
    work_dir = trained[0]
    good = tiny_clips() / "left" / "dan_left.mp4"
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(good.read_bytes()[:300])
    done = run_command(
        *("run-benchmark", "predict", good, bad, tmp_path / "gone.mp4", "--work-dir", work_dir),
        *("--json", "--tmp-dir", tmp_path),
    )
    assert done.returncode == 3, done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found["video"] == str(good)
    assert {each["label"] for each in found["classes"]} == {"left", "right"}
    assert sum(each["probability"] for each in found["classes"]) == pytest.approx(1)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert str(bad) in errors[0]
    assert str(tmp_path / "gone.mp4") in errors[1]
    assert not (tmp_path / ".scratch").exists()


@pytest.mark.full
def test_predict_takes_a_stretch_and_a_stream(trained: tuple[Path, str, str]) -> None:
    video = tiny_clips() / "right" / "ann_right.mp4"
    options = ("--work-dir", trained[0], "--stream", "flow", "--start", "0.1", "--top", "1")
    done = run_command("run-benchmark", "predict", video, *options, "--duration", "0.4")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"{re.escape(str(video))}\n +[\d.]+%  (left|right)\n", done.stdout)
    late = run_command("run-benchmark", "predict", video, *options, "--duration", "5")
    assert late.returncode == 2
    assert "ends at 0.5" in late.stderr


def test_report_is_one_page_about_runs(trained: tuple[Path, str, str], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = run_command("run-benchmark", "report", trained[0], "--out", out)
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    nothing = run_command("run-benchmark", "report", cwd=tmp_path)
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert nothing.stderr.startswith("error: no result in runs")


def test_a_work_dir_belongs_to_one_training(trained: tuple[Path, str, str]) -> None:
    work_dir = trained[0]
    other = run_command(
        *("run-benchmark", *SHORT, "--data", tiny_shards()),
        *(*splits(work_dir.parent), "--work-dir", work_dir, "--batch-size", "2"),
    )
    assert_one_line(other, "not the same recipe (batch_size 6 there, 2 now", "--force")


def assert_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_without_shards_the_two_commands_that_make_them_are_named(tmp_path: Path) -> None:
    done = run_command("run-benchmark", "--arch", "i3d", cwd=tmp_path)
    assert_one_line(done, "shards holds no shards", "kinetics-download", "extract-flow")
    assert list(tmp_path.iterdir()) == []


def test_a_short_trial_has_a_folder_of_its_own(tmp_path: Path) -> None:
    words = ("--arch", "i3d", "--stream", "flow", "--recipe", "sample", "--epochs", "1")
    data = ("--data", tiny_shards(), *splits(tmp_path))
    done = run_command("run-benchmark", *words, *data, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    work_dir = tmp_path / "runs" / "i3d-flow-sample+epochs-1"
    result = json.loads((work_dir / "flow" / "result.json").read_text())
    assert [row["epoch"] for row in result["history"]["flow"]] == [1]
    assert result["recipes"]["training"]["flow"]["name"] == "sample+epochs-1"


FOLDS = ("--arch", "i3d", "--train-split", "train.txt", "--test-split", "test.txt")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "i4d"], "Did you mean 'i3d'?"),
        (["--arch", "i3d", "--force", "--resume"], "not allowed with argument --force"),
        (["--arch", "i3d", "--recipe", "papr"], "Did you mean 'paper'?"),
        (["--arch", "c3d", "--stream", "flow"], "unknown stream of c3d 'flow'"),
        (["--arch", "c3d", "--recipe", "sample"], "recipe sample is for i3d, not for c3d"),
        (["--arch", "i3d", "--stream", "join"], "Did you mean 'joint'?"),
        (["--arch", "i3d", "--protocol", "papers"], "Did you mean 'paper'?"),
        (["--arch", "i3d", "--batch-size", "0"], "not a whole number from 1"),
        (["--arch", "i3d", "--flow", "opencv-tvl2"], "Did you mean 'opencv-tvl1'?"),
        (["--arch", "i3d"], "no train split 'train'"),
        (["--arch", "i3d", "--train-split", "all", "--test-split", "all"], "share 8 keys"),
        (["--arch", "i3d", "--device", "cuda"], "finds no CUDA device"),
        ([*FOLDS, "--init", "nowhere.pt"], "nowhere.pt is missing"),
        ([*FOLDS, "--finetune", "last"], "give these with --init"),
        ([*FOLDS, "--epochs", "2"], "recipe paper: it counts steps: give --steps N"),
        ([*FOLDS, "--epochs", "0"], "not a whole number from 1"),
        (["--arch", "i3d", "--finetune", "some"], "invalid choice: 'some'"),
        (["verify-weights", "nowhere.pt"], "give the arrays of the example: --rgb NPY"),
        (["verify-weights", "nowhere.pt", "--rgb", "x.npy"], "nowhere.pt is missing"),
        (["evaluate", "nowhere"], "nowhere holds no run"),
        (["report", "nowhere", "--out", "."], "--out . is a folder; give the path of a page"),
        (["predict", "x.mp4", "--work-dir", "nowhere"], "nowhere holds no run"),
        (["features", "x.mp4", "--work-dir", "nowhere"], "nowhere holds no run"),
        (["features", "x.mp4", "--init", "nowhere.pt"], "nowhere.pt is missing"),
        (["features", "x.mp4"], "one of the arguments --work-dir --init is required"),
        (["predict", "x.mp4"], "one of the arguments --work-dir --init is required"),
        (["predict", "x.mp4", "--init", "nowhere.pt"], "nowhere.pt is missing"),
        (["predict", "x.mp4", "--init", "x", "--stream", "both"], "unknown stream 'both'"),
        (["evaluate"], "one of the arguments WORK_DIR --init is required"),
        (["evaluate", "--init", "nowhere.pt"], "shards holds no shards"),
        (["compar", "nowhere", "x"], "unknown verb 'compar'. Did you mean 'compare'?"),
        (["evalute", "nowhere", "--arch", "i3d"], "Did you mean 'evaluate'?"),
        (["shards"], "unknown verb 'shards'"),
        (["compare", "nowhere", "x"], "nowhere holds no result"),
        (["fuse", "nowhere", "x", "--out", "y"], "nowhere holds no result"),
        (["fuse", "x", "y", "--out", "z", "--weights", "1,two"], "'1,two' is not numbers"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # whatever this machine has
    for name, pattern in (("train.txt", "ann_*"), ("test.txt", "dan_*")):
        key_file(tmp_path, name, pattern)
    data = ("--data", tiny_shards()) if arguments[0].startswith("-") else ()
    assert_one_line(run_command("run-benchmark", *arguments, *data, cwd=tmp_path), words)
    assert not (tmp_path / "nowhere").exists()


def test_shards_of_another_schema_or_without_their_flow_are_one_line(tmp_path: Path) -> None:
    shards = copy_of_shards(tmp_path)
    options = ("--arch", "i3d", "--recipe", "sample", "--data", shards, *splits(tmp_path))
    dataset = shards / "dataset.json"
    text = dataset.read_text()
    dataset.write_text(text.replace('"schema_version": 1', '"schema_version": 2'))
    assert_one_line(run_command("run-benchmark", *options, cwd=tmp_path), "schema version 2")
    dataset.write_text(text)
    (shards / "all" / "flow-opencv-tvl1-000000.tar").unlink()
    done = run_command("run-benchmark", *options, "--stream", "flow", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    length, error = done.stderr.splitlines()
    assert "flow: 20 steps of 6 clips: 20 epochs of 6 clips" in length
    assert "flow-opencv-tvl1-000000.tar is gone" in error


def test_storage_that_cannot_be_read_is_one_line_with_workers_and_without(
    trained: tuple[Path, str, str], tmp_path: Path
) -> None:
    shards = copy_of_shards(tmp_path)
    (tar,) = (shards / "all").glob("rgb-*.tar")
    tar.chmod(0)
    for num_workers in (0, 2):
        done = run_command(
            *("run-benchmark", "evaluate", trained[0], "--data", shards, "--stream", "rgb"),
            *("--workers", num_workers, "--protocol", "1x1"),  # else there is nothing to read
            is_root=False,
        )
        assert (done.returncode, done.stdout) == (2, "")
        told = f"error: {tar}: Permission denied; allow access to it"
        assert done.stderr.splitlines()[-1].startswith(told)
        assert "Traceback" not in done.stderr


def test_flow_of_another_recipe_or_name_is_one_line(
    trained: tuple[Path, str, str], tmp_path: Path
) -> None:
    shards = copy_of_shards(tmp_path)
    path = shards / "dataset.json"
    dataset = json.loads(path.read_text().replace("flow-opencv-tvl1", "flow-other"))
    recipe = dataset["recipes"]["flow-other"]
    bound = recipe["bound"]
    recipe |= {"hash": "0", "bound": bound / 4}  # and no warning of clamped flow before the error
    path.write_text(json.dumps(dataset))
    index = shards / "all" / "index.parquet"
    table = pd.read_parquet(index)
    table.columns = [name.replace("flow-opencv-tvl1", "flow-other") for name in table.columns]
    table.to_parquet(index, index=False)
    done = run_command(
        "run-benchmark", "evaluate", trained[0], "--data", shards, "--stream", "flow"
    )
    assert_one_line(done, "flow-other in", f"(bound {bound}, there {bound / 4})", "the same recipe")


def test_a_truncated_checkpoint_is_one_line(trained: tuple[Path, str, str], tmp_path: Path) -> None:
    work_dir = Path(shutil.copytree(trained[0], tmp_path / "copy"))
    checkpoint = work_dir / "flow" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1_000_000])
    video = tiny_clips() / "left" / "dan_left.mp4"
    for arguments in (["evaluate", work_dir], ["predict", video, "--work-dir", work_dir]):
        assert_one_line(
            run_command("run-benchmark", *arguments), "checkpoint.pt is damaged or truncated"
        )
    checkpoint.unlink()
    checkpoint.mkdir()
    assert_one_line(
        run_command("run-benchmark", "evaluate", work_dir),
        "pt is not a file: a folder, a device or a pipe",
    )


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_record_of_a_run_is_one_line_that_says_what_to_do(
    kind: str, trained: tuple[Path, str, str], tmp_path: Path
) -> None:
    for name, read, advice in (
        ("run.json", read_request, "move it away, then give the command that began this run"),
        ("result.json", Result.read, "; evaluate again"),
        ("predictions.parquet", read_predictions, "; evaluate again"),
    ):
        folder = trained[0] if name == "run.json" else trained[0] / "rgb"
        shutil.copy(folder / name, tmp_path / name)
        damage_file(tmp_path / name, kind)
        with pytest.raises(KineticsError) as caught:
            read(tmp_path)
        (line,) = str(caught.value).splitlines()
        assert line.startswith(f"{tmp_path / name} ")
        assert advice in line


def read_predictions(folder: Path) -> Predictions:
    return Predictions.read(folder / "predictions.parquet", {})


def test_predictions_are_dumped_as_a_csv(trained: tuple[Path, str, str], tmp_path: Path) -> None:
    work_dir = Path(shutil.copytree(trained[0], tmp_path / "copy"))
    done = run_command("run-benchmark", "evaluate", work_dir, "--dump", "csv")
    assert done.returncode == 0, done.stderr
    assert "evaluated already" in done.stderr
    for stream in ("rgb", "flow", "joint"):
        table = pd.read_csv(work_dir / stream / "predictions.csv")
        assert list(table.columns) == ["key", "label", "prediction", *LABELS]
        assert table["label"].tolist() == ["left", "right"]
        shares = read_predictions(work_dir / stream).softmax()
        np.testing.assert_allclose(table[[*LABELS]], shares, rtol=1e-8)
    fused = tmp_path / "fused"
    words = (work_dir / "rgb", work_dir / "flow", "--out", fused)
    assert run_command("run-benchmark", "fuse", *words).returncode == 0
    joint = work_dir / "joint" / "predictions.parquet"
    assert (fused / "predictions.parquet").read_bytes() == joint.read_bytes()


def test_evaluating_again_writes_a_damaged_result_again(
    trained: tuple[Path, str, str], tmp_path: Path
) -> None:
    work_dir = Path(shutil.copytree(trained[0], tmp_path / "copy"))
    logits = Predictions.read(work_dir / "rgb" / "predictions.parquet", {}).logits
    damage_file(work_dir / "rgb" / "result.json", "zeros")
    damage_file(work_dir / "flow" / "predictions.parquet", "cut off")
    done = run_command("run-benchmark", "report", work_dir, "--out", tmp_path / "report.html")
    assert_one_line(done, "rgb/result.json is not JSON", "evaluate again")
    done = run_command("run-benchmark", "evaluate", work_dir)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:4] == trained[1].splitlines()[:4]
    again = Predictions.read(work_dir / "rgb" / "predictions.parquet", {}).logits
    np.testing.assert_allclose(again, logits, atol=1e-5)
    # Another evaluation that is damaged does not keep the table back.
    shutil.copytree(work_dir / "rgb", work_dir / "evaluate-other" / "rgb")
    damage_file(work_dir / "evaluate-other" / "rgb" / "result.json", "zeros")
    done = run_command("run-benchmark", "evaluate", work_dir)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:4] == trained[1].splitlines()[:4]
    assert "no page was written" in done.stderr


def test_archs_is_a_table_of_what_each_network_costs() -> None:
    done = run_command("run-benchmark", "archs")
    assert done.returncode == 0, done.stderr
    titles, *lines = (re.split(r"\s{2,}", line) for line in done.stdout.splitlines())
    rows = {tuple(line[:2]): dict(zip(titles, line, strict=True)) for line in lines}
    assert list(rows) == [(name, stream) for name in ARCHS for stream in ARCHS[name].streams]
    assert rows["i3d", "joint"] == {
        "arch": "i3d",
        "stream": "joint",
        "parameters": "25.36 M",
        "paper": "25 M",
        "pixels": "224x224",
        "train input": "64 rgb + 64 flow",
        "train s": "2.56",
        "train GFLOPs": "427.0",
        "test input": "250 rgb + 250 flow",
        "test s": "10",
        "test GFLOPs": "1670.9",
        "smallest input": "9 rgb + 9 flow, 32x32",
    }
    assert rows["convnet-lstm", "rgb"]["train input"] == "25 rgb (stride 5)"
    assert rows["two-stream", "flow"]["paper"] == "-"


@pytest.mark.full
def test_archs_are_told_as_json_too() -> None:
    told = json.loads(run_command("run-benchmark", "archs", "--json").stdout)
    by_name = {(row["arch"], row["stream"]): row for row in told}
    fused = by_name["3d-fused", "joint"]
    assert fused["parameters"] == 39_755_824
    assert fused["paper_parameters"] == 39_000_000
    assert fused["test"]["inputs"] == {
        "rgb": {"num": 25, "stride": 10},
        "flow": {"num": 250, "stride": 1},
    }
    assert fused["smallest"] == {"rgb": [5, 32], "flow": [50, 32]}


@pytest.mark.parametrize(
    ("arch", "stream", "features", "step_s"),
    [
        ("convnet-lstm", "rgb", 512, 0.12),
        pytest.param("two-stream", "joint", 2048, 0.4, marks=pytest.mark.full),
        pytest.param("c3d", "rgb", 4096, 0.64, marks=pytest.mark.full),
        pytest.param("3d-fused", "joint", 512, 2.0, marks=pytest.mark.full),
        pytest.param("two-stream", "flow", 1024, 0.4, marks=pytest.mark.full),
    ],
)
def test_every_network_is_trained_evaluated_and_used(
    arch: str,
    stream: str,
    features: int,
    step_s: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, with a recipe of 32 pixels beside the real ones."""
    monkeypatch.setitem(RECIPES, "tiny", {arch: {stream: tiny_recipe(arch, stream)}})
    work_dir = tmp_path / "work"

    def call(*words: object) -> list[str]:
        code = cli.run([str(word) for word in words])
        output = capsys.readouterr()
        assert code == 0, output.err
        return output.out.splitlines()

    asked = ("--arch", arch, "--recipe", "tiny", "--data", tiny_shards(), *splits(tmp_path))
    asked = (*asked, *(() if stream == ARCHS[arch].streams[0] else ("--stream", stream)))
    told = call(*asked, "--work-dir", work_dir)
    assert [line.split()[0] for line in told[1:-1]] == [stream]
    assert told[1].endswith("2 / 2")
    assert "<!doctype html>" in (work_dir / "report.html").read_text()
    assert {path.name for path in work_dir.iterdir() if path.is_dir()} == {stream}
    assert call("evaluate", work_dir) == told

    result = json.loads((work_dir / stream / "result.json").read_text())
    seen = [
        [CHANNELS[each], tiny_recipe(arch, stream).sampling[each].num, 32, 32]
        for each in ARCHS[arch].clips_of(stream)
    ]
    if arch == "convnet-lstm":
        seen[0][1] = 5  # every third of 14
    assert result["cost"]["flops_shape"] == seen
    assert (result["cost"]["parameters"], result["cost"]["flops"]) == count(
        arch, stream, len(LABELS), [tuple(shape) for shape in seen]
    )
    assert result["recipes"].keys() == {
        *("training", "rgb"),
        *(["flow-opencv-tvl1"] if "flow" in ARCHS[arch].clips_of(stream) else []),
    }

    video = make_long_video(tmp_path)
    (line,) = call("predict", video, "--work-dir", work_dir, "--json")
    classes = json.loads(line)["classes"]
    assert sum(each["probability"] for each in classes) == pytest.approx(1)
    out = tmp_path / "features"
    (path,) = call("features", video, "--work-dir", work_dir, "--out", out)
    rows, record = np.load(path), json.loads(Path(path).with_suffix(".json").read_text())
    assert rows.shape == (len(record["start_s"]), features)
    assert np.isfinite(rows).all()
    assert record["start_s"][:2] == [0, step_s]
    assert record["end_s"][0] == step_s


def make_long_video(folder: Path) -> Path:
    """Four seconds of a drifting texture, 60x44, at 25 frames a second."""
    random = np.random.default_rng(1)
    texture = random.integers(0, 256, (11, 15, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    pictures = (np.roll(texture, 2 * t, axis=1) for t in range(101))
    video = folder / "long.mp4"
    encode.write_video(video, pictures, fps=25, binary=encode.find_ffmpeg())
    return video


def test_features_of_bad_videos_are_one_line_each(
    trained: tuple[Path, str, str], tmp_path: Path
) -> None:
    good = tiny_clips() / "left" / "dan_left.mp4"
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    words = ("--work-dir", trained[0], "--stream", "rgb", "--out", tmp_path / "out")
    left = left_by_a_killed_process(tmp_path / "out" / "dan_left.npy")
    done = run_command("run-benchmark", "features", good, text, tmp_path / "gone.mp4", *words)
    assert (done.returncode, done.stdout) == (3, f"{tmp_path / 'out' / 'dan_left.npy'}\n")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for path, line in zip((text, tmp_path / "gone.mp4"), errors, strict=True):
        assert str(path) in line
    assert "error" in json.loads((tmp_path / "out" / "text.json").read_text())
    assert not left.exists()
    short = run_command(
        *("run-benchmark", "features", good, "--duration", "0.2", *words, "--force")
    )
    assert_one_line(short, "dan_left.mp4: has 5 frames at 25 fps", "I3D needs 9")


def test_help_of_every_verb_is_light() -> None:
    for verb in (
        [],
        ["evaluate"],
        ["compare"],
        ["fuse"],
        ["attrition"],
        ["report"],
        ["table"],
        ["archs"],
        ["predict"],
        ["features"],
        ["verify-weights"],
    ):
        words = command("run-benchmark", *verb, "--help")
        tell = "lambda: sys.stderr.write(json.dumps(sorted(sys.modules)))"
        words[2] = f"import atexit, json, sys; atexit.register({tell}); {words[2]}"
        done = subprocess.run(words, capture_output=True, text=True, env=environment(), check=True)
        loaded = {name.partition(".")[0] for name in json.loads(done.stderr)}
        assert loaded.isdisjoint({"torch", "numpy", "scipy", "pandas", "cv2", "av", "matplotlib"})
        assert done.stdout.startswith("usage: run-benchmark")


@pytest.mark.full
def test_clips_that_were_trained_on_are_refused_or_mark_the_result(
    trained: tuple[Path, str, str], tmp_path: Path
) -> None:
    ignored = shutil.ignore_patterns("evaluate-*")  # of another test
    work_dir = Path(shutil.copytree(trained[0], tmp_path / "copy", ignore=ignored))
    mixed = key_file(tmp_path, "mixed.txt", "dan_*", "cyd_*", "ann_left")
    asked: tuple[object, ...] = ("evaluate", work_dir, "--test-split", mixed, "--stream", "rgb")
    refused = run_command("run-benchmark", *asked)
    assert_one_line(refused, "was trained on 3 of the 5 clips", "ann_left", "--allow-overlap")
    assert list(work_dir.glob("evaluate-*")) == []
    allowed = run_command("run-benchmark", *asked, "--allow-overlap")
    assert allowed.returncode == 0, allowed.stderr
    told = re.search(r"5 / 5, 3 TRAINED ON \((.+) % without\)$", allowed.stdout.splitlines()[1])
    assert told is not None
    (folder,) = work_dir.glob("evaluate-*")
    assert folder.name == "evaluate-mixed"
    data = json.loads((folder / "rgb" / "result.json").read_text())["data"]
    assert data["num_overlap"] == 3
    assert data["overlaps"][0]["without"]["num_scored"] == 2
    assert told[1] == f"{100 * data['overlaps'][0]['without']['top1']:.1f}"
    assert "trained on 3 of these clips" in (folder / "report.html").read_text()
    assert re.search(r"5 / 5\b.*?\b3 TRAINED ON", (folder / "report.html").read_text(), re.DOTALL)
    # What is there is marked, and still refused without the option.
    assert run_command("run-benchmark", *asked, "--allow-overlap").stdout == allowed.stdout
    assert_one_line(run_command("run-benchmark", *asked), "was trained on 3 of the 5 clips")


@pytest.mark.full
def test_a_checkpoint_as_init_hands_on_the_clips_that_it_was_trained_on(
    trained: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = trained[0] / "rgb" / "checkpoint.pt"
    train, test = (key_file(tmp_path, f"{name}.txt", f"{name}_*") for name in ("dan", "cyd"))
    words = [*SHORT, "--stream", "rgb", "--epochs", "1", "--data", str(tiny_shards())]
    words += ["--init", str(checkpoint), "--train-split", str(train)]
    refused = run_command("run-benchmark", *words, "--test-split", test, cwd=tmp_path)
    assert_one_line(
        refused, f"{checkpoint} was trained on 2 of the 2 clips of --test-split cyd.txt"
    )

    # Trained further on another clip, it has seen these too.
    work_dir = tmp_path / "further"
    done = run_command(
        "run-benchmark",
        *(*words, "--test-split", key_file(tmp_path, "x.txt", "dan_left")),
        *("--train-split", key_file(tmp_path, "y.txt", "dan_right"), "--batch-size", "1"),
        *("--work-dir", work_dir),
    )
    assert done.returncode == 0, done.stderr
    again = run_command("run-benchmark", "evaluate", work_dir, "--test-split", test)
    assert_one_line(again, "was trained on 2 of the 2 clips of --test-split cyd.txt")

    # As given weights, with the classes that these have.
    monkeypatch.setattr("kinetics_bench.inference.networks.known_labels", lambda _: LABELS)
    given = ["evaluate", "--init", str(checkpoint), "--stream", "rgb", "--protocol", "whole"]
    given += ["--data", str(tiny_shards()), "--work-dir", str(tmp_path / "given")]
    with pytest.raises(KineticsError, match=r"checkpoint.pt was trained on 2 of the 2 clips"):
        cli.run([*given, "--test-split", str(test)])
    assert not (tmp_path / "given" / "run.json").exists()

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from kinetics_tools.core.errors import KineticsError, OutError, ShardError, UnknownNameError
from kinetics_tools.core.files import hold_lock
from kinetics_tools.extract.export import MADE_FROM, Exported, Layout, open_export
from kinetics_tools.shards.reader import ShardFolder
from shard_maker import HEIGHT, LABELS, WIDTH, Maker, codes, folder, maker, pictures
from support import command, environment, run_command, tree

__all__ = ["folder", "maker"]  # fixtures

TVL1 = Layout(flow="tvl1")


def run(shards: Path, out: Path, layout: Layout = TVL1, *splits: str) -> Exported:
    """Export in this process."""
    with open_export(ShardFolder(shards), out, layout, splits=splits) as export:
        assert len(list(export.clips)) == len(export.todo)
        return export.finish()


def read(path: Path) -> npt.NDArray[np.int64]:
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    return picture.astype(np.int64)


def test_samples_become_folders_of_jpegs(folder: Path, tmp_path: Path) -> None:
    done = run(folder, tmp_path / "out")

    assert (done.num_clips, done.num_made, done.num_crashed) == (4, 4, 0)
    clip = tmp_path / "out" / "train" / LABELS[0] / "bb"
    assert sorted(path.name for path in clip.iterdir()) == [
        MADE_FROM,
        *(f"flow_x_0000{n}.jpg" for n in (1, 2, 3, 4)),
        *(f"flow_y_0000{n}.jpg" for n in (1, 2, 3, 4)),
        *(f"img_0000{n}.jpg" for n in (1, 2, 3, 4, 5)),
    ]
    for number, field in enumerate(codes(5), start=1):
        for axis, name in enumerate("xy"):
            found = read(clip / f"flow_{name}_{number:05d}.jpg")
            assert found.shape == (HEIGHT, WIDTH)  # grey
            assert abs(found - field[..., axis]).mean() < 3  # noise, the worst for JPEG
    for number, picture in enumerate(pictures("bb", 5), start=1):
        found = read(clip / f"img_{number:05d}.jpg")
        assert found.shape == (HEIGHT, WIDTH, 3)
        assert abs(found - picture).max() < 8


def test_lists_count_frames_and_fields(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    done = run(folder, out)

    assert sorted(path.name for path in done.lists) == [
        f"{split}_list_rawframes{kind}.txt" for split in ("train", "val") for kind in ("", "_flow")
    ]
    frames = (out / "train_list_rawframes.txt").read_text()
    assert frames == "abseiling/bb 5 0\nabseiling/-a 4 0\nyoga/c 3 1\n"
    fields = (out / "train_list_rawframes_flow.txt").read_text()
    assert fields == "abseiling/bb 4 0\nabseiling/-a 3 0\nyoga/c 2 1\n"
    for line in frames.splitlines():
        name, count, _ = line.split()
        assert len(list((out / "train" / name).glob("img_*.jpg"))) == int(count)


def test_flow_alone_from_index_zero(folder: Path, tmp_path: Path) -> None:
    layout = Layout(flow="tvl1", start_index=0, images=False)

    done = run(folder, tmp_path / "out", layout, "val")

    assert [path.name for path in done.lists] == ["val_list_rawframes_flow.txt"]
    (clip,) = (tmp_path / "out").glob("*/*/*")
    assert sorted(path.name for path in clip.glob("*.jpg")) == [
        "flow_x_00000.jpg",
        "flow_y_00000.jpg",
    ]


def test_running_again_makes_only_what_is_missing_or_old(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(folder, out)
    before = tree(out)
    shutil.rmtree(out / "train" / "abseiling" / "bb")

    assert run(folder, out).num_made == 1
    assert tree(out) == before
    assert run(folder, out).num_made == 0

    small = replace(TVL1, quality=30)
    assert run(folder, out, small).num_made == 4
    assert (out / "train" / "yoga" / "c" / "img_00001.jpg").stat().st_size > 0
    assert tree(out) != before


TORN = """
import os, pathlib, shutil, signal, sys
from kinetics_tools.extract.export import MADE_FROM, Layout, open_export
from kinetics_tools.shards.reader import ShardFolder
remove = shutil.rmtree
def torn(folder, **options):
    told = list(pathlib.Path(folder).rglob(MADE_FROM))
    if told:  # the worst order: what says whose folder it is goes first
        told[0].unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    remove(folder, **options)
shutil.rmtree = torn
shards, out = ShardFolder(sys.argv[1]), pathlib.Path(sys.argv[2])
with open_export(shards, out, Layout(flow="tvl1", quality=30)) as export:
    list(export.clips)
"""


def test_a_kill_while_an_old_folder_is_deleted_does_no_harm(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    small = replace(TVL1, quality=30)
    run(folder, out)

    done = subprocess.run([sys.executable, "-c", TORN, folder, out], env=environment(), check=False)

    assert done.returncode == -signal.SIGKILL
    assert run(folder, out, small).num_made == 3
    run(folder, tmp_path / "fresh", small)
    assert tree(out) == tree(tmp_path / "fresh")


def test_labels_that_would_share_a_folder_are_not_exported(folder: Path, tmp_path: Path) -> None:
    path = folder / "dataset.json"
    labels = ["pull ups", "pull_ups"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": labels}))
    with pytest.raises(KineticsError, match="'pull ups' and with 'pull_ups' would share a folder"):
        run(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_somebody_else_is_left_alone(folder: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "out" / "val" / "yoga" / "dd_"
    theirs.mkdir(parents=True)
    (theirs / "notes.txt").write_text("mine")

    with pytest.raises(OutError, match="was not made by an export; move it away"):
        run(folder, tmp_path / "out")

    assert [path.name for path in theirs.iterdir()] == ["notes.txt"]


def relabel(shards: Path, labels: dict[str, str]) -> None:
    """Give clips other labels, as a second extraction with a corrected list does."""
    known = json.loads((shards / "dataset.json").read_text())["labels"]
    for path in shards.glob("*/index.parquet"):
        index = pd.read_parquet(path)
        for key, label in labels.items():
            index.loc[index["key"] == key, ["label", "label_id"]] = [label, known.index(label)]
        index.to_parquet(path, index=False)


def listed(out: Path) -> list[str]:
    """What a reader that walks folders finds: split, label and key of each clip."""
    return sorted(str(path.relative_to(out)) for path in out.glob("[!.]*/*/*"))


def test_clips_with_another_label_now_are_removed_and_nothing_else(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(folder, out)
    mine = [
        out / "notes.txt",
        out / "train" / "abseiling" / "notes.txt",
        out / "train" / "abseiling" / "bb" / "features.npy",
        out / "train" / "yoga" / "by_hand" / "img_00001.jpg",
        out / "test" / "yoga" / "x" / "img_00001.jpg",
        out / "test_list_rawframes.txt",
    ]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    relabel(folder, {"-a": "yoga", "bb": "yoga", "dd_": "abseiling"})

    done = run(folder, out)

    assert (done.num_clips, done.num_made, done.num_removed) == (4, 3, 3)
    assert listed(out) == [
        "test/yoga/x",
        "train/abseiling/bb",  # with my features
        "train/abseiling/notes.txt",
        "train/yoga/-a",
        "train/yoga/bb",
        "train/yoga/by_hand",
        "train/yoga/c",
        "val/abseiling/dd_",  # and no folder of a class without clips
    ]
    assert [path.read_text() for path in mine] == ["mine"] * len(mine)
    for path in mine:
        path.unlink()
    for parent in sorted({path.parent for path in mine[2:5]}):
        parent.rmdir()
    run(folder, tmp_path / "fresh")
    assert tree(out) == tree(tmp_path / "fresh")
    assert run(folder, out).num_removed == 0


def test_only_the_splits_that_are_exported_are_tidied(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(folder, out)
    relabel(folder, {"c": "abseiling", "dd_": "abseiling"})

    assert run(folder, out, TVL1, "val").num_removed == 1

    assert listed(out)[-2:] == ["train/yoga/c", "val/abseiling/dd_"]
    assert (out / "train_list_rawframes.txt").read_text().endswith("yoga/c 3 1\n")


def test_a_split_of_other_shards_is_left_alone_and_named(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(folder, out)
    (out / "val").rename(out / "older")

    done = run_command("extract-flow", "export", folder, out)

    assert done.returncode == 0
    assert f"{out}/older is a split of other shards; it is left alone" in done.stderr
    assert "older/yoga/dd_" in listed(out)


def test_files_beside_pictures_stay_where_these_are_made_again(
    folder: Path, tmp_path: Path
) -> None:
    out, small = tmp_path / "out", replace(TVL1, quality=30, images=False)
    run(folder, out)
    mine = out / "train" / "yoga" / "c" / "features.npy"
    mine.write_text("mine")

    done = run(folder, out, small)

    assert (done.num_made, done.num_removed, mine.read_text()) == (4, 0, "mine")
    mine.unlink()
    run(folder, tmp_path / "fresh", small)
    assert tree(out) == tree(tmp_path / "fresh")  # and no list of frames


@pytest.mark.full
@pytest.mark.parametrize("step", ["unlink", "rename", "replace", "write_bytes"])
def test_a_kill_at_any_step_leaves_no_clip_under_its_old_label(
    step: str, folder: Path, tmp_path: Path
) -> None:
    out, small = tmp_path / "out", replace(TVL1, quality=30)
    relabel_them = {"-a": "yoga", "bb": "yoga", "dd_": "abseiling"}
    run(folder, out)
    mine = [out / "train" / name / "mine.txt" for name in ("abseiling/bb", "yoga/c")]
    for path in mine:
        path.write_text("mine")
    relabel(folder, relabel_them)
    for number in range(0, 40, 3 if step == "unlink" else 1):
        words = [sys.executable, "-c", KILLED, step, number, folder, out]
        done = subprocess.run(list(map(str, words)), env=environment(), check=False)
        assert [path.read_text() for path in mine] == ["mine", "mine"]
        for path in out.glob("[!.]*_list_*.txt"):  # a list that is there is true
            for line in path.read_text().splitlines():
                split, (name, *_) = path.name.partition("_")[0], line.split()
                assert (out / split / name / MADE_FROM).read_text()
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert number > 0
    assert run(folder, out, small).num_clips == 4
    for path in mine:
        path.unlink()
    (out / "train" / "abseiling" / "bb").rmdir()
    (out / "train" / "abseiling").rmdir()
    run(folder, tmp_path / "fresh", small)
    assert tree(out) == tree(tmp_path / "fresh")
    assert listed(out) == listed(tmp_path / "fresh")


KILLED = """
import os, pathlib, signal, sys
from kinetics_tools.extract.export import Layout, open_export
from kinetics_tools.shards.reader import ShardFolder
step, number = sys.argv[1], int(sys.argv[2])
act = getattr(pathlib.Path, step)
def counted(path, *arguments, **options):
    global number
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    number -= 1
    return act(path, *arguments, **options)
setattr(pathlib.Path, step, counted)
shards, out = ShardFolder(sys.argv[3]), pathlib.Path(sys.argv[4])
with open_export(shards, out, Layout(flow="tvl1", quality=30)) as export:
    list(export.clips)
    export.finish()
"""


def test_two_exports_do_not_share_a_folder(folder: Path, tmp_path: Path) -> None:
    with (
        hold_lock(tmp_path / "out"),
        pytest.raises(OutError, match="is in use by process"),
    ):
        run(folder, tmp_path / "out")


def test_a_damaged_shard_stops_the_export_and_names_itself(folder: Path, tmp_path: Path) -> None:
    tar = folder / "val" / "flow-tvl1-000000.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)

    with pytest.raises(ShardError, match=r"flow-tvl1-000000.tar: dd_.flow.mkv is damaged"):
        run(folder, tmp_path / "out", TVL1, "val")

    assert not list((tmp_path / "out").rglob("*.jpg"))
    assert not list((tmp_path / "out").rglob("dd_"))


def test_an_export_among_the_shards_is_refused(folder: Path) -> None:
    for inside in (folder, folder / "val"):
        done = run_command("extract-flow", "export", folder, inside)
        assert done.returncode == 2
        assert (
            done.stderr == f"error: {inside} lies in {folder}, among its shards; choose another\n"
        )


def test_names_that_are_not_there_are_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown split 'vall'. Did you mean 'val'"):
        run(folder, tmp_path / "out", TVL1, "vall")
    with pytest.raises(UnknownNameError, match=r"unknown flow 'tvl'. Did you mean 'tvl1'"):
        ShardFolder(folder).flow_named("tvl")
    assert ShardFolder(folder).flow_named() == "tvl1"


def test_several_flows_need_a_name(folder: Path) -> None:
    path = folder / "dataset.json"
    dataset = json.loads(path.read_text())
    for split in dataset["splits"].values():
        split["present"]["flow-other"] = 1
    dataset["recipes"]["flow-other"] = dataset["recipes"]["flow-tvl1"]
    path.write_text(json.dumps(dataset))

    with pytest.raises(ShardError, match="holds the flows: other, tvl1; say which with --flow"):
        ShardFolder(folder).flow_named()


def test_the_command_exports_with_several_processes(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    done = run_command("extract-flow", "export", folder, out, "--jobs", 2)

    assert done.returncode == 0, done.stderr
    assert f"4 clips in {out}, 4 made now" in done.stdout
    assert f"list: {out}/train_list_rawframes.txt" in done.stdout
    run(folder, tmp_path / "here")
    assert tree(out) == tree(tmp_path / "here")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--split", "tain"], "unknown split 'tain'. Did you mean 'train'?"),
        (["--flow", "tvl"], "unknown flow 'tvl'. Did you mean 'tvl1'?"),
        (["--start-index", "2"], "argument --start-index: invalid choice: 2"),
        (["--quality", "101"], "'101' is above 100"),
    ],
)
def test_a_wrong_option_ends_in_one_line(
    folder: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    done = run_command("extract-flow", "export", folder, tmp_path / "out", *options)

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_what_is_no_folder_of_shards_ends_in_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments, words in (
        ((tmp_path / "none", tmp_path / "out"), "holds no finished shards"),
        ((folder, tmp_path / "file"), "is not a folder"),
    ):
        done = run_command("extract-flow", "export", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert words in done.stderr


@pytest.mark.full
def test_a_killed_export_leaves_no_half_folder(maker: Maker, tmp_path: Path) -> None:
    samples = {f"clip{n}": 10 for n in range(24)}
    maker.flow(maker.rgb("all", 0, samples))
    maker.index()
    run(maker.folder, tmp_path / "whole")
    out = tmp_path / "out"
    words = command("extract-flow", "export", maker.folder, out, "--jobs", 1)
    seen = set()
    for wait in range(0, 24, 3):
        with subprocess.Popen(words, env=environment(), start_new_session=True) as process:
            while process.poll() is None and len(list(out.glob("all/*/*"))) <= wait:
                time.sleep(0.002)
            os.killpg(process.pid, signal.SIGKILL)
        whole = list(out.glob("all/*/*"))
        seen.add(len(whole))
        assert all(len(list(clip.iterdir())) == 10 + 2 * 9 + 1 for clip in whole)

    assert len(seen) > 3
    assert run_command("extract-flow", "export", maker.folder, out).returncode == 0
    assert tree(out) == tree(tmp_path / "whole")
    assert not list(out.glob(".scratch/*"))


@pytest.mark.full
def test_an_export_killed_while_it_replaces_another_goes_on(maker: Maker, tmp_path: Path) -> None:
    maker.flow(maker.rgb("all", 0, {f"clip{n}": 10 for n in range(24)}))
    maker.index()
    small = replace(TVL1, quality=30)
    run(maker.folder, tmp_path / "whole", small)
    out = tmp_path / "out"
    run(maker.folder, out)
    new = {path.read_text() for path in (tmp_path / "whole").rglob(MADE_FROM)}
    words = command("extract-flow", "export", maker.folder, out, "--quality", 30, "--jobs", 1)

    def replaced() -> int:
        num = 0
        for path in out.glob(f"all/*/*/{MADE_FROM}"):
            with contextlib.suppress(FileNotFoundError):  # its folder is being replaced
                num += path.read_text() in new
        return num

    seen = set()
    for wait in range(0, 24, 3):
        with subprocess.Popen(words, env=environment(), start_new_session=True) as process:
            while process.poll() is None and replaced() <= wait:
                time.sleep(0.002)
            os.killpg(process.pid, signal.SIGKILL)
        whole = list(out.glob("all/*/*"))
        seen.add(replaced())
        assert len(whole) >= 23  # one may be on its way
        assert all(len(list(clip.iterdir())) == 10 + 2 * 9 + 1 for clip in whole)

    assert len(seen) > 3
    done = run_command("extract-flow", "export", maker.folder, out, "--quality", 30)
    assert done.returncode == 0, done.stderr
    assert tree(out) == tree(tmp_path / "whole")
    assert not list(out.glob(".scratch/*"))

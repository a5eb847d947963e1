import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from extractions import extract, killed, plan_for, run
from kinetics_tools.core import files
from kinetics_tools.core.errors import (
    KineticsError,
    ManifestError,
    OutError,
    Reason,
    ShardError,
    UnknownNameError,
)
from kinetics_tools.core.files import file_digest
from kinetics_tools.core.keys import file_keys
from kinetics_tools.core.units import Part
from kinetics_tools.dataset import ledger
from kinetics_tools.extract.clips import read_clips
from kinetics_tools.extract.plan import ExtractPlan, ShardUnit, pending, plan_shards
from kinetics_tools.extract.run import open_extraction
from kinetics_tools.flow import methods
from kinetics_tools.flow.codecs import CODECS
from kinetics_tools.flow.methods import FlowRecipe, make_method
from kinetics_tools.media import opencv
from kinetics_tools.shards import records, writer
from kinetics_tools.shards.reader import ShardFolder
from kinetics_tools.shards.records import FolderRecords
from support import command, environment, run_command, tree

MakeVideo = Callable[..., Path]
SIZES = {"clapping": ("64x48", "48x64"), "running": ("64x48", "50x50", "64x48")}


@pytest.fixture
def clips(tmp_path: Path, make_video: MakeVideo) -> Path:
    """A folder of two class folders with five videos of 4 to 8 frames."""
    root = tmp_path / "clips"
    for label, sizes in SIZES.items():
        (root / label).mkdir(parents=True)
        for number, size in enumerate(sizes):
            video = make_video(seconds=0.16 + 0.04 * number, fps="25", size=size)
            shutil.copy(video, root / label / f"{label}_{number}.mp4")
    return root


def written(out: Path) -> dict[str, int]:
    """When each shard was written, in nanoseconds."""
    return {str(path): path.stat().st_mtime_ns for path in sorted(out.glob("*/*.tar"))}


def test_a_folder_of_class_folders_becomes_shards(clips: Path, tmp_path: Path) -> None:
    lossless = replace(plan_for(clips, tmp_path).flow, codec="ffv1", codec_parameters={})

    summary = run(clips, tmp_path / "out", flow=lossless)

    assert (summary.num_expected, summary.num_samples, summary.num_pairs) == (5, 5, 19)
    assert (summary.gaps, summary.is_indexed) == ({}, True)
    names = sorted(path.name for path in (tmp_path / "out" / "all").iterdir())
    assert names == [
        *(f"flow-tvl1-00000{n}.{end}" for n in range(3) for end in ("json", "tar")),
        "index.parquet",
        *(f"rgb-00000{n}.{end}" for n in range(3) for end in ("json", "tar")),
    ]
    data = ShardFolder(tmp_path / "out")
    assert data.labels == ("clapping", "running")
    samples = data.samples("all")
    assert {s.key for s in samples} == {
        f"{label}_{n}" for label, sizes in SIZES.items() for n in range(len(sizes))
    }
    for sample in samples:
        assert sample.label == sample.key.partition("_")[0]
        rgb, stored = sample.rgb(), sample.flow()
        assert stored.shape == (len(rgb) - 1, *rgb.shape[1:3], 2)
        computed = methods.compute(opencv.gray(rgb)).clip(-20, 20)
        # The flow is that of exactly these frames: one code step below at most.
        assert (stored <= computed + 1e-4).all()
        assert (stored >= computed - 40 / 255 - 1e-4).all()


def test_samples_get_the_short_side_asked_for(clips: Path, tmp_path: Path) -> None:
    recipe = replace(plan_for(clips, tmp_path).rgb, short_side=80)

    run(clips, tmp_path / "out", rgb=recipe)

    for sample in ShardFolder(tmp_path / "out").samples("all"):
        height, width = sample.rgb([0]).shape[1:3]
        assert min(height, width) == 80
        assert sample.flow([0]).shape == (1, height, width, 2)


def test_only_a_clip_that_conforms_is_kept_byte_for_byte(
    clips: Path, tmp_path: Path, make_video: MakeVideo
) -> None:
    shutil.copy(make_video(seconds=0.2, fps="30", size="64x48"), clips / "running" / "faster.mp4")

    run(clips, tmp_path / "out")

    sidecars = (json.loads(p.read_text()) for p in (tmp_path / "out" / "all").glob("rgb-*.json"))
    members = {m["key"]: m for sidecar in sidecars for m in sidecar["members"]}
    kept = file_digest(clips / "running" / "running_0.mp4")
    assert members["running_0"]["sha256"] == members["running_0"]["made_from"] == kept
    assert members["faster"]["sha256"] != members["faster"]["made_from"]
    assert members["faster"]["frames"] == 5


def test_a_second_run_makes_nothing_and_force_makes_the_same_again(
    clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(clips, out)
    before, times = tree(out), written(out)

    assert run(clips, out).num_made == 0
    assert written(out) == times
    assert run(clips, out, force=True).num_made == 19

    assert tree(out) == before
    assert all(now > then for now, then in zip(written(out).values(), times.values(), strict=True))


def test_a_changed_clip_makes_only_its_shard_again(
    clips: Path, tmp_path: Path, make_video: MakeVideo
) -> None:
    out = tmp_path / "out"
    run(clips, out)
    times = written(out)
    shutil.copy(
        make_video(seconds=0.4, fps="25", size="64x48"), clips / "running" / "running_1.mp4"
    )

    summary = run(clips, out)

    changed = {name[-10:] for name, when in written(out).items() if when != times[name]}
    assert len(changed) == 1
    assert summary.num_pairs == 19 - 4 + 9
    fresh = run(clips, tmp_path / "fresh")
    assert fresh.num_pairs == summary.num_pairs
    assert tree(out) == tree(tmp_path / "fresh")


def test_a_shard_that_was_cut_off_is_made_again(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(clips, out)
    before = tree(out)
    shard = out / "all" / "flow-tvl1-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    (out / "all" / "rgb-000002.json").unlink()
    dead = f".part-{socket.gethostname()}-99999999"
    for name in (f"all/{dead}-rgb-000002.tar", f"all/{dead}-index.parquet", f"{dead}-recipe.json"):
        (out / name).write_text("left by a killed writer")

    run(clips, out)

    assert tree(out) == before


def test_a_second_method_lies_beside_and_leaves_rgb_alone(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(clips, out)
    before = tree(out, without=("index", "dataset", "recipe"))
    parameters = make_method("opencv-tvl1").as_json()
    recipe = FlowRecipe(method="opencv-tvl1", parameters=parameters, bound=10.0)

    # RGB is decoded from the shards: the clips themselves are not read again.
    run(clips, out, flow=recipe, name="cv")

    assert before.items() <= tree(out).items()
    data = ShardFolder(out)
    assert data.flows == ("cv", "tvl1")
    assert (data.flow_bound("cv"), data.flow_bound("tvl1")) == (10, 20)
    for ours, theirs in zip(data.samples("all"), data.samples("all", flow="cv"), strict=True):
        assert ours.key == theirs.key
        assert np.median(abs(ours.flow() - theirs.flow())) < 0.2


def test_parts_give_the_same_tree_as_one_run(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "one")

    first = run(clips, tmp_path / "two", part=Part(0, 2))
    assert not first.is_indexed
    assert not (tmp_path / "two" / "dataset.json").exists()
    second = run(clips, tmp_path / "two", part=Part(1, 2))

    assert second.is_indexed
    assert first.num_samples + second.num_samples == 5
    assert tree(tmp_path / "two") == tree(tmp_path / "one")


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each JSON file of shards is read from now on, by its name."""
    reads: Counter[str] = Counter()

    def read_json(path: Path, advice: str) -> object:
        value = files.read_json(path, advice)  # raises where there is none
        reads[path.name] += 1
        return value

    monkeypatch.setattr(records, "read_json", read_json)
    return reads


STREAMS = ("rgb", "flow-tvl1")


def test_a_run_with_nothing_to_do_reads_each_sidecar_once(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(clips, out)
    before = tree(out)
    reads = counted_reads(monkeypatch)

    assert run(clips, out).is_indexed

    sidecars = [f"{stream}-00000{number}.json" for stream in STREAMS for number in range(3)]
    assert reads == dict.fromkeys([*sidecars, "recipe.json", "dataset.json"], 1)
    assert tree(out) == before


def test_only_sidecars_of_shards_that_were_made_are_read_again(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(clips, out)
    before = tree(out)
    for number in (1, 2):
        (out / "all" / f"flow-tvl1-00000{number}.tar").unlink()
    reads = counted_reads(monkeypatch)
    plans = [plan_for(clips, out, part=Part(number, 3)) for number in (1, 2)]

    # Another part makes its shard, and ends, while this one is at work.
    with open_extraction(read_clips(clips), plans[0]) as extraction:
        assert not extract(read_clips(clips), plans[1]).is_indexed
        made_by_another = reads.copy()
        assert len(list(extraction.shards)) == 1
        made_here = reads.copy()
        assert extraction.finish().is_indexed

    assert tree(out) == before
    at_the_end = reads - made_here
    assert {name for name in at_the_end if name.startswith("rgb")} <= {
        f"rgb-00000{number}.json" for number in (1, 2)
    }
    assert at_the_end["flow-tvl1-000001.json"] == at_the_end["flow-tvl1-000002.json"] == 1
    assert at_the_end["flow-tvl1-000000.json"] == 0
    assert made_by_another["recipe.json"] == reads["recipe.json"] == 2


def test_a_shard_that_another_part_replaced_is_indexed_as_it_is_now(
    clips: Path, tmp_path: Path, make_video: MakeVideo
) -> None:
    out = tmp_path / "out"
    run(clips, out)
    (out / "all" / "flow-tvl1-000001.tar").unlink()
    listed = read_clips(clips)
    changed = plan_shards(listed.clips, plan_for(clips, out))[2].clips[0].path

    with open_extraction(listed, plan_for(clips, out, part=Part(1, 3))) as extraction:
        shutil.copy(make_video(seconds=0.4, fps="25", size="64x48"), changed)
        run(clips, out, part=Part(2, 3))
        assert len(list(extraction.shards)) == 1
        assert not extraction.finish().is_indexed

    assert run(clips, out).num_made == 0
    run(clips, tmp_path / "fresh")
    assert tree(out) == tree(tmp_path / "fresh")


def test_a_part_with_nothing_to_do_indexes_what_another_part_made_meanwhile(
    clips: Path, tmp_path: Path, make_video: MakeVideo
) -> None:
    out = tmp_path / "out"
    run(clips, out)
    listed = read_clips(clips)
    changed = plan_shards(listed.clips, plan_for(clips, out))[1].clips[0].path

    with open_extraction(listed, plan_for(clips, out, part=Part(0, 2))) as extraction:
        assert extraction.todo == []
        shutil.copy(make_video(seconds=0.4, fps="25", size="64x48"), changed)
        assert run(clips, out, part=Part(1, 2)).is_indexed
        before = tree(out)
        assert list(extraction.shards) == []
        extraction.finish()

    assert tree(out) == before
    for sample in ShardFolder(out).samples("all"):
        assert len(sample.rgb()) == len(sample.flow()) + 1


def test_an_index_is_of_the_shards_that_are_there_when_it_is_locked(
    clips: Path, tmp_path: Path, make_video: MakeVideo
) -> None:
    out = tmp_path / "out"
    run(clips, out)
    earlier = FolderRecords(out)
    writer.write_index(earlier)  # it has read every sidecar
    shutil.copy(make_video(seconds=0.4, fps="25", size="64x48"), clips / "running/running_1.mp4")
    run(clips, out)
    before = tree(out)

    writer.write_index(earlier)

    assert tree(out) == before


def test_force_makes_a_shard_with_a_damaged_sidecar_again(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(clips, out)
    before = tree(out)
    for stream in ("rgb", "flow-tvl1"):
        (out / "all" / f"{stream}-000001.json").write_text('{"schema_version": 1}')
    with pytest.raises(ShardError, match="move it away and run extract-flow again"):
        run(clips, out)

    assert run(clips, out, force=True).num_made == 19

    assert tree(out) == before


def test_a_damaged_dataset_json_is_written_again(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(clips, out)
    before = tree(out)
    (out / "dataset.json").write_text('{"schema_version": 1}')

    run(clips, out)

    assert tree(out) == before
    (out / "dataset.json").write_text('{"schema_version": 2}')
    with pytest.raises(ShardError, match="schema version 2"):
        run(clips, out)


def test_one_bad_clip_is_a_gap_and_never_stops_a_run(
    clips: Path, tmp_path: Path, make_video: MakeVideo
) -> None:
    whole = (clips / "running" / "running_0.mp4").read_bytes()
    (clips / "running" / "running_0.mp4").write_bytes(whole[: len(whole) // 2])
    (clips / "running" / "empty.avi").touch()
    shutil.copy(make_video(seconds=0.04, fps="25"), clips / "clapping" / "one_frame.mp4")

    summary = run(clips, tmp_path / "out")

    assert summary.num_samples == 4
    assert summary.gaps == {"damaged": 2, "too-short": 1}
    assert summary.num_retryable == 0  # a damaged file stays as it is
    gaps = ShardFolder(tmp_path / "out").missing("all")
    assert gaps == {"running_0": "damaged", "empty": "damaged", "one_frame": "too-short"}


@pytest.mark.parametrize("target", ["/not mounted/away.mp4", "away.mp4"])  # and to itself
def test_a_link_to_nowhere_is_a_missing_clip(target: str, clips: Path, tmp_path: Path) -> None:
    (clips / "running" / "away.mp4").symlink_to(target)

    summary = run(clips, tmp_path / "out")

    assert (summary.num_expected, summary.gaps, summary.num_retryable) == (6, {"missing": 1}, 1)


def test_a_split_that_is_a_link_is_not_written_through(clips: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "all").symlink_to(elsewhere)
    done = run_command("extract-flow", clips, tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert "all is a link to a folder elsewhere" in done.stderr
    assert not list(elsewhere.iterdir())


CHANGING = {
    ".webm": ("-c:v libvpx-vp9 -deadline realtime -cpu-used 8", ".ivf", ""),
    ".mp4": ("-c:v libx264 -preset ultrafast -bf 0", ".ts", "-bsf:v dump_extra -tag:v avc3"),
}


def changing_video(folder: Path, suffix: str, make_video: MakeVideo, ffmpeg: Path) -> Path:
    """A video of three times 10 frames, of 64x48, 96x80 and 48x64 pixels."""
    encode, part_suffix, join = CHANGING[suffix]
    parts = [
        make_video(seconds=0.4, fps="25", size=size, options=encode, suffix=part_suffix)
        for size in ("64x48", "96x80", "48x64")
    ]
    (folder / "parts.txt").write_text("".join(f"file '{part}'\n" for part in parts))
    video = folder / f"changing{suffix}"
    words = f"-loglevel error -f concat -safe 0 -i {folder}/parts.txt -c copy {join} {video}"
    subprocess.run([ffmpeg, *words.split()], check=True)
    return video


@pytest.mark.parametrize("suffix", CHANGING)
def test_frames_of_changing_size_are_all_brought_to_the_first_ones(
    tmp_path: Path, make_video: MakeVideo, ffmpeg: Path, suffix: str
) -> None:
    (tmp_path / "clips" / "running").mkdir(parents=True)
    video = changing_video(tmp_path, suffix, make_video, ffmpeg)
    video.rename(tmp_path / "clips" / "running" / video.name)

    summary = run(tmp_path / "clips", tmp_path / "out")

    assert (summary.num_samples, summary.num_pairs, summary.gaps) == (1, 29, {})
    (sample,) = ShardFolder(tmp_path / "out").samples("all")
    frames = sample.rgb()
    assert frames.shape == (30, 48, 64, 3)
    assert sample.flow().shape == (29, 48, 64, 2)
    # No frame is lost or doubled where the size changes: there the picture does, and only there.
    change = abs(np.diff(frames.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert set(np.argsort(change)[-2:]) == {9, 19}


def test_dots_and_8k_frames_become_samples(tmp_path: Path, make_video: MakeVideo) -> None:
    dots, large = tmp_path / "dots", tmp_path / "large"
    for root, size, seconds in ((dots, "4x4", 0.2), (large, "7680x4320", 0.12)):
        (root / "running").mkdir(parents=True)
        video = make_video(seconds=seconds, fps="25", size=size)
        shutil.copy(video, root / "running" / f"{size}.mp4")
    recipe = replace(plan_for(large, tmp_path).rgb, short_side=256)

    run(dots, tmp_path / "a")
    run(large, tmp_path / "b", rgb=recipe)

    (dot,) = ShardFolder(tmp_path / "a").samples("all")
    assert dot.flow().shape == (4, 4, 4, 2)
    (wide,) = ShardFolder(tmp_path / "b").samples("all")
    assert wide.rgb().shape == (3, 256, 456, 3)
    assert wide.flow().shape == (2, 256, 456, 2)
    assert np.isfinite(wide.flow()).all()


@pytest.mark.parametrize("codec", CODECS)
def test_a_clip_that_is_too_large_for_a_codec_is_a_gap_with_every_codec(
    tmp_path: Path, make_video: MakeVideo, codec: str
) -> None:
    (tmp_path / "clips" / "running").mkdir(parents=True)
    for size in ("32x8400", "16x8192", "8192x16"):
        video = make_video(seconds=0.08, fps="25", size=size)
        shutil.copy(video, tmp_path / "clips" / "running" / f"{size}.mp4")
    parameters = make_method("tvl1").as_json()
    recipe = FlowRecipe(method="tvl1", parameters=parameters, codec=codec)

    summary = run(tmp_path / "clips", tmp_path / "out", flow=recipe)

    assert (summary.num_samples, summary.gaps, summary.num_retryable) == (2, {"damaged": 1}, 0)
    assert ShardFolder(tmp_path / "out").missing("all") == {"32x8400": "damaged"}
    details = [path.read_text() for path in (tmp_path / "out").glob("all/*.json")]
    assert any(
        "is 32x8400 pixels, too large to store its flow as h264, ffv1" in text for text in details
    )


@pytest.mark.parametrize("colour", ["black", "white"])
def test_a_clip_in_which_nothing_happens_has_flow_of_nothing(
    tmp_path: Path, ffmpeg: Path, colour: str
) -> None:
    (tmp_path / "clips" / "running").mkdir(parents=True)
    video = tmp_path / "clips" / "running" / "still.mp4"
    words = f"-loglevel error -f lavfi -i color={colour}:size=64x48:rate=25 -t 0.2 {video}"
    subprocess.run([ffmpeg, *words.split()], check=True)

    run(tmp_path / "clips", tmp_path / "out")

    (sample,) = ShardFolder(tmp_path / "out").samples("all")
    nothing = methods.dequantise(methods.quantise(np.zeros(1, np.float32)))
    assert (sample.flow() == nothing).all()


def downloaded(root: Path, clips: Sequence[Path], missing: dict[str, Reason]) -> None:
    """Lay out what kinetics-download leaves: clips named by their stem, and gaps."""
    rows = ["label,youtube_id,time_start,time_end,split"]
    lines = []
    for clip in clips:
        key = f"{clip.stem}_000000_000010"
        split = "val" if clip.stem.endswith("0") else "train"
        rows.append(f"{clip.parent.name},{clip.stem},0,10,{split}")
        target = root / "clips" / split / clip.parent.name / f"{key}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, target)
        size, digest = target.stat().st_size, file_digest(target)
        done = {"key": key, "status": "done", "bytes": size, "sha256": digest, "frames": 6}
        lines.append({**done, "source": "youtube"})
    for name, reason in missing.items():
        rows.append(f"running,{name},0,10,train")
        key = f"{name}_000000_000010"
        lines.append({"key": key, "status": "failed", "source": "youtube", "reason": reason})
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    (root / "labels.txt").write_text("clapping\nrunning\nsinging\n")
    records = [line | {"time": "2026-01-01T00:00:00.000+00:00"} for line in lines]
    text = "".join(json.dumps(record) + "\n" for record in records)
    ledger.ledger_path(root, Part()).write_text(text)


def test_downloaded_clips_keep_their_splits_labels_and_gaps(clips: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "downloaded", tmp_path / "out"
    missing = {"gone1": Reason.GONE, "-net": Reason.NETWORK}
    downloaded(root, sorted(clips.rglob("*.mp4")), missing)

    summary = run(root, out)

    assert summary.gaps == {"gone": 1, "missing": 1}
    assert summary.num_retryable == 1
    data = ShardFolder(out)
    assert data.labels == ("clapping", "running", "singing")
    assert data.splits == ("train", "val")
    assert [s.key for s in data.samples("val")] == sorted(
        (f"{label}_0_000000_000010" for label in SIZES), key=_hash_order
    )
    gaps = {"gone1_000000_000010": "gone", "-net_000000_000010": "missing"}
    assert data.missing("train") == gaps
    assert data.missing_labels("train") == dict.fromkeys(gaps, "running")
    assert data.missing_labels("val") == {}
    assert "gap_labels" not in json.loads((out / "dataset.json").read_text())["splits"]["val"]
    assert {s.label_id for s in data.samples("train")} == {0, 1}


def _hash_order(key: str) -> bytes:
    import hashlib

    return hashlib.sha256(f"0:{key}".encode()).digest()


def test_a_missing_clip_that_turns_up_moves_no_other(clips: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "downloaded", tmp_path / "out"
    downloaded(root, sorted(clips.rglob("*.mp4")), {"late": Reason.NETWORK})
    run(root, out)
    times = written(out)
    late = root / "clips" / "train" / "running" / "late_000000_000010.mp4"
    shutil.copy(next((clips / "running").iterdir()), late)

    summary = run(root, out)

    assert summary.gaps == {}
    changed = {name[-10:] for name, when in written(out).items() if when != times[name]}
    assert len(changed) == 1


def test_only_the_splits_asked_for_are_made(clips: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "downloaded", tmp_path / "out"
    downloaded(root, sorted(clips.rglob("*.mp4")), {})
    plan = plan_for(root, out)

    extract(read_clips(root, ["val"]), plan)
    assert ShardFolder(out).splits == ("val",)
    extract(read_clips(root, ["train"]), plan)

    assert ShardFolder(out).splits == ("train", "val")
    with pytest.raises(UnknownNameError, match=r"unknown split 'vall'\. Did you mean 'val'"):
        read_clips(root, ["vall"])


def test_shards_mix_classes_and_have_each_key_once(tmp_path: Path, clips: Path) -> None:
    (found,) = {read_clips(clips).clips[0]}
    many = [replace(found, key=f"{label}{n}", label=label) for n in range(50) for label in "ab"]
    plan = plan_for(clips, tmp_path, samples_per_shard=16)

    units = plan_shards(many, plan)

    assert [len(unit.clips) for unit in units] == [16] * 6 + [4]
    assert len({c.key for unit in units for c in unit.clips}) == 100
    assert all({c.label for c in unit.clips} == {"a", "b"} for unit in units[:6])
    assert units != plan_shards(many, replace(plan, seed=1))
    assert units == plan_shards(reversed(many), plan)


def test_unusable_clips_are_named_in_one_line(clips: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ManifestError, match=r"holds no clips; looked for manifest.csv .* class"):
        read_clips(empty)
    with pytest.raises(ManifestError, match="is not a folder"):
        read_clips(tmp_path / "absent")
    with pytest.raises(ManifestError, match="is both CLIPS and OUT"):
        read_clips(clips, out=clips)
    with pytest.raises(ManifestError, match="whose folders are classes or splits; choose another"):
        read_clips(clips, out=clips / "shards")
    with pytest.raises(ManifestError, match=r"2 videos such as clapping_0.mp4 are in no class"):
        read_clips(clips / "clapping")
    with pytest.raises(
        ManifestError, match=r"/clips holds folders and no video; if it is a split, rename it"
    ):
        read_clips(clips.parent)
    (clips / "notes").mkdir()
    with pytest.raises(
        ManifestError,
        match="notes is a class folder without a video; if it is no class, move it out of",
    ):
        read_clips(clips)


def split_folders(clips: Path, root: Path, **names: str) -> Path:
    """The same clips in split folders; `names` gives each folder's classes, "a,b"."""
    for folder, labels in names.items():
        for label in labels.split(","):
            shutil.copytree(clips / label, root / folder / label)
    return root


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train", "val"),
        ("videos_train", "videos_val"),
        ("Training", "validation"),
        ("train_256", "valid"),
    ],
)
def test_split_folders_of_class_folders_become_splits(
    train: str, val: str, clips: Path, tmp_path: Path
) -> None:
    names = {train: "clapping,running", val: "running"}
    root = split_folders(clips, tmp_path / "set", **names)
    (root / "annotations").mkdir()
    (root / "annotations" / "train_list_videos.txt").write_text("")
    (root / val / "clapping").mkdir()  # it lacks a class that train has
    (root / val / "running" / "running_1.mp4").rename(root / val / "running" / "new.mp4")

    (root / val / "running" / "running_2.mp4").rename(root / val / "running" / "#3.mp4")

    found = read_clips(root)
    assert found.labels == ("clapping", "running")
    assert Counter(clip.split for clip in found.clips) == {"train": 5, "val": 3}
    keys = {clip.source: clip.key for clip in found.clips}
    assert keys[f"{val}/running/new.mp4"] == "new"
    assert keys[f"{train}/running/running_0.mp4"].startswith("running_0-")  # val has one too
    (hashed,) = file_keys([PurePosixPath("running/#3.mp4")]).values()
    assert keys[f"{val}/running/#3.mp4"] == hashed  # as without splits: official lists find it
    assert len(set(keys.values())) == 8
    part = read_clips(root, ["val"])
    assert part.labels == found.labels  # of the whole set, and keys too
    assert part.clips == tuple(clip for clip in found.clips if clip.split == "val")

    run(root, tmp_path / "out")
    data = ShardFolder(tmp_path / "out")
    assert data.splits == ("train", "val")
    assert {(s.label, s.label_id) for s in data.samples("val")} == {("running", 1)}


def test_a_class_that_only_test_has_is_said(
    clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = split_folders(clips, tmp_path / "a", train="clapping,running", test="running")
    read_clips(both)
    assert not caplog.records
    lacking = split_folders(clips, tmp_path / "b", train="running", test="clapping,running")
    (lacking / "train" / "clapping").mkdir()
    assert read_clips(lacking, ["train"]).labels == ("clapping", "running")
    said = (
        "1 classes have no clip in train, such as clapping (in test): a network cannot learn them"
    )
    assert said in caplog.text


def test_a_class_may_be_called_as_a_split(clips: Path) -> None:
    (clips / "running").rename(clips / "train")
    found = read_clips(clips)
    assert found.labels == ("clapping", "train")
    assert {clip.split for clip in found.clips} == {"all"}


def test_unusable_split_folders_are_named_in_one_line(clips: Path, tmp_path: Path) -> None:
    root = split_folders(clips, tmp_path / "set", train="clapping,running", val="running")

    def said(splits: Sequence[str] = ()) -> str:
        with pytest.raises((ManifestError, UnknownNameError)) as caught:
            read_clips(root, splits)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "unknown split 'vall'. Did you mean 'val'?" in said(["vall"])
    (root / "test").mkdir()
    assert f"{root / 'test'} holds no clips" in said()
    shutil.copy(clips / "running" / "running_0.mp4", root / "test" / "one.mp4")
    assert "1 videos such as one.mp4 are in no class folder" in said()
    assert len(read_clips(root, ["train", "val"]).clips) == 8
    shutil.rmtree(root / "test")
    shutil.copytree(clips / "running", root / "dancing")
    assert f"{root / 'dancing'} holds videos beside train, a split folder" in said()
    (root / "dancing").rename(root / "validate")
    shutil.copytree(clips, root / "Validation")
    assert "are both split val" in said()
    shutil.rmtree(root / "Validation")
    shutil.rmtree(root / "validate")
    shutil.copytree(clips, root / "train" / "group")
    assert f"{root / 'train' / 'group'} holds folders and no video" in said()
    shutil.rmtree(root / "train" / "group")
    (root / "val" / "nothing").mkdir()
    assert "nothing is a class folder without a video" in said()
    with pytest.raises(ManifestError, match="whose folders are classes or splits; choose another"):
        read_clips(root, out=root / "shards")


def test_a_changed_recipe_is_refused_and_another_name_is_not(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(clips, out)
    before = tree(out)
    bound = replace(plan_for(clips, out).flow, bound=10.0)
    smaller = replace(plan_for(clips, out).rgb, short_side=32)

    with pytest.raises(OutError, match=r"flow-tvl1 there: bound = 20.0, in this run: bound = 10.0"):
        run(clips, out, flow=bound)
    with pytest.raises(OutError, match="short_side = None, in this run: short_side = 32"):
        run(clips, out, rgb=smaller)
    with pytest.raises(OutError, match="samples_per_shard = 2, in this run: samples_per_shard = 3"):
        run(clips, out, samples_per_shard=3)
    (clips / "singing").mkdir()
    shutil.copy(clips / "running" / "running_0.mp4", clips / "singing" / "new.mp4")
    with pytest.raises(OutError, match="another label list"):
        run(clips, out)

    assert tree(out) == before


def test_another_opencv_than_the_recipes_stops_the_run(clips: Path, tmp_path: Path) -> None:
    parameters = make_method("opencv-tvl1").as_json() | {"opencv": "4.0.0"}
    recipe = FlowRecipe(method="opencv-tvl1", parameters=parameters)

    with pytest.raises(KineticsError, match="not the same on this machine"):
        run(clips, tmp_path / "out", flow=recipe, name="cv")


def test_another_encoder_than_the_recipes_stops_the_run(clips: Path, tmp_path: Path) -> None:
    recipe = plan_for(clips, tmp_path).flow
    versions = {"versions": {"ffmpeg": "0.5", "x264": "1"}}
    recipe = replace(recipe, codec_parameters={**recipe.codec_parameters, **versions})

    with pytest.raises(KineticsError, match="codec h264 is not the same on this machine"):
        run(clips, tmp_path / "out", flow=recipe)


def test_a_sample_says_how_its_flow_is_stored(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "out")

    with tarfile.open(tmp_path / "out" / "all" / "flow-tvl1-000000.tar") as tar:
        names = tar.getnames()
        about = json.loads(tar.extractfile(names[1]).read())  # type: ignore[union-attr]  # a file

    assert names[0].endswith(".flow.mp4")
    assert about["codec"] == "h264"
    assert about["codec_parameters"]["options"]["crf"] == "10.6"
    assert about["codec_parameters"]["versions"].keys() == {"ffmpeg", "x264"}


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    options = ("--short-side", "keep", "--samples-per-shard", 2, "--jobs", 3, "--dry-run")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = run_command("extract-flow", clips, out, *options, "--tmp-dir", scratch)

    assert done.returncode == 0, done.stderr
    figure = r"[0-9]+([.][0-9]+)?"
    expected = (
        "shards: 3, of 5 samples, 2 classes",
        "to do: 3, of 5 samples, about 19 pairs",
        f"measured: {figure} pairs of 4 clips; per pair {figure} ms of flow on cpu, {figure} ms to "
        f"decode and encode, {figure} ms to make its RGB",
        f"time: about {figure} (s|min), {figure} pairs per second, with 3 processors like this "
        "one, if none slows another and other clips take as long",
    )
    for line, words in zip(done.stdout.splitlines(), expected, strict=True):
        assert re.fullmatch(words, line)
    assert not out.exists()
    assert not list(scratch.iterdir())


def test_the_command_does_it_all_with_helpers_and_reports(clips: Path, tmp_path: Path) -> None:
    whole = (clips / "running" / "running_0.mp4").read_bytes()
    (clips / "running" / "running_0.mp4").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    options = (clips, out, "--short-side", "keep", "--jobs", 2)

    done = run_command("extract-flow", *options, "--tmp-dir", tmp_path / "scratch")

    assert done.returncode == 3, done.stderr
    assert "4 of 5 samples" in done.stdout
    assert "16 frame pairs in flow-tvl1" in done.stdout
    assert "damaged        1" in done.stdout
    assert f"index: {out}/dataset.json" in done.stdout
    run(clips, tmp_path / "here", samples_per_shard=64)
    assert tree(out) == tree(tmp_path / "here")
    assert not (out / ".scratch").exists()
    (out / "dataset.json").unlink()
    index = run_command("extract-flow", "index", out)
    assert index.returncode == 0
    assert "all: 5 expected, flow-tvl1 4, rgb 4" in index.stdout
    assert tree(out) == tree(tmp_path / "here")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "tvl"], "unknown flow method 'tvl'. Did you mean 'tvl1'?"),
        (["--codec", "fv1"], "unknown flow codec 'fv1'. Did you mean 'ffv1'?"),
        (["--device", "cuda:7"], "no device 'cuda:7' here; there is cpu"),
        (["--bound", "0"], "not a number of pixels from 0.001"),
        (["--name", "rgb"], "'rgb' is the name of the RGB shards"),
        (["--name", "a/b"], "not made of letters, digits, - and _"),
        (["--task", "3/2"], "--task '3/2' is not I/N"),
        (["--split", "tain"], "unknown split 'tain'"),
        (["--short-side", "small"], "not a whole number from 1"),
    ],
)
def test_a_wrong_option_ends_in_one_line(
    clips: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    done = run_command("extract-flow", clips, tmp_path / "out", *options)

    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_scratch_that_cannot_be_made_is_one_line(clips: Path, tmp_path: Path) -> None:
    done = run_command("extract-flow", clips, tmp_path / "out", "--tmp-dir", "/proc/x")

    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: /proc/x cannot be made; choose another folder"
    assert "Traceback" not in done.stderr


def test_a_second_run_in_the_same_folder_is_refused(clips: Path, tmp_path: Path) -> None:
    with (
        files.hold_lock(tmp_path / "out", "0-of-1"),
        pytest.raises(OutError, match=rf"is in use by process {os.getpid()} on"),
    ):
        run(clips, tmp_path / "out")


@pytest.mark.full
def test_a_full_disk_ends_in_one_line_and_leaves_nothing_half_written(
    clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = command("extract-flow", clips, out, "--short-side", "keep", "--jobs", 1)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    # Else Python would keep half of a module that it compiles, for all who come later.
    own = environment() | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        words, env=own, preexec_fn=limit, capture_output=True, text=True, check=False
    )

    assert done.returncode == 2, done.stderr
    *_, line = done.stderr.splitlines()  # a compiler's words may stand before it
    assert "rgb-000000.tar: File too large; make room, or choose another folder" in line
    assert [p.name for p in (out / "all").iterdir()] == []
    assert not (out / ".scratch").exists()

    again = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    run(clips, tmp_path / "whole", samples_per_shard=64)
    assert tree(out) == tree(tmp_path / "whole")


def two_jobs(clips: Path, out: Path) -> list[str]:
    """The command, with a shard a clip."""
    words = command("extract-flow", clips, out, "--short-side", "keep", "--jobs", 2)
    return [*words, "--samples-per-shard", "1"]


@pytest.mark.full
def test_ten_kills_give_the_same_tree(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "whole", samples_per_shard=1)

    out = tmp_path / "out"
    states = killed(two_jobs(clips, out), environment(), out, times=10)

    assert len(states) >= 3, states
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_pending_counts_only_what_is_to_do(clips: Path, tmp_path: Path) -> None:
    plan = plan_for(clips, tmp_path / "out")
    units = plan_shards(read_clips(clips).clips, plan)

    def todo(plan: ExtractPlan) -> list[ShardUnit]:
        there = FolderRecords(plan.out)
        return [each.unit for each in pending([u.state(plan, there) for u in units], plan)]

    assert todo(plan) == units

    run(clips, tmp_path / "out", part=Part(1, 3))

    assert todo(plan) == [units[0], units[2]]
    assert todo(replace(plan, force=True)) == units


def test_clips_that_go_away_during_a_run_make_no_gaps(
    clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    listed = read_clips(clips)
    plan = plan_for(clips, out)
    gone, changed = plan_shards(listed.clips, plan)[0].clips
    away = gone.path.rename(tmp_path / "away")
    whole = changed.path.read_bytes()
    changed.path.write_bytes(whole[: len(whole) // 2])

    summary = extract(listed, plan)

    assert (summary.num_samples, summary.gaps, summary.num_retryable) == (3, {"crashed": 2}, 2)
    assert not (out / "all" / "rgb-000000.tar").exists()
    assert f"{gone.source} was removed after it was listed" in caplog.text

    away.rename(gone.path)
    extract(listed, plan)
    assert f"{changed.source} is not the file that was listed" in caplog.text

    changed.path.write_bytes(whole)
    assert run(clips, out).num_samples == 5
    run(clips, tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


def test_an_ffmpeg_that_is_killed_makes_no_gap(
    clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed = tmp_path / "ffmpeg"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)

    out = tmp_path / "out"
    smaller = replace(plan_for(clips, out).rgb, short_side=32)

    summary = run(clips, out, rgb=smaller, binary=killed)

    assert (summary.num_samples, summary.gaps, summary.num_retryable) == (0, {"crashed": 5}, 5)
    assert "ffmpeg was killed by SIGKILL; if memory was short, give fewer --jobs" in caplog.text
    assert run(clips, out, rgb=smaller).num_samples == 5


def test_a_damaged_shard_of_rgb_stops_no_other(
    clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    run(clips, out)
    shard = out / "all" / "rgb-000001.tar"
    data = bytearray(shard.read_bytes())
    data[2000:2010] = bytes(10)  # of the first member's data
    shard.write_bytes(data)
    recipe = FlowRecipe(
        method="opencv-tvl1", parameters=make_method("opencv-tvl1").as_json(), codec="ffv1"
    )

    summary = run(clips, out, name="opencv-tvl1", flow=recipe)

    assert (summary.num_samples, summary.gaps, summary.num_retryable) == (3, {"crashed": 2}, 2)
    assert "is damaged; move the shard away and run extract-flow" in caplog.text
    shard.unlink()
    assert run(clips, out, name="opencv-tvl1", flow=recipe).num_samples == 5


def test_the_largest_shard_is_made_first(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    units = plan_shards(read_clips(clips).clips, plan_for(clips, out))
    last = units[-1].clips[0].path
    last.write_bytes(last.read_bytes() + bytes(10**6))  # decoders pass over what trails

    assert run(clips, out).num_samples == 5

    first = min(written(out).items(), key=lambda item: item[1])[0]
    assert first == str(out / "all" / "rgb-000002.tar")


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['extract-flow', '--help']; "
        "from kinetics_tools.extract.cli import build_parser; build_parser().format_help(); "
        "print(*{'torch', 'cv2', 'pandas', 'numpy', 'av'} & {*sys.modules})"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == []


def test_another_set_of_clips_does_not_replace_shards_unasked(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(clips, out)
    before = tree(out)
    (clips / "running" / "running_0.mp4").rename(clips / "running" / "running_7.mp4")
    shutil.copy(clips / "running" / "running_1.mp4", clips / "running" / "running_8.mp4")
    with pytest.raises(OutError, match="also hold 1 clips that CLIPS does not name now, such as"):
        run(clips, out)
    assert tree(out) == before
    assert run(clips, out, force=True).num_samples == 6


def test_a_set_of_clips_may_grow_and_says_what_is_recomputed(
    clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(clips, tmp_path / "out")
    for number in range(3, 9):
        shutil.copy(
            clips / "running" / "running_1.mp4", clips / "running" / f"running_{number}.mp4"
        )

    with caplog.at_level("INFO"):
        assert run(clips, tmp_path / "out").num_samples == 11

    assert re.search(r"[123] existing shards are recomputed", caplog.text)
    run(clips, tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_label_list_of_another_set_is_refused(clips: Path, tmp_path: Path) -> None:
    root = tmp_path / "downloaded"
    downloaded(root, sorted(clips.rglob("*.mp4")), {})
    (root / "labels.txt").write_text("zumba\n")
    with pytest.raises(ManifestError, match="lacks 'clapping'"):
        read_clips(root)

"""Features: rows of time steps, the same whole or in pieces, and files that say what they are."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

from conftest import MakeVideo
from foreign import randomize_batch_norm
from kinetics_bench import cli
from kinetics_bench.archs.registry import ARCHS, build
from kinetics_bench.commands.inference import _for_each
from kinetics_bench.device import Machine
from kinetics_bench.inference import features
from kinetics_bench.inference.features import Extractor, keys_of, pieces
from kinetics_bench.inference.networks import networks_of_run, networks_of_weights
from kinetics_bench.inference.predict import Predictor
from kinetics_bench.inference.videos import Span, Videos
from kinetics_bench.recipes import RECIPES, OneCycle
from kinetics_bench.weights import download
from kinetics_bench.weights.files import Weights
from kinetics_tools.core.errors import EvaluationError, MediaError, OutError
from kinetics_tools.core.files import file_digest
from kinetics_tools.flow import methods
from kinetics_tools.media import opencv
from nets import FRAMES_PER_STEP, calibrated, wave
from tiny import key_file, tiny_clips, tiny_recipe, tiny_shards

CPU = Machine(torch.device("cpu"))


def lengths(name: str, stream: str, num: int) -> list[int]:
    """Frames of each clip: `num` for i3d, else of as many whole steps as fit in so many frames."""
    if name == "i3d":
        return [num for _ in ARCHS[name].clips_of(stream)]
    steps = FRAMES_PER_STEP[name]
    longest = max(steps[each] for each in ARCHS[name].clips_of(stream))
    return [steps[each] * (num // longest) for each in ARCHS[name].clips_of(stream)]


@pytest.mark.parametrize(
    ("name", "stream", "num"),
    [
        # 160, 163 and 175 leave the rests 0, 3 and 7 of eight: another SAME padding each.
        *(("i3d", "rgb", num) for num in (160, 163, 175)),
        pytest.param("i3d", "flow", 165, marks=pytest.mark.full),
        ("two-stream", "flow", 160),
        *(
            pytest.param(*network, 160, marks=pytest.mark.full)
            for network in (("c3d", "rgb"), ("two-stream", "joint"), ("3d-fused", "joint"))
        ),
    ],
)
def test_pieces_side_by_side_are_the_whole(
    name: str, stream: str, num: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = calibrated(name, stream)
    counts = lengths(name, stream, num)
    clips = [
        wave(each, count, (32, 32))[None]
        for each, count in zip(ARCHS[name].clips_of(stream), counts, strict=True)
    ]
    monkeypatch.setattr(features, "AT_ONCE", 56)
    cut = list(pieces(net, counts))
    assert len(cut) > 1
    with torch.inference_mode():
        whole = net.features(*clips)
        parts = [
            net.features(*(c[:, :, f] for c, f in zip(clips, piece.frames, strict=True)))[
                :, :, piece.steps
            ]
            for piece in cut
        ]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-4, rtol=1e-3)
    assert whole.std(dim=2).mean() > 1e-3  # else any order of the steps would do


def test_the_recurrent_network_sees_a_long_video_in_parts_of_its_convolutions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = calibrated("convnet-lstm", "rgb")
    clip = wave("rgb", 12, (32, 32))[None]
    with torch.inference_mode():
        whole = net.features(clip)
        monkeypatch.setattr("kinetics_bench.archs.convnet_lstm.MAX_FRAMES_AT_ONCE", 5)
        torch.testing.assert_close(net.features(clip), whole, atol=1e-4, rtol=1e-3)


def test_two_videos_of_one_stem_have_two_names(tmp_path: Path) -> None:
    one, other = tmp_path / "a" / "x.mp4", tmp_path / "b" / "x.mp4"
    keys = keys_of([one, other, one, tmp_path / "a" / "walk on.mp4"])
    assert list(keys) == [one, other, tmp_path / "a" / "walk on.mp4"]
    assert len(set(keys.values())) == 3
    assert all(key.startswith(("x-", "walk_on-")) for key in keys.values())
    assert keys_of([one]) == {one: "x"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of I3D's two streams, an epoch of few clips."""
    folder = tmp_path_factory.mktemp("features")
    with pytest.MonkeyPatch.context() as patch:
        recipes = {
            stream: tiny_recipe("i3d", stream, schedule=OneCycle(epochs=1, peak_lr=1e-3))
            for stream in ("rgb", "flow")
        }
        patch.setitem(RECIPES, "tiny", {"i3d": recipes})
        words = ("--arch", "i3d", "--recipe", "tiny", "--data", tiny_shards(), "--amp", "none")
        splits = (
            *("--train-split", key_file(folder, "train.txt", "ann_*", "ben_*")),
            *("--test-split", key_file(folder, "test.txt", "dan_*")),
        )
        assert cli.run([*map(str, (*words, *splits, "--work-dir", folder / "work"))]) == 0
    return folder / "work"


def test_a_video_of_any_size_gives_a_row_a_step_with_its_times(
    run: Path, make_video: MakeVideo, tmp_path: Path
) -> None:
    video = make_video(seconds=1.5, fps="30", size="86x150")
    extractor = Extractor(networks_of_run(run), CPU, tmp_path)
    arrays = extractor.write(video, Span(0.2), tmp_path / "out" / "v")
    assert [path.name for path in arrays] == ["v.rgb.npy", "v.flow.npy"]
    for path in arrays:
        rows = np.load(path)
        told = json.loads(path.with_suffix(".json").read_text())
        assert rows.dtype == np.float32
        assert rows.shape == (told["rows"], told["features"])
        assert np.isfinite(rows).all()
        assert told["sha256"] == file_digest(path)
        assert told["frames"] == 33  # from 0.2 to 1.5 s, 25 a second
        # 33 frames are five cells of eight, 32 fields four; a step is two of them.
        steps = 4 if told["stream"] == "rgb" else 3
        assert told["start_s"] == [pytest.approx(0.2 + 0.32 * at) for at in range(steps)]
        assert told["end_s"][0] == pytest.approx(0.2 + 0.64)
        assert told["end_s"][-1] <= 1.52 + 1e-6
    assert not (tmp_path / ".scratch").exists()
    with pytest.raises(EvaluationError, match=r"v\.rgb\.json belongs to .*; choose another --out"):
        extractor.write(tiny_clips() / "left" / "ann_left.mp4", Span(), tmp_path / "out" / "v")


def test_made_features_are_reused_and_made_again_when_the_video_changed(
    run: Path, make_video: MakeVideo, tmp_path: Path
) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(make_video(seconds=1).read_bytes())
    extractor = Extractor(networks_of_run(run, "rgb"), CPU, tmp_path)
    (path,) = extractor.write(video, Span(), tmp_path / "v")
    made, rows = path.stat().st_mtime_ns, np.load(path)
    extractor.write(video, Span(), tmp_path / "v")
    assert path.stat().st_mtime_ns == made
    extractor.write(video, Span(), tmp_path / "v", force=True)
    assert path.stat().st_mtime_ns > made
    np.testing.assert_array_equal(np.load(path), rows)
    video.write_bytes(make_video(seconds=2).read_bytes())
    extractor.write(video, Span(), tmp_path / "v")
    assert len(np.load(path)) > len(rows)


def test_a_failure_leaves_what_is_made_already(
    run: Path, make_video: MakeVideo, tmp_path: Path
) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(make_video(seconds=1).read_bytes())
    rgb, flow = networks_of_run(run, "rgb")[0], deepcopy(networks_of_run(run, "flow")[0])
    kernel = flow.net["Conv3d_1a_7x7.conv_3d.weight"]
    flow.net["Conv3d_1a_7x7.conv_3d.weight"] = torch.full_like(kernel, 3e38)  # its sums overflow
    extractor = Extractor([rgb, flow], CPU, tmp_path)
    with pytest.raises(EvaluationError, match="not finite"):
        extractor.write(video, Span(), tmp_path / "v")
    assert "error" in json.loads((tmp_path / "v.flow.json").read_text())
    record = (tmp_path / "v.rgb.json").read_bytes()
    assert json.loads(record)["sha256"] == file_digest(tmp_path / "v.rgb.npy")
    video.unlink()
    with pytest.raises(MediaError, match="no such file"):
        extractor.write(video, Span(), tmp_path / "v")
    assert (tmp_path / "v.rgb.json").read_bytes() == record
    assert (tmp_path / "v.rgb.npy").exists()


def test_features_of_another_network_or_stretch_are_not_overwritten(
    run: Path, make_video: MakeVideo, tmp_path: Path
) -> None:
    video = make_video(seconds=1)
    ours = networks_of_run(run, "rgb")
    (path,) = Extractor(ours, CPU, tmp_path).write(video, Span(), tmp_path / "v")
    torch.save(randomize_batch_norm(build("i3d", "rgb", 5)).state_dict(), tmp_path / "rgb.pt")
    weights = networks_of_weights(str(tmp_path / "rgb.pt"), "i3d", "rgb", whole=False)
    for networks, span, names in (
        (networks_of_run(run, "flow"), Span(), "stream, weights_sha256, recipes, sampling"),
        (weights, Span(), "weights_sha256, "),
        (ours, Span(0.2), "from_s;"),
        (ours, Span(0, 0.8), "duration_s;"),
    ):
        extractor = Extractor(networks, CPU, tmp_path)
        words = rf"v\.json belongs to this video with another {names}"
        with pytest.raises(EvaluationError, match=words):
            extractor.write(video, span, tmp_path / "v")
        assert file_digest(path) == json.loads((tmp_path / "v.json").read_text())["sha256"]
        assert json.loads((tmp_path / "v.json").read_text())["stream"] == "rgb"
    extractor.write(video, Span(0.2), tmp_path / "v", force=True)
    assert json.loads((tmp_path / "v.json").read_text())["from_s"] == 0.2


def test_what_cannot_be_read_is_one_line_in_its_record(
    run: Path, make_video: MakeVideo, tmp_path: Path
) -> None:
    extractor = Extractor(networks_of_run(run, "flow"), CPU, tmp_path)
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    short = make_video(seconds=0.3)
    loop = tmp_path / "loop.mp4"
    loop.symlink_to(loop)
    for video, start_s, words in (
        (short, 0, "I3D needs 10"),  # nine fields
        (short, 0.28, "has 1 frame from 0.28 s on; at least 2 are needed"),
        (short, 50, r"no frame from 50\.00 s on \(frame 1250\); it is 0\.30 s long"),
        (text, 0, "text.mp4"),
        (tmp_path / "gone.mp4", 0, "gone.mp4: no such file"),
        (text / "in-a-file.mp4", 0, "in-a-file.mp4: no such file"),
        (loop, 0, "loop.mp4: no such file"),
        (tmp_path / f"{'long' * 70}.mp4", 0, "long.mp4: no such file"),
        (tmp_path, 0, f"{tmp_path}: is a folder"),
        (Path(os.devnull), 0, "/dev/null: is not a file"),
        (Path("/proc/self/mem"), 0, "/proc/self/mem: cannot be read: Input/output error"),
    ):
        with pytest.raises(MediaError, match=words) as caught:
            extractor.write(video, Span(start_s), tmp_path / "bad")
        told = json.loads((tmp_path / "bad.json").read_text())
        assert told == {"video": str(video.absolute()), "error": str(caught.value)}
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "bad.npy").exists()
        (tmp_path / "bad.json").unlink()


@contextmanager
def nobody() -> Iterator[None]:
    """Without the rights of root, where the tests run as root: it may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_video_that_may_not_be_read_costs_its_line_alone(
    run: Path, make_video: MakeVideo, capsys: pytest.CaptureFixture[str]
) -> None:
    with TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        locked, inside, good = folder / "a.mp4", folder / "closed" / "b.mp4", folder / "c.mp4"
        inside.parent.mkdir()
        for path in (locked, inside, good):
            shutil.copy(make_video(seconds=1), path)
        locked.chmod(0)
        inside.parent.chmod(0)
        folder.chmod(0o777)
        networks = networks_of_run(run, "rgb")
        extractor = Extractor(networks, CPU, folder)
        predictor = Predictor(networks, CPU, folder)
        acts: tuple[Callable[[Path], object], ...] = (
            lambda path: extractor.write(path, Span(), folder / path.stem),
            lambda path: predictor.predict(path, Span()),
        )

        def act_as_nobody(path: Path, act: Callable[[Path], object]) -> None:
            # With the good one ffmpeg runs, which may lie where only root gets.
            with nobody() if path != good else nullcontext():
                act(path)

        for act in acts:
            assert _for_each([locked, inside, good], partial(act_as_nobody, act=act)) == 3
            assert [
                line for line in capsys.readouterr().err.splitlines() if line.startswith("error")
            ] == [f"error: {path}: cannot be read: Permission denied" for path in (locked, inside)]
        assert (folder / "c.npy").exists()
        assert "error" in json.loads((folder / "b.json").read_text())
        inside.parent.chmod(0o700)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--duration", "0"), "--duration: '0' is not a number of seconds from 0.08 on"),
        (("--duration", "0.0004"), "--duration: '0.0004' is not a number of seconds from 0.08 on"),
        (("--duration", "-1"), "--duration: '-1' is not a number of seconds from 0"),
        (("--start", "-1"), "--start: '-1' is not a number of seconds from 0"),
    ],
)
@pytest.mark.parametrize("verb", ["features", "predict"])
def test_a_stretch_that_cannot_be_is_refused(
    verb: str, words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.run([verb, "x.mp4", "--work-dir", "x", *words])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


@pytest.mark.parametrize(
    ("verb", "option"), [("features", "--out"), ("features", "--tmp-dir"), ("predict", "--tmp-dir")]
)
def test_a_folder_that_cannot_be_made_is_one_line(
    verb: str, option: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = (verb, "x.mp4", "--work-dir", str(run), "--device", "cpu", option, "/proc/x")
    with pytest.raises(OutError, match=r"^/proc/x cannot be made; choose another folder$"):
        cli.run(words)


@pytest.mark.full  # predict sees 250 frames
def test_features_and_logits_that_are_not_finite_are_an_error_of_the_video(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = randomize_batch_norm(build("i3d", "rgb"))
    net.get_parameter("Conv3d_1a_7x7.conv_3d.weight").detach().fill_(3e38)  # its sums overflow
    torch.save(net.state_dict(), tmp_path / "rgb.pt")
    video = tiny_clips() / "left" / "ann_left.mp4"
    words = (video, "--init", tmp_path / "rgb.pt", "--stream", "rgb", "--device", "cpu")
    out = tmp_path / "out"
    for verb, more in (("features", ("--out", out)), ("predict", ("--duration", 0.4))):
        assert cli.run([*map(str, (verb, *words, *more))]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        (line,) = told.err.splitlines()
        assert line.startswith(f"error: {video}: i3d rgb gives values that are not finite; ")
        error = json.loads((out / f"{video.stem}.json").read_text())["error"]
        assert line == f"error: {error}"
        assert not (out / f"{video.stem}.npy").exists()


def test_weights_alone_give_features_by_the_papers_recipe(tmp_path: Path) -> None:
    net = randomize_batch_norm(build("i3d", "rgb", 5)).eval()
    weights = tmp_path / "weights.pt"
    torch.save(net.state_dict(), weights)
    extractor = Extractor(
        networks_of_weights(str(weights), "i3d", "rgb", whole=False), CPU, tmp_path
    )
    video = tiny_clips() / "left" / "ann_left.mp4"
    (array,) = extractor.write(video, Span(), tmp_path / "v")
    told = json.loads(array.with_suffix(".json").read_text())
    assert (told["start_s"], told["end_s"]) == ([0.0], [0.56])
    with extractor.videos.clip(video, Span(), whole=True) as clip:
        frames = torch.from_numpy(clip.rgb())
    assert frames.shape == (14, 256, 308, 3)  # enlarged, as extract-flow does
    crop = frames[:, 16:240, 42:266].permute(3, 0, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        expected = net.features(crop[None])[0].T
    torch.testing.assert_close(torch.from_numpy(np.load(array)), expected, atol=1e-4, rtol=1e-3)
    assert expected.std() > 1e-3

    # The last layer has no part in them, nor in what the record says of the weights.
    with torch.no_grad():
        net.get_parameter(f"{net.last_layers[0]}.weight").mul_(2)
    torch.save(net.state_dict(), weights)
    made = array.stat().st_mtime_ns
    networks = networks_of_weights(str(weights), "i3d", "rgb", whole=False)
    Extractor(networks, CPU, tmp_path).write(video, Span(), tmp_path / "v")
    assert array.stat().st_mtime_ns == made


@pytest.mark.full
def test_flow_features_of_weights_take_tvl1_and_no_field_twice(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    net = calibrated("two-stream", "flow")
    torch.save(net.state_dict(), tmp_path / "flow.pt")
    video = make_video(seconds=0.8, size="90x64")  # twenty frames: nineteen fields
    words = ("--init", tmp_path / "flow.pt", "--arch", "two-stream", "--stream", "flow")
    options = ("--amp", "none", "--device", "cpu", "--out", tmp_path / "out")
    assert cli.run([*map(str, ("features", video, *words, *options))]) == 0
    rows = np.load(tmp_path / "out" / f"{video.stem}.npy")
    told = json.loads((tmp_path / "out" / f"{video.stem}.json").read_text())
    assert (told["frames"], told["start_s"], told["end_s"]) == (20, [0.0], [0.4])
    assert "flow-tvl1" in told["recipes"]

    networks = networks_of_weights(str(tmp_path / "flow.pt"), "two-stream", "flow", whole=False)
    with Videos(networks[0], CPU, tmp_path).clip(video, Span(), whole=True) as clip:
        grey = [opencv.gray(np.asarray(frame)) for frame in clip.frames]
    codes = [methods.quantise(field, bound=20) for field in methods.stream(grey, "tvl1")]
    fields = methods.dequantise(np.stack(codes), bound=20)
    assert fields.shape == (19, 256, 360, 2)
    crop = torch.from_numpy(fields[:10, 16:240, 68:292] / 20).permute(3, 0, 1, 2)[None]
    with torch.inference_mode():
        expected = net.features(crop)[0].T
        backwards = net.features(crop.flip(2))[0].T
    torch.testing.assert_close(torch.from_numpy(rows), expected, atol=2e-3, rtol=1e-3)
    assert (expected - backwards).abs().max() > 0.1  # else any fields would do


def test_features_need_no_last_layer_and_logits_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EvaluationError, match="--init scratch: scratch weights are untrained"):
        networks_of_weights("scratch", "i3d", "rgb", whole=False)
    imagenet = Weights(state=dict(_flat_inception()), source="ImageNet's", dims=2)
    monkeypatch.setattr(download, "imagenet", lambda _: imagenet)
    networks = networks_of_weights("imagenet", "i3d", "joint", cache=tmp_path, whole=False)
    assert [each.stream for each in networks] == ["rgb", "flow"]
    with pytest.raises(EvaluationError, match=r"has no lstm\..* would come from random weights"):
        networks_of_weights("imagenet", "convnet-lstm", "rgb", cache=tmp_path, whole=False)
    with pytest.raises(EvaluationError, match=r"has no Logits\..* would come from random weights"):
        networks_of_weights("imagenet", "i3d", "rgb", cache=tmp_path)


def _flat_inception() -> Iterator[tuple[str, torch.Tensor]]:
    """What ImageNet's weights are under our names."""
    net = build("two-stream", "rgb", 1000)
    for name, tensor in net.state_dict().items():
        if not name.endswith(".num_batches_tracked"):
            yield name, tensor

"""Size, error and speed of flow codecs on real TV-L1 flow; each line of output is JSON.

    python benchmarks/speed/codec.py DATA

DATA has the clips of `CLIPS`. Each is resized as extract-flow does; the flow of its first frames is
computed and quantised, and each codec stores and reads it. A line is one clip and one codec: bytes
per field; mean and 99th percentile of the error after decoding, in codes and in pixels (a code is
40/255 of one); fields per second of encoding and decoding with one thread (processor time). Lines
of the clip "all" are all fields together, and their bytes and mean error relative to the JPEG pair.

With --codes FILE the codes are saved to FILE (npz) and read from there the next time.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kinetics_tools.flow.codecs import CODECS, DEFAULT_CODEC, VideoCodec
from kinetics_tools.flow.methods import BOUND_PX, quantise, stream
from kinetics_tools.media import decode, encode, opencv
from kinetics_tools.media.clips import conform
from kinetics_tools.media.recipe import ClipRecipe

Codes = npt.NDArray[np.uint8]
CLIPS = {  # by name the short side; Weizmann clips keep their size
    "clips/R6llTwEh07w.mp4": 256,
    "clips/WUzgd7C1pWA.mp4": 256,
    "clips/arm_wrestling.mp4": 256,
    "clips/v_SoccerJuggling_g23_c01.avi": 256,
    "clips/RATRACE_wave_f_nm_np1_fr_goo_37.avi": 256,
    "clips/bikes.mp4": 256,
    "weizmann/jack/daria_jack.avi": None,
    "weizmann/run/denis_run.avi": None,
}
JPEG_PAIR = "jpeg-pair-95"
PX = 2 * BOUND_PX / 255


@dataclass(frozen=True)
class Format:
    """A storage format: fields (N, H, W, 2) to bytes objects, and back."""

    write: Callable[[Codes], list[bytes]]
    read: Callable[[list[bytes]], Codes]


def _pair(quality: int) -> Format:
    def write(codes: Codes) -> list[bytes]:
        return [
            opencv.encode_jpeg(np.ascontiguousarray(field[..., axis]), quality=quality)
            for field in codes
            for axis in (0, 1)
        ]

    def read(jpegs: list[bytes]) -> Codes:
        planes = np.stack([opencv.decode_jpeg(jpeg) for jpeg in jpegs])
        return planes.reshape(-1, 2, *planes.shape[1:]).transpose(0, 2, 3, 1)

    return Format(write, read)


def _codec(codec: Any) -> Format:
    return Format(lambda codes: [codec.encode(codes)], lambda data: codec.decode(data[0], None))


def _h264(**changes: str) -> Format:
    codec = CODECS[DEFAULT_CODEC]
    assert isinstance(codec, VideoCodec)
    options = {**codec.options, **changes}
    if "qp" in changes:
        del options["crf"]  # it would override qp
    return _codec(replace(codec, options=options))


def _other(encoder: str, **options: str) -> Format:
    return _codec(VideoCodec(ext="mkv", encoder=encoder, container="matroska", options=options))


_X265 = "log-level=none:keyint=1:pools=none:frame-threads=1:psy-rd=0:psy-rdoq=0:aq-mode=0:crf="
FORMATS: Mapping[str, Format] = {
    JPEG_PAIR: _pair(95),
    "ffv1": _codec(CODECS["ffv1"]),
    "jpeg (x, y, 0) 100": _codec(CODECS["jpeg"]),
    f"{DEFAULT_CODEC} (default)": _codec(CODECS[DEFAULT_CODEC]),
    **{f"h264 crf {crf}": _h264(crf=crf) for crf in ("6", "8", "12", "16")},
    "h264 with deblocking": _h264(**{"x264-params": "no-mbtree=1"}),
    "h264 subme 8": _h264(subq="8"),
    "h264 trellis 1": _h264(trellis="1"),
    "h264 trellis 0": _h264(trellis="0"),
    "h264 veryfast": _h264(preset="veryfast", subq="2", trellis="0"),
    "h264 qp 11": _h264(qp="11"),
    "h264 GOP 16": _h264(g="16", bf="0"),
    "h264 GOP 16, B": _h264(g="16", bf="3"),
    "h264 GOP 16, mbtree": _h264(
        g="16", bf="0", **{"x264-params": "rc-lookahead=16:no-deblock=1"}, crf="6"
    ),
    "h264 for the eye, GOP 16, crf 12": _other(
        "libx264", preset="medium", crf="12", g="16", bf="0"
    ),
    "h264 for the eye, intra, crf 12": _other("libx264", preset="medium", crf="12", g="1"),
    **{
        f"hevc intra crf {crf}": _other(
            "libx265", preset="medium", **{"x265-params": f"{_X265}{crf}"}
        )
        for crf in ("6", "9")
    },
}


def flow_codes(clip: Path, short_side: int | None, num_fields: int) -> Codes:
    """The codes of a clip's first fields as extract-flow computes them: uint8 (N, H, W, 2)."""
    binary = encode.find_ffmpeg()
    recipe = ClipRecipe(short_side=short_side, enlarge=short_side is not None)
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "sample.mp4"
        conform(clip, sample, recipe=recipe, binary=binary)
        frames = itertools.islice(decode.frames(sample), num_fields + 1)
        return np.stack([quantise(field) for field in stream(map(opencv.gray, frames))])


def measure(codes: Codes, format_: Format) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
    """Size, speed and errors of a format for these codes, and the error of each code.

    Decoders get the bytes of all fields at once, as shards store them.
    """
    start = time.process_time()
    data = format_.write(codes)
    written = time.process_time()
    found = format_.read(data)
    read = time.process_time()
    error = np.abs(found.astype(np.int16) - codes).astype(np.uint8)
    cost = {
        "fields": len(codes),
        "bytes_per_field": round(sum(map(len, data)) / len(codes)),
        "encode_fields_per_s": round(len(codes) / (written - start)),
        "decode_fields_per_s": round(len(codes) / (read - written)),
    }
    return cost | _errors(error), error


def _errors(error: npt.NDArray[np.uint8]) -> dict[str, Any]:
    mean, p99 = float(error.mean()), float(np.percentile(error, 99))
    return {
        "mean_codes": round(mean, 4),
        "p99_codes": p99,
        "max_codes": int(error.max()),
        "mean_px": round(mean * PX, 5),
        "p99_px": round(p99 * PX, 3),
    }


def measure_all(clips: Mapping[str, Codes]) -> Iterator[dict[str, Any]]:
    """Yield a line per format and clip, and one per format for all clips together."""
    pair: dict[str, Any] = {}
    for name, format_ in FORMATS.items():
        costs, errors = [], []
        for clip, codes in clips.items():
            cost, error = measure(codes, format_)
            yield {"codec": name, "clip": clip, "size": f"{codes.shape[2]}x{codes.shape[1]}"} | cost
            costs.append(cost)
            errors.append(error.ravel())
        whole = _together(costs) | _errors(np.concatenate(errors))
        pair = pair or whole  # the first format
        yield (
            {"codec": name, "clip": "all"}
            | whole
            | {
                "bytes_of_jpeg_pair": round(whole["bytes_per_field"] / pair["bytes_per_field"], 3),
                "mean_error_of_jpeg_pair": round(whole["mean_codes"] / pair["mean_codes"], 3),
            }
        )


def _together(costs: list[dict[str, Any]]) -> dict[str, Any]:
    fields = sum(cost["fields"] for cost in costs)
    rates = ("encode_fields_per_s", "decode_fields_per_s")
    return {
        "fields": fields,
        "bytes_per_field": round(sum(c["bytes_per_field"] * c["fields"] for c in costs) / fields),
        **{rate: round(fields / sum(c["fields"] / c[rate] for c in costs)) for rate in rates},
    }


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--fields", type=int, default=40, help="fields per clip")
    parser.add_argument("--codes", type=Path, metavar="FILE", help="file of the codes")
    options = parser.parse_args()
    if options.codes is not None and options.codes.exists():
        clips = dict(np.load(options.codes))
    else:
        clips = {
            Path(name).stem: flow_codes(options.data / name, short_side, options.fields)
            for name, short_side in CLIPS.items()
        }
        if options.codes is not None:
            np.savez(options.codes, **clips)
    for line in measure_all(clips):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

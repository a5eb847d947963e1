"""Published weights, downloaded once into the user's cache.

ImageNet: torchvision's GoogLeNet. It was converted from TensorFlow's Inception-v1, with 3x3 kernels
in place of 5x5 and epsilon 1e-3. torchvision normalises images by ImageNet's mean and std, and its
network first computes (x std + mean - 0.5) / 0.5, which is RGB scaled to [-1, 1]: the input of our
networks. So the weights need no change. One difference remains: torchvision pads the first
convolution by 3 on both sides; TensorFlow and our networks pad even sizes by 2 and 3, which shifts
the image by one pixel.

Kinetics: the authors' checkpoints, trained on ImageNet and then on Kinetics-400. No hash of them is
published. Another file in their place, such as a login page, is detected by the format of the index
and the size of the data. TensorFlow verifies the checksums in the index.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.error import URLError

import torch

from kinetics_bench.weights.files import INDEX, UNREADABLE_ERRORS, Weights, first_line
from kinetics_bench.weights.naming import SCHEMES
from kinetics_tools.core import http_client
from kinetics_tools.core.errors import EvaluationError, SourceError
from kinetics_tools.core.files import OTHER_CACHE_DIR, digest, file_lock, publish

# The name has the first digits of the file's SHA-256, which torch.hub checks.
IMAGENET: Final = "https://download.pytorch.org/models/googlenet-1378be20.pth"
COMMIT: Final = "6da69a33d21bcd7d410e2f8df42a0aa959a14959"
KINETICS: Final = (
    f"https://raw.githubusercontent.com/google-deepmind/kinetics-i3d/{COMMIT}/data/checkpoints"
)
# The index is last: if it exists, the checkpoint is complete.
FILES: Final = ("model.ckpt.data-00000-of-00001", f"model.ckpt{INDEX}")
# The number of float32 values in the published indices; the data is not compressed.
MIN_DATA_BYTES: Final[Mapping[str, int]] = {"rgb": 4 * 12_704_544, "flow": 4 * 12_682_592}
# An index is a LevelDB table, which ends in this number.
TABLE_MAGIC: Final = 0xDB4775248B80FB57.to_bytes(8, "little")


def imagenet(cache: Path, *, address: str = IMAGENET) -> Weights:
    """The weights of a 2-D Inception-v1 trained on ImageNet, 1000 classes.

    Args:
        cache: the user's cache folder.
        address: URL of the file; its name ends in `-<first digits of its SHA-256>.pth`.

    Raises:
        EvaluationError: the file cannot be downloaded, or has another hash.
    """
    folder = cache / "weights"
    name = address.rpartition("/")[2]
    lock = file_lock(folder / f".lock-{name}", OTHER_CACHE_DIR)
    with lock, contextlib.redirect_stdout(sys.stderr):
        try:
            tensors = torch.hub.load_state_dict_from_url(
                address,
                model_dir=str(folder),
                map_location="cpu",
                progress=False,
                check_hash=True,
                weights_only=True,
            )
        except (URLError, ConnectionError, TimeoutError) as error:
            raise _unreachable(f"{address}: {str(error).strip('<>')}") from error
        except UNREADABLE_ERRORS as error:
            raise EvaluationError(
                f"{address} gave another file than its name says "
                f"({first_line(error)}); move {folder / name} away if it exists"
            ) from error
    scheme = SCHEMES["torchvision"]
    return Weights(state=scheme.to_ours(tensors), source=address, dims=scheme.dims)


def kinetics(
    stream: str,
    cache: Path,
    *,
    address: str = KINETICS,
    pauses_s: Sequence[float] = http_client.PAUSES_S,
) -> Path:
    """The authors' checkpoint of a stream, trained on ImageNet and Kinetics-400: path of its index.

    Args:
        stream: `rgb` or `flow`.
        cache: the user's cache folder.
        address: URL of the folder with `<stream>_imagenet`.
        pauses_s: pauses between attempts, seconds.

    Raises:
        EvaluationError: it cannot be downloaded, or is not such a checkpoint; nothing is kept.
    """
    folder = cache / "weights" / f"{stream}_imagenet-{digest(address)[:8]}"
    with file_lock(folder / ".lock", OTHER_CACHE_DIR):
        for name in FILES:
            if not (folder / name).exists():
                source = f"{address}/{stream}_imagenet/{name}"
                with publish(folder / name) as scratch:
                    try:
                        http_client.fetch(source, scratch, pauses_s=pauses_s)
                    except SourceError as error:
                        raise _unreachable(error.detail) from error
                    if not _is_plausible(scratch, stream):
                        raise _unreachable(f"{source}: the answer is not a TensorFlow checkpoint")
    return folder / FILES[-1]


def _is_plausible(file: Path, stream: str) -> bool:
    """Whether a file has the format of an index, or at least the size of the stream's data."""
    if file.suffix == INDEX:
        return file.read_bytes().endswith(TABLE_MAGIC)
    return file.stat().st_size >= MIN_DATA_BYTES[stream]


def _unreachable(what: str) -> EvaluationError:
    return EvaluationError(
        f"cannot download {what}; download it on a machine with internet and give --init PATH"
    )

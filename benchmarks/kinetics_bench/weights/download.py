"""Weights at the addresses where they are published, fetched once into the user's cache.

ImageNet's are torchvision's GoogLeNet, which was ported from TensorFlow's Inception-v1 and keeps
its 3x3 kernels in place of 5x5 and its epsilon of 1e-3. torchvision gives it pictures normalised by
ImageNet's mean and deviation, and the network first undoes that: (x deviation + mean - 0.5) / 0.5,
which is RGB scaled to [-1, 1], our networks' input. So nothing is to be changed in the weights. One
thing differs: torchvision pads the first convolution by 3 in front and at the back, TensorFlow at
even sizes by 2 and 3, as the networks here do: what they see is shifted by one pixel.

Kinetics' are the authors' checkpoints, each trained on ImageNet and then Kinetics-400. They publish
no hash. What a server gives in their place (a page to log in, say) is told by the form of the index
and by the size of the data; the rest TensorFlow holds against the checksums that are in the index.
"""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.error import URLError

import torch

from kinetics_bench.weights.files import BROKEN, INDEX, Weights, first_line
from kinetics_bench.weights.naming import SCHEMES
from kinetics_tools.core import http_client
from kinetics_tools.core.errors import EvaluationError, SourceError
from kinetics_tools.core.files import digest, file_lock, publish

# The name holds the first digits of the file's SHA-256, by which torch.hub checks it.
IMAGENET: Final = "https://download.pytorch.org/models/googlenet-1378be20.pth"
COMMIT: Final = "6da69a33d21bcd7d410e2f8df42a0aa959a14959"
KINETICS: Final = (
    f"https://raw.githubusercontent.com/google-deepmind/kinetics-i3d/{COMMIT}/data/checkpoints"
)
# The index last: where it is, the checkpoint is complete.
FILES: Final = ("model.ckpt.data-00000-of-00001", f"model.ckpt{INDEX}")
# The published indices list so many values, of float32 each, and the data is not compressed.
MIN_DATA_BYTES: Final[Mapping[str, int]] = {"rgb": 4 * 12_704_544, "flow": 4 * 12_682_592}
# An index is a table of LevelDB's format, which ends in this number.
TABLE_MAGIC: Final = 0xDB4775248B80FB57.to_bytes(8, "little")


def imagenet(cache: Path, *, address: str = IMAGENET) -> Weights:
    """The weights of a 2-D Inception-v1 trained on ImageNet, 1000 classes.

    Args:
        cache: the user's cache folder.
        address: of such a file, whose name ends in `-<digits of its SHA-256>.pth`.

    Raises:
        EvaluationError: they cannot be fetched, or are not what the address promises.
    """
    folder = cache / "weights"
    name = address.rpartition("/")[2]
    with file_lock(folder / f".lock-{name}"), contextlib.redirect_stdout(sys.stderr):
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
        except BROKEN as error:
            raise EvaluationError(
                f"{address} did not give what its name promises "
                f"({first_line(error)}); remove {folder / name} if it is there"
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
    """The index of the authors' checkpoint of a stream, trained on ImageNet and Kinetics-400.

    Args:
        stream: `rgb` or `flow`.
        cache: the user's cache folder.
        address: of the folder that holds `<stream>_imagenet`.
        pauses_s: as in `web.fetch`.

    Raises:
        EvaluationError: it cannot be fetched, or what came is no such checkpoint; nothing is kept.
    """
    folder = cache / "weights" / f"{stream}_imagenet-{digest(address)[:8]}"
    with file_lock(folder / ".lock"):
        for name in FILES:
            if not (folder / name).exists():
                source = f"{address}/{stream}_imagenet/{name}"
                with publish(folder / name) as scratch:
                    try:
                        http_client.fetch(source, scratch, pauses_s=pauses_s)
                    except SourceError as error:
                        raise _unreachable(error.detail) from error
                    if not _may_be(scratch, stream):
                        raise _unreachable(f"{source}: what came is no TensorFlow checkpoint")
    return folder / FILES[-1]


def _may_be(fetched: Path, stream: str) -> bool:
    """Whether a file has the form of a stream's published index, or the size of its data."""
    if fetched.suffix == INDEX:
        return fetched.read_bytes().endswith(TABLE_MAGIC)
    return fetched.stat().st_size >= MIN_DATA_BYTES[stream]


def _unreachable(what: str) -> EvaluationError:
    return EvaluationError(
        f"cannot fetch {what}; fetch it where there is a network, and give --init PATH"
    )

"""Weights in files, read under the names of our networks. The only module that imports tensorflow.

A file is one of: a state dict by torch.save or in safetensors, with our names or those of a
published scheme, alone or in another trainer's checkpoint (see `state_dicts`); a checkpoint of our
own training; or a TensorFlow checkpoint (`model.ckpt.index` and its data), given by its prefix,
index or data file. Code in a file is never run.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from kinetics_bench.weights.header import CheckpointHeader
from kinetics_bench.weights.naming import COUNT, SCHEMES, like, scheme_of
from kinetics_bench.weights.state_dicts import choose, find_state_dicts
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.core.files import name_in_errors
from kinetics_tools.flow.tvl1.method import import_triton

logger = logging.getLogger(__name__)
INDEX: Final = ".index"
SAFETENSORS: Final = ".safetensors"
SUFFIXES: Final = (".pt", ".pth", ".ckpt", SAFETENSORS, INDEX)
# Of several files: the authors' folder also has weights from scratch, piergiaj's also of Charades.
PREFERRED: Final = "imagenet"
# TensorFlow 2 stores it among the variables: which object owns which variable.
_OBJECT_GRAPH: Final = "_CHECKPOINTABLE_OBJECT_GRAPH"
JOINT_ADVICE: Final = "; for both streams of i3d (joint) give a folder with one file per stream"
# What torch.load raises for a file that torch.save did not write, or that is damaged.
UNREADABLE_ERRORS: Final = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
)
MAX_REPEATED_BYTES: Final = 2**30
_DOS_FOLDER: Final = 0x10  # in the external attributes of a zip's member
_ZIP_MAGIC: Final = b"PK\x03\x04"
_DATA: Final = re.compile(r"(.+)\.data-\d{5}-of-\d{5}")
_PARTS: Final = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weights under the names of our networks.

    Attributes:
        state: name -> tensor, on the CPU; floats of any precision are float32 here. Batch norm's
            `num_batches_tracked` is left out.
        source: path or URL; with a word after a colon where one chose them.
        dims: dimensions, 2 or 3, of the Inception-v1 of a published scheme; None: the names in the
            file are ours.
        header: what a checkpoint of ours says about them; None: the file is not one.
    """

    state: Mapping[str, Tensor]
    source: str
    dims: int | None = None
    header: CheckpointHeader | None = None

    @property
    def sha256(self) -> str:
        """SHA-256 of names, shapes and values, hex; independent of the scheme of the file."""
        hashed = hashlib.sha256()
        for name in sorted(self.state):
            tensor = self.state[name].detach().contiguous()
            hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            hashed.update(tensor.numpy().tobytes())
        return hashed.hexdigest()


def _is_beside_last(file: Path) -> bool:
    """Whether a file is the best or an earlier checkpoint of a training, whose last one counts."""
    is_other = re.fullmatch(r"(best|checkpoint-[0-9]+)\.pt", file.name) is not None
    return is_other and file.with_name("checkpoint.pt").is_file()


def find_weights(path: Path, stream: str) -> Path:
    """The file with the weights of a stream: `path` itself, or a file in the folder `path`.

    In a folder it is the file, at most two levels deep, whose path from there has the name of the
    stream as a word: `rgb/checkpoint.pt`, `flow_imagenet.pt`, `rgb_imagenet/model.ckpt.index`. A
    training's best.pt and earlier checkpoints are not among them. Of
    several it is the only one with the word `imagenet`, as in the authors' folder. If there is none
    and the folder's own name has the word, it is the only file in the folder.

    Args:
        path: a file, the prefix of a TensorFlow checkpoint, or a folder.
        stream: `rgb`, `flow` or `joint`.

    Raises:
        EvaluationError: `path` does not exist, or the folder has no such file, or several.
    """
    if not path.is_dir():
        return _file(path)
    words = {
        file: _words(file.relative_to(path))
        for pattern in ("*", "*/*")
        for file in sorted(path.glob(pattern))
        if file.suffix.lower() in SUFFIXES and file.is_file() and not _is_beside_last(file)
    }
    found = [file for file in words if stream in words[file]]
    if not found and stream in _words(path.absolute().name):
        found = [file for file in words if file.parent == path]
    if len(found) == 1:
        logger.info("%s: its %s weights are %s", path, stream, found[0].relative_to(path))
        return found[0]
    preferred = [file for file in found if PREFERRED in words[file]]
    if len(preferred) == 1:
        logger.info(
            "%s: of %d files with %s weights the one with %s in its name is used, %s",
            *(path, len(found), stream, PREFERRED, preferred[0].relative_to(path)),
        )
        return preferred[0]
    names = ", ".join(str(file.relative_to(path)) for file in found[:3])
    raise EvaluationError(
        f"{path} is a folder with several files of {stream} weights ({names}); give one of them"
        + JOINT_ADVICE
        if found
        else f"{path} is a folder without {stream} weights; give a file ({', '.join(SUFFIXES)}), "
        f"or a folder with one that has {stream} in its name"
    )


def _file(path: Path) -> Path:
    """The file at `path`, or the index of the TensorFlow checkpoint with this prefix or data."""
    data = _DATA.fullmatch(path.name)
    if path.exists() and data is None:
        if not path.is_file():
            raise EvaluationError(f"{path} is not a file: a device or a pipe")
        return path
    index = path.with_name((path.name if data is None else data[1]) + INDEX)
    if not index.exists():
        raise EvaluationError(
            f"{path} is missing: there is no such file, folder or TensorFlow checkpoint"
            if data is None
            else f"{index} is missing; {path.name} cannot be read without it"
        )
    return index


def _words(path: Path | str) -> list[str]:
    return _PARTS.split(str(path).lower())


def read(
    path: Path, known: Collection[str], *, arch: str, stream: str | None = None, word: str = ""
) -> Weights:
    """The weights in a file.

    Args:
        path: the file; of a TensorFlow checkpoint its index.
        known: parameter names of the network, `net.state_dict().keys()`.
        arch: architecture of the network. A checkpoint of ours must have the same.
        stream: its stream, in the same way; None: any.
        word: chooses one of several networks in the file, such as `ema`; empty: there is only one.

    Raises:
        EvaluationError: the file is empty, damaged, not a file of weights, contains code, belongs
            to another architecture or stream, has unknown, missing or superfluous names, holds
            several networks and no word chooses one; or TensorFlow is needed and not installed.
    """
    header = None
    if path.suffix == INDEX:
        if word:
            raise EvaluationError(f"{path} is a TensorFlow checkpoint; give it without :{word}")
        tensors: Mapping[str, Tensor] = _tensorflow(path)
    else:
        with name_in_errors(path):  # a disk's errors while it is read have no name
            values = _safetensors(path) if _is_safetensors(path) else _load(path)
        header = CheckpointHeader.of(values)
        if header is not None:
            problem = header.problem(arch, stream)
            if problem:
                advice = JOINT_ADVICE if arch == "i3d" and header.arch == arch else ""
                raise EvaluationError(f"{path} {problem}{advice}")
        tensors = _chosen(path, values, known, word, is_ours=header is not None)
        _refuse_repeated(path, tensors)
    scheme = scheme_of(tensors)
    try:
        state = _own(tensors, known) if scheme is None else scheme.to_ours(tensors)
    except EvaluationError as error:
        raise EvaluationError(f"{path}: {error}") from error
    return Weights(
        state={name: _as_float32(tensor, f"{path}: {name}") for name, tensor in state.items()},
        source=f"{path}:{word}" if word else str(path),
        dims=None if scheme is None else scheme.dims,
        header=header,
    )


def _refuse_repeated(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise EvaluationError if a small file says that it holds much: a view repeats one number."""
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if num_bytes > 2 * path.stat().st_size + MAX_REPEATED_BYTES:
        raise EvaluationError(
            f"{path} says that it has {num_bytes} bytes of tensors, and is smaller; save copies"
        )


def _as_float32(tensor: Tensor, what: str) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_meta:
        kind = "without values" if tensor.is_meta else "sparse"
        raise EvaluationError(f"{what} is {kind}; save dense tensors")
    try:
        return tensor.float() if tensor.is_floating_point() else tensor
    except RuntimeError as error:  # two values in a byte
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise EvaluationError(f"{what} has dtype {dtype}, which is not read as a float") from error


def _chosen(
    path: Path, values: Any, known: Collection[str], word: str, *, is_ours: bool
) -> Mapping[str, Tensor]:
    """The weights of one network in what a file holds. The log says which if it is not plain."""

    def knows(name: str) -> bool:
        return like(name) in known or any(scheme.has(name) for scheme in SCHEMES.values())

    try:
        found = find_state_dicts(values, knows)
    except EvaluationError as error:
        raise EvaluationError(f"{path}: {error}") from error
    if not found:
        raise EvaluationError(f"{path} holds no state dict (a dict of names and tensors)")
    taken = choose(found, word, str(path))
    what = [f"the weights {taken.place}"] if taken.place and (word or not is_ours) else []
    what += [f"the words {taken.prefix} are taken off all names"] if taken.prefix else []
    if taken.unused:
        what.append(f"{len(taken.unused)} other tensors are not used, such as {taken.unused[0]}")
    if what:
        logger.info("%s: %s", path, "; ".join(what))
    return taken.tensors


def _own(tensors: Mapping[str, Tensor], known: Collection[str]) -> dict[str, Tensor]:
    if not any(name in known for name in tensors):
        first = ", ".join(list(tensors)[:3])
        schemes = ", ".join(scheme.title for scheme in SCHEMES.values())
        raise EvaluationError(
            f"unknown parameter names ({first} ...): neither of this network nor of {schemes}"
        )
    return {n: t for n, t in tensors.items() if not (n in known and n.endswith(COUNT))}


def _load(path: Path) -> Any:
    """What torch.save wrote, on the CPU: tensors and plain values; anything else is refused."""
    if path.stat().st_size == 0:
        raise EvaluationError(f"{path} is empty")
    if is_damaged(path):
        raise EvaluationError(f"{path} is damaged or truncated; download or save it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what matters is raised too
            return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE_ERRORS as error:
        if f"Unsupported operand {pickle.FRAME[0]}" in str(error):
            raise EvaluationError(
                f"{path} is a pickle of protocol 4 or later, which torch.save does not write; it "
                "was not run. Save a state dict with torch.save and give that"
            ) from error
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code is not None:
            raise EvaluationError(
                f"{path} contains code ({code[1]}), not only tensors; it was not run. "
                "Save a state dict and give that"
            ) from error
        raise EvaluationError(f"{path} is truncated, or torch.save did not write it") from error


def is_damaged(path: Path) -> bool:
    """Whether a file of torch.save, a zip, fails its checksums, which torch.load does not check.

    A file saved without checksums (torch.serialization.set_crc32_options) counts as damaged, and so
    does one with compressed members, which torch.save does not write: they may expand to anything.
    """
    with path.open("rb") as file:
        return file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC and not _is_whole(file)


def _is_whole(file: IO[bytes]) -> bool:
    try:
        with zipfile.ZipFile(file) as parts:
            # torch does not read a member that is marked as a folder: the tensor is uninitialised.
            is_known = all(
                part.compress_type == zipfile.ZIP_STORED and not part.external_attr & _DOS_FOLDER
                for part in parts.infolist()
            )
            return is_known and parts.testzip() is None
    except (*UNREADABLE_ERRORS, zipfile.BadZipFile, zlib.error):
        return False
    except OSError as error:
        if error.errno != errno.EINVAL:  # an impossible offset in the file
            raise
        return False


def _is_safetensors(path: Path) -> bool:
    """Whether a file, by its name or its start, is one of safetensors: a size, then JSON."""
    if path.suffix.lower() == SAFETENSORS:
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and 0 < int.from_bytes(start[:8], "little") < path.stat().st_size


def _safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file of safetensors, by name."""
    try:
        with safetensors.safe_open(path, "pt"):  # its header is checked before all of it is read
            pass
        # Not mapped: a file that is written again must not change weights that were read.
        return safetensors.torch.load(path.read_bytes())
    except KeyError as error:
        raise EvaluationError(f"{path} has tensors of dtype {error}, which is not read") from error
    except safetensors.SafetensorError as error:
        raise EvaluationError(
            f"{path} is damaged, or not a file of safetensors ({first_line(error)})"
        ) from error


def _tensorflow(index: Path) -> dict[str, Tensor]:
    """All variables of a TensorFlow checkpoint, by name."""
    prefix = index.with_suffix("")
    if not any(prefix.parent.glob(f"{prefix.name}.data-*")):
        raise EvaluationError(f"{index} has no {prefix.name}.data-00000-of-00001 beside it")
    tensorflow = import_tensorflow(f"{index} is a TensorFlow checkpoint")
    try:
        reader = tensorflow.train.load_checkpoint(str(prefix))
        names = sorted(set(reader.get_variable_to_shape_map()) - {_OBJECT_GRAPH})
        arrays = {name: np.asarray(reader.get_tensor(name)) for name in names}
    except (tensorflow.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        raise EvaluationError(f"{index} cannot be read: {first_line(error)}") from error
    return {name: _from_numpy(array, f"{index}: {name}") for name, array in arrays.items()}


def _from_numpy(array: np.ndarray, what: str) -> Tensor:
    try:
        return torch.from_numpy(array)
    except TypeError as error:  # text, or bfloat16, which numpy does not have
        raise EvaluationError(f"{what} has dtype {array.dtype}; expected float32") from error


def first_line(error: Exception) -> str:
    """The first line of an error's message; its type if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def prepare_for_tensorflow() -> None:
    """Call this before an import that imports TensorFlow: it will be silent, and bear triton."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with contextlib.suppress(ImportError):
        import_triton()


def import_tensorflow(why: str) -> Any:
    """The package tensorflow, which is optional.

    Args:
        why: what needs it, for the message.

    Raises:
        EvaluationError: it is not installed.
    """
    prepare_for_tensorflow()
    try:
        import tensorflow
    except ModuleNotFoundError as error:
        raise EvaluationError(
            f"{why}, and TensorFlow is not installed; install it with: pip install tensorflow"
        ) from error
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    return tensorflow

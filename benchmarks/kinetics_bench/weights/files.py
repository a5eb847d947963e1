"""Weights in files, read into our names. The only importer of tensorflow.

A file is one of: a state dict by torch.save under our names or a published scheme's, alone or as
the only one among what another trainer keeps; a checkpoint of our own training; or a TensorFlow
checkpoint (`model.ckpt.index` and its data), named by its prefix, as TensorFlow does, or by its
index. Nothing in a file is ever run.
"""

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
from typing import IO, Any, Final, TypeGuard

import numpy as np
import torch
from torch import Tensor

from kinetics_bench.weights.naming import COUNT, SCHEMES, scheme_of
from kinetics_tools.core.errors import EvaluationError

logger = logging.getLogger(__name__)
INDEX: Final = ".index"
SUFFIXES: Final = (".pt", ".pth", INDEX)
PARALLEL: Final = "module."  # what torch's DataParallel puts before all names
# Of several: the authors' folder also has networks from scratch, piergiaj's those of Charades.
PREFERRED: Final = "imagenet"
# TensorFlow 2 writes it beside the variables: text on which object holds which.
_OBJECT_GRAPH: Final = "_CHECKPOINTABLE_OBJECT_GRAPH"
# What a user whose I3D is of both streams has to know where a file is of one.
ONE_EACH: Final = "; for both streams of i3d (joint) give a folder that holds one file for each"
# What torch raises on bytes that are no file of its own, or a part of one.
BROKEN: Final = (
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
_IS_FOLDER: Final = 0x10  # in a zip's external attributes, by DOS
_ZIP: Final = b"PK\x03\x04"  # which a zip file begins with
_DATA: Final = re.compile(r"(.+)\.data-\d{5}-of-\d{5}")
_PARTS: Final = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Tensors under our names.

    Attributes:
        state: name -> tensor, on the CPU, float32 where the file has any float; batch norm's
            counts are left out.
        source: where they are from, in words.
        dims: of the Inception-v1 that they are of, 2 or 3; None: they are of a network of ours.
    """

    state: Mapping[str, Tensor]
    source: str
    dims: int | None = None

    @property
    def sha256(self) -> str:
        """Over names, shapes and values, hex: the same for the same weights in any scheme."""
        hashed = hashlib.sha256()
        for name in sorted(self.state):
            tensor = self.state[name].detach().contiguous()
            hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            hashed.update(tensor.numpy().tobytes())
        return hashed.hexdigest()


def find(path: Path, stream: str) -> Path:
    """The weights of a stream at `path`: a file itself, or the one in a folder that is named so.

    In a folder, two levels deep, files of weights are looked at whose path from there has the
    stream's name as a word: `rgb/checkpoint.pt`, `flow_imagenet.pt`, `rgb_imagenet/model.ckpt`. Of
    several the only one that has the word `imagenet` too, as in the authors' own folder. Where
    there is none and the folder's own name has that word, the files in it are looked at.

    Raises:
        EvaluationError: there is nothing, no such file in the folder, or several.
    """
    if not path.is_dir():
        return _file(path)
    words = {
        file: _words(file.relative_to(path))
        for pattern in ("*", "*/*")
        for file in sorted(path.glob(pattern))
        if file.suffix in SUFFIXES and file.is_file()
    }
    found = [file for file in words if stream in words[file]]
    if not found and stream in _words(path.absolute().name):
        found = [file for file in words if file.parent == path]
    if len(found) == 1:
        return found[0]
    preferred = [file for file in found if PREFERRED in words[file]]
    if len(preferred) == 1:
        logger.info(
            "%s: of %d files of %s weights the one of %s is taken, %s",
            *(path, len(found), stream, PREFERRED, preferred[0].relative_to(path)),
        )
        return preferred[0]
    names = ", ".join(str(file.relative_to(path)) for file in found[:3])
    raise EvaluationError(
        f"{path} is a folder with several files of {stream} weights ({names}); name one of them"
        + ONE_EACH
        if found
        else f"{path} is a folder without {stream} weights; name a file ({', '.join(SUFFIXES)}), "
        f"or a folder with one that has {stream} in its name"
    )


def _file(path: Path) -> Path:
    """What `path`, which is no folder, names: a file, or by its prefix or data a checkpoint."""
    data = _DATA.fullmatch(path.name)
    if path.exists() and data is None:
        return path
    index = path.with_name((path.name if data is None else data[1]) + INDEX)
    if not index.exists():
        raise EvaluationError(
            f"{path} is missing: no file, folder or TensorFlow checkpoint"
            if data is None
            else f"{index} is missing, without which {path.name} cannot be read"
        )
    return index


def _words(path: Path | str) -> list[str]:
    return _PARTS.split(str(path).lower())


def read(path: Path, known: Collection[str], *, arch: str, stream: str | None = None) -> Weights:
    """The weights in a file.

    Args:
        path: the file; for a TensorFlow checkpoint its index.
        known: names in our network, by which its own weights are told.
        arch: the network's architecture, to which a checkpoint of ours must belong.
        stream: the network's, in the same way; None: any.

    Raises:
        EvaluationError: it is empty, damaged, no file of weights, holds code, belongs to another
            architecture, has names of no known scheme, a tensor too many or too few; or
            TensorFlow is needed and not installed.
    """
    is_theirs = path.suffix == INDEX
    tensors = _tensorflow(path) if is_theirs else _tensors(path, _load(path), arch, stream)
    scheme = scheme_of(tensors)
    try:
        state = _own(tensors, known) if scheme is None else scheme.to_ours(tensors)
    except EvaluationError as error:
        raise EvaluationError(f"{path}: {error}") from error
    dims = None if scheme is None else scheme.dims
    state = {n: t.float() if t.is_floating_point() else t for n, t in state.items()}
    return Weights(state=state, source=str(path), dims=dims)


def labels_of(path: Path) -> tuple[str, ...] | None:
    """Class names in a checkpoint of ours, of which no tensor is read; None: it is another file."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return tuple(values["data"]["labels"])
    except BROKEN:
        return None


def _own(tensors: Mapping[str, Tensor], known: Collection[str]) -> dict[str, Tensor]:
    if not any(name in known for name in tensors):
        first = ", ".join(list(tensors)[:3])
        schemes = ", ".join(scheme.title for scheme in SCHEMES.values())
        raise EvaluationError(
            f"names of no known scheme ({first} ...): not this network's, nor those of {schemes}"
        )
    return {n: t for n, t in tensors.items() if not (n in known and n.endswith(COUNT))}


def _load(path: Path) -> Any:
    """What torch.save wrote, to the CPU; only tensors and plain values are read."""
    if path.stat().st_size == 0:
        raise EvaluationError(f"{path} is empty")
    if is_damaged(path):
        raise EvaluationError(f"{path} is damaged or truncated; fetch or save it anew")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what matters of them is an error too
            return torch.load(path, map_location="cpu", weights_only=True)
    except BROKEN as error:
        if f"Unsupported operand {pickle.FRAME[0]}" in str(error):
            raise EvaluationError(
                f"{path} is pickled by protocol 4 or later, by which torch.save writes no weights; "
                "it was not run. Save a state dict by torch.save and give that"
            ) from error
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code is not None:
            raise EvaluationError(
                f"{path} holds code ({code[1]}), not tensors alone; it was not run. "
                "Save a state dict and give that"
            ) from error
        raise EvaluationError(f"{path} is truncated, or no file by torch.save") from error


def is_damaged(path: Path) -> bool:
    """Whether what torch.save wrote, a zip file, fails its checksums: torch does not look at them.

    Whoever switched them off (torch.serialization.set_crc32_options) has to save the file anew.
    """
    with path.open("rb") as file:
        return file.read(len(_ZIP)) == _ZIP and not _is_whole(file)


def _is_whole(file: IO[bytes]) -> bool:
    known = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # other ways to compress torch cannot read
    try:
        with zipfile.ZipFile(file) as parts:
            # What is marked a folder torch does not read: it leaves the weights as memory was.
            is_known = all(
                part.compress_type in known and not part.external_attr & _IS_FOLDER
                for part in parts.infolist()
            )
            return is_known and parts.testzip() is None
    except (*BROKEN, zipfile.BadZipFile, zlib.error):
        return False
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place in the file that cannot be
            raise
        return False


def _tensors(path: Path, values: Any, arch: str, stream: str | None) -> Mapping[str, Tensor]:
    """The state dict in what torch.save wrote: that itself, or the only one that is in it."""
    if isinstance(values, Mapping) and not _is_state(values):
        if isinstance(values.get("net"), Mapping):
            _refuse_other(path, values, arch, stream)
        inner = [key for key, value in values.items() if _is_state(value)]
        if len(inner) > 1:
            names = ", ".join(map(str, inner))
            raise EvaluationError(f"{path} holds several state dicts ({names}); save one alone")
        values = values[inner[0]] if inner else values
    if not _is_state(values):
        raise EvaluationError(f"{path} holds no state dict: names of tensors and nothing else")
    if all(name.startswith(PARALLEL) for name in values):
        return {name.removeprefix(PARALLEL): tensor for name, tensor in values.items()}
    return values


def _refuse_other(path: Path, checkpoint: Mapping[str, Any], arch: str, stream: str | None) -> None:
    """Raise EvaluationError for a checkpoint of ours of another network."""
    there = checkpoint.get("arch", arch)
    if there != arch:
        raise EvaluationError(f"{path} holds weights of {there}, not of {arch}")
    of = checkpoint.get("stream", stream)
    if stream is not None and of != stream:
        advice = ONE_EACH if arch == "i3d" else ""
        raise EvaluationError(
            f"{path} holds weights of {arch} {of}, not of {arch} {stream}{advice}"
        )


def _is_state(values: Any) -> TypeGuard[Mapping[str, Tensor]]:
    return (
        isinstance(values, Mapping)
        and len(values) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in values.items())
    )


def _tensorflow(index: Path) -> dict[str, Tensor]:
    """Every variable of a TensorFlow checkpoint."""
    prefix = index.with_suffix("")
    if not any(prefix.parent.glob(f"{prefix.name}.data-*")):
        raise EvaluationError(f"{index} has no {prefix.name}.data-00000-of-00001 beside it")
    tensorflow = need_tensorflow(f"{index} is a TensorFlow checkpoint")
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
    except TypeError as error:  # text, or TensorFlow's bfloat16, which is none of numpy's types
        raise EvaluationError(f"{what} is of {array.dtype}; weights are float32 there") from error


def first_line(error: Exception) -> str:
    """Of what an error says; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def hush_tensorflow() -> None:
    """Ask TensorFlow, before it is imported, not to greet on stderr; what is wrong it raises."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def need_tensorflow(why: str) -> Any:
    """The package tensorflow, which nothing else here needs.

    Args:
        why: it is needed, for the message.

    Raises:
        EvaluationError: it is not installed.
    """
    hush_tensorflow()
    try:
        import tensorflow
    except ModuleNotFoundError as error:
        raise EvaluationError(
            f"{why}, and TensorFlow is not installed; install it with: pip install tensorflow"
        ) from error
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    return tensorflow

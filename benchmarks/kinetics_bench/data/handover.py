"""What worker processes read, handed over in memory without a fixed limit.

torch hands tensors over in /dev/shm, which containers limit to 64 MB by default; one clip of 250
frames is 150 MB. If there is no room, a thread of the worker loses the clip and the reader waits
for ever. Here each tensor gets memory of its own: as fast, limited by the machine alone, and filled
where an error reaches the reader.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from kinetics_tools.core.system import open_memory_file

T = TypeVar("T")
IN_THE_QUEUE: Final = 2**16  # bytes; a smaller tensor is sent in the queue itself
SIGNAL_S: Final = 1.0  # more than from a process's last file to the signal of its end


@dataclass(frozen=True, slots=True)
class Packed:
    """A value of a worker on its way to the reader, where `unpack` gives it back, once."""

    pickled: bytes


def pack(value: T) -> T | Packed:
    """In a worker: `value` for the reader, its tensors in memory. Elsewhere `value` itself."""
    if get_worker_info() is None:
        return value
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return Packed(file.getvalue())


def unpack(value: T | Packed) -> T:
    """The value that `pack` was given."""
    if isinstance(value, Packed):
        unpacked: T = pickle.loads(value.pickled)
        return unpacked
    return value


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        return _reduced(value.numpy()) if isinstance(value, Tensor) else NotImplemented


def _reduced(array: npt.NDArray[Any]) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    """How the reader makes the tensor: a function and its arguments."""
    if array.nbytes >= IN_THE_QUEUE:
        try:
            return _mapped, (_memory_with(array), array.shape, array.dtype)
        except OSError:  # too many open files, or a TMPDIR too long for a socket: the slow way
            pass
    return torch.from_numpy, (array,)


def _memory_with(array: npt.NDArray[Any]) -> Any:
    """A handle, which can be pickled, on a file in memory that holds the array."""
    file = open_memory_file()
    try:
        rest = np.ascontiguousarray(array).data.cast("B")
        while rest:
            rest = rest[os.write(file, rest) :]  # one call writes 2 GB at most
        return DupFd(file)
    finally:
        os.close(file)


def _mapped(handle: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    try:
        file = handle.detach()
    except (ConnectionError, FileNotFoundError, EOFError) as error:
        # A signal is on its way, at which torch raises, with the worker's number. Later it would
        # find the loader being closed, where an error is only printed.
        time.sleep(SIGNAL_S)
        raise RuntimeError("DataLoader worker has ended before its clip was taken") from error
    try:
        memory = mmap.mmap(file, 0)
    finally:
        os.close(file)
    return torch.from_numpy(np.frombuffer(memory, dtype).reshape(shape))

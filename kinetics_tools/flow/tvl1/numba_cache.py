"""Compilation by Numba, and the folder of the machine code that later processes load.

Numba writes an index of what it compiled, and numbers the files of the code. The same number comes
to mean other code when the source changes or when another kind of processor shares the folder, and
a process that is killed, or reads, between two writes takes one for the other. So each kind of
processor, Numba and source has a folder of its own here, in which a file name always means the same
code. All this is built on what Numba documents: `cache=True`, `config.CACHE_DIR`, `stats`.
"""

import hashlib
import logging
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from kinetics_tools.core.errors import KineticsError
from kinetics_tools.core.system import cache_dir
from kinetics_tools.flow.tvl1 import numba_simd

logger = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])
config: Any = numba.config  # whose types name no setting
_njit: Callable[..., Any] = partial(numba.njit, nogil=True, error_model="numpy")
# What Numba raises for a file that cannot be written, or that a loss of power left half written.
_UNUSABLE = (OSError, EOFError, pickle.UnpicklingError)


def compile_inline(function: F) -> F:
    """Compile a function when it is first called; threads may run it at the same time."""
    return cast("F", _njit(function))  # type checkers see the function's own signature


def compile_cached(function: Callable[..., Any]) -> Any:
    """The same, but machine code is stored where a folder can be written.

    Make the first call by `load_or_compile`, and all calls with arguments of the same Numba types:
    each other type is compiled again.

    Returns:
        Numba's dispatcher, which is called as the function is.
    """
    folder = next(filter(_is_writable, _folders()), None)
    if folder is not None:
        try:
            with _numba_cache_dir(folder / f"tvl1-{_kind()}"):
                return _njit(function, cache=True)
        except RuntimeError as error:
            logger.debug("%s", error)  # the function has no source file
    return compile_inline(function)


def load_or_compile(dispatcher: Any, *arguments: Any) -> None:
    """Make the first call of what `compile_cached` returned.

    Files that cannot be read or written cost no more than the time to compile.

    Raises:
        KineticsError: a damaged file cannot be removed.
    """
    folder = dispatcher.stats.cache_path
    if folder is None or not any(Path(folder).glob("*.nbc")):
        logger.info("compiling TV-L1 for this processor, which may take a minute")
    try:
        dispatcher(*arguments)
    except _UNUSABLE as error:
        if dispatcher.signatures:  # compiled, but not stored
            logger.warning(
                "compiled code cannot be stored in %s (%s); each process compiles it again",
                folder,
                error,
            )
        else:
            logger.info("compiling TV-L1 again: the stored code in %s is damaged", folder)
            _remove_code(Path(folder))
        dispatcher(*arguments)


def _remove_code(folder: Path) -> None:
    try:
        for path in folder.glob("*.nb[ci]"):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise KineticsError(
            f"{folder} holds damaged machine code ({error}); allow access to it, or set "
            "NUMBA_CACHE_DIR to another folder"
        ) from error


def _folders() -> Iterator[Path]:
    """Yield the folders to try: as NUMBA_CACHE_DIR says, beside the source, the user's cache."""
    if config.CACHE_DIR:
        yield Path(config.CACHE_DIR)
    yield Path(__file__).parent / "__pycache__"
    with suppress(KineticsError):  # the user has no home folder
        yield cache_dir()


@cache
def _kind() -> str:
    """A short name of all that decides the machine code: sources, processor and compiler."""
    sources = [
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(__file__).parent.glob("*.py"))
    ]
    text = repr((numba_simd.target(), sources))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


@contextmanager
def _numba_cache_dir(folder: Path) -> Iterator[None]:
    """Let functions that are declared in the block store their machine code in a folder."""
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        config.CACHE_DIR = before

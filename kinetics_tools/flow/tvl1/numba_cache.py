"""Compilation by Numba, and machine code that is kept for later processes.

Numba keeps an index of what it compiled, and numbers the files of the code. The same number comes
to mean other code when the source changes or when another kind of processor shares the folder, and
who is killed, or reads, between two writes takes one for the other. So here each kind of processor,
Numba and source has a folder of its own, in which a file name means one thing for ever.
"""

import contextlib
import hashlib
import logging
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.registry import cpu_target

from kinetics_tools.flow.tvl1 import numba_simd

logger = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])
# What reading a file that was half written before a loss of power may raise.
DAMAGED = (OSError, EOFError, pickle.UnpicklingError)


def compile_inline(function: F) -> F:
    """Compile a function when it is first called; threads run it side by side."""
    dispatcher = numba.njit(nogil=True, error_model="numpy")(function)
    return cast("F", dispatcher)  # to type checkers it is what it was before


def compile_cached(function: Callable[..., Any]) -> Any:
    """The same, and keep the machine code where a folder can be written.

    Call it with arguments of the same Numba types always: each other type is compiled anew.

    Returns:
        Numba's dispatcher, which is called as the function is.
    """
    dispatcher: Any = compile_inline(function)
    try:
        dispatcher._cache = _Cache(function)  # type: ignore[no-untyped-call]  # where enable_caching puts Numba's own
    except RuntimeError:
        logger.debug("no folder to keep machine code in; each process compiles")
    return dispatcher


class _Apart:
    """A locator of Numba's whose folder has one below it for each kind; see above."""

    def get_cache_path(self) -> str:
        path: str = super().get_cache_path()  # type: ignore[misc]  # of the locator
        return str(Path(path) / f"tvl1-{_kind()}")


@cache
def _kind() -> str:
    """A short name of all that decides the machine code: sources, processor and compiler."""
    sources = [
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(__file__).parent.glob("*.py"))
    ]
    processor = cpu_target.target_context.codegen().magic_tuple()
    text = repr((numba.__version__, numba_simd.LLVM_VERSION, processor, sources))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Implementation(CompileResultCacheImpl):
    _locator_classes = [  # noqa: RUF012 - as Numba has it
        type(locator.__name__, (_Apart, locator), {})  # type: ignore[misc]  # Numba's
        for locator in CompileResultCacheImpl._locator_classes
    ]


class _Cache(FunctionCache):
    """Numba's, but files that cannot be read or written cost the time of compiling only."""

    _impl_class = _Implementation

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = None
        with contextlib.suppress(*DAMAGED):
            found = super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        if found is None:
            logger.info("compiling TV-L1 for this processor, which may take a minute")
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]
        except DAMAGED as error:
            logger.warning(
                "compiled code cannot be kept in %s (%s); each process compiles it anew",
                self.cache_path,
                error,
            )

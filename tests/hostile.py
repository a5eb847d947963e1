"""Values that a stranger may write into a file of ours."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

NUMBERS = st.sampled_from([-1, 0, 1, 511, 2**31, 2**62, 2**63, 10**30, 1e300, -0.5, True])
OTHERS: st.SearchStrategy[Any] = st.sampled_from([None, [], {}, [None], {"": None}, [[[[]]]]])


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each part of a JSON value is; the names of an object are parts too."""
    yield at
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield (*at, ("name of", name))
        yield from places(inner, (*at, name))
    for number, inner in enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*at, number))


def replaced(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """A copy of a JSON value with another part."""
    if not at:
        return new
    if isinstance(at[0], tuple):
        return {str(new) if name == at[0][1] else name: inner for name, inner in value.items()}
    if isinstance(value, dict):
        return value | {at[0]: replaced(value[at[0]], at[1:], new)}
    return [*value[: at[0]], replaced(value[at[0]], at[1:], new), *value[at[0] + 1 :]]


def hostile_values(root: Path) -> st.SearchStrategy[Any]:
    names = st.sampled_from(
        [
            *(str(root / "victim"), "../../victim", "../victim", "..", ".", "", "/", "~"),
            *("a/b", "a\\b", "nul\0", "line\nfeed", "\x1b[31m", "\u202e", "é" * 300, "x" * 100_000),
            *("-rf", "=1+1", "CON", " ", "rgb", "flow-tvl1", "rgb-000000.tar", "\ud800"),
        ]
    )
    return names | NUMBERS | OTHERS

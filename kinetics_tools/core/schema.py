"""What the fields of our files may be. Shards and runs are passed around: a stranger may write one.

Every record is read into a dataclass whose annotations name these types, so that a name from a file
is safe as part of a path, and a number from a file as a size. What breaks a type is a ValueError
that says where it is.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from kinetics_tools.core.keys import MAX_KEY, label_problem

T = TypeVar("T")

MAX_FRAMES = 2**22  # of a clip: 46 hours at 25 fps
_NAME = rf"[A-Za-z0-9_-]{{1,{MAX_KEY}}}"
MAX_DEPTH = 100
MAX_VALUES = 2**24  # of a checkpoint, besides tensors; Kinetics-700 has 650,000 clips to name
_PLAIN = (str, int, float, bool, type(None), list, tuple, dict)
_STREAM = rf"(rgb|flow-{_NAME})"

Key = Annotated[str, Meta(pattern=rf"\A{_NAME}\Z")]
Split = Key
Stream = Annotated[str, Meta(pattern=rf"\A{_STREAM}\Z")]
ShardName = Annotated[str, Meta(pattern=rf"\A{_STREAM}-[0-9]{{6}}\.tar\Z")]
Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
DigestStart = Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]
Count = Annotated[int, Meta(ge=0, le=2**32)]
Positive = Annotated[int, Meta(ge=1, le=2**24)]
Quantity = Annotated[int, Meta(ge=0, le=2**62)]  # of operations
NumShards = Annotated[int, Meta(ge=0, le=1_000_000)]  # their names have six digits
NumFrames = Annotated[int, Meta(ge=1, le=MAX_FRAMES)]
NumBytes = Annotated[int, Meta(ge=0, le=2**50)]
Bound = Annotated[float, Meta(gt=0, le=10_000)]  # pixels per frame; not NaN
Pixels = Annotated[int, Meta(ge=1, le=2**14)]  # of one side
Share = Annotated[float, Meta(ge=0, le=1)]
Every = Annotated[str, Meta(pattern=r"\A([1-9][0-9]{0,8}|[0-9]{1,6}(\.[0-9]{1,3})?min)\Z")]
Amount = Annotated[float, Meta(ge=0, le=1e300)]  # of seconds, of a loss; finite


def parse(value: Any, record: type[T]) -> T:
    """The value of a JSON file as a dataclass; fields that it does not have are left out.

    A field of type Path is a text there. A field of another class of ours, such as a base class of
    records, must hold an instance already.

    Raises:
        ValueError: a field is missing, or is not what its annotation allows.
    """
    try:
        return msgspec.convert(value, record, dec_hook=_special)
    except msgspec.ValidationError as error:
        text = str(error).replace("`", "").replace("\n", "\\n")  # it may quote what was there
        raise ValueError(text if len(text) < 400 else f"{text[:200]} ... {text[-100:]}") from error


def parse_exactly(value: Any, record: type[T]) -> T:
    """`parse` of a recipe: a field that this version does not know could change what is made."""
    unknown = parse(value, dict[str, Any]).keys() - {each.name for each in fields(record)}  # type: ignore[arg-type]
    if unknown:
        raise ValueError(f"this version does not know {sorted(unknown)}"[:300])
    return parse(value, record)


def check_plain(value: Any) -> None:
    """Raise a ValueError unless a value holds only what JSON can hold; tuples are lists here.

    A checkpoint may hold tensors and other objects where a field should be. A list in it may hold
    one other list many times: written out it would have no end.
    """
    level, depth, num_values = {id(value): (value, 1)}, 0, 0  # values, and how often each is there
    while level:
        depth += 1
        num_values += sum(times for _, times in level.values())
        if depth > MAX_DEPTH or num_values > MAX_VALUES:
            raise ValueError("it is nested too deep" if depth > MAX_DEPTH else "it is too large")
        inside: dict[int, tuple[Any, int]] = {}
        for each, times in level.values():
            if not isinstance(each, _PLAIN):
                raise ValueError(f"a {type(each).__name__} is not a plain value")
            if isinstance(each, (dict, list, tuple)):
                for inner in (*each, *each.values()) if isinstance(each, dict) else each:
                    inside[id(inner)] = (inner, inside.get(id(inner), (None, 0))[1] + times)
        level = inside


def _special(kind: type, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    if kind is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    raise ValueError(f"expected {kind.__name__}, got {value!r}"[:300])


def check(value: Any, type_: Any) -> None:
    """Raise a ValueError unless `value` is of a type of this module, or a list of one."""
    parse(value, type_)


def check_label(label: str | None) -> None:
    """Raise a ValueError if a label cannot name a folder."""
    problem = None if label is None else label_problem(label)
    if problem is not None:
        raise ValueError(f"{label!r}: {problem}"[:300])


def check_labels(labels: tuple[str, ...]) -> None:
    """The same of a full label list; each label may be there once."""
    for label in labels:
        check_label(label)
    if len(set(labels)) < len(labels):
        raise ValueError("a label is there twice")


def check_flow_parameters(parameters: Mapping[str, Any]) -> None:
    """Raise a ValueError unless the recipe of a flow says how its codes are read."""
    if not isinstance(parameters.get("codec"), str):
        raise ValueError("the recipe of the flow has no codec")
    check(parameters.get("bound"), Bound)

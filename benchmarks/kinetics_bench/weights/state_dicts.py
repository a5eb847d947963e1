"""The weights of one network among the tensors of a file, under names without wrappers.

Trainers put a state dict into other values (`{"epoch": 9, "state_dict": ...}`), put the network
into other modules (`module.`, `_orig_mod.`, `model.`, `backbone.`), and store a second one, such as
a moving average of the weights (EMA). Which words are before a name does not matter: they are what
is left before the part that is known.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from kinetics_tools.core.errors import EvaluationError

Knows = Callable[[str], bool]
# torch puts these before the name of any module: a compiled one, one that is sharded, and others.
_WRAPPERS: Final = frozenset(
    {
        "module",
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
    }
)
UNWRAPPED: Final = "unwrapped"  # the word for weights that have no words before their names
_DEPTH: Final = 5  # of state dicts in a file: {"callbacks": {"ema": {"shadow": state dict}}}
_SHARE: Final = 0.5  # of the largest network's tensors; what has fewer is a part of something else
_NEGATIONS: Final = frozenset({"without", "not", "non", "no", "wo"})
_PARTS: Final = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True)
class StateDict:
    """The weights of a network in a file.

    Attributes:
        place: where they are in the file, such as `state_dict.ema_model`; empty: they are all.
        tensors: name without wrappers -> tensor.
        prefix: the words that were taken off all names, such as `ema_model`.
        unused: names of tensors beside them that belong to no network.
    """

    place: str
    tensors: Mapping[str, Tensor]
    prefix: str = ""
    unused: tuple[str, ...] = ()

    def is_meant_by(self, word: str) -> tuple[bool, bool, bool]:
        """Whether `word` is the place; is one of its steps; or is a word in it, such as `ema`.

        `model_without_ema` is not meant by `ema`.
        """
        words = _PARTS.split(self.place.lower())
        return (
            word == (self.place or UNWRAPPED),
            word in self.place.split("."),
            word.lower() in words and not _NEGATIONS.intersection(words),
        )


def find_state_dicts(values: Any, knows: Knows) -> list[StateDict]:
    """All weights of networks in what a file holds.

    Args:
        values: plain values, mappings and tensors.
        knows: whether a name is a parameter of a network that can be read.

    Returns:
        Those of known names. If there are none: the mapping with the most tensors, as it is.
    """
    states = list(_states(values))
    known = [found for place, state in states for found in _split(place, state, knows)]
    if not known:
        return [StateDict(*max(states, key=lambda each: len(each[1])))] if states else []
    least = _SHARE * max(len(each.tensors) for each in known)
    return [each for each in known if len(each.tensors) >= least]


def choose(found: list[StateDict], word: str, path: str) -> StateDict:
    """The weights that `word` means, or the only ones.

    Args:
        found: what `find_state_dicts` returned, not empty.
        word: of the user; empty: none was given.
        path: of the file, for messages.

    Raises:
        EvaluationError: there are several, or none of that word.
    """
    if not word and len(found) == 1:
        return found[0]
    places = ", ".join(each.place or UNWRAPPED for each in found)
    if word:
        meant = zip(*(each.is_meant_by(word) for each in found), strict=True)
        for are_meant in meant:
            if sum(are_meant) == 1:
                return found[are_meant.index(True)]
        if [each.place for each in found] == [""]:
            raise EvaluationError(
                f"{path} has no weights {word!r}: it holds one network; "
                f"give this file without :{word}"
            )
        raise EvaluationError(
            f"{path} has no weights that only the word {word!r} means; it holds: {places}"
        )
    raise EvaluationError(
        f"{path} holds the weights of several networks ({places}); choose one with a word after a "
        f"colon, such as {path}:{found[0].place}"
    )


def _states(values: Any) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Place -> the tensors in a mapping, of all that have some, each where it is least deep.

    A small file may hold one mapping many times.
    """
    level, seen = [("", values)], set[int]()
    for _ in range(_DEPTH + 1):
        inside = []
        for place, value in level:
            if not isinstance(value, Mapping) or id(value) in seen:
                continue
            seen.add(id(value))
            named = {name: inner for name, inner in value.items() if isinstance(name, str)}
            tensors = {name: inner for name, inner in named.items() if isinstance(inner, Tensor)}
            if tensors:
                yield place, tensors
            inside += [(f"{place}.{n}" if place else n, inner) for n, inner in named.items()]
        level = inside


def _split(place: str, state: Mapping[str, Tensor], knows: Knows) -> list[StateDict]:
    """The networks in one state dict: one per prefix, the words before the names that are known."""
    bare = {name: _without_wrappers(name) for name in state}
    prefixes = {name: _prefix(short, knows) for name, short in bare.items()}
    sizes = Counter(prefix for prefix in prefixes.values() if prefix is not None)
    # A classifier `head.fc.weight` beside `backbone.` has a known name too, but is no network.
    networks = [each for each, size in sizes.items() if size >= _SHARE * max(sizes.values())]
    groups: dict[str, list[str]] = {prefix: [] for prefix in networks}
    unused = []
    for name, short in bare.items():
        owners = [each for each in networks if not each or short.startswith(f"{each}.")]
        owner = max(owners, key=len, default=None)
        # Such as n_averaged, the number of steps of an average.
        within = short.removeprefix(f"{owner}.") if owner else short
        is_counter = prefixes[name] is None and "." not in within and state[name].numel() == 1
        if owner is not None and not is_counter:
            groups[owner].append(name)
        else:
            unused.append(name)
    return [
        StateDict(
            place=_place(place, prefix) if len(networks) > 1 else place,
            prefix=prefix,
            tensors=_renamed(state, {name: bare[name] for name in names}, prefix),
            unused=tuple(unused),
        )
        for prefix, names in groups.items()
    ]


def _place(place: str, prefix: str) -> str:
    return ".".join(filter(None, (place, prefix))) or UNWRAPPED


def _renamed(
    state: Mapping[str, Tensor], bare: Mapping[str, str], prefix: str
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, short in bare.items():
        ours = short.removeprefix(f"{prefix}.") if prefix else short
        if ours in tensors:
            raise EvaluationError(f"{ours} is there twice, once as {name}")
        tensors[ours] = state[name]
    return tensors


def _without_wrappers(name: str) -> str:
    return ".".join(word for word in name.split(".") if word not in _WRAPPERS)


def _prefix(name: str, knows: Knows) -> str | None:
    """The words before the longest end of a name that is known; None: no end is."""
    words = name.split(".")
    for number in range(len(words)):
        if knows(".".join(words[number:])):
            return ".".join(words[:number])
    return None

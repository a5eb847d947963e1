"""What a checkpoint of our own training says about its weights, beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from kinetics_tools.core import schema
from kinetics_tools.core.errors import KineticsError
from kinetics_tools.flow.methods import FlowRecipe
from kinetics_tools.shards.records import StreamRecipe, flow_stream

_OURS: Final = frozenset({"net", "arch", "stream"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointHeader:
    """What a checkpoint of our own training says about its weights.

    `kinetics_bench.training.checkpoint` writes it. Files of other programs with a state dict under
    the same name may lack any of it.

    Attributes:
        arch: a name in ARCHS.
        stream: one of its streams.
        labels: class names in index order.
        trained_on: keys of the clips that it was trained on.
        bound: pixels per frame that are 1 in its input of flow.
        flow: the recipe of that flow.
    """

    arch: str | None
    stream: str | None
    labels: tuple[str, ...] | None
    trained_on: tuple[str, ...] | None
    bound: float | None = None
    flow: FlowRecipe | None = None

    @classmethod
    def of(cls, values: Any) -> CheckpointHeader | None:
        """The header in what torch.load returned; None if that is not a checkpoint of ours."""
        if not isinstance(values, Mapping) or not values.keys() >= _OURS:
            return None
        if not isinstance(values["net"], Mapping):
            return None
        data = values.get("data")
        data = data if isinstance(data, Mapping) else {}
        labels, trained_on = data.get("labels"), values.get("trained_on")
        bound, flow = _flow(data)
        return cls(
            arch=values.get("arch"),
            stream=values.get("stream"),
            labels=tuple(labels) if _are_names(labels) else None,
            trained_on=tuple(trained_on) if _are_names(trained_on) else None,
            bound=bound,
            flow=flow,
        )

    def problem(self, arch: str, stream: str | None) -> str:
        """Why the weights are not of this arch and stream (None: any); empty if they are."""
        if self.arch not in (None, arch):
            return f"holds weights of {self.arch}, not of {arch}"
        if stream is not None and self.stream not in (None, stream):
            return f"holds weights of {arch} {self.stream}, not of {arch} {stream}"
        return ""


def _flow(data: Mapping[str, Any]) -> tuple[float | None, FlowRecipe | None]:
    """Bound and recipe of the flow in a checkpoint's data; None what is missing or no flow's."""
    name, recipes = data.get("flow"), data.get("recipes")
    if not isinstance(name, str) or not name or not isinstance(recipes, Mapping):
        return None, None
    try:
        schema.check_plain([data.get("bound"), recipes])
        schema.check(data.get("bound"), schema.Bound)
        recipe = StreamRecipe.all_from_json(recipes)[flow_stream(name)]
        return data["bound"], FlowRecipe.from_json(recipe.parameters)
    except (ValueError, LookupError, KineticsError):
        return None, None


def _are_names(value: object) -> TypeGuard[Sequence[str]]:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)

"""The optimizer of a training, and its state in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path

import torch
from torch import Tensor, nn

from kinetics_bench.recipes import Recipe
from kinetics_bench.training.checkpoint import AGAIN, Checkpoint
from kinetics_tools.core.errors import EvaluationError


def gradient_of(weight: nn.Parameter) -> Tensor:
    """The gradient of a weight; zeros if there is none."""
    # A process without a micro-batch in this step adds zeros to the others' gradients.
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


def new_optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of a recipe, for the weights of a network that are trained."""
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    kernels = [weight for weight in weights if weight.ndim > 1]
    others = [weight for weight in weights if weight.ndim <= 1]
    groups = [
        {"params": kernels, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    # Not fused: on a CPU the fused step of torch 2.13 assumes that gradient and weight have equal
    # strides. If they have not, it pairs the wrong elements and reports no error.
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    return torch.optim.AdamW(groups, lr=0.0)


def restore(
    net: nn.Module, optimizer: torch.optim.Optimizer, before: Checkpoint, path: Path
) -> None:
    """Load the weights and the optimizer's state of a checkpoint of the same training.

    Raises:
        EvaluationError: the optimizer's state is not of these weights.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    is_sgd = isinstance(optimizer, torch.optim.SGD)
    names = {"momentum_buffer"} if is_sgd else {"step", "exp_avg", "exp_avg_sq"}
    state = before.optimizer.get("state")
    if not isinstance(state, Mapping) or not all(
        number in range(len(weights)) and _is_state(each, names, weights[number].shape)
        for number, each in state.items()
    ):
        raise EvaluationError(f"{path}: the optimizer's state is damaged; {AGAIN}")
    # Its parameter groups are the recipe's; the learning rate is set at every step.
    optimizer.load_state_dict(optimizer.state_dict() | {"state": dict(state)})
    net.load_state_dict(before.net)


def _is_state(value: object, names: Set[str], shape: torch.Size) -> bool:
    """Whether a value is the optimizer's state of one parameter."""
    return (
        isinstance(value, Mapping)
        and value.keys() == names
        and all(
            isinstance(each, torch.Tensor)
            and each.dtype == torch.float32
            and each.shape == (() if name == "step" else shape)
            for name, each in value.items()
        )
    )

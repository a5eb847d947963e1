"""The checkpoint of a network: everything needed to continue its training, or to use it."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import torch

from kinetics_bench.archs.network import Network
from kinetics_bench.archs.registry import build
from kinetics_bench.weights.files import UNREADABLE_ERRORS, is_damaged
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.core.files import publish

FORMAT: Final = 2
CHECKPOINT = "checkpoint.pt"


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """A network, trained or under way, and everything needed to go on or to use it.

    Attributes:
        recipe: as `Recipe.as_json` tells it.
        data: what the shards were: `labels`, `recipes` (rgb and this flow), `flow` (its name),
            `bound`, `train_split` (None: weights that were not trained here), `num_train`.
        epoch: epochs that are behind it.
        step: optimizer steps that are behind it.
        net, optimizer: state dicts.
        history: an object an epoch.
        failed: key -> reason, of training clips that could not be decoded.
        init: `source` and `sha256` of the weights it began from (`scratch`), and `finetune`.
    """

    arch: str
    stream: str
    identity: dict[str, Any]
    recipe: dict[str, Any]
    data: dict[str, Any]
    seed: int
    precision: str
    net: dict[str, Any]
    optimizer: dict[str, Any]
    epoch: int = 0
    step: int = 0
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    init: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def write(self, path: Path) -> None:
        """Write it; a reader sees the old file or the new one."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        with publish(path) as scratch:
            torch.save(values, scratch)

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Read what `write` wrote, to the CPU; nothing in it is run.

        Raises:
            EvaluationError: it is missing, damaged, or of another format.
        """
        try:
            if is_damaged(path):
                raise EvaluationError(
                    f"{path} is damaged or truncated; copy it anew, or train anew with --force"
                )
            values = torch.load(path, map_location="cpu", weights_only=True)
            checkpoint = cls(**values)
        except FileNotFoundError as error:
            raise EvaluationError(f"{path} is missing: no training was started there") from error
        except UNREADABLE_ERRORS as error:
            raise EvaluationError(
                f"{path} is damaged, or no checkpoint of this version; copy it anew, "
                "or train anew with --force"
            ) from error
        if checkpoint.format != FORMAT:
            raise EvaluationError(
                f"{path} has format {checkpoint.format}, this version reads {FORMAT}; "
                "train anew with --force"
            )
        return checkpoint

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in index order."""
        return tuple(self.data["labels"])

    def network(self) -> Network:
        """The network with its weights, on the CPU, in evaluation mode.

        Raises:
            EvaluationError: the weights do not fit the architecture and class count.
        """
        net = build(self.arch, self.stream, len(self.labels))
        try:
            net.load_state_dict(self.net)
        except RuntimeError as error:
            raise EvaluationError(
                f"these weights are not of {self.arch}, stream {self.stream}, with "
                f"{len(self.labels)} classes: {str(error).splitlines()[-1].strip()}"
            ) from error
        return net.eval()

"""From what is stored of clips to what networks see: the one place where pixels become numbers.

Processes that read clips hand over bytes: crops of frames, and codes of flow. The device flips,
scales and normalises them, in training, evaluation, prediction and features alike. An RGB crop of
64 frames has 9.6 MB in bytes, and 38.5 MB in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Crops:
    """Crops of B clips, as they are stored.

    Attributes:
        streams: the network's inputs in order: `rgb` uint8 (B, T, h, w, 3), `flow` the codes of its
            fields, uint8 (B, T, 2, h, w), x then y.
        flips: bool (B,): which clips are flipped horizontally.
        flow_scale: float32 (B, 2): what the highest code of x and y is in the input; codes c are
            (c / 255 - 0.5) times twice that. Not used without flow.
    """

    streams: Mapping[str, Tensor]
    flips: Tensor
    flow_scale: Tensor

    def __len__(self) -> int:
        return len(self.flips)

    @classmethod
    def empty(cls, num: int, num_frames: Mapping[str, int], crop_px: int) -> Crops:
        """Black crops of `num` clips without motion, with so many frames or fields by stream."""
        shapes = {"rgb": (crop_px, crop_px, 3), "flow": (2, crop_px, crop_px)}
        return cls(
            {
                stream: torch.zeros(num, frames, *shapes[stream], dtype=torch.uint8)
                for stream, frames in num_frames.items()
            },
            torch.zeros(num, dtype=torch.bool),
            torch.ones(num, 2),
        )

    @classmethod
    def joined(cls, parts: Sequence[Crops]) -> Crops:
        """The crops of several, at least one, in their order."""
        return cls(
            {name: torch.cat([each.streams[name] for each in parts]) for name in parts[0].streams},
            torch.cat([each.flips for each in parts]),
            torch.cat([each.flow_scale for each in parts]),
        )


def network_inputs(crops: Crops, device: torch.device) -> list[Tensor]:
    """The inputs of a network on `device`, in order.

    Returns:
        each float32 (B, C, T, h, w) in [-1, 1], channels last in memory. RGB is value / 127.5 - 1;
        flow beyond the scale is clamped, and a flip negates x.
    """
    flips = crops.flips.to(device).reshape(-1, 1, 1, 1, 1)
    return [
        _input(name, values.to(device), flips, crops.flow_scale)
        for name, values in crops.streams.items()
    ]


def _input(name: str, stored: Tensor, flips: Tensor, flow_scale: Tensor) -> Tensor:
    is_flow = name == "flow"
    channels_first = (0, 2, 1, 3, 4) if is_flow else (0, 4, 1, 2, 3)
    clips = stored.permute(channels_first)
    clips = torch.where(flips, clips.flip(-1), clips)
    clips = clips.contiguous(memory_format=torch.channels_last_3d)
    if not is_flow:
        return clips.float().div_(127.5).sub_(1)
    scale = 2 * flow_scale.to(stored.device)[:, :, None, None, None]
    values = clips.float().div_(255).sub_(0.5).mul_(scale).clamp_(-1, 1)
    values[:, :1] *= torch.where(flips, -1.0, 1.0)
    return values

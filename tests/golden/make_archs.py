"""Make archs.json, the logits of seeded networks: `python tests/golden/make_archs.py`."""

import json
import sys
from pathlib import Path

import torch

from benchmarks.archs import CHANNELS, build

COMMAND = "python tests/golden/make_archs.py"
TOLERANCE = 2e-3


def golden_logits() -> dict[str, list[float]]:
    """Logits of I3D with 5 classes, weights of seed 0, for a wave of 17 frames of 45x38 pixels.

    In training mode, where batch norm takes the wave's own statistics: with those of fresh weights
    the signal dies away layer by layer, and the logits would say nothing.
    """
    logits = {}
    for stream, channels in CHANNELS.items():
        torch.manual_seed(0)
        net = build("i3d", stream, 5, dropout=0.0).train()
        c, t, y, x = torch.meshgrid(
            *(torch.arange(n, dtype=torch.float32) for n in (channels, 17, 45, 38)), indexing="ij"
        )
        wave = torch.sin(0.7 * c + 0.3 * t + 0.21 * y + 0.13 * x)
        with torch.inference_mode():
            logits[stream] = net(wave[None])[0].tolist()
    return logits


if __name__ == "__main__":
    golden = {
        "command": COMMAND,
        "tolerance": TOLERANCE,
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "logits": golden_logits(),
    }
    path = Path(__file__).with_name("archs.json")
    path.write_text(json.dumps(golden, indent=1) + "\n")

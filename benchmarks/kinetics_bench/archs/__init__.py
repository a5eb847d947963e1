"""The architectures of the paper.

`build` makes a network, ARCHS says which there are and what the paper feeds them. Names that are
not in `__all__` are private. Importing this package does not import torch.
"""

from kinetics_bench.archs.registry import ARCHS, CHANNELS, STREAMS, Arch, Sampling, build

__all__ = ["ARCHS", "CHANNELS", "STREAMS", "Arch", "Sampling", "build"]

"""The architectures of the paper: Carreira and Zisserman, arXiv 1705.07750 v3.

    from kinetics_bench import archs

    net = archs.build("i3d", stream="rgb", num_classes=400)  # a torch.nn.Module
    archs.ARCHS["i3d"].train["rgb"]  # Sampling(num=64, stride=1): the paper's training input

`build` makes a network. `ARCHS` lists the architectures, with the paper's inputs for training and
test. Names that are not in `__all__` are private. Importing this package does not import torch.
"""

from kinetics_bench.archs.registry import ARCHS, CHANNELS, STREAMS, Arch, Sampling, build

__all__ = ["ARCHS", "CHANNELS", "STREAMS", "Arch", "Sampling", "build"]

"""Networks of other projects, with the parameter names and shapes of their state dicts.

GoogLeNet can also compute, as torchvision's; the others only hold parameters. Except for
`deepmind_variables`, nothing here uses our mapping of names.
"""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from kinetics_bench.weights.naming import SCHEMES

Net = TypeVar("Net", bound=nn.Module)

# Channels of each block: input; 1x1; 1x1, 3x3; 1x1, 3x3; 1x1 after the pool.
BLOCKS: Mapping[str, tuple[int, ...]] = {
    "3b": (192, 64, 96, 128, 16, 32, 32),
    "3c": (256, 128, 128, 192, 32, 96, 64),
    "4b": (480, 192, 96, 208, 16, 48, 64),
    "4c": (512, 160, 112, 224, 24, 64, 64),
    "4d": (512, 128, 128, 256, 24, 64, 64),
    "4e": (512, 112, 144, 288, 32, 64, 64),
    "4f": (528, 256, 160, 320, 32, 128, 128),
    "5b": (832, 256, 160, 320, 32, 128, 128),
    "5c": (832, 384, 192, 384, 48, 128, 128),
}


class Piergiaj(nn.Module):
    """Names of piergiaj/pytorch-i3d."""

    def __init__(self, channels: int = 3, num_classes: int = 400) -> None:
        super().__init__()

        def unit(inputs: int, outputs: int, kernel: int = 1) -> nn.Module:
            module = nn.Module()
            module.conv3d = nn.Conv3d(inputs, outputs, kernel, bias=False)
            module.bn = nn.BatchNorm3d(outputs)
            return module

        self.logits = nn.Module()
        self.logits.conv3d = nn.Conv3d(1024, num_classes, 1)
        self.add_module("Conv3d_1a_7x7", unit(channels, 64, 7))
        self.add_module("Conv3d_2b_1x1", unit(64, 64))
        self.add_module("Conv3d_2c_3x3", unit(64, 192, 3))
        for name, (inputs, b0, b1a, b1b, b2a, b2b, b3b) in BLOCKS.items():
            block = nn.Module()
            block.b0 = unit(inputs, b0)
            block.b1a = unit(inputs, b1a)
            block.b1b = unit(b1a, b1b, 3)
            block.b2a = unit(inputs, b2a)
            block.b2b = unit(b2a, b2b, 3)
            block.b3b = unit(inputs, b3b)
            self.add_module(f"Mixed_{name}", block)


class Hassony2(nn.Module):
    """Names of hassony2/kinetics_i3d_pytorch."""

    def __init__(self, channels: int = 3, num_classes: int = 400) -> None:
        super().__init__()

        def unit(inputs: int, outputs: int, kernel: int = 1) -> nn.Module:
            module = nn.Module()
            module.conv3d = nn.Conv3d(inputs, outputs, kernel, bias=False)
            module.batch3d = nn.BatchNorm3d(outputs)
            return module

        self.conv3d_1a_7x7 = unit(channels, 64, 7)
        self.conv3d_2b_1x1 = unit(64, 64)
        self.conv3d_2c_3x3 = unit(64, 192, 3)
        for name, (inputs, b0, b1a, b1b, b2a, b2b, b3b) in BLOCKS.items():
            block = nn.Module()
            block.branch_0 = unit(inputs, b0)
            block.branch_1 = nn.Sequential(unit(inputs, b1a), unit(b1a, b1b, 3))
            block.branch_2 = nn.Sequential(unit(inputs, b2a), unit(b2a, b2b, 3))
            block.branch_3 = nn.Sequential(nn.MaxPool3d(3), unit(inputs, b3b))
            self.add_module(f"mixed_{name}", block)
        self.conv3d_0c_1x1 = nn.Module()
        self.conv3d_0c_1x1.conv3d = nn.Conv3d(1024, num_classes, 1)


class GoogLeNet(nn.Module):
    """torchvision's GoogLeNet with its auxiliary classifiers, which are not computed.

    Args:
        pad: padding of conv1 on both sides of each axis: 3 and 3 in torchvision, 2 and 3 in
            TensorFlow for even sizes.
    """

    def __init__(self, pad: tuple[int, int] = (3, 3)) -> None:
        super().__init__()
        self.pad = pad
        self.conv1 = Basic(3, 64, 7, stride=2)
        self.conv2 = Basic(64, 64)
        self.conv3 = Basic(64, 192, 3, padding=1)
        self.blocks = []
        for name, sizes in BLOCKS.items():
            name = f"inception{name[0]}{chr(ord(name[1]) - 1)}"
            self.add_module(name, Block(*sizes))
            self.blocks.append(name)
        for number, inputs in ((1, 512), (2, 528)):
            side = nn.Module()
            side.conv = Basic(inputs, 128)
            side.fc1 = nn.Linear(2048, 1024)
            side.fc2 = nn.Linear(1024, 1000)
            self.add_module(f"aux{number}", side)
        self.fc = nn.Linear(1024, 1000)

    def forward(self, pictures: Tensor) -> Tensor:
        """Map (B, 3, H, W), normalised by ImageNet's mean and std, to logits (B, 1000)."""
        deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        x = pictures * (deviation / 0.5) + (mean - 0.5) / 0.5
        x = self.conv1(functional.pad(x, (*self.pad, *self.pad)))
        x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
        x = self.conv3(self.conv2(x))
        x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
        for name in self.blocks:
            if name == "inception4a":
                x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
            if name == "inception5a":
                x = functional.max_pool2d(x, 2, 2, ceil_mode=True)
            x = getattr(self, name)(x)
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


class Basic(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    def __init__(self, inputs: int, b1: int, b2a: int, b2b: int, b3a: int, *rest: int) -> None:
        super().__init__()
        b3b, b4 = rest
        self.branch1 = Basic(inputs, b1)
        self.branch2 = nn.Sequential(Basic(inputs, b2a), Basic(b2a, b2b, 3, padding=1))
        self.branch3 = nn.Sequential(Basic(inputs, b3a), Basic(b3a, b3b, 3, padding=1))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), Basic(inputs, b4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


def randomize_batch_norm(net: Net, seed: int = 0) -> Net:
    """Give all batch norms random statistics and offsets, and switch to evaluation mode."""
    random = torch.Generator().manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=random))
        elif name.endswith("running_mean") or (name.endswith(".bias") and tensor.ndim == 1):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=random))
    return net.eval()


def deepmind_variables(net: nn.Module, scope: str) -> dict[str, Tensor]:
    """The weights of our I3D as variables of the published TensorFlow checkpoints."""
    variables = SCHEMES["deepmind"].from_ours(net.state_dict())
    return {scope + name: tensor for name, tensor in variables.items()}


def deepmind_shapes(channels: int = 3, num_classes: int = 400) -> dict[str, tuple[int, ...]]:
    """Names without scope, and shapes, of the variables in the published checkpoints."""
    shapes: dict[str, tuple[int, ...]] = {}

    def unit(name: str, inputs: int, outputs: int, kernel: int = 1) -> None:
        shapes[f"{name}/conv_3d/w"] = (kernel, kernel, kernel, inputs, outputs)
        for what in ("beta", "moving_mean", "moving_variance"):
            shapes[f"{name}/batch_norm/{what}"] = (outputs,)

    unit("Conv3d_1a_7x7", channels, 64, 7)
    unit("Conv3d_2b_1x1", 64, 64)
    unit("Conv3d_2c_3x3", 64, 192, 3)
    for name, (inputs, b0, b1a, b1b, b2a, b2b, b3b) in BLOCKS.items():
        block = f"Mixed_{name}"
        unit(f"{block}/Branch_0/Conv3d_0a_1x1", inputs, b0)
        unit(f"{block}/Branch_1/Conv3d_0a_1x1", inputs, b1a)
        unit(f"{block}/Branch_1/Conv3d_0b_3x3", b1a, b1b, 3)
        unit(f"{block}/Branch_2/Conv3d_0a_1x1", inputs, b2a)
        third = "Conv3d_0a_3x3" if name == "5b" else "Conv3d_0b_3x3"
        unit(f"{block}/Branch_2/{third}", b2a, b2b, 3)
        unit(f"{block}/Branch_3/Conv3d_0b_1x1", inputs, b3b)
    shapes["Logits/Conv3d_0c_1x1/conv_3d/w"] = (1, 1, 1, 1024, num_classes)
    shapes["Logits/Conv3d_0c_1x1/conv_3d/b"] = (num_classes,)
    return shapes

"""Published weights, and weights in files.

    from pathlib import Path

    from kinetics_bench import archs
    from kinetics_bench.weights import load_init

    net = archs.build("i3d", "rgb", num_classes=101)
    init = load_init(
        "rgb_imagenet.pt", arch="i3d", stream="rgb", num_classes=101, cache=Path("cache")
    )
    init.load(net)  # with other classes than the file's, the last layer keeps its initial weights

`load_init` reads what `--init` names and checks it against a network. `read` reads a file of
weights under the names of our networks; `SCHEMES` converts names and shapes both ways. Names that
are not in `__all__` are private.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kinetics_bench.weights.choices import FINETUNES, INITS
    from kinetics_bench.weights.files import Weights, read
    from kinetics_bench.weights.init import InitWeights, load_init
    from kinetics_bench.weights.naming import SCHEMES

__all__ = ["FINETUNES", "INITS", "SCHEMES", "InitWeights", "Weights", "load_init", "read"]
_MODULES = {
    "choices": "FINETUNES INITS",
    "files": "Weights read",
    "init": "InitWeights load_init",
    "naming": "SCHEMES",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: command lines must start without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

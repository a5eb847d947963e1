"""Published weights, and weights in files.

`load_init` reads what `--init` names and checks it against a network; `read` reads a file of
weights. Names that are not in `__all__` are private.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kinetics_bench.weights.choices import FINETUNES, INITS
    from kinetics_bench.weights.files import Weights, read
    from kinetics_bench.weights.init import InitWeights, load_init
    from kinetics_bench.weights.naming import SCHEMES

__all__ = ["FINETUNES", "INITS", "SCHEMES", "InitWeights", "Weights", "load_init", "read"]
_HOMES = {
    "FINETUNES": "kinetics_bench.weights.choices",
    "INITS": "kinetics_bench.weights.choices",
    "InitWeights": "kinetics_bench.weights.init",
    "load_init": "kinetics_bench.weights.init",
    "Weights": "kinetics_bench.weights.files",
    "read": "kinetics_bench.weights.files",
    "SCHEMES": "kinetics_bench.weights.naming",
}


def __getattr__(name: str) -> Any:
    """Import a public name where it is used: command lines must start without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

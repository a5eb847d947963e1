"""The layers, checked: imports point down, and each foreign library has one owner."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT, environment

TOOLKIT = (
    "errors",
    "files",
    "pace",
    "web",
    "ahead",
    "engine",
    "cli",
    "names",
    "media",
    "sections",
    "dialects",
    "manifest",
    "ledger",
    "official",
    "sources.base",
    "sources.folder",
    "sources.tars",
    "sources.search",
    "sources.cvdf",
    "sources.options",
    "sources.runtime",
    "sources.ytdlp",
    "sources.online",
    "sources.chain",
    "estimate",
    "check",
    "download",
    "clips",
    "verify",
    "page",
    "coverage",
    "lists",
    "report",
    "opencv",
    "tvl1.dials",
    "tvl1.reference",
    "tvl1.vector",
    "tvl1.keeping",
    "tvl1.cpu",
    "tvl1.kernels",
    "tvl1.cuda",
    "tvl1",
    "codecs",
    "flow",
    "shards",
    "sharding",
    "extract",
    "forecast",
    "export",
    "sample",
    "colour",
    "board",
    "show",
    "commands.show",
    "commands.record",
    "commands.export",
    "commands.download",
    "commands.extract",
)
SUITE = (
    "archs.streams",
    "archs.network",
    "archs.layers",
    "archs.inception",
    "archs.i3d",
    "archs.two_stream",
    "archs.fused",
    "archs.c3d",
    "archs.convnet_lstm",
    "archs",
    "archs.table",
    "protocols",
    "recipes",
    "views",
    "splits",
    "machine",
    "loader",
    "weights.schemes",
    "weights.stored",
    "weights.published",
    "weights.start",
    "weights.cricket",
    "train",
    "trained",
    "record",
    "evaluate",
    "benchmark",
    "report",
    "videos",
    "predict",
    "features",
    "commands",
    "demo",
    "picture",
    "speed.download",
    "speed.codec",
    "speed.flow",
    "speed.train",
)
OWNERS = {
    "ffmpeg": {"kinetics_tools.media"},
    "imageio_ffmpeg": {"kinetics_tools.media"},
    "av": {"kinetics_tools.media", "kinetics_tools.sections"},
    "requests": {"kinetics_tools.web"},
    "urllib3": {"kinetics_tools.web"},
    # One fetches with it, the other says whether it can.
    "yt_dlp": {"kinetics_tools.sources.ytdlp", "kinetics_tools.sources.runtime"},
    "cv2": {"kinetics_tools.opencv"},
    "webdataset": {"kinetics_tools.sharding"},
    "tqdm": {"kinetics_tools.cli"},
    "jinja2": {"kinetics_tools.page"},
    "ray": {"kinetics_tools.engine"},
    "tensorflow": {"benchmarks.weights.stored"},
    "skimage": {"benchmarks.speed.flow"},
    # The vectors that kernels are written in, and what compiles these.
    "numba": {"kinetics_tools.tvl1.vector", "kinetics_tools.tvl1.keeping"},
    "llvmlite": {"kinetics_tools.tvl1.vector"},
    "triton": {"kinetics_tools.tvl1.kernels"},
}


def modules() -> list[str]:
    """Every module of the two packages, by dotted name."""
    found = []
    for package in ("kinetics_tools", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def path_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    package = path / "__init__.py"
    return package if package.exists() else path.with_suffix(".py")


def imports(module: str) -> Iterator[str]:
    """Everything that a module imports, wherever in it: `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(path_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def ours(name: str) -> str | None:
    """The module of ours that an imported name is, or is in."""
    known = set(modules())
    while name:
        if name in known:
            return name
        name = name.rpartition(".")[0]
    return None


def rank(module: str) -> int:
    package, _, inner = module.partition(".")
    order = TOOLKIT if package == "kinetics_tools" else SUITE
    return (package == "benchmarks") * 1000 + order.index(inner)


PACKAGES = (  # a docstring, no imports
    "kinetics_tools",
    "benchmarks",
    "kinetics_tools.commands",
    "kinetics_tools.sources",
    "benchmarks.speed",
    "benchmarks.weights",
)


@pytest.mark.parametrize("module", modules())
def test_imports_point_down_and_each_library_has_one_owner(module: str) -> None:
    if module in PACKAGES:
        assert not list(imports(module))
        return
    for name in imports(module):
        root = name.partition(".")[0]
        owners = OWNERS.get(root, {module})
        assert module in owners, f"{module} imports {root}, which belongs to {sorted(owners)}"
        other = ours(name)
        if other is not None and other not in PACKAGES:
            assert rank(other) < rank(module), f"{module} may not import {other}"


def test_the_order_names_every_module_once() -> None:
    named = [f"kinetics_tools.{m}" for m in TOOLKIT] + [f"benchmarks.{m}" for m in SUITE]
    assert sorted(named) == sorted(set(modules()) - set(PACKAGES))


def test_the_rule_sees_a_planted_fault() -> None:
    assert ours("kinetics_tools.files.publish") == "kinetics_tools.files"
    assert rank("kinetics_tools.media") < rank("kinetics_tools.download")
    assert rank("kinetics_tools.commands.extract") < rank("benchmarks.archs.streams")


def test_what_brings_tensorflow_in_is_imported_where_it_is_used() -> None:
    """Torch's tensorboard imports TensorFlow where that is installed, and TensorFlow greets."""
    code = (
        "import sys, benchmarks.features, benchmarks.benchmark, benchmarks.weights.cricket\n"
        "print(sorted({'tensorboard', 'tensorflow'} & sys.modules.keys()))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert (said.stdout, said.stderr) == ("[]\n", "")

"""The layout, checked: imports point down, and each foreign library has one owner."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from support import ROOT, environment

# What is on a floor may import from the floors above it in this list, and from its own folder.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("kinetics_tools.core",),
    ("kinetics_tools.media", "kinetics_tools.dataset"),
    ("kinetics_tools.download", "kinetics_tools.flow"),
    ("kinetics_tools.shards",),
    ("kinetics_tools.extract",),
    ("kinetics_bench.archs",),
    ("kinetics_bench.protocols", "kinetics_bench.device"),
    ("kinetics_bench.recipes",),
    ("kinetics_bench.data", "kinetics_bench.weights"),
    ("kinetics_bench.training",),
    ("kinetics_bench.evaluation",),
    ("kinetics_bench.inference",),
    ("kinetics_bench.run",),
    ("kinetics_bench.tables",),
    ("kinetics_bench.commands",),
    ("kinetics_bench.cli",),
    ("kinetics_bench.demo",),
    ("speed",),
)
# The only place that imports a foreign library: a module, or a folder where that is said.
OWNERS: dict[str, tuple[str, ...]] = {
    "ffmpeg": ("kinetics_tools.media",),  # the folder: reading, cutting and writing are apart
    "imageio_ffmpeg": ("kinetics_tools.media.encode",),
    "av": ("kinetics_tools.media", "speed.loader"),  # libavcodec alone, to compare with
    "cv2": ("kinetics_tools.media.opencv",),
    "requests": ("kinetics_tools.core.http_client",),
    "urllib3": ("kinetics_tools.core.http_client",),
    "fsspec": ("kinetics_tools.core.store",),
    "tqdm": ("kinetics_tools.core.console",),
    "tomli_w": ("kinetics_bench.recipes.text",),
    "jinja2": ("kinetics_tools.core.html",),
    "msgspec": ("kinetics_tools.core.schema",),
    "ray": ("kinetics_tools.core.ray_engine",),
    # One downloads with it, the other says before a long job whether it can.
    "yt_dlp": (
        "kinetics_tools.download.sources.ytdlp",
        "kinetics_tools.download.sources.js_runtime",
    ),
    # Vectors that kernels are written in, and the cache of compiled kernels.
    "numba": ("kinetics_tools.flow.tvl1",),
    "llvmlite": ("kinetics_tools.flow.tvl1.numba_simd",),
    # Where it is loaded, and the language of kernels.
    "triton": ("kinetics_tools.flow.tvl1.method", "kinetics_tools.flow.tvl1.triton_kernels"),
    "webdataset": ("kinetics_tools.shards.writer",),
    "tensorflow": ("kinetics_bench.weights.files",),
    "safetensors": ("kinetics_bench.weights.files",),
    "skimage": ("speed.flow",),
    "scipy": ("kinetics_bench.evaluation.compare", "kinetics_bench.evaluation.intervals"),
}
LINUX_ONLY = (
    *("sched_getaffinity", "sched_setaffinity", "eventfd", "memfd_create", "pidfd_open"),
    *("CLOCK_BOOTTIME", "RTLD_DEEPBIND", "prctl"),
)
TREES = {
    "kinetics_tools": ROOT,
    "kinetics_bench": ROOT / "benchmarks",
    "speed": ROOT / "benchmarks",
}


def modules() -> dict[str, Path]:
    """Every module, by dotted name."""
    found = {}
    for package, root in TREES.items():
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """Everything that a module imports, wherever in it: `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def module_of(name: str) -> str | None:
    """The module of ours that an imported name is, or is in."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def is_in(module: str, folder: str) -> bool:
    return module == folder or module.startswith(f"{folder}.")


def folder_of(module: str) -> tuple[int, str]:
    """The floor of a module, and its folder there."""
    places = [
        (floor, folder)
        for floor, folders in enumerate(FLOORS)
        for folder in folders
        if is_in(module, folder)
    ]
    assert len(places) == 1, f"{module} is on no floor, or on several: {places}"
    return places[0]


def may_import(module: str, other: str) -> bool:
    floor, folder = folder_of(module)
    other_floor, other_folder = folder_of(other)
    return other_floor < floor or other_folder == folder


ROOTS = ("kinetics_tools", "kinetics_bench")  # a version, and the errors


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ROOTS])
def test_imports_point_down_and_each_library_has_one_owner(module: str) -> None:
    for name in imports(MODULES[module]):
        library = name.partition(".")[0]
        owners = OWNERS.get(library, (module,))
        assert any(is_in(module, owner) for owner in owners), (
            f"{module} imports {library}, which belongs to {', '.join(owners)}"
        )
        other = module_of(name)
        if other is not None and other not in ROOTS:
            assert may_import(module, other), f"{module} may not import {other}"


@pytest.mark.parametrize("root", ROOTS)
def test_a_package_as_such_imports_no_more_than_the_core(root: str) -> None:
    used = {other for name in imports(MODULES[root]) if (other := module_of(name))} - {*ROOTS}
    assert all(is_in(other, "kinetics_tools.core") for other in used)


@pytest.mark.parametrize("module", MODULES)
def test_only_commands_import_the_command_line(module: str) -> None:
    commands = ("kinetics_bench.demo.__main__", "kinetics_bench.demo.picture")
    verbs = is_in(module, "kinetics_bench.commands")
    if module in commands or verbs or module.rpartition(".")[2] == "cli":
        return
    used = [other for name in imports(MODULES[module]) if (other := module_of(name))]
    assert not any(other.endswith(".cli") for other in used)


@pytest.mark.parametrize("module", [name for name in MODULES if not is_in(name, "speed")])
def test_what_only_linux_has_is_asked_for_in_one_module(module: str) -> None:
    if module == "kinetics_tools.core.system":
        return
    nodes = list(ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))))
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names |= {name.rpartition(".")[2] for name in imports(MODULES[module])}
    texts = {str(node.value) for node in nodes if isinstance(node, ast.Constant)}
    assert names.isdisjoint(LINUX_ONLY)
    assert not any(text.startswith("/proc") for text in texts)


def test_no_modules_import_each_other_in_a_ring() -> None:
    graph = {
        module: {
            other
            for name in imports(path)
            if (other := module_of(name)) is not None and other != module
        }
        for module, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a ring of imports: {' -> '.join(error.args[1])}")


def test_every_floor_and_every_owner_is_there() -> None:
    for name in [*(folder for floor in FLOORS for folder in floor), *sum(OWNERS.values(), ())]:
        assert any(is_in(module, name) for module in MODULES), f"there is no {name}"


def test_the_rule_sees_a_planted_fault() -> None:
    assert module_of("kinetics_tools.core.files.publish") == "kinetics_tools.core.files"
    assert may_import("kinetics_tools.download.run", "kinetics_tools.media.clips")
    assert not may_import("kinetics_tools.media.clips", "kinetics_tools.download.run")
    assert not may_import("kinetics_tools.media.clips", "kinetics_tools.dataset.labels")
    assert not may_import("kinetics_tools.extract.run", "kinetics_bench.archs.i3d")


def test_what_brings_tensorflow_in_is_imported_where_it_is_used() -> None:
    """Torch's tensorboard imports TensorFlow where that is installed, and TensorFlow greets."""
    code = (
        "import sys, kinetics_bench.inference.features, kinetics_bench.run\n"
        "import kinetics_bench.weights.published_example\n"
        "print(sorted({'tensorboard', 'tensorflow'} & sys.modules.keys()))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert (said.stdout, said.stderr) == ("[]\n", "")


def test_every_file_of_tests_has_a_name_of_its_own() -> None:
    """Folders of tests are no packages: pytest refuses two modules of one name in one run."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))

"""Check the installed wheel: what is in it, and that each command's --help is quick and light.

A script, not a pytest file: it runs where no test dependency is installed.
"""

import subprocess
import sys
import tempfile
import time
from importlib.metadata import files
from pathlib import Path

DISTRIBUTION = "kinetics-tools"
PACKAGES = {"kinetics_tools", "kinetics_bench"}
COMMANDS = ("kinetics-download", "extract-flow", "run-benchmark")
HEAVY = ("torch", "cv2", "pandas", "numpy", "av", "yt_dlp", "webdataset", "matplotlib")
# Package data that code reads at run time, and the marker by which type checkers trust our types.
DATA = {
    "kinetics_tools/py.typed",
    "kinetics_bench/py.typed",
    "kinetics_tools/dataset/label_lists/kinetics400.txt",
    "kinetics_tools/core/page.html.jinja",
    "kinetics_tools/core/table.html.jinja",
    "kinetics_tools/download/report.html.jinja",
    "kinetics_bench/evaluation/report.html.jinja",
    "kinetics_bench/tables/paper_table.html.jinja",
}
SUFFIXES = {".py", ".jinja", ".txt", ".typed"}


def check_contents() -> None:
    """Fail unless the wheel installs our two packages, their data, and nothing else."""
    installed = [path for path in files(DISTRIBUTION) or () if path.suffix != ".pyc"]
    # Commands lie in ../../../bin; what pip writes about the wheel lies in the .dist-info folder.
    parts = {path.parts[0] for path in installed if path.parts[0] != ".."}
    tops = {part for part in parts if not part.endswith(".dist-info")}
    assert tops == PACKAGES, f"the wheel installs {sorted(tops)}"
    ours = {path.as_posix() for path in installed if path.parts[0] in PACKAGES}
    assert ours >= DATA, f"the wheel lacks {sorted(DATA - ours)}"
    odd = sorted(path for path in ours if Path(path).suffix not in SUFFIXES)
    assert not odd, f"the wheel carries {odd}"
    print(f"the wheel: {len(ours)} files in {', '.join(sorted(tops))}")


def loaded_by(*arguments: str | Path, cwd: str | None = None) -> set[str]:
    """The top-level modules that a Python process imports."""
    traced = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=cwd,
    )
    lines = traced.stderr.splitlines()
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def check_imports() -> None:
    """Fail unless imports are light, and work in a folder that has a `benchmarks` of its own."""
    loaded = loaded_by("-c", "import kinetics_tools")
    assert loaded.isdisjoint(HEAVY), f"kinetics_tools imports {sorted(loaded & set(HEAVY))}"
    with tempfile.TemporaryDirectory() as folder:
        theirs = Path(folder, "benchmarks")
        theirs.mkdir()
        (theirs / "__init__.py").touch()
        loaded_by("-c", "from kinetics_bench import archs; archs.ARCHS", cwd=folder)


def check_help(command: str) -> None:
    """Fail unless the command's --help is quick and light."""
    path = Path(sys.executable).with_name(command)
    seconds = float("inf")
    for _ in range(3):  # the best: the machine may be busy with something else
        start = time.monotonic()
        shown = subprocess.run([path, "--help"], capture_output=True, text=True, check=False)
        seconds = min(seconds, time.monotonic() - start)
    assert shown.returncode == 0, f"{command} --help: {shown.stderr}"
    assert shown.stdout.startswith("usage: "), f"{command} --help prints {shown.stdout[:100]!r}"
    assert not shown.stderr, f"{command} --help complains: {shown.stderr}"
    assert seconds < 1, f"{command} --help took {seconds:.2f} s"
    loaded = loaded_by(path, "--help")
    assert loaded.isdisjoint(HEAVY), f"{command} --help imports {sorted(loaded & set(HEAVY))}"
    print(f"{command} --help: {seconds:.2f} s")


if __name__ == "__main__":
    check_contents()
    check_imports()
    for name in COMMANDS:
        check_help(name)

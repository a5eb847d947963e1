"""Run the installed commands' --help: no traceback, under a second, nothing heavy imported.

A script, not a pytest file: it runs where no test dependency is installed.
"""

import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("kinetics-download", "extract-flow", "run-benchmark")
HEAVY = ("torch", "cv2", "pandas", "numpy", "av", "yt_dlp", "webdataset", "matplotlib")


def check(command: str) -> None:
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
    traced = subprocess.run(
        [sys.executable, "-X", "importtime", path, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in traced.stderr.splitlines()
    }
    assert loaded.isdisjoint(HEAVY), f"{command} --help imports {sorted(loaded & set(HEAVY))}"
    print(f"{command} --help: {seconds:.2f} s")


if __name__ == "__main__":
    for name in COMMANDS:
        check(name)

"""What a run does to the process that computes it."""

import platform
import subprocess
import sys

import pytest
from support import environment

FAULTS = """
import resource, torch
from benchmarks.machine import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(16):
        torch.ones(2**26, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
assert keep_freed_memory()
faults()  # what is between the blocks takes its place
print(given_back, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot")
def test_memory_that_a_training_frees_is_not_cleared_for_it_anew() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    given_back, kept = map(int, done.stdout.split())

    pages = 16 * 2**26 // 4096
    assert given_back > pages / 2
    assert kept < pages / 100

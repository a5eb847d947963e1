"""Machine code is compiled once, stored, and found by later processes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kinetics_tools.flow.tvl1 import numba_cache, numba_cpu
from support import environment


def test_a_function_that_cannot_be_cached_is_still_compiled() -> None:
    names: dict[str, Any] = {}
    exec("def double(x):\n    return 2 * x", names)  # it has no source file

    assert numba_cache.compile_cached(names["double"])(4) == 8


@pytest.mark.full
def test_processes_that_compile_at_once_share_a_cache_and_agree(tmp_path: Path) -> None:
    code = (
        "import hashlib, numpy as np; from kinetics_tools.flow.methods import compute; "
        "frames = np.random.default_rng(0).integers(0, 256, (2, 40, 50), np.uint8); "
        "print(hashlib.sha256(compute(frames, backend='numba').tobytes()).hexdigest())"
    )
    words = [sys.executable, "-c", code]
    own = environment() | {"NUMBA_CACHE_DIR": str(tmp_path)}
    started = [subprocess.Popen(words, env=own, stdout=subprocess.PIPE) for _ in range(3)]

    said = {process.communicate()[0] for process in started}

    assert all(process.returncode == 0 for process in started)
    assert said == {subprocess.run(words, env=own, capture_output=True, check=True).stdout}
    assert list(tmp_path.rglob("*.nbc"))


COMPILES = """
import logging, sys
import numpy as np
from kinetics_tools.flow.tvl1 import numba_cpu as cpu
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
cpu.prepare()
signatures = list(cpu._solve.signatures)
frames = np.random.default_rng(0).integers(0, 256, (4, 40, 50), np.uint8)
read_only = np.frombuffer(frames[2].tobytes(), np.uint8).reshape(40, 50)
odd = [frames[0], frames[1, ::-1, ::-1], read_only, frames[3]]
flows = [*cpu.flows(iter(odd), cpu.TVL1Params(), 1)]
assert list(cpu._solve.signatures) == signatures and len(signatures) == 1
print(sum(cpu._solve.stats.cache_hits.values()), cpu._solve.stats.cache_path)
"""


def compile_and_solve(
    cache: Path, *, folder: Path | None = None, before: str = "", **variables: str
) -> tuple[int, Path, str]:
    """Solve pairs in a new process; return cache hits, the cache's folder, and what it logs.

    The process imports the package in `folder`, if given.
    """
    done = subprocess.run(
        ["/bin/sh", "-c", f'{before} exec "$@"', "sh", sys.executable, "-c", COMPILES],
        env=environment() | {"NUMBA_CACHE_DIR": str(cache)} | variables,
        cwd=folder or cache.parent,  # where no package lies that would be imported instead
        capture_output=True,
        text=True,
        check=True,
    )
    hits, stored_in = done.stdout.split(maxsplit=1)
    return int(hits), Path(stored_in.strip()), done.stderr


def test_one_compilation_serves_all_frames_and_later_processes(tmp_path: Path) -> None:
    hits, folder, said = compile_and_solve(tmp_path)
    assert hits == 0
    assert re.fullmatch(r"compiling TV-L1 .*\ncompiled TV-L1 in \d+ s\n", said)

    assert compile_and_solve(tmp_path) == (1, folder, "")  # found, so nothing is logged


@pytest.mark.full
def test_damaged_machine_code_is_compiled_again(tmp_path: Path) -> None:
    _, folder, _ = compile_and_solve(tmp_path)
    (code,) = folder.glob("*.nbc")
    code.write_bytes(b"")
    assert compile_and_solve(tmp_path)[0] == 0
    assert compile_and_solve(tmp_path)[0] == 1


@pytest.mark.full
def test_each_kind_of_processor_has_its_own_machine_code(tmp_path: Path) -> None:
    _, here, _ = compile_and_solve(tmp_path)

    hits, other, _ = compile_and_solve(tmp_path, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")

    assert hits == 0
    assert here != other
    assert {len(list(folder.glob("*.nbc"))) for folder in (here, other)} == {1}
    assert compile_and_solve(tmp_path)[:2] == (1, here)


@pytest.mark.full
def test_each_version_of_the_source_has_its_own_machine_code(tmp_path: Path) -> None:
    package = tmp_path / "kinetics_tools"
    shutil.copytree(Path(numba_cpu.__file__).parents[2], package)
    _, old, _ = compile_and_solve(tmp_path / "cache", folder=tmp_path)
    source = package / "flow" / "tvl1" / "numba_cpu.py"
    source.write_text(source.read_text().replace("np.float32(2.0**-23)", "np.float32(2.0**-22)"))

    hits, new, _ = compile_and_solve(tmp_path / "cache", folder=tmp_path)

    assert hits == 0
    assert old.parents[1] == new.parents[1]
    assert old != new


@pytest.mark.full
def test_another_folder_is_used_where_one_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")

    _, folder, _ = compile_and_solve(tmp_path / "file")

    assert folder.parents[1] == Path(numba_cpu.__file__).parent / "__pycache__"


@pytest.mark.full
def test_a_full_disk_only_prevents_the_cache(tmp_path: Path) -> None:
    hits, folder, said = compile_and_solve(tmp_path, before="ulimit -f 100;")

    assert hits == 0
    assert f"cannot be stored in {folder}" in said
    assert said.count("\n") == 3  # this, that it compiles and that it has compiled

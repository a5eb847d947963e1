"""Compile every Triton kernel of TV-L1 ahead of time and print its resources, as JSON lines.

`python tests/aot.py` needs no GPU; TRITON_INTERPRET must not be set. Registers and bytes of local
memory (spills) are those that the assembler reports for the binary.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kinetics_tools.flow.tvl1 import triton_kernels
from kinetics_tools.flow.tvl1.triton_solver import OPTIONS, Tile

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TILE = Tile()
TYPES = {
    "frames u p data source target out weight_x weight_y": "*fp32",
    "state new_state low_x low_y": "*i32",
    "sums limit": "*fp64",
    "old_height old_width height width parts max_steps first": "i32",
    "gain reach tau push": "fp32",
}
TYPE = {name: kind for names, kind in TYPES.items() for name in names.split()}
BLOCK = {"BLOCK": TILE.block}
STEPS = {"STEPS": TILE.steps}
KERNELS: dict[str, tuple[dict[str, Any], int]] = {
    "resize": ({**BLOCK, "SIDED": True}, 4),
    "warp": (BLOCK, 4),
    "judge": ({**STEPS, "LANES": TILE.lanes}, 4),
    "median": (BLOCK, 4),
    "iterate": ({**STEPS, "WIDTH": TILE.width, "BAND": TILE.band}, 1),
    "answer": (BLOCK, 4),
}


def resources(name: str, capability: int) -> dict[str, Any]:
    """Registers, memory and instructions of a kernel on a GPU of that capability, 80 or 90."""
    kernel = getattr(triton_kernels, name)
    constants, num_warps = KERNELS[name]
    signature = {a: TYPE[a] for a in kernel.arg_names if a not in constants}
    compiled = triton.compile(
        ASTSource(kernel, signature, constants),
        target=GPUTarget("cuda", capability, 32),
        options=OPTIONS | {"num_warps": num_warps},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = dump("--dump-resource-usage", file.name)
        code = dump("-sass", file.name)
    found = {key: int(n) for key, n in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
    instructions = [
        (int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/ +(.*?);", code)
    ]
    # The code after the end is for warps whose threads diverge, which these never do.
    end = max(at for at, text in instructions if text.endswith("EXIT "))
    backwards = [
        (at - int(to, 16)) // 16 + 1
        for at, text in instructions
        for to in re.findall(r"BRA 0x([0-9a-f]+)", text)
        if int(to, 16) < at < end
    ]
    return {
        "kernel": name,
        "capability": capability,
        "registers": found["REG"],
        "spilled_bytes": found["STACK"] + found["LOCAL"],
        "shared_bytes": found["SHARED"] + compiled.metadata.shared,
        "instructions": len(instructions),
        "loop_instructions": max(backwards, default=0),
    }


def dump(option: str, file: str) -> str:
    return subprocess.run(
        [CUOBJDUMP, option, file], capture_output=True, text=True, check=True
    ).stdout


if __name__ == "__main__":
    for kernel_name in KERNELS:
        for sm in (80, 90):
            sys.stdout.write(json.dumps(resources(kernel_name, sm)) + "\n")

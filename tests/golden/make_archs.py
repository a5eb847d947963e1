"""Write tests/golden/archs.json: logits of seeded networks.

    PYTHONPATH=.:benchmarks:tests python tests/golden/make_archs.py [ARCH ...]

With names of architectures only theirs are recorded, the others stay as they are. Record again only
for a new network, or for a change that is meant to change one; say old and new values then.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from nets import ALL_NETWORKS, golden_logits

COMMAND = "PYTHONPATH=.:benchmarks:tests python tests/golden/make_archs.py"
TOLERANCE = 2e-3

if __name__ == "__main__":
    path = Path(__file__).with_name("archs.json")
    before: dict[str, Any] = json.loads(path.read_text()) if sys.argv[1:] else {"logits": {}}
    names = set(sys.argv[1:] or (name for name, _ in ALL_NETWORKS))
    logits = {" ".join(each): golden_logits(*each) for each in ALL_NETWORKS if each[0] in names}
    golden = {
        "command": COMMAND,
        "tolerance": TOLERANCE,
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "logits": before["logits"] | logits,
    }
    path.write_text(json.dumps(golden, indent=1) + "\n")

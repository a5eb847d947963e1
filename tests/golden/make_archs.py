"""Write tests/golden/archs.json: logits of seeded networks.

    PYTHONPATH=.:tests python tests/golden/make_archs.py

Run it again only for a change that is meant to change networks, and say old and new values then.
"""

import json
import sys
from pathlib import Path

import torch

from nets import ALL_NETWORKS, golden_logits

COMMAND = "PYTHONPATH=.:tests python tests/golden/make_archs.py"
TOLERANCE = 2e-3

if __name__ == "__main__":
    golden = {
        "command": COMMAND,
        "tolerance": TOLERANCE,
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "logits": {" ".join(each): golden_logits(*each) for each in ALL_NETWORKS},
    }
    path = Path(__file__).with_name("archs.json")
    path.write_text(json.dumps(golden, indent=1) + "\n")

"""The streams of an architecture, and how many channels a clip of each has."""

from collections.abc import Mapping
from typing import Final

STREAMS: Final = ("joint", "rgb", "flow")
CHANNELS: Final[Mapping[str, int]] = {"rgb": 3, "flow": 2}
FLOW_STACK: Final = 10  # flow fields that a 2-D network sees at once

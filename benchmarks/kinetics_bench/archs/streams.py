"""Names of the streams, and the channels of each input."""

from collections.abc import Mapping
from typing import Final

STREAMS: Final = ("joint", "rgb", "flow")
CHANNELS: Final[Mapping[str, int]] = {"rgb": 3, "flow": 2}
FLOW_STACK: Final = 10  # flow fields per input image of a 2-D network

"""The dataset toolkit: from a manifest of YouTube ids to clips, and from clips to flow shards.

Every error that is not a bug is a `KineticsError`; the subclasses below say what kind it is.
"""

from kinetics_tools.core.errors import (
    EvaluationError,
    KineticsError,
    ManifestError,
    MediaError,
    OutError,
    Reason,
    ShardError,
    SourceError,
    StoreError,
    UnknownNameError,
)

__all__ = [
    "EvaluationError",
    "KineticsError",
    "ManifestError",
    "MediaError",
    "OutError",
    "Reason",
    "ShardError",
    "SourceError",
    "StoreError",
    "UnknownNameError",
]
__version__ = "0.2.0"

"""Shards of RGB and flow, read.

`read_samples` yields the samples of a split; a `ShardFolder` says what a folder of shards holds,
here or in a store elsewhere, of which a `FileCache` keeps what was read.
Names that are not in `__all__` are private. Importing this package imports neither torch nor
webdataset.
"""

from kinetics_tools.core.file_cache import FileCache
from kinetics_tools.shards.reader import Sample, ShardFolder, read_samples
from kinetics_tools.shards.records import RGB, SCHEMA_VERSION, Location, StreamRecipe

__all__ = [
    "RGB",
    "SCHEMA_VERSION",
    "FileCache",
    "Location",
    "Sample",
    "ShardFolder",
    "StreamRecipe",
    "read_samples",
]

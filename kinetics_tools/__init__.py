"""The dataset toolkit: from a manifest of YouTube ids to clips, and from clips to flow shards."""

__version__ = "0.2.0"

"""Shards: their format, read and written."""

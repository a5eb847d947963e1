"""Shards as views."""

"""Trained networks on video files."""

"""Measurements of speed, as ratios against peers in one run. They print JSON lines."""

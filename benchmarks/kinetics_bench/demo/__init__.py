"""The main job on a small set of videos made by code."""

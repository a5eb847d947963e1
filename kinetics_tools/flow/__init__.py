"""Optical flow: methods and codecs."""

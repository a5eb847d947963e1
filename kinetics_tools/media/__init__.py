"""The wall to ffmpeg, PyAV and OpenCV."""

"""Videos and pictures: the only code that uses ffmpeg, PyAV and OpenCV."""

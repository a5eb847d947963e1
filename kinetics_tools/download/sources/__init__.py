"""Where videos and ready clips come from."""

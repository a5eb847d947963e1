"""`kinetics-download`: clips from a manifest."""

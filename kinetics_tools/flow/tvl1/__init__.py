"""TV-L1: one algorithm, several backends."""

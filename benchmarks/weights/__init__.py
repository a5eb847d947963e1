"""Published weights: their names, their files, and a network's start from them."""

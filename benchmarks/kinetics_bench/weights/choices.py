"""Published weights: their names, their files, and a network's start from them."""

INITS = ("scratch", "imagenet", "kinetics")  # what --init takes; anything else is a path
FINETUNES = ("all", "last")

"""The choices of `--init` and `--finetune`. Importing this module is quick."""

INITS = ("scratch", "imagenet", "kinetics")  # anything else is a path
FINETUNES = ("all", "last")

"""The choices of `--init` and `--finetune`. Importing this module is quick."""

import re
from pathlib import Path

INITS = ("scratch", "imagenet", "kinetics")  # anything else is a path
FINETUNES = ("all", "last")
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def split_word(given: str) -> tuple[Path, str]:
    """The path of weights and the word after its colon: `w.pt:ema` is `w.pt` and `ema`.

    The word chooses one of several networks in a file. It is empty if there is none, or if a file
    or a TensorFlow checkpoint has the whole name.
    """
    path, _, word = given.rpartition(":")
    is_file = Path(given).exists() or Path(f"{given}.index").exists()
    if not path or _WORD.fullmatch(word) is None or is_file:
        return Path(given), ""
    return Path(path), word

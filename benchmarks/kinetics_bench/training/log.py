"""The log of a training, one record per epoch: log.jsonl, and the events of TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kinetics_bench.training.checkpoint import EpochRecord
from kinetics_bench.weights.files import prepare_for_tensorflow
from kinetics_tools.core.files import name_in_errors, open_own, require_file, write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG: Final = "log.jsonl"
EVENTS: Final = "tensorboard"
SCALARS: Final = ("loss", "top1", "lr", "seconds", "waiting", "val_loss", "val_top1")


class TrainingLog:
    """Appends a record at the end of each epoch. One file of events per process that trains."""

    def __init__(self, folder: Path) -> None:
        """Prepare the log of a network in its folder; `add` makes the files."""
        self._path = folder / LOG
        self._folder = folder / EVENTS
        self._events: SummaryWriter | None = None

    def add(self, history: Sequence[EpochRecord]) -> None:
        """Append the last record of `history`, which has one for each epoch that has ended.

        The first call writes the records before it, unless log.jsonl holds just these: a process
        that was killed may have left a torn line, or one of an epoch that was trained again.
        """
        record = history[-1]
        if self._events is None:
            self._restore(history[:-1])
            self._events = open_events(self._folder, record.epoch)
        with name_in_errors(self._path), open_own(self._path, "a") as file:
            file.write(_line(record))
        for name in SCALARS:
            value = getattr(record, name)
            if value is not None:
                self._events.add_scalar(name, value, record.epoch)
        self._events.flush()

    def _restore(self, history: Sequence[EpochRecord]) -> None:
        text = "".join(map(_line, history))
        there = None
        if self._path.exists():
            require_file(self._path)
            there = self._path.read_bytes()
        if there != text.encode():
            write_text(self._path, text)

    def close(self) -> None:
        """Close its files."""
        if self._events is not None:
            self._events.close()


def open_events(folder: Path, step: int) -> SummaryWriter:
    """Events of TensorBoard to write into `folder`.

    Readers forget what other processes wrote there about `step` and later ones.
    """
    # Imported here: it imports TensorFlow if that is installed.
    prepare_for_tensorflow()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step)


def _line(record: EpochRecord) -> str:
    return json.dumps(record.as_json(), allow_nan=False) + "\n"

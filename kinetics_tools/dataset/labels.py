"""Label lists: the class names of a dataset; a label's index in the list is its id."""

import importlib.resources
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from kinetics_tools.core.errors import ManifestError, unknown_name
from kinetics_tools.core.keys import require_own_folders
from kinetics_tools.core.text import read_text
from kinetics_tools.dataset.manifest import Manifest

KNOWN_LABELS: Mapping[str, str] = {"kinetics400": "kinetics400.txt"}


def known_labels(name: str) -> tuple[str, ...]:
    """The full label list of a known dataset, in index order."""
    resource = importlib.resources.files(__package__) / "label_lists" / KNOWN_LABELS[name]
    return tuple(resource.read_text(encoding="utf-8").splitlines())


def dataset_of(labels: Sequence[str]) -> str | None:
    """The known dataset whose full label list this is, or None."""
    return next((name for name in KNOWN_LABELS if known_labels(name) == tuple(labels)), None)


def read_labels(path: Path) -> tuple[str, ...]:
    """Read a label list: one label per line, sorted, each once. The line's number is the label id.

    Raises:
        ManifestError: it cannot be read, is empty or unsorted, or repeats a label.
    """
    text = read_text(path, raises=ManifestError)
    labels = tuple(line.strip() for line in text.rstrip().splitlines())
    if not labels:
        raise ManifestError(f"{path} is empty; a label list has one label per line, sorted")
    for number, (before, label) in enumerate(itertools.pairwise(("", *labels)), start=1):
        if label <= before:
            problem = f"{label!r} may not come after {before!r}" if label else "is blank"
            raise ManifestError(
                f"{path}, line {number}: {problem}; a label list has one label per line, sorted, "
                "each once"
            )
    return labels


def choose_labels(manifest: Manifest, named: str | None) -> tuple[str, ...]:
    """The dataset's full label list: the named one, else the labels that the manifest has.

    Args:
        manifest: all rows, before splits or classes are chosen.
        named: a known dataset's name, or the path of a label list.

    Raises:
        ManifestError: the manifest has a label that the list lacks; or no list is named and the
            manifest has only some of a known dataset's labels, whose indices would be wrong.
        KineticsError: two labels would share a folder.
    """
    full = manifest.labels if named is None else _named_labels(named)
    unknown = sorted(set(manifest.labels) - set(full))
    if unknown:
        raise ManifestError(f"--labels {named} lacks {unknown[0]!r}, which the manifest has")
    for name in KNOWN_LABELS:
        known = known_labels(name)
        if named is None and full and set(full) < set(known):
            raise ManifestError(
                f"the manifest has only {len(full)} of the {len(known)} labels of {name}, so label "
                f"ids cannot follow from it; add --labels {name}, or --labels FILE with the full "
                "list"
            )
    require_own_folders(full)
    return full


def _named_labels(named: str) -> tuple[str, ...]:
    if named in KNOWN_LABELS:
        return known_labels(named)
    if not Path(named).exists():
        raise ManifestError(f"no such file, and {unknown_name('label list', named, KNOWN_LABELS)}")
    return read_labels(Path(named))

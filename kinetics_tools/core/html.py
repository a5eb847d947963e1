"""HTML pages: one self-contained file each, in one style, with all text escaped.

Equal values give equal bytes.
"""

import base64
import io
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import matplotlib.image
import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_PHONE_LETTERS: Final = 38
_FOLDER = Path(__file__).parent  # holds page.html.jinja, which pages extend, and table.html.jinja


def render(template: Path, **values: Any) -> str:
    """Render a template, which may extend `page.html.jinja`, with `values`."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, _FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["scrolls_on_a_phone"] = _scrolls_on_a_phone
    return environment.get_template(template.name).render(values)


def _scrolls_on_a_phone(rows: Sequence[Mapping[str, object]], numeric: Collection[str]) -> bool:
    """Whether a table is about wider than a phone, whose width has room for some 40 letters.

    A title, and a cell that is no number, is broken between its words; see page.html.jinja.
    """
    letters = 0
    for title in rows[0] if rows else ():
        cells = [len(str(row[title])) for row in rows]
        least = max(cells) if title in numeric else 11
        letters += 1 + max(least, *map(len, title.split()))
    return letters > _PHONE_LETTERS


def figure_image(figure: Figure, alt: str) -> Markup:
    """An <img> element that contains the figure as SVG; `alt` describes it in words."""
    buffer = io.BytesIO()
    # No date, and a fixed salt of the ids, so that equal figures give equal bytes.
    with warnings.catch_warnings(), mpl.rc_context({"svg.hashsalt": "report", "font.size": 10}):
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from font"
        )  # the letter is drawn as a box
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return _image(buffer.getvalue(), "svg+xml", alt)


def pixels_image(pixels: npt.NDArray[np.uint8], alt: str) -> Markup:
    """An <img> element that contains uint8 (H, W, 3), RGB, as PNG; `alt` describes it in words."""
    buffer = io.BytesIO()
    mpl.image.imsave(buffer, pixels, format="png")
    return _image(buffer.getvalue(), "png", alt)


def jpeg_image(data: bytes, alt: str) -> Markup:
    """An <img> element that contains a JPEG; `alt` describes it in words."""
    return _image(data, "jpeg", alt)


def _image(data: bytes, kind: str, alt: str) -> Markup:
    encoded = base64.b64encode(data).decode()
    return Markup('<img alt="{}" src="data:image/{};base64,{}">').format(alt, kind, encoded)


def figure_text(text: str, *, at_most: int = 48) -> str:
    """`text` for use in a figure: cut to `at_most` letters, and not read as a formula."""
    short = text if len(text) <= at_most else text[: at_most - 3] + "..."
    return short.replace("$", r"\$")


def style_axes(axes: Axes) -> None:
    """Draw a light grid below the data, and no frame at the top and right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)

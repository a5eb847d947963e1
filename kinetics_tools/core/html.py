"""HTML pages: one self-contained file each, in one style, with all text escaped.

Equal values give equal bytes.
"""

import base64
import io
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    return environment.get_template(template.name).render(values)


def figure_image(figure: Figure, alt: str) -> Markup:
    """An <img> element that contains the figure as SVG; `alt` describes it in words."""
    buffer = io.BytesIO()
    # No date, and a fixed salt of the ids, so that equal figures give equal bytes.
    with warnings.catch_warnings(), mpl.rc_context({"svg.hashsalt": "report", "font.size": 10}):
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from font"
        )  # the letter is drawn as a box
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup('<img alt="{}" src="data:image/svg+xml;base64,{}">').format(alt, data)


def figure_text(text: str, *, at_most: int = 48) -> str:
    """`text` for use in a figure: cut to `at_most` letters, and not read as a formula."""
    short = text if len(text) <= at_most else text[: at_most - 3] + "..."
    return short.replace("$", r"\$")


def style_axes(axes: Axes) -> None:
    """Draw a light grid below the data, and no frame at the top and right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)

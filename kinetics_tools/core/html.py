"""The manner of our HTML pages: one file each, pictures inside, foreign words escaped, one look.

The same values give the same bytes.
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

HERE = Path(__file__).parent  # of page.html.jinja, which pages extend, and table.html.jinja


def render(template: Path, **values: Any) -> str:
    """The page that a template makes of `values`. It may extend `page.html.jinja`."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(values)


def picture(figure: Figure, alt: str) -> Markup:
    """An <img> that holds the figure; `alt` says what it shows to who cannot see it."""
    buffer = io.BytesIO()
    # No date, and a fixed salt for the ids: the same results give the same bytes.
    with warnings.catch_warnings(), mpl.rc_context({"svg.hashsalt": "report", "font.size": 10}):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # shown as a box
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup('<img alt="{}" src="data:image/svg+xml;base64,{}">').format(alt, data)


def words(text: str, *, at_most: int = 48) -> str:
    """`text` for a figure: of so many letters at most, and never taken for a formula."""
    short = text if len(text) <= at_most else text[: at_most - 3] + "..."
    return short.replace("$", r"\$")


def plain(axes: Axes) -> None:
    """Leave out what is not data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)

"""The pages in a browser: nothing is missing, cut off or too wide, with scripts and without."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from kinetics_bench.evaluation import paper
from kinetics_bench.evaluation.page_tables import Asked
from kinetics_bench.evaluation.report import write_report
from kinetics_bench.evaluation.results import Predictions, score
from kinetics_bench.recipes import RecipeChoice
from kinetics_bench.tables.page import Outcome, data_notes, size_rows, table_rows, write_table
from kinetics_bench.tables.plan import Choices, DataSet, plan_table
from kinetics_tools.core.errors import Reason
from kinetics_tools.core.units import Part
from kinetics_tools.download.report import write_report as write_download_report
from outs import ask, done, failed, segment, tell
from results import make_run, row
from tiny import LABELS, SUBJECTS, tiny_shards

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), "")
pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not CHROMIUM, reason="needs a browser: Debian's package chromium"),
]
WIDTHS = (1200, 390)  # pixels: a laptop, a phone

# Elements that are wider than the page, but for what scrolls inside a box of its own.
TOO_WIDE = """
() => [...document.querySelectorAll("body *")]
  .filter((each) => !each.closest(".wide table, pre, .zoom[open], script"))
  .filter((each) => each.getBoundingClientRect().right > innerWidth + 0.5)
  .map((each) => `${each.tagName} ${each.className}`)
"""
MISSING = """
() => [...document.images]
  .filter((each) => !(each.complete && each.naturalWidth && each.alt)).length
"""
# Of each table: whether it scrolls, and whether it says so.
TABLES = """
() => [...document.querySelectorAll(".wide")].map((box) => [
  box.scrollWidth > box.clientWidth,
  box.parentNode.querySelector(".hint").getClientRects().length > 0,
])
"""
OPEN = "() => document.querySelectorAll('details').forEach((each) => { each.open = true; })"
CUT_OFF = """
() => [...document.querySelectorAll("td, th")]
  .filter((each) => each.scrollWidth > each.clientWidth + 1)
  .map((each) => each.textContent)
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # The sandbox is not there for root, and these pages are ours.
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def few_classes(folder: Path) -> Path:
    """Two seeds on real shards, with strips, a curve of one epoch, and a command."""
    for seed in (0, 1):
        for stream in ("joint", "rgb", "flow"):
            result, _ = row(stream, list(LABELS))
            clips = {
                f"{subject}_{label}": (at, np.array([1, seed * at], np.float32))
                for subject in SUBJECTS
                for at, label in enumerate(LABELS)
            }
            predictions = Predictions.of(clips, {})
            data = replace(result.data, folder=str(tiny_shards()), flow="opencv-tvl1")
            history = {name: own[:1] for name, own in result.history.items()}
            whole = replace(
                result, seed=seed, data=data, score=score(predictions), failed={}, history=history
            )
            whole.write(folder / f"run-{seed}" / stream, predictions)
    told = Asked(
        commands=("run-benchmark --arch i3d --data /" + 20 * "a-long-name/",),
        seed=None,
        init="scratch",
        finetune="all",
    )
    return write_report([folder / "run-0", folder / "run-1"], folder / "few.html", lambda _: told)


def many_classes(folder: Path) -> Path:
    """Many classes with long names, of a data set of the paper; no shards."""
    labels = [f"{'a very long name of a class ' * 3}{at:02d}" for at in range(60)]
    run = make_run(folder / ("x" * 90), labels)
    for stream in ("joint", "rgb", "flow"):
        result, predictions = row(stream, labels, num_clips=200)
        data = replace(result.data, test_split="ucf101/1")
        whole = replace(result, seed=2, score=score(predictions), data=data)
        whole.write(run / stream, predictions)
    told = Asked(commands=("run-benchmark",), seed=2, init="imagenet", finetune="all")
    return write_report([run], folder / "many.html", lambda _: told)


def clips(folder: Path) -> Path:
    """The page of kinetics-download, which has the same base."""
    present, gone = segment("present0001", "a long name of a class " * 4), segment("gone0000001")
    ask(folder / "out", (present, gone))
    lines = [done(folder / "out", present, "cvdf", b"01"), failed(gone, "youtube", Reason.GONE)]
    tell(folder / "out", lines, Part(0, 1))
    return write_download_report(folder / "out")[1][0]


def paper_table(folder: Path) -> Path:
    """The largest table of the paper, with numbers, and reasons why there are none."""
    recipe = RecipeChoice(name="paper")
    sets = {"ucf101": DataSet(data="/ucf101"), "kinetics": DataSet(data="/kinetics")}
    plan = plan_table(4, Choices(sets=sets, recipe=recipe))
    result, _ = row("joint", list(LABELS))
    outcomes = [
        Outcome(planned=each, gap="here", reason="cannot download https://" + 9 * "a-long-name/")
        if each.cell.init == "imagenet"
        else Outcome(planned=each, results=(result,))
        for each in plan.cells
    ]
    rows, reasons = table_rows(outcomes)
    return write_table(4, rows, [*reasons, *data_notes(plan)], "", folder)[1]


def first_paper_table(folder: Path) -> Path:
    """The one with the widest cells."""
    return write_table(1, size_rows(list(paper.SIZES)), [], "", folder)[1]


@pytest.fixture(
    scope="module", params=[few_classes, many_classes, clips, first_paper_table, paper_table]
)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(request.param(tmp_path_factory.mktemp("page")))


def opened(browser: Browser, path: Path, width: int, *, scripts: bool) -> tuple[Page, list[str]]:
    """The page, and what goes wrong on it."""
    view: Any = {"width": width, "height": 800}
    page = browser.new_context(viewport=view, java_script_enabled=scripts).new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(request.url[:80]))
    page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:")) else wrong.append("!"),
    )
    page.goto(path.as_uri())
    return page, wrong


@pytest.mark.parametrize("scripts", [True, False])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_missing_or_cut_off_or_too_wide(
    browser: Browser, path: Path, width: int, scripts: bool
) -> None:
    page, wrong = opened(browser, path, width, scripts=scripts)
    for is_open in (False, True):
        if is_open:
            page.evaluate(OPEN)
            page.wait_for_timeout(100)  # the event of an opened one comes later
        assert page.evaluate(MISSING) == 0
        assert page.evaluate(TOO_WIDE) == []
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        assert page.evaluate(CUT_OFF) == []
        scrolling = page.evaluate(TABLES)
        if width == max(WIDTHS):
            assert not any(scrolls for scrolls, _ in scrolling)
        else:
            assert any(scrolls for scrolls, _ in scrolling)
        assert all(says for scrolls, says in scrolling if scrolls)
        if scripts:
            assert not any(says for scrolls, says in scrolling if not scrolls)
    assert wrong == []
    page.context.close()


def column(page: Page, number: int) -> list[str]:
    cells = page.locator(f"table.sortable >> nth=0 >> tbody td:nth-child({number})")
    return cells.all_text_contents()


def test_a_table_can_be_sorted_where_scripts_run(browser: Browser, tmp_path: Path) -> None:
    path = many_classes(tmp_path)
    page, wrong = opened(browser, path, 1200, scripts=True)
    page.evaluate(OPEN)
    heads = page.locator("table.sortable >> nth=0 >> th")
    titles = heads.all_text_contents()
    at = titles.index("rgb %")
    before = column(page, at + 1)
    heads.nth(at).get_by_role("button").click()
    numbers = [float(text) for text in column(page, at + 1)]
    assert numbers == sorted(map(float, before))
    assert heads.nth(at).get_attribute("aria-sort") == "ascending"
    heads.nth(at).get_by_role("button").click()
    assert [float(text) for text in column(page, at + 1)] == sorted(map(float, before))[::-1]
    heads.nth(0).get_by_role("button").click()
    assert column(page, 1) == sorted(column(page, 1))
    assert heads.nth(at).get_attribute("aria-sort") is None
    assert wrong == []
    page.context.close()
    plain, _ = opened(browser, path, 1200, scripts=False)
    assert plain.locator("th button").count() == 0
    assert column(plain, at + 1) == before
    plain.context.close()


@pytest.mark.parametrize("scripts", [True, False])
def test_a_matrix_opens_larger_and_closes_again(
    browser: Browser, tmp_path: Path, scripts: bool
) -> None:
    page, _ = opened(browser, few_classes(tmp_path), 390, scripts=scripts)
    picture = page.locator(".zoom img").first
    small = picture.bounding_box()
    assert small is not None
    picture.click()
    large = picture.bounding_box()
    assert large is not None
    assert large["width"] > 2 * small["width"]
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    picture.click()
    again = picture.bounding_box()
    assert again is not None
    assert again["width"] == small["width"]
    page.context.close()

"""An OUT is passed around: whatever a stranger wrote in one, it is one line, and stays inside."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import MakeVideo
from hostile import hostile_values, places, replaced
from kinetics_tools.core.errors import KineticsError, Reason
from kinetics_tools.download.coverage import survey
from kinetics_tools.download.report import write_report
from kinetics_tools.download.run import DownloadPlan, download
from kinetics_tools.download.sources.folder import Folder
from kinetics_tools.download.sources.mirror_index import Contents, TarIndex
from kinetics_tools.download.verify import verify
from kinetics_tools.extract.clips import read_clips
from kinetics_tools.media.recipe import ClipRecipe
from outs import failed, segment, tell

HAVE = (segment("-whole00001"), segment("second00001", "up, down", "train"))
LOST = segment("gone0000001")
ADDRESS = "http://127.0.0.1:1/a.tar"
JSONS = ("recipe.json", "ledger-0-of-1.jsonl", ".mirror/index")
TEXTS = ("manifest.csv", "labels.txt")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files that nobody may touch."""
    folder = tmp_path_factory.mktemp("root")
    for place in ("victim", "given-not", "clips", "report"):
        (folder / place).mkdir()
        (folder / place / "precious.txt").write_text("precious")
    return folder


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo, ffmpeg: Path
) -> tuple[Path, DownloadPlan]:
    """An OUT with two clips, a gap and the index of a tar; and the plan of its run."""
    folder = tmp_path_factory.mktemp("whole")
    videos, out = folder / "videos", folder / "out"
    videos.mkdir()
    for each in HAVE:
        shutil.copy(make_video(seconds=6, size="64x48"), videos / f"{each.youtube_id}.mp4")
    recipe = ClipRecipe(short_side=None)
    plan = DownloadPlan(out=out, sources=(Folder(videos),), recipe=recipe, binary=ffmpeg, jobs=0)
    with download([*HAVE, LOST], ("up, down", "yoga"), plan) as run:
        list(run)
    tell(out, [failed(LOST, "cvdf", Reason.GONE)])
    TarIndex(out / ".mirror").update(ADDRESS, Contents(stems=("a", "b")))
    return out, plan


def page(out: Path, _: DownloadPlan) -> None:
    write_report(out)


def again(_: Path, plan: DownloadPlan) -> None:
    with download([*HAVE, LOST], ("up, down", "yoga"), plan) as run:
        list(run)


def verified(out: Path, _: DownloadPlan) -> None:
    with verify(out, jobs=0) as run:
        list(run)


def clips(out: Path, _: DownloadPlan) -> None:
    read_clips(out, out=out.parent / "shards")


def index(out: Path, _: DownloadPlan) -> None:
    TarIndex(out / ".mirror").get(ADDRESS)


def surveyed(out: Path, _: DownloadPlan) -> None:
    survey(out)


Commands = tuple[Callable[[Path, DownloadPlan], None], ...]
COMMANDS: Commands = (page, clips, verified, index, again)
# Those that read a file, without the page, whose pictures take longest.
READERS: dict[str, Commands] = {
    "recipe.json": (again,),
    "ledger-0-of-1.jsonl": (surveyed, clips, verified, again),
    ".mirror/index": (index,),
    "manifest.csv": (surveyed, clips, again),
    "labels.txt": (surveyed, clips, again),
}


def exchange(out: Path, name: str, hostile: Any, data: st.DataObject) -> str:
    """Put a hostile value into a file of an OUT; return what was done."""
    (path,) = out.glob(".mirror/*.json") if name.startswith(".mirror") else (out / name,)
    lines = path.read_text().splitlines()
    if name in JSONS:
        number = data.draw(st.integers(0, len(lines) - 1)) if "ledger" in name else 0
        value = json.loads(lines[number] if "ledger" in name else path.read_text())
        at = data.draw(st.sampled_from(sorted(places(value), key=repr)))
        text = json.dumps(replaced(value, at, hostile))
        lines = [*lines[:number], text, *lines[number + 1 :]] if "ledger" in name else [text]
        done = f"{name} {number} {at}: {hostile!r}"
    else:
        number = data.draw(st.integers(0, len(lines) - 1))
        cells = lines[number].split(",") if name == "manifest.csv" else [lines[number]]
        cell = data.draw(st.integers(0, len(cells) - 1))
        cells[cell] = str(hostile)
        lines[number] = ",".join(cells)
        done = f"{name} {number} {cell}: {hostile!r}"
    path.write_bytes("\n".join([*lines, ""]).encode(errors="surrogatepass"))
    return done[:300]


def try_all(
    name: str,
    root: Path,
    whole: tuple[Path, DownloadPlan],
    num_examples: int,
    commands: Commands = COMMANDS,
) -> None:
    @settings(max_examples=num_examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(hostile_values(root), st.data())
    def one(hostile: Any, data: st.DataObject) -> None:
        out = root / "given" / "out"
        shutil.rmtree(root / "given", ignore_errors=True)
        shutil.copytree(whole[0], out)
        done = exchange(out, name, hostile, data)
        before = set(outside(root))
        plan = DownloadPlan(**{**fields_of(whole[1]), "out": out})
        for command in commands:
            try:
                command(out, plan)
            except KineticsError as error:
                first, *rest = str(error).splitlines()
                assert not rest or "bad rows" in first, (done, str(error))
                assert len(str(error)) < 2000, done
        assert set(outside(root)) == before, done
        assert {path.name for path in (root / "given").iterdir()} == {"out"}, done

    one()


def fields_of(plan: DownloadPlan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in plan.__dataclass_fields__}


def outside(root: Path) -> Iterator[Path]:
    yield from (path for path in root.rglob("*") if not path.is_relative_to(root / "given"))


@pytest.mark.parametrize("name", [*JSONS, *TEXTS])
def test_no_value_in_a_file_of_an_out_reaches_outside(
    name: str, root: Path, whole: tuple[Path, DownloadPlan]
) -> None:
    try_all(name, root, whole, 15)


@pytest.mark.full
@pytest.mark.parametrize("name", [*JSONS, *TEXTS])
def test_no_value_of_many_in_a_file_of_an_out_reaches_outside(
    name: str, root: Path, whole: tuple[Path, DownloadPlan]
) -> None:
    try_all(name, root, whole, 2000, READERS[name])


def test_what_was_not_changed_is_read(whole: tuple[Path, DownloadPlan], tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole[0], tmp_path / "out"))
    plan = DownloadPlan(**{**fields_of(whole[1]), "out": out})
    for command in COMMANDS:
        command(out, plan)

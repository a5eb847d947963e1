"""README and docs are true: commands parse, Python runs, formats and links are as told."""

import configparser
import dataclasses
import json
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch.distributed.run

import kinetics_tools
from kinetics_bench import cli as run_benchmark
from kinetics_bench.archs import ARCHS
from kinetics_bench.archs.table import table
from kinetics_bench.commands.train import parser as train_parser
from kinetics_bench.evaluation.attrition import Attrition
from kinetics_bench.evaluation.results import Overlap, Score
from kinetics_bench.protocols import PROTOCOLS
from kinetics_bench.recipes import RECIPES
from kinetics_bench.weights.choices import INITS
from kinetics_tools.core.cli import Exit, Parser
from kinetics_tools.core.errors import REASON_CLASSES
from kinetics_tools.core.keys import VIDEO_SUFFIXES
from kinetics_tools.dataset.ledger import Line
from kinetics_tools.download import cli as kinetics_download
from kinetics_tools.download.sources.registry import SOURCES
from kinetics_tools.extract import cli as extract_flow
from kinetics_tools.flow import CODECS, METHODS
from kinetics_tools.media.recipe import ENCODINGS
from kinetics_tools.shards import read_samples
from support import ROOT, environment, unpack_written_by_0_1
from test_architecture import FLOORS
from test_public_names import PUBLIC

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "benchmarks" / "results" / "README.md",
        ROOT / "manifests" / "README.md",
    )
}
README = PAGES["README.md"]
RESULTS = PAGES["benchmarks/results/README.md"]
GUIDES = {name: text for name, text in PAGES.items() if text is not RESULTS}  # for users
TESTS = "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox run"
DEMO = f"{TESTS} -e demo"

PARSERS: Mapping[str, Callable[[], Parser]] = {
    "kinetics-download": kinetics_download.build_parser,
    "extract-flow": extract_flow.build_parser,
    "run-benchmark": train_parser,
    **{
        f"kinetics-download {verb}": parser for verb, (parser, _) in kinetics_download.VERBS.items()
    },
    **{f"extract-flow {verb}": parser for verb, (parser, _) in extract_flow.VERBS.items()},
    **{f"run-benchmark {verb}": parser for verb, (parser, _) in run_benchmark.VERBS.items()},
}
# The page that names every option of a command, verbs included.
OWN_PAGES = {
    "kinetics-download": "docs/download.md",
    "extract-flow": "docs/extract-flow.md",
    "run-benchmark": "docs/run-benchmark.md",
}
# Programs of others that console blocks call.
OTHERS = {
    "python3",
    "pip",
    "rclone",
    "aws",
    "printf",
    "tensorboard",
    ".venv/bin/pip",
    ".venv/bin/pre-commit",
}
FOREIGN = {  # of others: Slurm, torchrun, pip, git, tensorboard, ruff, rclone, aws, mmaction2
    *("--array", "--nodes", "--ntasks", "--ntasks-per-node", "--gpus-per-task", "--gpus-per-node"),
    *("--cpus-per-task", "--time", "--requeue", "--wait", "--begin", "--dependency", "--format"),
    *("--kill-on-bad-exit", "--signal", "--no-python", "--nnodes", "--nproc-per-node", "--rdzv-id"),
    *("--rdzv-backend", "--rdzv-endpoint", "--wheel-dir", "--no-index", "--find-links"),
    *("--logdir", "--follow", "--exclude"),
    *("--no-validate", "--auto-scale-lr", "--deterministic", "--cfg-options", "--launcher"),
    *("--show", "--show-dir", "--preds", "--coefficients", "--apply-softmax"),
    *("--resume-from", "--validate", "--diff-rank-seed", "--options", "--gpus"),
    *("--gpu-ids", "--eval", "--average-clips", "--gpu-collect", "--tmpdir", "--fuse-conv-bn"),
    *("--interval", "--wait-time"),
}


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def console_lines(pages: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each line of the console blocks, without its comment, with its page."""
    for page in pages:
        for block in blocks(page, "console"):
            for line in block.splitlines():
                yield page, re.sub(r"\s+#.*", "", line).strip()


def scripts() -> dict[str, str]:
    """The batch scripts of the docs, by the name in their second line."""
    found = [block for page in GUIDES for block in blocks(page, "bash")]
    return {block.splitlines()[1].removeprefix("# "): block for block in found}


def our_call(words: list[str]) -> list[str] | None:
    """The words of the command of ours that a line runs, also through torchrun or sbatch."""
    script = next((at for at, word in enumerate(words) if word.endswith(".sbatch")), None)
    if script is not None:
        (command,) = (name for name in OWN_PAGES if words[script] == f"{name}.sbatch")
        return [command, *words[script + 1 :]]
    return next((words[at:] for at, word in enumerate(words) if word in OWN_PAGES), None)


def parse(words: list[str]) -> None:
    """Let the parser of a command take its words, or fail."""
    name = " ".join(words[:2]) if " ".join(words[:2]) in PARSERS else words[0]
    PARSERS[name]().parse_args(words[len(name.split()) :])


def options_of(parser: Parser) -> set[str]:
    return {o for action in parser._actions for o in action.option_strings if o.startswith("--")}


def options_named(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))


# Commands


@pytest.mark.parametrize("name", PARSERS)
def test_help_is_one_screen_and_all_of_it_is_a_word_away(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    brief = PARSERS[name]().format_help()
    assert len(brief.splitlines()) <= 50
    assert max(map(len, brief.splitlines())) <= 100
    with pytest.raises(SystemExit) as ended:
        PARSERS[name]().parse_args(["--help-all"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for action in PARSERS[name]()._actions:
        for option in action.option_strings:
            assert option in brief
            assert option in shown
        for line in (action.help or "").replace("%%", "%").split("\n"):
            assert " ".join(line.split()) in shown


def test_the_two_commands_are_the_ones_that_ci_and_tox_know() -> None:
    console = [line for block in blocks("README.md", "console") for line in block.splitlines()]
    assert TESTS in console
    assert DEMO in console
    assert TESTS in (ROOT / ".ci" / "run").read_text()
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    assert {"testenv:check", "testenv:smoke", "testenv:demo", "testenv:full"} <= set(tox.sections())


@pytest.mark.parametrize(("page", "line"), sorted(set(console_lines(GUIDES))))
def test_every_console_line_is_one_that_its_parser_takes(page: str, line: str) -> None:
    words = shlex.split(line)
    call = our_call(words)
    if call is not None:
        parse(call)
    else:
        assert words[0] in OTHERS, f"{page}: {line}"


def test_a_training_on_a_small_set_has_a_recipe_for_small_sets() -> None:
    """`paper`, the default, would be thousands of epochs of UCF-101."""
    checked = 0
    for page, line in console_lines(GUIDES):
        call = our_call(shlex.split(line))
        if call is None or call[0] != "run-benchmark" or call[1] in run_benchmark.VERBS:
            continue
        options = train_parser().parse_args(call[1:])
        if options.train_split != "train":
            checked += 1
            assert options.recipe != "paper", f"{page}: {line}"
    assert checked >= 4


@pytest.mark.parametrize("name", scripts())
def test_batch_scripts_are_bash_and_run_our_commands(name: str) -> None:
    script = scripts()[name]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    joined = script.replace("\\\n", " ").splitlines()
    (line,) = (line for line in joined if line.startswith(("srun ", "  torchrun ")))
    call = our_call(shlex.split(line))
    assert call is not None
    assert call[-1] == "$@"
    assert name == f"{call[0]}.sbatch"
    known = options_of(PARSERS[call[0]]())
    assert {word for word in call if word.startswith("--")} <= known


def test_torchrun_takes_the_options_of_the_training_script() -> None:
    script = scripts()["run-benchmark.sbatch"].replace("\\\n", " ").replace("$SLURM_NNODES", "8")
    words = shlex.split(script[script.index("torchrun") :])
    parse: Callable[[list[str]], Any] = torch.distributed.run.parse_args
    parsed = parse(words[1:])
    assert (parsed.training_script, parsed.nnodes, parsed.no_python) == ("run-benchmark", "8", True)


@pytest.mark.parametrize("page", GUIDES)
def test_every_option_named_exists(page: str) -> None:
    known = set().union(*(options_of(parser()) for parser in PARSERS.values()))
    assert options_named(PAGES[page]) - FOREIGN <= known


@pytest.mark.parametrize("command", OWN_PAGES)
def test_the_page_of_a_command_names_all_its_options(command: str) -> None:
    parsers = [parser() for name, parser in PARSERS.items() if name.split()[0] == command]
    common = {"--help", "--help-all", "--version", "--seed"}
    options = set().union(*map(options_of, parsers)) - common
    assert options <= options_named(PAGES[OWN_PAGES[command]])


# Tables


def first_cells(page: str, heading: str) -> set[str]:
    """The words in code type in the first column of the table whose header begins so."""
    table = PAGES[page].split(f"\n| {heading} |", 1)[1].split("\n\n", 1)[0]
    cells = (line.split("|")[1] for line in table.splitlines()[2:])
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell) or [cell.strip()]}


def test_the_tables_name_what_the_registries_hold() -> None:
    own = OWN_PAGES
    sources = first_cells(own["kinetics-download"], "`--source`")
    assert {cell.partition(":")[0] for cell in sources} == set(SOURCES)
    encodings = first_cells(own["kinetics-download"], "`--encoding`")
    assert {cell.partition(",")[0] for cell in encodings} == set(ENCODINGS)
    assert first_cells(own["extract-flow"], "`--method`") == set(METHODS)
    assert first_cells(own["extract-flow"], "`--codec`") == set(CODECS)
    assert first_cells(own["run-benchmark"], "`--arch`") == set(ARCHS)
    assert first_cells(own["run-benchmark"], "`--recipe`") == set(RECIPES)
    assert first_cells(own["run-benchmark"], "`--protocol`") == set(PROTOCOLS)
    assert first_cells(own["run-benchmark"], "`--init`") - {"a path"} == set(INITS)
    assert first_cells("docs/formats.md", "codec") == set(CODECS)
    codes = {int(cell) for cell in first_cells("README.md", "code")}
    assert codes == set(map(int, Exit))


def test_the_help_describes_each_source_codec_and_encoding() -> None:
    for name, option, known in (
        ("kinetics-download", "--source", SOURCES),
        ("extract-flow", "--codec", CODECS),
        ("kinetics-download", "--encoding", ENCODINGS),
        ("extract-flow", "--encoding", ENCODINGS),
    ):
        (action,) = (a for a in PARSERS[name]()._actions if option in a.option_strings)
        assert action.help is not None
        assert all(re.search(rf"\b{word}\b", action.help) for word in known)


def test_the_table_of_reasons_is_the_codes() -> None:
    page = OWN_PAGES["kinetics-download"]
    assert first_cells(page, "class") == set(REASON_CLASSES)
    for name, reasons in REASON_CLASSES.items():
        (row,) = (line for line in PAGES[page].splitlines() if line.startswith(f"| {name} |"))
        shown = re.sub(r"\(.*?\)", "", row.split("|")[2])
        assert {word.strip() for word in shown.split(",")} == set(reasons)


def test_the_short_sides_are_those_of_the_recipes() -> None:
    table = PAGES["docs/extract-flow.md"].split("| recipe | its frames", 1)[1].split("\n\n")[0]
    told = dict(re.findall(r"^\| (`\w+`(?: of `c3d`)?) \| (\d+, crop \d+) \|", table, re.MULTILINE))
    for name, archs in RECIPES.items():
        for arch, streams in archs.items():
            row = told.get(f"`{name}` of `{arch}`", told[f"`{name}`"])
            for recipe in streams.values():
                assert row == f"{recipe.short_side}, crop {recipe.crop_px}"


def test_features_files_are_named_as_shown() -> None:
    from kinetics_bench.inference.features import keys_of

    ((video, name),) = re.findall(r"\(`(\S.*\.mp4)`: `(\S+)`\)", PAGES["docs/run-benchmark.md"])
    assert keys_of([Path(video)]) == {Path(video): name}


def test_the_tutorial_names_the_kinds_of_video_files() -> None:
    line = PAGES["docs/tutorial.md"].split("Videos are files that end in", 1)[1].split(". ", 1)[0]
    assert set(re.findall(r"`(\.\w+)`", line.split("\nEvery")[0])) == VIDEO_SUFFIXES


def test_every_layer_is_in_contributing() -> None:
    told = re.findall(r"^\| \d+ \| (.*?) \|", PAGES["CONTRIBUTING.md"], re.MULTILINE)
    assert [tuple(re.findall(r"`(.*?)`", row)) for row in told] == list(FLOORS)


# Python


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that examples run in: shards and a run, official lists, weights."""
    import torch

    from kinetics_bench.archs import build

    folder = tmp_path_factory.mktemp("written")
    unpack_written_by_0_1(folder)
    lists = folder / "lists" / "ucf101"
    lists.mkdir(parents=True)
    for role, split in (("train", "train"), ("test", "val")):
        clips = sorted((folder / "clips" / "clips" / split).rglob("*.mp4"))
        lines = [f"{clip.parent.name}/{clip.stem}.avi 1\n" for clip in clips]
        (lists / f"{role}list01.txt").write_text("".join(lines))
    for stream in ("rgb", "flow"):
        torch.save(build("i3d", stream).state_dict(), folder / f"{stream}.pt")
    return folder


def python_blocks() -> list[tuple[str, int]]:
    return [(page, at) for page in GUIDES for at in range(len(blocks(page, "python")))]


def test_the_public_packages_are_those_told() -> None:
    told = PAGES["docs/python.md"].split("Everything else is private")[0]
    assert set(re.findall(r"`(kinetics_\w+(?:\.\w+)?)`", told)) == set(PUBLIC)


@pytest.mark.parametrize(("page", "at"), python_blocks())
@pytest.mark.full
def test_every_block_of_python_runs(page: str, at: int, written: Path) -> None:
    """Run in a process of its own, with fewer pixels, and weights of ours for those to fetch."""
    block = blocks(page, "python")[at]
    run = block.replace("224", "32").replace('"kinetics", **which', '"rgb.pt", **which')
    run = run.replace('("imagenet", "kinetics")', '(f"{stream}.pt",)')
    told = re.findall(r"^ *(\w+) = net.*# \(([\d, ]+)\)", block, re.MULTILINE)
    asserts = [f"assert {name}.shape == ({shape},), {name}.shape" for name, shape in told]
    code = "\n".join([run, *asserts])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=written,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_the_formats_page_reads_is_what_we_read(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(written)
    block = next(block for block in blocks("docs/formats.md", "python") if "av.open" in block)
    names: dict[str, Any] = {}
    exec(block, names)
    samples = {sample.key: sample for sample in read_samples(written / "shards", "val")}
    own = samples[names["about"]["key"]]
    assert (names["codes"] == own.codes()).all()
    assert abs(names["fields"] - own.flow()).max() < 1e-5


# Formats


def fields_told(heading: str) -> set[str]:
    return first_cells("docs/formats.md", heading)


def member(shard: Path) -> dict[str, Any]:
    """The json of a shard's first sample."""
    with tarfile.open(shard) as tar:
        info = next(info for info in tar if info.name.endswith(".json"))
        assert not info.pax_headers
        file = tar.extractfile(info)
        assert file is not None
        value: dict[str, Any] = json.loads(file.read())
        return value


def test_the_fields_of_each_file_are_those_told(written: Path) -> None:
    shards, run = written / "shards", written / "run" / "flow"

    def read(path: Path) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return value

    sidecar = read(shards / "val" / "flow-tvl1-000000.json")
    result = read(run / "result.json")
    log = json.loads((run / "log.jsonl").read_text().splitlines()[0])
    assert fields_told("ledger field") == {field.name for field in dataclasses.fields(Line)}
    for line in (written / "clips" / "ledger-0-of-1.jsonl").read_text().splitlines():
        assert json.loads(line).keys() <= fields_told("ledger field")
    assert fields_told("dataset field") == read(shards / "dataset.json").keys()
    assert fields_told("rgb field") == member(shards / "val" / "rgb-000000.tar").keys()
    assert fields_told("flow field") == member(shards / "val" / "flow-tvl1-000000.tar").keys()
    assert fields_told("sidecar field") == sidecar.keys()
    # Version 0.1 did not write the last two.
    assert fields_told("result field") == result.keys() | {"seed", "best"}
    assert fields_told("score field") == {field.name for field in dataclasses.fields(Score)}
    assert fields_told("overlap field") == {field.name for field in dataclasses.fields(Overlap)}
    assert fields_told("attrition field") == {
        *("seed", "stream"),
        *(field.name for field in dataclasses.fields(Attrition)),
    }
    assert fields_told("log field") == log.keys()
    of_member = next(
        s for s in PAGES["docs/formats.md"].splitlines() if s.startswith("| `members`")
    )
    assert set(sidecar["members"][0]) <= set(re.findall(r"`(\w+)`", of_member))


def test_the_fields_of_features_are_those_told(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(written)
    (clip,) = Path("clips").rglob("_golden0005*.mp4")
    words = ["features", str(clip), "--work-dir", "run", "--device", "cpu", "--amp", "none"]
    assert run_benchmark.run(words) == Exit.COMPLETE
    about = json.loads(Path("features", f"{clip.stem}.json").read_text(encoding="utf-8"))
    assert fields_told("features field") == about.keys()
    rows = np.load(Path("features", f"{clip.stem}.npy"))
    assert (rows.dtype, rows.shape) == (np.float32, (about["rows"], about["features"]))


def test_the_columns_of_each_table_are_those_told(written: Path) -> None:
    def columns(page_part: str) -> dict[str, str]:
        table = page_part.split("\n| column |", 1)[1].split("\n\n", 1)[0]
        return dict(re.findall(r"^\| `(.+?)` \| (.+?) \|", table, re.MULTILINE))

    text = PAGES["docs/formats.md"]
    index = columns(text.split("### index.parquet")[1])
    expected = {
        name.replace("<stream>", stream): kind
        for name, kind in index.items()
        for stream in (("rgb", "flow-opencv-tvl1", "flow-tvl1") if "<" in name else ("",))
    }
    schema = pq.read_schema(written / "shards" / "val" / "index.parquet")
    kinds = {"large_string": "string", "list<element: float>": "list of float"}
    found = {field.name: kinds.get(str(field.type), str(field.type)) for field in schema}
    assert found == expected
    schema = pq.read_schema(written / "run" / "flow" / "predictions.parquet")
    found = {field.name: kinds.get(str(field.type), str(field.type)) for field in schema}
    assert found == columns(text.split("### predictions.parquet")[1])


# Links, paths, numbers


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            other = file.resolve().relative_to(ROOT).as_posix()
            assert anchor in anchors(other), f"{page}: {target}"


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "manifests/README.md", "benchmarks/results/README.md"]
)
def test_every_path_of_the_repository_named_exists(page: str) -> None:
    roots = "kinetics_tools|benchmarks|tests|docs|manifests"
    named = set(re.findall(rf"\b((?:{roots})/[\w./-]*\w)", PAGES[page]))
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


def numbers(text: str) -> set[str]:
    """The numbers in a text, without those in names and addresses."""
    return set(re.findall(r"(?<![\w.,-])\d[\d,]*(?:\.\d+)?(?![\w-])", text))


def test_the_figures_of_the_readme_are_measured_ones() -> None:
    section = README.split("\n## Figures\n", 1)[1].split("\n## ", 1)[0]
    assert len(section.strip().splitlines()) <= 10
    assert numbers(section) <= numbers(RESULTS)


def test_the_main_results_are_measured_ones_rounded() -> None:
    measured = {float(number.replace(",", "")) for number in numbers(RESULTS)}
    ratios = {"115", "183"}  # of OpenCV's seconds on Middlebury to those of DIS
    section = PAGES["docs/figures.md"].split("\n## Networks\n", 1)[0]
    for number in numbers(section) - ratios:
        decimals = len(number.partition(".")[2])
        assert float(number.replace(",", "")) in {round(each, decimals) for each in measured}


def test_the_networks_are_as_large_as_told() -> None:
    """In millions of parameters, and in GFLOPs of a training and a test input."""
    shown = PAGES["docs/figures.md"].split("| `--arch` |", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in shown.splitlines()[2:]]
    told = {row[0].split("`")[1]: (row[1], row[2], row[4], row[6]) for row in rows}
    for row in table():
        if row.paper_parameters is not None:
            assert told.pop(row.arch) == (
                f"{row.parameters / 1e6:.2f} M",
                f"{row.paper_parameters // 10**6} M",
                f"{row.train.flops / 1e9:,.0f}",
                f"{row.test.flops / 1e9:,.0f}",
            )
    assert not told


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 190


def test_the_version_is_the_same_everywhere() -> None:
    version = kinetics_tools.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(.*?)\]", PAGES["CHANGELOG.md"], re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


def test_the_hooks_are_those_of_the_gate() -> None:
    hooks = re.findall(
        r"^ +entry: (.*)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE
    )
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    gate = tox["testenv:check"]["commands"].split("\n")
    assert hooks == [line for line in gate if line and not line.startswith("pytest")]

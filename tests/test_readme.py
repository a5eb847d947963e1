"""The README is true: its commands are the ones CI runs, its options and names exist."""

import configparser
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kinetics_bench import cli as run_benchmark
from kinetics_bench.archs.registry import ARCHS
from kinetics_bench.recipes import RECIPES
from kinetics_tools.core.cli import Parser
from kinetics_tools.core.errors import REASON_CLASSES, ShardError
from kinetics_tools.download import cli as kinetics_download
from kinetics_tools.download.sources.registry import SOURCES
from kinetics_tools.extract import cli as extract_flow
from kinetics_tools.flow.methods import METHODS
from support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
TESTS = "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox run"
DEMO = f"{TESTS} -e demo"

PARSERS: Mapping[str, Callable[[], Parser]] = {
    "kinetics-download": kinetics_download.build_parser,
    "extract-flow": extract_flow.build_parser,
    "run-benchmark": run_benchmark.train_parser,
    **{
        f"kinetics-download {verb}": parser for verb, (parser, _) in kinetics_download.VERBS.items()
    },
    **{f"extract-flow {verb}": parser for verb, (parser, _) in extract_flow.VERBS.items()},
    **{f"run-benchmark {verb}": parser for verb, (parser, _) in run_benchmark.VERBS.items()},
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def shown_commands() -> list[str]:
    """Every line of a console block that calls one of the three commands."""
    lines = (
        line.partition(" #")[0].strip()
        for block in blocks("console")
        for line in block.splitlines()
    )
    calls = (re.sub(r"^torchrun .*?(?=run-benchmark)", "", line) for line in lines)
    return [call for call in calls if call.split(" ")[0] in PARSERS]


def options_of(parser: Parser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def test_the_two_commands_are_the_ones_that_ci_and_tox_know() -> None:
    console = [line for block in blocks("console") for line in block.splitlines()]
    assert TESTS in console
    assert DEMO in console
    assert TESTS in (ROOT / ".ci" / "run").read_text()
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    assert {"testenv:check", "testenv:smoke", "testenv:demo", "testenv:full"} <= set(tox.sections())


@pytest.mark.parametrize("call", shown_commands())
def test_every_command_shown_is_one_that_its_parser_takes(call: str) -> None:
    words = shlex.split(call)
    name = " ".join(words[:2]) if " ".join(words[:2]) in PARSERS else words[0]
    PARSERS[name]().parse_args(words[len(name.split()) :])


def test_every_option_named_exists() -> None:
    known = set().union(*(options_of(parser()) for parser in PARSERS.values()))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    foreign = {"--index-url", "--no-python", "--nproc-per-node"}
    foreign |= {"--array", "--gpus-per-task", "--cpus-per-task", "--ntasks", "--time"}
    assert named - foreign <= known


def first_cells(heading: str) -> set[str]:
    """The words in the first column of the table whose header begins with `heading`."""
    table = README.split(f"| {heading}", 1)[1].split("\n\n", 1)[0]
    cells = (line.split("|")[1].strip(" `") for line in table.splitlines()[2:])
    return {cell.partition(":")[0] for cell in cells}


def test_the_tables_name_what_the_registries_hold() -> None:
    assert first_cells("`--source`") == set(SOURCES)
    assert first_cells("`--method`") == set(METHODS)
    assert first_cells("`--recipe`") == set(RECIPES)
    assert first_cells("class | reasons") == set(REASON_CLASSES)
    assert first_cells("`--arch`") == set(ARCHS)
    for name, reasons in REASON_CLASSES.items():
        (row,) = (line for line in README.splitlines() if line.startswith(f"| {name} |"))
        shown = re.sub(r"\(.*?\)", "", row.split("|")[2])
        assert {word.strip() for word in shown.split(",")} == set(reasons)


def test_features_files_are_named_as_shown() -> None:
    from kinetics_bench.inference.features import keys_of

    ((video, name),) = re.findall(r"\(`(\S.*\.mp4)`: `(\S+)`\)", README)
    assert keys_of([Path(video)]) == {Path(video): name}


def python_with(name: str) -> str:
    """The one block of Python that uses `name`."""
    (block,) = (block for block in blocks("python") if name in block)
    return block


def test_the_python_of_shards_compiles_and_its_names_exist() -> None:
    from kinetics_tools.flow import methods
    from kinetics_tools.shards import reader

    compile(python_with("read_samples"), "README.md", "exec")
    assert callable(methods.compute)
    with pytest.raises(ShardError, match="make them with: extract-flow"):
        next(reader.read_samples("shards-that-are-not-there", "val"))


def test_the_python_of_networks_gives_the_shapes_that_it_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run, with fewer pixels, and weights of ours in place of those that would be fetched."""
    import torch

    from kinetics_bench.archs.registry import build

    monkeypatch.chdir(tmp_path)
    weights = build("i3d", "rgb").state_dict()
    torch.save(weights, "weights.pt")
    block = python_with("archs.build")
    run = block.replace("224, 224", "32, 32").replace('"kinetics"', '"weights.pt"')
    names: dict[str, Any] = {}
    exec(run, names)
    told = re.findall(r"^ *(\w+) = net.*# \(([\d, ]+)\)", block, re.MULTILINE)
    assert [name for name, _ in told] == ["logits", "by_step", "features"]
    for name, shape in told:
        assert names[name].shape == tuple(map(int, shape.split(", ")))
    loaded = names["net"].state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())

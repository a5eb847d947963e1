"""Recipes as people write them: TOML files, and overrides on the command line.

A recipe as a table has the fields of Recipe, except that [optimizer] has `name`, `lr` and
`weight_decay`, and [schedule] has a `kind`, and its rates as multiples of `optimizer.lr`. A dotted
name is that of a field: `optimizer.lr`, `sampling.flow.num`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from kinetics_bench.archs.registry import ARCHS, CHANNELS, Sampling
from kinetics_bench.protocols import protocol_named
from kinetics_bench.recipes.known import recipe_for
from kinetics_bench.recipes.recipe import Optimizer, Recipe
from kinetics_bench.recipes.schedules import SCHEDULES, MultiStep, Plateau, in_proportion
from kinetics_tools.core import schema
from kinetics_tools.core.errors import EvaluationError, UnknownNameError, lookup, unknown_name
from kinetics_tools.core.files import digest
from kinetics_tools.core.text import read_text

MAX_WORD: Final = 80  # characters of a part of a folder's name
LENGTH: Final = {"epochs": "schedule.epochs", "steps": "schedule.steps"}
_RATES: Final = ("peak_lr", "start_lr")  # of a schedule: in a table it is optimizer.lr
# Fields of a table and short forms of their names, in the names of recipes.
_WORDS: Final = {
    "batch_size": "batch",
    "schedule.epochs": "epochs",
    "schedule.steps": "steps",
    "optimizer.lr": "lr",
}
Table = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeChoice:
    """A recipe as it was asked for, for any network.

    Attributes:
        name: in RECIPES, or the path of a TOML file.
        table: what that file holds; None: the name is one of RECIPES.
        overrides: dotted name of a field -> its value.
        scale_lr: the rate is scaled in proportion to the batch size, if that is overridden.
    """

    name: str
    table: Table | None = None
    overrides: Table = field(default_factory=dict)
    scale_lr: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """The overrides as words for the name of a folder: `batch-4`, `lr-0.01`."""
        words = [_word(name, value) for name, value in self.overrides.items()]
        return (*words, *(["scaled-lr"] if self.scale_lr else []))

    @property
    def title(self) -> str:
        """The recipe's name without its overrides: of a file its `name`, or the file's name."""
        if self.table is None:
            return self.name
        return _plain(str(self.table.get("name", Path(self.name).stem)))

    def recipe(self, arch: str, stream: str) -> Recipe:
        """The recipe of one network.

        Args:
            arch: a name in ARCHS.
            stream: one of `ARCHS[arch].networks`.

        Raises:
            UnknownNameError: the recipe or a field does not exist.
            EvaluationError: the recipe is not for this network, or a value is not what it may be.
        """
        if self.table is None:
            before = recipe_for(self.name, arch, stream)
        else:
            before = _from_file(self.name, self.table, self.title, arch, stream)
        for name in self.overrides:
            _require_input(arch, name)
        try:
            recipe = _overridden(before, self.overrides) if self.overrides else before
        except ValueError as error:
            raise EvaluationError(f"recipe {before.name}: {_said(error)}") from error
        if self.scale_lr and recipe.batch_size != before.batch_size:
            if "optimizer.lr" in self.overrides:
                raise EvaluationError("--scale-lr and --lr each decide the rate: leave one out")
            lr = in_proportion(recipe.batch_size / before.batch_size, before.schedule.base_lr)
            schedule = recipe.schedule.with_base_lr(lr)
            recipe = replace(recipe, name=f"{recipe.name}+scaled-lr", schedule=schedule)
        return recipe


def read_recipe_file(path: Path) -> dict[str, Any]:
    """What a TOML file of a recipe holds; its fields are checked when a network is chosen.

    Raises:
        EvaluationError: it cannot be read, or is not TOML.
    """
    text = read_text(path, raises=EvaluationError)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise EvaluationError(
            f"{path} is not TOML: {error}; `run-benchmark recipes small` prints a recipe as it is "
            "read"
        ) from error


def parse_override(text: str) -> tuple[str, Any]:
    """Name and value of `NAME=VALUE`; the value is written as in TOML, or a plain word.

    The value of a field that is text is the words as they are, without quotes around them.

    Raises:
        ValueError: it is not of this form.
    """
    name, equals, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not equals or not name or not value or "\n" in value:
        raise ValueError(f"{text[:80]!r} is not NAME=VALUE, such as optimizer.lr=1e-4")
    if name in _texts() and value[0] not in "'\"":
        return name, value  # 0x3 is a protocol, and would be a number of TOML
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        if re.fullmatch(r"\w[\w.-]*", value):
            return name, value
        raise ValueError(
            f"{value[:80]!r} is not a value of TOML, such as 1e-4 or [1, 2]"
        ) from error


def override_text(name: str, value: Any) -> str:
    """What `parse_override` reads as this name and value."""
    import tomli_w

    written = tomli_w.dumps({"value": value}).removeprefix("value = ").strip()
    return name + "=" + re.sub(r"\n\s*", "", written)


def as_toml(recipe: Recipe) -> str:
    """The recipe as a TOML file that `--recipe FILE.toml` reads."""
    import tomli_w

    # Each pair of numbers on one line.
    return re.sub(
        r"\[\s+([^\s,]+),\s+([^\s,]+),\s+\]", r"[\1, \2]", tomli_w.dumps(as_table(recipe))
    )


def as_table(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a table."""
    values = asdict(recipe)
    lr = recipe.schedule.base_lr
    schedule = {name: v for name, v in values.pop("schedule").items() if name not in _RATES}
    if isinstance(recipe.schedule, MultiStep):
        schedule["milestones"] = [
            [step, _factor(rate, lr)] for step, rate in recipe.schedule.milestones
        ]
    kind = next(name for name, each in SCHEDULES.items() if type(recipe.schedule) is each)
    optimizer, decay = values.pop("optimizer"), values.pop("weight_decay")
    sampling = {stream: asdict(each) for stream, each in recipe.sampling.items()}
    return {
        **values,
        "sampling": sampling,
        "optimizer": {"name": optimizer, "lr": lr, "weight_decay": decay},
        "schedule": {"kind": kind, **schedule},
    }


def _factor(rate: float, lr: float) -> float:
    """What `lr` is multiplied with for `rate`: a short number, if that gives it exactly."""
    if not lr:
        return 1.0
    short = in_proportion(1 / lr, rate)
    return short if in_proportion(short, lr) == rate else rate / lr


def differing_fields(one: Recipe, other: Recipe) -> list[str]:
    """The fields that change a weight and differ: `epochs 40 there, 60 now`."""
    mine, its = (dict(_flat(as_table(each))) for each in (one, other))
    names = [name for name in {**mine, **its} if name not in ("name", "source", "protocol")]
    return [
        f"{name.removeprefix('schedule.')} {mine.get(name)} there, {its.get(name)} now"
        for name in names
        if mine.get(name) != its.get(name)
    ]


def from_table(table: Table) -> Recipe:
    """The recipe of a table.

    Raises:
        UnknownNameError: it has a field that recipes do not have.
        ValueError: a field is missing, or is not what it may be.
    """
    _require_known(table)
    optimizer, schedule, sampling = (
        dict(_parsed(table.get(part), dict[str, Any], part))
        for part in ("optimizer", "schedule", "sampling")
    )
    protocol_named(_parsed(table.get("protocol"), str, "protocol"))
    lr = _parsed(optimizer.get("lr"), schema.Amount, "optimizer.lr")
    kind_name = _parsed(schedule.pop("kind", None), str, "schedule.kind")
    kind = lookup("kind of schedule", kind_name, SCHEDULES)
    if kind is MultiStep:
        stones = _parsed(schedule, MultiStep, "schedule").milestones
        schedule["milestones"] = [(step, in_proportion(factor, lr)) for step, factor in stones]
    else:
        schedule["start_lr" if kind is Plateau else "peak_lr"] = lr
    _parsed(schedule, kind, "schedule")
    for stream, each in sampling.items():
        _parsed(each, Sampling, f"sampling.{stream}")
    known = {name: name for name in get_args(Optimizer)}
    name = _parsed(optimizer.get("name"), str, "optimizer.name")
    decay = _parsed(optimizer.get("weight_decay"), schema.Amount, "optimizer.weight_decay")
    values = {
        **table,
        "optimizer": lookup("optimizer", name, known),
        "weight_decay": decay,
        "schedule": schedule,
    }
    return Recipe.from_json(values)


def _parsed(value: Any, kind: type[T], name: str) -> T:
    """`schema.parse` of the field of a dotted name, which its errors say."""
    try:
        return schema.parse(value, kind)
    except ValueError as error:
        said, _, inside = str(error).partition(" - at $")
        raise ValueError(f"{said} - at $.{name}{inside}") from error


def _texts() -> set[str]:
    """The dotted names of the fields that are text."""
    example = as_table(recipe_for("paper", "i3d", "rgb"))
    return {name for name, value in _flat(example) if isinstance(value, str)}


def _known(kind: str) -> Iterator[str]:
    """The dotted names of all fields, with those of one kind of schedule."""
    example = as_table(recipe_for("paper", "i3d", "rgb"))
    plain = (name for name in example if name not in ("sampling", "optimizer", "schedule"))
    yield from plain
    yield from (f"sampling.{stream}.{name}" for stream in CHANNELS for name in ("num", "stride"))
    yield from (f"optimizer.{name}" for name in example["optimizer"])
    yield "schedule.kind"
    kinds = [SCHEDULES[kind]] if kind in SCHEDULES else [*SCHEDULES.values()]
    names = dict.fromkeys(each.name for each_kind in kinds for each in fields(each_kind))
    yield from (f"schedule.{name}" for name in names if name not in _RATES)


def _require_known(table: Table) -> None:
    schedule = table.get("schedule")
    kind = str(schedule.get("kind")) if isinstance(schedule, Mapping) else ""
    known = list(_known(kind))
    for name, _ in _flat(table):
        _require_field(name, known)


def _require_field(name: str, known: Sequence[str]) -> None:
    """Raise UnknownNameError unless a dotted name is that of a field, a ValueError of a table."""
    if name in known:
        return
    inside = [each for each in known if each.startswith(f"{name}.")]
    if inside:
        raise ValueError(f"{name} is a table of fields: give {', '.join(inside)}")
    raise UnknownNameError(unknown_name("field of a recipe", name, known))


def _flat(table: Table, before: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a table: dotted name and value."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _from_file(path: str, table: Table, name: str, arch: str, stream: str) -> Recipe:
    """The recipe of a file for one network: a whole one, or what differs from its `base`."""
    known = {"base": "", **table}
    base = str(known.pop("base"))
    streams = ARCHS[arch].clips_of(stream)
    try:
        _require_known(known)
        whole = _merged(as_table(recipe_for(base, arch, stream)) if base else {}, known)
        sampling = schema.parse(whole.get("sampling", {}), dict[str, Any])
        absent = [each for each in streams if each not in sampling]
        if absent:
            raise ValueError(f"[sampling.{absent[0]}] is missing, which {arch} needs")
        whole["sampling"] = {each: sampling[each] for each in streams}
        source = {} if "source" in table else {"source": Path(path).name}
        return from_table({**whole, "name": name, **source})
    except UnknownNameError as error:
        raise UnknownNameError(f"{path}: {error}") from error
    except ValueError as error:
        raise EvaluationError(f"{path}: {_said(error)}") from error


def _require_input(arch: str, name: str) -> None:
    """Raise EvaluationError for a field of the sampling of a stream that no network takes."""
    networks = ARCHS[arch].networks
    inputs = dict.fromkeys(each for network in networks for each in ARCHS[arch].clips_of(network))
    if name.startswith("sampling.") and name.split(".")[1] not in inputs:
        raise EvaluationError(f"--set {name}: {arch} takes {' and '.join(inputs)} only")


def _merged(base: Table, table: Table) -> dict[str, Any]:
    """A table, and what its base has besides; another kind of schedule takes nothing of it."""
    if table.get("kind", base.get("kind")) != base.get("kind"):
        return dict(table)
    merged = {**base, **table}
    for name, its in base.items():
        mine = table.get(name)
        if isinstance(mine, Mapping) and isinstance(its, Mapping):
            merged[name] = _merged(its, mine)
    return merged


def _overridden(recipe: Recipe, overrides: Table) -> Recipe:
    """The recipe with other values of some fields, which its name then says.

    Raises:
        UnknownNameError: there is no such field.
        ValueError: a value is not what it may be.
    """
    before = as_table(recipe)
    kind = str(overrides.get("schedule.kind", before["schedule"]["kind"]))
    unit = lookup("kind of schedule", kind, SCHEDULES).unit
    known = [*_known(kind), LENGTH[unit]]  # milestones have a length too
    changes: dict[str, Any] = {}
    words, steps = [], None
    for name, value in overrides.items():
        if name in LENGTH.values() and name != LENGTH[unit]:
            raise ValueError(f"it counts {unit}: give --{unit} N")
        _require_field(name, known)
        part, _, inner = name.rpartition(".")
        if part.startswith("sampling.") and part.split(".")[1] not in recipe.sampling:
            continue  # of the other network of this architecture
        if name not in ("name", "source") and _value(before, name) != value:
            words.append(_word(name, value))
        if name == LENGTH["steps"] and kind == "multi-step":
            steps = schema.parse(value, schema.Positive)
            continue
        place = changes
        for each in part.split(".") if part else ():
            place = place.setdefault(each, {})
        place[inner] = value
    changed = from_table(_merged(before, changes))
    if steps is not None:
        changed = replace(changed, schedule=changed.schedule.with_length(steps))
    # A smaller batch has no larger micro-batches.
    micro = min(changed.micro_batch_size, changed.batch_size)
    return replace(changed, name="+".join((changed.name, *words)), micro_batch_size=micro)


def _value(table: Table, name: str) -> Any:
    """The value of a dotted name; None if there is none. Of milestones the last step."""
    if name == LENGTH["steps"] and "milestones" in table["schedule"]:
        return table["schedule"]["milestones"][-1][0]
    return dict(_flat(table)).get(name)


def _word(name: str, value: Any) -> str:
    text = str(value)
    if isinstance(value, float) and float(short := f"{value:g}") == value:
        text = short.replace("e+", "e")  # no folder's name has a plus there, nor a minus for it
    word = f"{_WORDS.get(name, name)}-{text}"
    if len(word) <= MAX_WORD:
        return _plain(word)
    return (
        f"{_plain(word)[: MAX_WORD - 9]}-{digest(text)[:8]}"  # what is cut off tells values apart
    )


def _plain(text: str) -> str:
    """A text as part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")[:MAX_WORD] or "unnamed"


def _said(error: ValueError) -> str:
    """What the schema says, with the name of the field as it is written in a file."""
    return re.sub(r" - at \$\.?", " at ", str(error))

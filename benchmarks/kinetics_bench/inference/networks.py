"""Trained networks: those of a finished run, or given weights.

run.json    Request: what a run was asked for
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from kinetics_bench.archs.registry import ARCHS, STREAMS, build, check_network
from kinetics_bench.recipes import RecipeChoice, recipe_for
from kinetics_bench.training.checkpoint import (
    BEST,
    CHECKPOINT,
    Checkpoint,
    InitRecord,
    TrainingData,
)
from kinetics_bench.weights.choices import split_word
from kinetics_bench.weights.init import SCRATCH, InitWeights, load_init
from kinetics_tools.core import schema, system
from kinetics_tools.core.errors import EvaluationError, KineticsError, UnknownNameError
from kinetics_tools.core.file_cache import CACHE_BYTES
from kinetics_tools.core.files import read_json
from kinetics_tools.core.keys import name_part
from kinetics_tools.dataset.labels import known_labels
from kinetics_tools.flow.methods import BOUND_PX, FlowRecipe, make_method
from kinetics_tools.media.encode import ffmpeg_version, find_ffmpeg
from kinetics_tools.media.recipe import ClipRecipe
from kinetics_tools.shards.records import RGB, StreamRecipe, flow_stream

RUN: Final = "run.json"
_LATER: Final = {"batch_size": "batch_size", "epochs": "schedule.epochs"}
METHOD: Final = "tvl1"  # computes the flow of videos for published weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a run was asked for on the command line: run.json.

    Attributes:
        arch: a name in ARCHS.
        stream: `rgb`, `flow` or `joint`.
        recipe: a name in RECIPES, or the path of a recipe's file.
        data: folder of shards: its absolute path, or its address in a store elsewhere.
        train_split: None: nothing is trained, the weights are those of `init`.
        test_split: the split that is evaluated.
        flow: name of the flow; None: the only one in `data`.
        protocol: a name in PROTOCOLS; None: that of the recipe.
        recipe_file: what that file held.
        overrides: of fields of the recipe: dotted name -> value.
        scale_lr: whether the rate is in proportion to the batch size.
        val_split: the split whose loss is looked at in training; None: what the recipe holds out.
        check_every: epochs from one look at it to the next; 0: only as the schedule needs it.
        splits: folder with the official lists of UCF-101 and HMDB-51.
        seed: every random choice follows from it.
        num_workers: processes that read clips; None: the default.
        init: `scratch`, `imagenet`, `kinetics`, or the path of weights.
        finetune: `all`, or `last`: only the last layer.
        cache_bytes: of samples that are read from an address, kept on disk.
        best: the checkpoints that were best on the held-out clips are evaluated, not the last ones.
        amp: precision of a training, as `open_machine` takes it.
        checkpoint_every: steps, or minutes as `10min`, between checkpoints.
        keep_checkpoints: how many of them stay.
        checkpoint_activations: whether a training computes activations again, for less memory.
        sync_bn: whether batch norm in training is of the clips of all processes.
        compile: whether a training compiles its passes, by torch.compile.
        classes: only the clips of these are trained and tested on; None: all.
        min_coverage: share of the test split's clips that must be there.
        allow_overlap: test clips may be of videos that the weights were trained on, and, if nothing
            is trained, be these clips.
        pretrained_on: names, paths or addresses of lists of videos that the weights were trained on
            elsewhere.
    """

    arch: str
    stream: str
    recipe: str
    data: str
    train_split: str | None
    test_split: str
    flow: str | None = None
    protocol: str | None = None
    recipe_file: Mapping[str, Any] | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    scale_lr: bool = False
    val_split: str | None = None
    check_every: schema.Count = 0
    splits: Path | None = None
    seed: int = 0
    num_workers: schema.Count | None = None
    init: str = SCRATCH
    finetune: str = "all"
    cache_bytes: schema.NumBytes = CACHE_BYTES
    best: bool = False
    amp: Literal["auto", "none", "bfloat16", "float16"] = "auto"
    checkpoint_every: schema.Every = "10min"
    keep_checkpoints: schema.Positive = 1
    checkpoint_activations: bool = False
    sync_bn: bool = False
    compile: bool = False
    classes: tuple[str, ...] | None = None
    min_coverage: schema.Share = 0.0
    allow_overlap: bool = False
    pretrained_on: tuple[str, ...] = ()

    @property
    def choice(self) -> RecipeChoice:
        """The recipe of any network of the run."""
        return RecipeChoice(
            name=self.recipe,
            table=self.recipe_file,
            overrides=self.overrides,
            scale_lr=self.scale_lr,
        )

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that have a network of their own."""
        return ARCHS[self.arch].networks_of(self.stream)

    @property
    def as_given(self) -> tuple[str, str, str] | None:
        """Architecture, stream and weights if nothing is trained; None: a training."""
        return (self.arch, self.stream, self.init) if self.train_split is None else None

    @property
    def classes_name(self) -> str:
        """What `classes` are in the name of a folder."""
        names = self.classes or ()
        return name_part("+".join(names)) if len(names) <= 3 else f"{len(names)}-classes"

    def as_json(self) -> dict[str, Any]:
        """The request as plain JSON values."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Request:
        """Read what `as_json` wrote.

        Raises:
            ValueError: a field is missing, unknown, or is not what it may be.
            UnknownNameError: so is the architecture or the stream.
        """
        values = dict(schema.parse(values, dict[str, Any]))
        # Before there were overrides of any field.
        given = {_LATER[name]: values.pop(name) for name in _LATER if name in values}
        given = {name: value for name, value in given.items() if value is not None}
        if given:
            values["overrides"] = {**given, **values.get("overrides", {})}
        schema.check_plain(values)
        request = schema.parse_exactly(values, cls)
        if not request.data or "\0" in request.data:
            raise ValueError("data is no path and no address")
        check_network(request.arch, request.stream)
        return request


def read_request(work_dir: Path) -> Request:
    """The request of the run in `work_dir`.

    Raises:
        KineticsError: there is no run.
    """
    if not (work_dir / RUN).exists():
        if (work_dir.parent / RUN).exists() and work_dir.name in STREAMS:
            raise KineticsError(
                f"{work_dir} is a row of a run, not a run; give the run, {work_dir.parent}"
            )
        if any(not each.name.startswith(".") for each in work_dir.glob("*")):  # as of a fused row
            raise KineticsError(f"{work_dir} holds files and no run; give the --work-dir of a run")
        raise KineticsError(
            f"{work_dir} holds no run; train one there: "
            f"run-benchmark --arch i3d --work-dir {work_dir}"
        )
    advice = "move it away, then give the command that began this run, a training's with --resume"
    try:
        return Request.from_json(read_json(work_dir / RUN, advice))
    except (ValueError, UnknownNameError) as error:
        raise KineticsError(
            f"{work_dir / RUN} is not a request of this version ({error}); {advice}"
        ) from error


def networks_of_run(
    work_dir: Path, stream: str | None = None, *, cache: Path | None = None, best: bool = False
) -> list[Checkpoint]:
    """The networks of a run.

    Args:
        work_dir: of the run.
        stream: one of its streams; None: that of its request.
        cache: as in `networks_of_weights`, for a run that trained nothing.
        best: those of best.pt, not the last ones.

    Raises:
        KineticsError: the run is not finished, has no best.pt, or has no network of that stream.
    """
    request = read_request(work_dir)
    asked = replace(request, stream=stream or request.stream)
    known = asked.stream in ARCHS[request.arch].streams
    if not known or not set(asked.streams) <= set(request.streams):
        raise EvaluationError(f"{work_dir} holds {request.arch} {request.stream}, not {stream}")
    if request.as_given:
        return networks_of_weights(request.init, request.arch, asked.stream, cache=cache)
    name = BEST if best else CHECKPOINT
    paths = [work_dir / each / name for each in asked.streams]
    if best and not all(path.exists() for path in paths):
        raise EvaluationError(
            f"{work_dir} has no {BEST}: train with --eval-every N, which looks at held-out clips"
        )
    checkpoints = [Checkpoint.read(path) for path in paths]
    for checkpoint, stream_there in zip(checkpoints, asked.streams, strict=True):
        told = (checkpoint.arch, checkpoint.stream, checkpoint.labels)
        if told != (request.arch, stream_there, checkpoints[0].labels):
            raise EvaluationError(
                f"{work_dir / stream_there / name} is not of this run: it holds "
                f"{checkpoint.arch} {checkpoint.stream} with {len(checkpoint.labels)} labels"
            )
        if not checkpoint.finished and not best:
            raise EvaluationError(
                f"{work_dir / checkpoint.stream} stopped after {checkpoint.epoch} epochs; "
                "continue it with the training's command and --resume"
            )
    return checkpoints


def networks_of_weights(
    init: str, arch: str, stream: str, *, cache: Path | None = None, whole: bool = True
) -> list[Checkpoint]:
    """Networks with published weights or weights in files, with the paper's recipe.

    Args:
        init: `imagenet`, `kinetics`, or the path of weights; see `load_init`.
        arch: a name in ARCHS.
        stream: of the architecture; `joint` of I3D is one network per stream.
        cache: folder for downloaded weights; None: the user's cache.
        whole: the weights must include the last layer. Logits need it, features do not.

    Raises:
        EvaluationError: the weights are missing, incomplete, or belong to another network.
    """
    folder = system.cache_dir(cache)
    return [
        _given(init, arch, each, cache=folder, whole=whole)
        for each in ARCHS[arch].networks_of(stream)
    ]


def _require_same_labels(given: InitWeights, labels: Sequence[str]) -> None:
    """Raise EvaluationError if weights are a checkpoint of ours with other classes."""
    theirs = None if given.header is None else given.header.labels
    if theirs is not None and theirs != tuple(labels):
        path, _ = split_word(given.source)
        run = path.absolute().parent.parent
        whose = run if (run / RUN).exists() else "the run that trained it"
        raise EvaluationError(
            f"{path} is a checkpoint with {len(theirs)} classes that are not kinetics400's "
            f"{len(labels)}; give {whose} in place of --init (predict: with --work-dir)"
        )


def _given(init: str, arch: str, stream: str, *, cache: Path, whole: bool) -> Checkpoint:
    labels = known_labels("kinetics400")
    given = load_init(init, arch=arch, stream=stream, num_classes=len(labels), cache=cache)
    if given is None:
        raise EvaluationError(
            f"--init {SCRATCH}: scratch weights are untrained; pass imagenet, kinetics or a path"
        )
    if whole:
        _require_same_labels(given, labels)
    net = build(arch, stream, len(labels))
    missing = given.missing_of(net, last=whole)
    if missing is not None:
        raise EvaluationError(
            f"{given.source} has no {missing} of {arch} with kinetics400's {len(labels)} classes, "
            "so its predictions would come from random weights; train it (run-benchmark "
            f"--arch {arch} --init {init}), or give the run that trained it"
        )
    given.load(net)
    recipe = recipe_for("paper", arch, stream)
    needs_flow = "flow" in recipe.streams
    clip = ClipRecipe(enlarge=True, ffmpeg=ffmpeg_version(find_ffmpeg()))
    recipes = {RGB: StreamRecipe.of(clip.as_json())}
    if needs_flow:
        flow = None if given.header is None else given.header.flow
        if flow is None:
            flow = FlowRecipe(method=METHOD, parameters=make_method(METHOD).as_json())
        recipes[flow_stream(METHOD)] = StreamRecipe.of(flow.as_json())
    return Checkpoint(
        arch=arch,
        stream=stream,
        identity={"arch": arch, "stream": stream, "init": given.sha256},
        recipe=recipe,
        data=TrainingData(
            labels=labels,
            recipes=recipes,
            flow=METHOD if needs_flow else "",
            bound=given.bound or (BOUND_PX if needs_flow else 1.0),
            train_split=None,
            num_train=0,
        ),
        seed=0,
        precision="float32",
        net=net.state_dict(),
        optimizer={},
        finished=True,
        init=InitRecord(source=given.source, sha256=given.sha256),
        trained_on=given.trained_on,
    )

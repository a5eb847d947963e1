"""Networks that are trained: those of a run that is finished, or weights as they were published."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from kinetics_bench.archs.registry import ARCHS, build
from kinetics_bench.recipes import recipe_for
from kinetics_bench.training.checkpoint import CHECKPOINT, Checkpoint
from kinetics_bench.weights.choices import INITS
from kinetics_bench.weights.files import CheckpointHeader
from kinetics_bench.weights.init import SCRATCH, load_init, state_shapes
from kinetics_tools.core import system
from kinetics_tools.core.errors import EvaluationError, KineticsError
from kinetics_tools.core.files import digest, read_json
from kinetics_tools.dataset.labels import known_labels
from kinetics_tools.flow.methods import BOUND_PX, FlowRecipe, make_method
from kinetics_tools.media.cut import ClipRecipe
from kinetics_tools.media.encode import ffmpeg_version, find_ffmpeg

RUN: Final = "run.json"
METHOD: Final = "tvl1"  # by which flow of videos is made for published weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a run was asked for: the words of the command line.

    Attributes:
        stream: `rgb`, `flow` or `joint`.
        data: folder of shards.
        flow: name of the flow; None: the only one there is.
        protocol: None: the recipe's.
        batch_size: None: the recipe's.
        epochs: None: the recipe's.
        train_split: None: nothing is trained, the networks are those of `init` as it is.
        splits: folder of official lists.
        init: `scratch`, `imagenet`, `kinetics`, or the path of weights.
        finetune: `all`, or `last`: the last layer alone.
    """

    arch: str
    stream: str
    recipe: str
    data: Path
    train_split: str | None
    test_split: str
    flow: str | None = None
    protocol: str | None = None
    batch_size: int | None = None
    epochs: int | None = None
    splits: Path | None = None
    seed: int = 0
    num_workers: int | None = None
    init: str = SCRATCH
    finetune: str = "all"

    @property
    def streams(self) -> tuple[str, ...]:
        """The networks that are trained, by stream."""
        return ARCHS[self.arch].networks_of(self.stream)

    @property
    def as_given(self) -> tuple[str, str, str] | None:
        """Architecture, stream and `init` where these are all of a network; None: it is trained."""
        return (self.arch, self.stream, self.init) if self.train_split is None else None

    def as_json(self) -> dict[str, Any]:
        """The request as plain JSON values."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Request":
        """The request that `as_json` told."""
        paths = {name: Path(values[name]) for name in ("data", "splits") if values[name]}
        return cls(**{**values, **paths})


def read_request(work_dir: Path) -> Request:
    """What the run in `work_dir` was asked for.

    Raises:
        KineticsError: no run was started there.
    """
    if not (work_dir / RUN).exists():
        raise KineticsError(
            f"{work_dir} holds no run; train one there: "
            f"run-benchmark --arch i3d --work-dir {work_dir}"
        )
    try:
        return Request.from_json(read_json(work_dir / RUN))
    except (TypeError, KeyError) as error:
        raise KineticsError(f"{work_dir / RUN} is not of this version ({error})") from error


def networks_of_run(
    work_dir: Path, stream: str | None = None, *, cache: Path | None = None
) -> list[Checkpoint]:
    """The networks of a run; `stream`: of several one alone.

    Args:
        work_dir: the run's.
        stream: None: what the run was asked for.
        cache: as in `networks_of_weights`, for the evaluation of weights as they are.

    Raises:
        KineticsError: the run is not finished, or did not train that stream.
    """
    request = read_request(work_dir)
    asked = replace(request, stream=stream or request.stream)
    known = asked.stream in ARCHS[request.arch].streams
    if not known or not set(asked.streams) <= set(request.streams):
        raise EvaluationError(f"{work_dir} is of {request.arch} {request.stream}, so not {stream}")
    if request.as_given:
        return networks_of_weights(request.init, request.arch, asked.stream, cache=cache)
    checkpoints = [Checkpoint.read(work_dir / each / CHECKPOINT) for each in asked.streams]
    for checkpoint in checkpoints:
        if not checkpoint.finished:
            raise EvaluationError(
                f"{work_dir / checkpoint.stream} stopped after {checkpoint.epoch} epochs; "
                "continue it with the training's command and --resume"
            )
    return checkpoints


def networks_of_weights(
    init: str, arch: str, stream: str, *, cache: Path | None = None, whole: bool = True
) -> list[Checkpoint]:
    """Networks with published or stored weights, as if the paper's recipe had trained them.

    Args:
        init: `imagenet`, `kinetics`, or the path of weights; see `kinetics_bench.weights.init`.
        arch: a name in ARCHS.
        stream: one of the architecture's; joint of I3D is a network of each stream.
        cache: keeps what is fetched; None: the user's own.
        whole: the weights must have the last layer too. Without it logits are of drawn weights,
            features are not.

    Raises:
        EvaluationError: the weights are not there, not of this network, or of a part of it.
    """
    kept = system.cache_dir(cache)
    return [
        _as_given(init, arch, each, cache=kept, whole=whole)
        for each in ARCHS[arch].networks_of(stream)
    ]


def _refuse_other_labels(path: Path, labels: Sequence[str]) -> None:
    """Raise EvaluationError where `path` is a checkpoint of ours with other classes."""
    header = CheckpointHeader.read(path)
    theirs = None if header is None else header.labels
    if theirs is not None and theirs != tuple(labels):
        run = path.absolute().parent.parent
        whose = run if (run / RUN).exists() else "the run that trained it"
        raise EvaluationError(
            f"{path} is a checkpoint with {len(theirs)} classes that are not kinetics400's "
            f"{len(labels)}; give {whose} in place of --init (predict: with --work-dir)"
        )


def _as_given(init: str, arch: str, stream: str, *, cache: Path, whole: bool) -> Checkpoint:
    labels = known_labels("kinetics400")
    start = load_init(init, arch=arch, stream=stream, num_classes=len(labels), cache=cache)
    if start is None:
        raise EvaluationError(
            f"--init {SCRATCH} has nothing to show yet; name weights: imagenet, kinetics or PATH"
        )
    if whole and init not in INITS:
        _refuse_other_labels(Path(start.source), labels)
    net = build(arch, stream, len(labels))
    drawn = () if whole else tuple(f"{layer}." for layer in net.last_layers)
    for name in state_shapes(net):
        if name not in start.state and not name.startswith(drawn):
            raise EvaluationError(
                f"{start.source} has no {name} of {arch} with kinetics400's {len(labels)} classes, "
                "so what it says would be of drawn weights; train it (run-benchmark "
                f"--arch {arch} --init {init}), or name the run that did"
            )
    start.load(net)
    recipe = recipe_for("paper", arch, stream)
    needs_flow = "flow" in recipe.streams
    clip = ClipRecipe(enlarge=True, ffmpeg=ffmpeg_version(find_ffmpeg())).as_json()
    recipes = {"rgb": clip | {"hash": digest(clip)}}
    if needs_flow:
        flow = FlowRecipe(method=METHOD, parameters=make_method(METHOD).as_json())
        recipes[f"flow-{METHOD}"] = flow.as_json() | {"hash": flow.hash}
    return Checkpoint(
        arch=arch,
        stream=stream,
        identity={"arch": arch, "stream": stream, "init": start.sha256},
        recipe=recipe.as_json(),
        data={
            "labels": list(labels),
            "recipes": recipes,
            "flow": METHOD if needs_flow else "",
            "bound": BOUND_PX if needs_flow else 1.0,
            "train_split": None,
            "num_train": 0,
        },
        seed=0,
        precision="float32",
        net=net.state_dict(),
        optimizer={},
        finished=True,
        init={"source": start.source, "sha256": start.sha256, "finetune": "all"},
    )

"""Attrition: an accuracy on thinned clips, against theory and a real ledger."""

import json
import math
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_bench import cli
from kinetics_bench.evaluation.attrition import ALL, NUM_DRAWS, Ledger, attrition
from kinetics_bench.evaluation.fusion import fuse
from kinetics_bench.evaluation.results import Predictions, Result, score
from kinetics_bench.evaluation.rows import find_row
from kinetics_tools.core.errors import EvaluationError, ManifestError, Reason
from kinetics_tools.core.units import WHOLE
from kinetics_tools.dataset import ledger
from kinetics_tools.dataset.layout import record_selection
from kinetics_tools.dataset.ledger import DONE, FAILED, Line, ledger_path
from kinetics_tools.dataset.manifest import Segment
from support import unpack_written_by_0_1

NUM = 400
REASONS = (Reason.PRIVATE, Reason.GONE, Reason.NETWORK)


def segment(at: int) -> Segment:
    return Segment(
        youtube_id=f"video{at:06d}",
        start_s=Fraction(0),
        end_s=Fraction(10),
        label=f"class {at % 4}",
        split="val",
    )


KEYS = [segment(at).key for at in range(NUM)]
# Private videos are of right clips more often than others are: their loss is not random.
RIGHT = {key: at % 10 < 7 for at, key in enumerate(KEYS)}
LOST = {
    **{at: Reason.PRIVATE for at in range(100) if at % 10 < 7 and at % 3},
    **dict.fromkeys(range(100, 300, 7), Reason.GONE),
    **dict.fromkeys(range(NUM, NUM + 5), Reason.NETWORK),  # which were not evaluated
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What kinetics-download's own code wrote of a download with losses, without the clips."""
    out = tmp_path_factory.mktemp("clips")
    segments = [segment(at) for at in range(NUM + 10)]
    record_selection(out, segments, tuple(sorted({str(each.label) for each in segments})))
    with ledger.writer(ledger_path(out, WHOLE)) as writer:
        for at, each in enumerate(segments[: NUM + 8]):
            why = LOST.get(at)
            status: Literal["done", "failed"] = FAILED if why else DONE
            if at == 7:  # it was lost, and found again
                writer.add(Line(key=each.key, status=FAILED, source="cvdf", reason=Reason.SERVER))
            writer.add(Line(key=each.key, status=status, source="youtube", reason=why))
    return out


def test_the_ledger_says_what_was_lost_and_why(clips: Path) -> None:
    found = Ledger.read(clips)
    assert found.lost == {segment(at).key: str(why) for at, why in LOST.items()}
    assert len(found.there) == NUM + 8 - len(LOST)
    assert found.there.isdisjoint(found.lost)
    assert segment(NUM + 9).key not in found.there  # not tried


def test_top1_of_the_rest_is_that_of_a_list_without_the_lost(clips: Path) -> None:
    found = attrition(RIGHT, Ledger.read(clips))
    assert [loss.reason for loss in found.losses] == ["private", "gone", "network", ALL]
    assert found.top1 == 0.7
    for loss in found.losses:
        lost = {at for at, why in LOST.items() if loss.reason in (ALL, why)}
        rest = [RIGHT[key] for at, key in enumerate(KEYS) if at not in lost]
        assert loss.top1 == pytest.approx(np.mean(rest))
        assert (loss.num_lost, loss.num_scored) == (len(lost), NUM - len(rest))
        assert loss.random is not None
    private, gone, network, _ = found.losses
    assert private.p_value is not None
    assert private.p_value < 0.01
    assert gone.p_value is not None
    assert gone.p_value > 0.05
    assert (network.num_scored, network.top1, network.p_value) == (0, 0.7, None)


def test_random_losses_are_as_theory_says(clips: Path) -> None:
    """Of the mean of m of N clips, drawn without replacement: mean p, variance
    p (1 - p) / m (N - m) / (N - 1)."""
    for step in attrition(RIGHT, Ledger.read(clips)).curve:
        left = NUM - step.num
        spread = math.sqrt(0.7 * 0.3 / left * step.num / (NUM - 1))
        assert step.random.mean == pytest.approx(0.7, abs=5 * spread / math.sqrt(NUM_DRAWS))
        half = (step.random.high - step.random.low) / 2
        assert half == pytest.approx(1.96 * spread, abs=0.1 * 1.96 * spread + 1 / left)


def test_the_curve_ends_where_all_really_lost_clips_are_lost(clips: Path) -> None:
    found = attrition(RIGHT, Ledger.read(clips))
    num = found.losses[-1].num_scored
    assert [step.num for step in found.curve] == sorted({*range(20, 400, 20), num})
    (last,) = (step for step in found.curve if step.num == num)
    assert last.real is not None
    assert [last.real.mean, last.real.low, last.real.high] == pytest.approx(
        [found.losses[-1].top1] * 3
    )
    assert all((step.real is None) == (step.num > num) for step in found.curve)
    # Right clips are lost more often than others, so the real curve lies below.
    assert all(step.real.mean < step.random.mean for step in found.curve if step.real)


def test_draws_follow_from_the_seed(clips: Path) -> None:
    known = Ledger.read(clips)
    assert attrition(RIGHT, known, seed=1) == attrition(RIGHT, known, seed=1)
    assert attrition(RIGHT, known, seed=1) != attrition(RIGHT, known, seed=-2)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["", "", *REASONS])), min_size=1))
def test_any_losses_are_told(clips: list[tuple[bool, str]]) -> None:
    right = {f"k{at}": is_right for at, (is_right, _) in enumerate(clips)}
    lost = {f"k{at}": str(why) for at, (_, why) in enumerate(clips) if why}
    known = Ledger(Path("clips"), lost, frozenset(right.keys() - lost.keys()))
    if not lost:
        with pytest.raises(EvaluationError, match="so nothing can be thinned: it lost none"):
            attrition(right, known)
        return
    found = attrition(right, known)
    assert sum(loss.num_scored for loss in found.losses[:-1]) == found.losses[-1].num_scored
    for loss in found.losses:
        assert (loss.top1 is None) == (loss.num_scored == len(clips)) == (loss.random is None)
    for step in found.curve:
        for each in filter(None, (step.random, step.real)):
            assert 0 <= each.low <= each.high <= 1


def test_nothing_to_thin_is_one_line(clips: Path) -> None:
    known = Ledger.read(clips)
    kept = {key: is_right for key, is_right in RIGHT.items() if key not in known.lost}
    with pytest.raises(EvaluationError, match="the run's shards are of these clips") as caught:
        attrition(kept, known)
    assert str(caught.value).startswith(f"none of the {len(LOST)} clips that the ledger of {clips}")
    with pytest.raises(EvaluationError, match="its keys are not those of the run"):
        attrition({"other": True}, known)


def write_run(folder: Path) -> None:
    """A run that evaluated all clips."""
    unpack_written_by_0_1(folder.parent)
    result = Result.read(folder / "flow")
    rows = {
        key: (at % 4, np.eye(4)[at % 4 if RIGHT[key] else (at + 1) % 4].astype(np.float32))
        for at, key in enumerate(KEYS)
    }
    predictions = Predictions.of(rows, {})
    data = replace(result.data, labels=tuple(f"class {at}" for at in range(4)))
    result = replace(result, data=data, score=score(predictions), failed={})
    result.write(folder / "flow", predictions)


def test_the_command_prints_tables_or_json(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run")
    expected = attrition(RIGHT, Ledger.read(clips), seed=3)
    asked = ["attrition", str(tmp_path / "run"), "--ledger", str(clips), "--seed", "3"]
    assert cli.run(asked) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path / 'run' / 'flow'}: top-1 70.0 % of 400 clips"
    assert [line.split()[0] for line in lines[3:7]] == ["private", "gone", "network", "all"]
    change = 100 * ((expected.losses[0].top1 or 0) - 0.7)
    assert f"{change:+.2f}" in lines[3]

    assert cli.run([*asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["num_scored"], told["top1"], told["num_unknown"]) == (400, 0.7, 0)
    assert told["losses"][0]["random"]["mean"] == expected.losses[0].random.mean  # type: ignore[union-attr]
    assert len(told["curve"]) == len(expected.curve)

    with pytest.raises(EvaluationError, match="run has no row rgb; it has flow"):
        cli.run([*asked, "--stream", "rgb"])
    with pytest.raises(EvaluationError, match="holds no result: give the --work-dir of a run"):
        cli.run(["attrition", str(tmp_path), "--ledger", str(clips)])
    with pytest.raises(ManifestError, match=r"holds no manifest\.csv"):
        cli.run(["attrition", str(tmp_path / "run"), "--ledger", str(tmp_path)])


def test_rows_are_found_as_other_commands_find_them(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run")
    folder = tmp_path / "run" / "flow"
    row = find_row(tmp_path / "run")
    fused, predictions = fuse([row, row], [1, 1])
    fused.write(tmp_path / "fused", predictions)
    shutil.copytree(folder, tmp_path / "run" / "evaluate-5x3" / "flow")
    for where, named in (
        (folder, folder),
        (tmp_path / "fused", tmp_path / "fused"),
        (tmp_path / "run" / "evaluate-5x3", tmp_path / "run" / "evaluate-5x3" / "flow"),
    ):
        asked = ["attrition", str(where), "--ledger", str(clips)]
        assert cli.run(asked) == 0
        assert capsys.readouterr().out.startswith(f"{named}: top-1 70.0 % of 400 clips")
        assert cli.run([*asked, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["stream"] == "flow"

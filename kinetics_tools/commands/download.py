"""`kinetics-download`: clips from a manifest."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from kinetics_tools import cli
from kinetics_tools.cli import Exit, Parser
from kinetics_tools.engine import ENGINES, part_from
from kinetics_tools.errors import (
    REASON_CLASSES,
    KineticsError,
    Reason,
    lookup,
)

# Options of yt-dlp that pass through under its own names.
YTDLP_OPTIONS = ("cookies", "proxy", "limit_rate")


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(
        "kinetics-download",
        "Build frame-exact, verified clips from a manifest of YouTube ids, from the best source "
        "for each clip, and keep the record of every clip that could not be had. Give the same "
        "command again to go on where it stopped.",
        "exit codes: 0 complete; 2 unusable input; 3 finished with permanent gaps only; "
        "4 finished with gaps that may close when asked again; 75 stopped by rate limit or bot "
        "check; 130 interrupted",
    )
    parser.add_argument(
        "manifest",
        metavar="MANIFEST",
        type=Path,
        help="CSV with label,youtube_id,time_start,time_end,split",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to fill")
    what = parser.add_argument_group("what to make")
    what.add_argument("--split", help="only these splits: train,val", type=_names)
    what.add_argument("--classes", help="only these labels: abseiling,yoga", type=_names)
    what.add_argument("--limit", type=cli.positive, metavar="N", help="only the first N segments")
    what.add_argument(
        "--labels",
        metavar="NAME|FILE",
        help="the dataset's full label list: kinetics400, or a file with one label a line; needed "
        "when the manifest has only some of a known dataset's labels",
    )
    what.add_argument("--skip-bad-rows", action="store_true", help="leave bad rows out and go on")
    _add_sources(parser)
    clips = parser.add_argument_group("the clips")
    clips.add_argument("--fps", type=cli.positive, default=25, help="constant frame rate")
    clips.add_argument(
        "--short-side", type=cli.positive, default=256, help="pixels; smaller videos keep theirs"
    )
    clips.add_argument("--keep-original", action="store_true", help="keep size and frame rate")
    clips.add_argument("--keep-audio", action="store_true", help="keep the sound, as AAC")
    clips.add_argument("--ffmpeg", type=Path, metavar="PATH", help="another ffmpeg than our own")
    _add_run(parser)
    parser.add_common()
    return parser


def _add_sources(parser: Parser) -> None:
    where = parser.add_argument_group("where videos come from")
    where.add_argument(
        "--source",
        action="append",
        metavar="SOURCE",
        help="asked in the order given, for each clip: youtube (default); url:TEMPLATE, an http "
        "address with {youtube_id}; dir:PATH, where <key>.* is a clip and <youtube_id>.* a video",
    )
    where.add_argument("--keep-videos", action="store_true", help="keep whole videos in OUT/videos")
    where.add_argument("--cookies", type=Path, metavar="FILE", help="as in yt-dlp")
    where.add_argument("--proxy", metavar="URL", help="as in yt-dlp")
    where.add_argument("--limit-rate", metavar="RATE", help="as in yt-dlp: 50K or 4.2M a second")


def _add_run(parser: Parser) -> None:
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--jobs",
        type=cli.positive,
        default=cli.default_jobs(),
        metavar="N",
        help="videos at once",
    )
    run.add_argument(
        "--retry",
        type=_retry,
        default="identity,tool,transient",
        metavar="TOKENS",
        help="ask again where an earlier run failed so: reasons or their classes "
        f"({', '.join(REASON_CLASSES)}), or none",
    )
    run.add_argument("--force", action="store_true", help="make every clip anew")
    run.add_argument("--dry-run", action="store_true", help="say what would be done")
    run.add_argument(
        "--engine", type=cli.one_of("engine", ENGINES), default="local", help="what runs the work"
    )
    run.add_argument(
        "--task",
        metavar="I/N",
        help="do the I-th of N shares, I from 0; in a Slurm array it follows from the array",
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _retry(text: str) -> frozenset[Reason]:
    if text == "none":
        return frozenset()
    reasons = {str(reason): frozenset({reason}) for reason in Reason}
    try:
        chosen = [lookup("reason", name, reasons | dict(REASON_CLASSES)) for name in _names(text)]
    except KineticsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return frozenset().union(*chosen)


def main() -> NoReturn:
    """The console script."""
    cli.run(partial(_main, sys.argv[1:]))


def _main(argv: Sequence[str]) -> int:
    options = build_parser().parse_args(argv)
    from kinetics_tools import media
    from kinetics_tools.download import Plan, download, pending
    from kinetics_tools.files import write_text
    from kinetics_tools.ledger import read
    from kinetics_tools.manifest import (
        choose_labels,
        describe,
        format_bad_rows,
        read_manifest,
        select,
    )
    from kinetics_tools.sources import make_source

    manifest = read_manifest(options.manifest, skip_bad_rows=options.skip_bad_rows)
    labels = choose_labels(manifest, options.labels)
    segments = select(
        manifest,
        splits=options.split or (),
        classes=options.classes or (),
        limit=options.limit,
    )
    binary = media.find_ffmpeg(options.ffmpeg)
    plan = Plan(
        out=options.out,
        sources=tuple(
            make_source(named, _ytdlp_options(options, binary))
            for named in options.source or ["youtube"]
        ),
        recipe=media.ClipRecipe(
            fps=options.fps,
            short_side=options.short_side,
            keep_original=options.keep_original,
            keep_audio=options.keep_audio,
            ffmpeg=media.ffmpeg_version(binary),
        ),
        binary=binary,
        retry=options.retry,
        keep_videos=options.keep_videos,
        force=options.force,
        part=part_from(options.task, os.environ),
        jobs=options.jobs,
        engine=options.engine,
        tmp_dir=options.tmp_dir,
    )
    if options.dry_run:
        units = pending(segments, plan, read(plan.out))
        print(describe(segments))
        print(f"to do: {sum(len(u.segments) for u in units)} clips of {len(units)} videos")
        return Exit.COMPLETE
    summary = download(
        segments,
        labels,
        plan,
        show=lambda done, total: cli.progress(done, total=total, what="videos"),
    )
    if manifest.bad_rows:
        write_text(options.out / "bad-rows.csv", format_bad_rows(manifest.bad_rows))
        print(f"{len(manifest.bad_rows)} bad rows left out: {options.out}/bad-rows.csv")
    print(f"{summary.num_done} of {summary.num_expected} clips in {options.out}")
    for reason, count in summary.gaps.items():
        print(f"  {reason:14} {count}")
    if summary.gaps:
        print(f"each clip's record: {options.out}/ledger-*.jsonl")
        if summary.num_retryable < sum(summary.gaps.values()):
            print("permanent gaps are asked again only with --retry permanent")
    if summary.stopped is not None:
        print(
            f"error: stopped: {summary.stopped} three times in a row; wait an hour, or use "
            "--cookies or another --source, then give the same command again",
            file=sys.stderr,
        )
        return Exit.STOPPED
    if summary.num_retryable:
        return Exit.RETRYABLE_GAPS
    return Exit.PERMANENT_GAPS if summary.gaps else Exit.COMPLETE


def _ytdlp_options(options: argparse.Namespace, binary: Path) -> dict[str, object]:
    """yt-dlp's own names for what passes through to it."""
    chosen: dict[str, object] = {"ffmpeg_location": str(binary), "keep_audio": options.keep_audio}
    if options.cookies is not None:
        if not options.cookies.is_file():
            raise KineticsError(f"--cookies {options.cookies}: no such file")
        chosen["cookiefile"] = str(options.cookies)
    if options.proxy is not None:
        chosen["proxy"] = options.proxy
    if options.limit_rate is not None:
        from kinetics_tools.sources import parse_rate

        chosen["ratelimit"] = parse_rate(options.limit_rate)
    return chosen

"""`kinetics-download`: clips from a manifest."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from kinetics_tools.core import cli, console, system
from kinetics_tools.core.cli import Exit, Parser
from kinetics_tools.core.errors import IDENTITY, REASON_CLASSES, KineticsError, Reason, lookup
from kinetics_tools.core.units import part_from
from kinetics_tools.download import record_cli
from kinetics_tools.download.sources.base import FETCHES
from kinetics_tools.download.sources.mirror import OFFICIAL
from kinetics_tools.download.sources.ytdlp_options import PASSED_THROUGH, settle

if TYPE_CHECKING:
    from kinetics_tools.dataset.manifest import Manifest, Segment
    from kinetics_tools.download.estimate import Estimate
    from kinetics_tools.download.official_lists import Official
    from kinetics_tools.download.run import DownloadPlan, DownloadSummary

VERBS = {
    "report": (record_cli.report_parser, record_cli.report_main),
    "verify": (record_cli.verify_parser, record_cli.verify_main),
}
YTDLP_REPEATED = ("retry-sleep", "extractor-args", "js-runtimes")


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(
        "kinetics-download",
        "Build frame-exact, verified clips from a manifest of YouTube ids, from the best source "
        "for each clip, and keep the record of every clip that could not be had. Give the same "
        "command again to go on where it stopped. `kinetics-download report OUT` shows the record, "
        "`kinetics-download verify OUT` decodes every clip again.",
        "exit codes: 0 complete; 2 unusable input; 3 finished with permanent gaps only; "
        "4 finished with gaps that may close when asked again; 75 stopped by rate limit or bot "
        "check; 130 interrupted; 143 terminated",
    )
    parser.add_argument(
        "manifest",
        metavar="MANIFEST",
        help="CSV with label,youtube_id,time_start,time_end,split; or an official list by name: "
        "kinetics400, kinetics600, kinetics700, kinetics700-2020, or one split of it: "
        "kinetics400/val",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to fill")
    what = parser.add_argument_group("what to make")
    what.add_argument("--split", help="only these splits: train,val", type=cli.names)
    what.add_argument("--classes", help="only these labels: abseiling,yoga", type=cli.names)
    what.add_argument("--limit", type=cli.positive, metavar="N", help="only the first N segments")
    what.add_argument(
        "--labels",
        metavar="NAME|FILE",
        help="the dataset's full label list: kinetics400, or a file with one label a line; needed "
        "when the manifest has only some of a known dataset's labels",
    )
    what.add_argument("--skip-bad-rows", action="store_true", help="leave bad rows out and go on")
    what.add_argument(
        "--manifest-address",
        metavar="ADDRESS",
        help="fetch a list given by name from here: a .tar.gz as the official one, or a CSV",
    )
    _add_sources(parser)
    _add_youtube(parser)
    clips = parser.add_argument_group("the clips")
    clips.add_argument("--fps", type=cli.positive, default=25, help="constant frame rate")
    clips.add_argument(
        "--short-side", type=cli.positive, default=256, help="pixels; smaller videos keep theirs"
    )
    clips.add_argument("--keep-original", action="store_true", help="keep size and frame rate")
    clips.add_argument("--keep-audio", action="store_true", help="keep the sound, as AAC")
    clips.add_argument("--ffmpeg", type=Path, metavar="PATH", help="another ffmpeg than our own")
    run = parser.add_run(
        jobs="videos or clips at once (default: as many as there are processors)", made="clip"
    )
    run.add_argument(
        "--retry",
        type=_retry,
        default="identity,tool,transient",
        metavar="TOKENS",
        help="ask again where an earlier run failed so: reasons or their classes "
        f"({', '.join(REASON_CLASSES)}), or none",
    )
    run.add_argument(
        "--check", action="store_true", help="say what is missing or old before a long job, and end"
    )
    cli.add_cache_dir(run)
    parser.add_common()
    return parser


def _add_sources(parser: Parser) -> None:
    where = parser.add_argument_group("where clips come from")
    where.add_argument(
        "--source",
        action="append",
        metavar="SOURCE",
        help="asked in the order given, for each clip: youtube (default); cvdf, the mirror of "
        "ready clips; url:TEMPLATE, an http address with {youtube_id}; dir:PATH, where <key>.* is "
        "a clip and <youtube_id>.* a video",
    )
    where.add_argument(
        "--fetch",
        type=cli.one_of("way to fetch", FETCHES),
        default="auto",
        help="; ".join(f"{name}: {what}" for name, what in FETCHES.items()),
    )
    where.add_argument("--keep-videos", action="store_true", help="keep whole videos in OUT/videos")
    where.add_argument(
        "--cvdf-base",
        metavar="ADDRESS",
        default=OFFICIAL,
        help="of the mirror",
    )
    where.add_argument(
        "--cvdf-list",
        type=_split_address,
        action="append",
        default=[],
        metavar="SPLIT=ADDRESS",
        help="the mirror's list of tar files of a split; needed for any set but Kinetics-400",
    )


def _add_youtube(parser: Parser) -> None:
    youtube = parser.add_argument_group("YouTube, and yt-dlp's own options")
    youtube.add_argument(
        "--videos-per-hour",
        type=cli.positive,
        default=240,
        metavar="N",
        help="asked of YouTube by one identity (cookies, proxy, address), all workers together",
    )
    for name, takes in PASSED_THROUGH.items():
        if takes is None:
            youtube.add_argument(f"--{name}", action="store_true", help="as in yt-dlp")
        else:
            repeated = "append" if name in YTDLP_REPEATED else "store"
            youtube.add_argument(f"--{name}", action=repeated, metavar=takes, help="as in yt-dlp")
    youtube.add_argument(
        "--ytdlp-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another option of yt-dlp, such as force-ipv4 or http-chunk-size=1M; none that runs "
        "programs",
    )


def _split_address(text: str) -> tuple[str, str]:
    split, equals, address = text.partition("=")
    if not (split and equals and address):
        raise argparse.ArgumentTypeError(f"{text!r} is not SPLIT=ADDRESS")
    return split, address


def _retry(text: str) -> frozenset[Reason]:
    if text == "none":
        return frozenset()
    reasons = {str(reason): frozenset({reason}) for reason in Reason}
    try:
        chosen = [
            lookup("reason", name, reasons | dict(REASON_CLASSES)) for name in cli.names(text)
        ]
    except KineticsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return frozenset().union(*chosen)


def main() -> NoReturn:
    """The console script."""
    cli.run(partial(_main, sys.argv[1:]))


def _main(argv: Sequence[str]) -> int:
    verb, rest = cli.take_verb(list(argv), VERBS)
    if verb is not None:
        return VERBS[verb][1](rest)
    options = build_parser().parse_args(rest)
    from kinetics_tools.dataset.manifest import select

    listed = _read(options)
    segments = select(
        listed.manifest,
        splits=options.split or (),
        classes=options.classes or (),
        limit=options.limit,
    )
    plan = _plan(options, listed.labels)
    if options.check:
        return _check(options, segments, plan)
    if options.dry_run:
        return _dry_run(options, segments, plan)
    return _download(options, listed, segments, plan)


@dataclass(frozen=True)
class _List:
    """What MANIFEST is: its rows, the dataset's labels, and where it was fetched, if it was."""

    manifest: "Manifest"
    labels: tuple[str, ...]
    official: "Official | None" = None


def _read(options: argparse.Namespace) -> _List:
    from kinetics_tools.dataset.labels import choose_labels
    from kinetics_tools.dataset.manifest import read_manifest
    from kinetics_tools.download import official_lists

    if official_lists.is_name(options.manifest):
        found = official_lists.fetch(
            options.manifest,
            system.cache_dir(options.cache_dir),
            address=options.manifest_address,
            skip_bad_rows=options.skip_bad_rows,
        )
        labels = (
            found.labels
            if options.labels is None
            else choose_labels(found.manifest, options.labels)
        )
        return _List(found.manifest, labels, found)
    if not Path(options.manifest).exists() and "/" not in options.manifest:
        # A mistyped verb or name is more likely than a file that went away.
        near = get_close_matches(
            options.manifest, [*VERBS, *official_lists.ADDRESSES], n=1, cutoff=0.7
        )
        if near:
            raise KineticsError(
                f"no file {options.manifest!r}; did you mean {near[0]!r}? (a file: ./NAME)"
            )
    one = options.split[0] if options.split and len(options.split) == 1 else None
    manifest = read_manifest(Path(options.manifest), skip_bad_rows=options.skip_bad_rows, split=one)
    return _List(manifest, choose_labels(manifest, options.labels))


def _plan(options: argparse.Namespace, labels: tuple[str, ...]) -> "DownloadPlan":
    from kinetics_tools.dataset.labels import dataset_of
    from kinetics_tools.download.run import DownloadPlan
    from kinetics_tools.download.sources.registry import Settings, make_sources
    from kinetics_tools.media import encode
    from kinetics_tools.media.cut import ClipRecipe

    if options.engine != "local" and options.tmp_dir is not None:
        raise KineticsError(
            f"--tmp-dir {options.tmp_dir} is not seen by every node of --engine {options.engine}; "
            "leave it out: scratch files then lie in OUT"
        )
    binary = encode.find_ffmpeg(options.ffmpeg)
    settings = Settings(
        cache=system.cache_dir(options.cache_dir).absolute(),
        out=options.out.absolute(),
        ytdlp=settle(_ytdlp_words(options)),
        keep_audio=options.keep_audio,
        fetch="full" if options.keep_videos else options.fetch,
        videos_per_hour=options.videos_per_hour,
        cvdf_base=options.cvdf_base,
        cvdf_lists=dict(options.cvdf_list),
        dataset=dataset_of(labels),
    )
    return DownloadPlan(
        out=options.out.absolute(),  # Ray's workers start in other folders
        sources=make_sources(_sources(options), settings),
        recipe=ClipRecipe(
            fps=options.fps,
            short_side=options.short_side,
            keep_original=options.keep_original,
            keep_audio=options.keep_audio,
            ffmpeg=encode.ffmpeg_version(binary),
        ),
        binary=binary,
        retry=options.retry,
        keep_videos=options.keep_videos,
        force=options.force,
        part=part_from(options.task, os.environ),
        jobs=options.jobs,
        engine=options.engine,
        tmp_dir=options.tmp_dir and options.tmp_dir.absolute(),
    )


def _ytdlp_words(options: argparse.Namespace) -> list[str]:
    """The options that pass through, in yt-dlp's own words."""
    words = []
    for name in PASSED_THROUGH:
        given = getattr(options, name.replace("-", "_"))
        if given is True:
            words.append(name)
        elif given:
            values = given if isinstance(given, list) else [given]
            words += [f"{name}={value}" for value in values]
    return [*words, *options.ytdlp_option]


def _sources(options: argparse.Namespace) -> list[str]:
    return options.source or ["youtube"]


def _estimate(
    options: argparse.Namespace, segments: "Sequence[Segment]", plan: "DownloadPlan"
) -> "tuple[list[Segment], Estimate]":
    """What is still to do, and what that costs."""
    from kinetics_tools.dataset.ledger import read
    from kinetics_tools.download.estimate import estimate
    from kinetics_tools.download.run import pending

    todo = pending(segments, plan, read(plan.out))
    expected = estimate(
        todo,
        _sources(options),
        videos_per_hour=options.videos_per_hour,
        jobs=options.jobs or system.num_processors(),
    )
    return todo, expected


def _dry_run(
    options: argparse.Namespace, segments: "Sequence[Segment]", plan: "DownloadPlan"
) -> int:
    from kinetics_tools.download.estimate import format_estimate

    todo, expected = _estimate(options, segments, plan)
    print(f"{len(segments)} segments, of which {len(todo)} are to do")
    if todo:
        print(f"\n{format_estimate(todo, expected)}")
    return Exit.COMPLETE


def _check(options: argparse.Namespace, segments: "Sequence[Segment]", plan: "DownloadPlan") -> int:
    from kinetics_tools.download.preflight import PreflightJob, check, exit_code
    from kinetics_tools.download.sources import ytdlp
    from kinetics_tools.download.sources.youtube import OnlineSource

    _, expected = _estimate(options, segments, plan)
    online = [source for source in plan.sources if isinstance(source, OnlineSource)]
    findings = check(
        PreflightJob(
            out=plan.out,
            cache=system.cache_dir(options.cache_dir),
            tmp_dir=plan.tmp_dir,
            binary=plan.binary,
            recipe=plan.recipe,
            needed_bytes=expected.disk_bytes,
            ytdlp=ytdlp.parse(settle(_ytdlp_words(options))) if online else None,
            is_youtube=any(source.name == "youtube" for source in online),
            lockout=next(filter(None, (source.pace.lockout() for source in online)), None),
        )
    )
    for finding in findings:
        print(finding)
    return exit_code(findings)


def _warn(options: argparse.Namespace, plan: "DownloadPlan") -> None:
    """Say what yt-dlp lacks for YouTube: its failures would look like the videos'."""
    from kinetics_tools.download.preflight import Level, check_youtube
    from kinetics_tools.download.sources import ytdlp

    if all(source.name != "youtube" for source in plan.sources):
        return
    for finding in check_youtube(ytdlp.parse(settle(_ytdlp_words(options)))):
        if finding.level is not Level.OK:
            print(f"warning: {finding}", file=sys.stderr)


def _download(
    options: argparse.Namespace, listed: _List, segments: "Sequence[Segment]", plan: "DownloadPlan"
) -> int:
    from kinetics_tools.core.files import write_text
    from kinetics_tools.dataset.manifest import format_bad_rows
    from kinetics_tools.download.run import download

    bad_rows = listed.manifest.bad_rows

    def begin() -> None:
        _warn(options, plan)
        if listed.official is not None:
            listed.official.record(options.out)
        if bad_rows:
            write_text(options.out / "bad-rows.csv", format_bad_rows(bad_rows))

    summary = download(
        segments,
        listed.labels,
        plan,
        show=lambda lines, total, name: console.progress(lines, total=total, what=name),
        begin=begin,
    )
    if bad_rows:
        print(f"{len(bad_rows)} bad rows left out: {options.out}/bad-rows.csv")
    return _tell(options, summary)


def _tell(options: argparse.Namespace, summary: "DownloadSummary") -> int:
    """Print how the part stands; return the exit code that says so."""
    print(f"{summary.num_done} of {summary.num_expected} clips in {options.out}")
    for reason, count in summary.gaps.items():
        print(f"  {reason:14} {count}")
    if summary.gaps:
        print(f"the record of each clip: kinetics-download report {options.out}")
        if summary.num_retryable < sum(summary.gaps.values()):
            print("permanent gaps are asked again only with --retry permanent")
    if summary.stopped is not None:
        is_refused = summary.stopped.reason in IDENTITY
        advice = (
            "give the same command again then, or use another --source, --cookies or --proxy"
            if is_refused
            else "give the same command again when the network is up"
        )
        print(f"error: stopped: {summary.stopped}; {advice}", file=sys.stderr)
        return Exit.STOPPED if is_refused else Exit.RETRYABLE_GAPS
    if summary.num_retryable:
        return Exit.RETRYABLE_GAPS
    return Exit.PERMANENT_GAPS if summary.gaps else Exit.COMPLETE

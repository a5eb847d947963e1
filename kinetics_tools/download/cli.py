"""`kinetics-download`: clips from a manifest, and what such a folder holds."""

from __future__ import annotations

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
from kinetics_tools.core.errors import IDENTITY, REASON_CLASSES, KineticsError, Reason, unknown_name
from kinetics_tools.core.http_answers import limits
from kinetics_tools.core.units import part_from
from kinetics_tools.download.sources.base import FETCHES
from kinetics_tools.download.sources.mirror import OFFICIAL
from kinetics_tools.download.sources.ytdlp_options import PASSED_THROUGH, settle
from kinetics_tools.media.recipe import ENCODINGS, SCALERS, ClipRecipe

if TYPE_CHECKING:
    from kinetics_tools.dataset.manifest import Manifest, Segment
    from kinetics_tools.download.coverage import Coverage
    from kinetics_tools.download.estimate import Estimate
    from kinetics_tools.download.official_lists import OfficialList
    from kinetics_tools.download.run import DownloadPlan, DownloadSummary

MAX_FPS = 1000
YTDLP_REPEATED = ("retry-sleep", "extractor-args", "js-runtimes")


def build_parser() -> Parser:
    """The parser of `kinetics-download MANIFEST OUT`."""
    parser = Parser(
        "kinetics-download",
        "Build frame-exact, verified clips from a manifest of YouTube ids, from the best source "
        "for each clip, and record why each missing clip could not be downloaded. Run the same "
        "command again to continue. `kinetics-download report OUT` shows what OUT has, "
        "`kinetics-download verify OUT` decodes every clip again.",
        "exit codes: 0 complete; 2 unusable input; 3 finished, the missing clips are permanently "
        "unavailable; 4 finished, some missing clips may succeed if you rerun; 75 stopped by a "
        "rate limit or bot check; 130 interrupted; 143 terminated",
    )
    parser.add_argument(
        "manifest",
        metavar="MANIFEST",
        help="CSV with label,youtube_id,time_start,time_end,split; or a list's name\nan official "
        "list: kinetics400, kinetics600, kinetics700, kinetics700-2020; or one split of it: "
        "kinetics400/val",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to fill")
    _add_selection(parser)
    _add_sources(parser)
    _add_youtube(parser)
    _add_format(parser)
    run = parser.add_run(
        jobs="videos or clips at once (default: the number of processors)", made="clip"
    )
    run.add_argument(
        "--retry",
        type=_retry,
        default="identity,tool,transient",
        metavar="TOKENS",
        help="try again what failed so\nsources that failed before with these reasons, or "
        f"classes of reasons ({', '.join(REASON_CLASSES)}); none: no source is",
    )
    run.add_argument(
        "--check",
        action="store_true",
        help="only check that nothing a long job needs is missing or outdated\n"
        "programs, options, folders, disk space",
    )
    cli.add_cache_dir(parser.more)
    parser.add_common()
    return parser


def _add_selection(parser: Parser) -> None:
    what = parser.add_argument_group("which clips")
    what.add_argument("--split", help="only these splits: train,val", type=cli.comma_separated)
    what.add_argument(
        "--classes", help="only these labels: abseiling,yoga", type=cli.comma_separated
    )
    what.add_argument("--limit", type=cli.positive, metavar="N", help="only the first N segments")
    what.add_argument(
        "--labels",
        metavar="NAME|FILE",
        help="the dataset's full label list: kinetics400, or a file\nwith one label per line; "
        "needed when the manifest has only some of a known dataset's labels",
    )
    what.add_argument(
        "--skip-bad-rows", action="store_true", help="skip bad rows of MANIFEST and list them"
    )
    parser.more.add_argument(
        "--manifest-address",
        metavar="ADDRESS",
        help="where to download a list given by name\na .tar.gz like the official one, or a CSV",
    )


def _add_sources(parser: Parser) -> None:
    where = parser.add_argument_group("where clips come from")
    where.add_argument(
        "--source",
        action="append",
        metavar="SOURCE",
        help="youtube (default), cvdf, url:TEMPLATE, dir:PATH; repeat it for several\n"
        "cvdf: the mirror of ready clips; url: an http address with {youtube_id}; dir: a folder "
        "where <key>.* is a clip and <youtube_id>.* a video. For each clip they are tried in the "
        "order given",
    )
    where.add_argument(
        "--fetch",
        type=cli.one_of("way to fetch", FETCHES),
        default="auto",
        help=f"how videos are fetched: {', '.join(FETCHES)}\n"
        + "; ".join(f"{name}: {what}" for name, what in FETCHES.items()),
    )
    where.add_argument(
        "--keep-videos",
        action="store_true",
        help="download whole videos, and keep them in OUT/videos",
    )
    parser.more.add_argument(
        "--cvdf-base", metavar="ADDRESS", default=OFFICIAL, help="address of the mirror"
    )
    parser.more.add_argument(
        "--cvdf-list",
        type=_split_address,
        action="append",
        default=[],
        metavar="SPLIT=ADDRESS",
        help="address of the mirror's list of a split's tar files; needed for datasets other than "
        "Kinetics-400",
    )


def _add_youtube(parser: Parser) -> None:
    parser.add_argument(
        "--videos-per-hour",
        type=cli.positive,
        default=240,
        metavar="N",
        help="rate limit of requests to YouTube\nfor all workers on this host that share cookies, "
        "proxy and source address",
    )
    for name, takes in PASSED_THROUGH.items():
        if takes is None:
            parser.more.add_argument(f"--{name}", action="store_true", help="as in yt-dlp")
        else:
            repeated = "append" if name in YTDLP_REPEATED else "store"
            parser.more.add_argument(
                f"--{name}", action=repeated, metavar=takes, help="as in yt-dlp"
            )
    parser.more.add_argument(
        "--ytdlp-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another option of yt-dlp, such as force-ipv4 or http-chunk-size=1M; options that run "
        "programs are refused",
    )


def _add_format(parser: Parser) -> None:
    clips = parser.add_argument_group("format of the clips")
    clips.add_argument("--fps", type=cli.whole(1, MAX_FPS), default=25, help="constant frame rate")
    clips.add_argument(
        "--short-side",
        type=cli.whole(1, cli.MAX_PX),
        default=256,
        metavar="N",
        help="pixels of the shorter side; smaller videos keep their size",
    )
    cli.add_scaler(parser.more, SCALERS)
    cli.add_encoding(parser.more, {name: each.meaning for name, each in ENCODINGS.items()})
    clips.add_argument(
        "--keep-original", action="store_true", help="keep size, frame rate and times"
    )
    parser.more.add_argument("--keep-audio", action="store_true", help="keep the sound, as AAC")
    parser.more.add_argument(
        "--ffmpeg", type=Path, metavar="PATH", help="use this ffmpeg instead of the included one"
    )


def _split_address(text: str) -> tuple[str, str]:
    split, equals, address = text.partition("=")
    if not (split and equals and address):
        raise argparse.ArgumentTypeError(f"{text!r} is not SPLIT=ADDRESS")
    return split, address


def _retry(text: str) -> frozenset[Reason]:
    if text == "none":
        return frozenset()
    known = {str(reason): frozenset({reason}) for reason in Reason} | dict(REASON_CLASSES)
    names = cli.comma_separated(text)
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(unknown_name("reason", name, known))
    return frozenset().union(*(known[name] for name in names))


def report_parser() -> Parser:
    """The parser of `kinetics-download report OUT`."""
    parser = Parser(
        "kinetics-download report",
        "Show which clips OUT has and why the others are missing, and write OUT/report: a page "
        "with plots (report.html), one list of `path label_id` per split, clips.csv and "
        "missing.csv. It can also be used while a run fills OUT.",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="a folder that this command filled")
    parser.add_argument(
        "--absolute", action="store_true", help="absolute paths in the lists, not relative to OUT"
    )
    parser.add_common()
    return parser


def verify_parser() -> Parser:
    """The parser of `kinetics-download verify OUT`."""
    parser = Parser(
        "kinetics-download verify",
        "Decode every finished clip of OUT, and compare its bytes and frames with the ledger. "
        "Damaged clips are recorded, and made again by the next kinetics-download of the same "
        "manifest; nothing is deleted.",
        "exit codes: 0 every clip is whole; 2 unusable input; 4 some must be made again; "
        "130 interrupted",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="a folder that this command filled")
    parser.add_argument("--split", type=cli.comma_separated, help="only these splits: train,val")
    parser.add_jobs()
    parser.add_common()
    return parser


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
    limits()  # a variable that cannot be used is told before the first request
    if options.check:
        return _check(options, segments, plan)
    if options.dry_run:
        return _dry_run(options, listed, segments, plan)
    return _download(options, listed, segments, plan)


@dataclass(frozen=True)
class _List:
    """What MANIFEST names: its rows, the dataset's labels, and the official list if it is one."""

    manifest: Manifest
    labels: tuple[str, ...]
    official: OfficialList | None = None


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
        # A mistyped verb or name is more likely than a missing file.
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


def _plan(options: argparse.Namespace, labels: tuple[str, ...]) -> DownloadPlan:
    from kinetics_tools.dataset.labels import dataset_of
    from kinetics_tools.download.run import DownloadPlan
    from kinetics_tools.download.sources.registry import Settings, make_sources
    from kinetics_tools.media import encode

    if options.engine != "local" and options.tmp_dir is not None:
        raise KineticsError(
            f"--tmp-dir {options.tmp_dir} may not exist on every node of --engine "
            f"{options.engine}; leave it out: scratch files are then in OUT"
        )
    binary = encode.find_ffmpeg(options.ffmpeg)
    settings = Settings(
        cache_dir=options.cache_dir,
        out=options.out.absolute(),
        ytdlp=_ytdlp_options(options),
        keep_audio=options.keep_audio,
        fetch="full" if options.keep_videos else options.fetch,
        videos_per_hour=options.videos_per_hour,
        cvdf_base=options.cvdf_base,
        cvdf_lists=dict(options.cvdf_list),
        dataset=dataset_of(labels),
    )
    if options.keep_original and options.scaler != ClipRecipe().scaler:
        raise KineticsError("--keep-original scales nothing; leave out --scaler")
    return DownloadPlan(
        out=options.out.absolute(),  # Ray's workers start in other folders
        sources=make_sources(_sources(options), settings),
        recipe=ClipRecipe(
            fps=options.fps,
            short_side=options.short_side,
            scaler=options.scaler,
            encoding=options.encoding,
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


def _ytdlp_options(options: argparse.Namespace) -> list[str]:
    """The options that are passed to yt-dlp, under its own names."""
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


def _estimate(options: argparse.Namespace, todo: Sequence[Segment]) -> Estimate:
    """What the segments that are still to do cost."""
    from kinetics_tools.download.estimate import estimate

    return estimate(
        todo,
        _sources(options),
        videos_per_hour=options.videos_per_hour,
        jobs=options.jobs or system.num_processors(),
    )


def _dry_run(
    options: argparse.Namespace, listed: _List, segments: Sequence[Segment], plan: DownloadPlan
) -> int:
    """Print what would be done. Where the run would end at once, the exit code is the run's."""
    from kinetics_tools.download.estimate import format_estimate
    from kinetics_tools.download.official_lists import ORIGINS, read_origins
    from kinetics_tools.download.run import rehearse

    todo, summary = rehearse(segments, listed.labels, plan)
    _warn(options, plan)
    if listed.official is not None:
        read_origins(options.out / ORIGINS)
    print(f"{len(segments)} segments, {len(todo)} still to do")
    if todo:
        print(f"\n{format_estimate(todo, _estimate(options, todo))}")
    return Exit.COMPLETE if summary is None else _exit_code(summary)


def _check(options: argparse.Namespace, segments: Sequence[Segment], plan: DownloadPlan) -> int:
    from kinetics_tools.dataset.ledger import read
    from kinetics_tools.download.preflight import PreflightJob, check, is_ready
    from kinetics_tools.download.run import pending
    from kinetics_tools.download.sources import ytdlp
    from kinetics_tools.download.sources.youtube import OnlineSource

    expected = _estimate(options, pending(segments, plan, read(plan.out)))
    online = [source for source in plan.sources if isinstance(source, OnlineSource)]
    findings = check(
        PreflightJob(
            out=plan.out,
            cache=system.cache_dir(options.cache_dir),
            tmp_dir=plan.tmp_dir,
            binary=plan.binary,
            recipe=plan.recipe,
            needed_bytes=expected.disk_bytes,
            ytdlp=ytdlp.parse(settle(_ytdlp_options(options))) if online else None,
            is_youtube=any(source.name == "youtube" for source in online),
            cookie_problem=next((s.cookie_problem() for s in online if s.name == "youtube"), None),
            lockout=next(filter(None, (source.lockout() for source in online)), None),
        )
    )
    for finding in findings:
        print(finding)
    return Exit.COMPLETE if is_ready(findings) else Exit.UNUSABLE


def _warn(options: argparse.Namespace, plan: DownloadPlan) -> None:
    """Print what yt-dlp lacks for YouTube: without it videos fail as if they were at fault."""
    from kinetics_tools.download.preflight import Level, check_youtube
    from kinetics_tools.download.sources import ytdlp
    from kinetics_tools.download.sources.youtube import OnlineSource

    parameters = ytdlp.parse(settle(_ytdlp_options(options)))
    for source in plan.sources:
        if isinstance(source, OnlineSource) and source.name == "youtube":
            for finding in check_youtube(parameters, source.cookie_problem()):
                if finding.level is not Level.OK:
                    console.tell(f"warning: {finding}")


def _download(
    options: argparse.Namespace, listed: _List, segments: Sequence[Segment], plan: DownloadPlan
) -> int:
    from kinetics_tools.core.files import write_text
    from kinetics_tools.dataset.manifest import format_bad_rows
    from kinetics_tools.download.run import download

    bad_rows = listed.manifest.bad_rows
    with download(segments, listed.labels, plan) as run:
        _warn(options, plan)
        if listed.official is not None:
            listed.official.record(options.out)
        if bad_rows:
            write_text(options.out / "bad-rows.csv", format_bad_rows(bad_rows))
        for tried in run.by_source():
            for _ in console.progress(tried.lines, total=tried.num_wanted, what=tried.source):
                pass
        summary = run.summary()
    if bad_rows:
        print(f"{len(bad_rows)} bad rows left out: {options.out}/bad-rows.csv")
    return _print_summary(options, summary)


def _print_summary(options: argparse.Namespace, summary: DownloadSummary) -> int:
    """Print what the part has; return the exit code."""
    print(f"{summary.num_done} of {summary.num_expected} clips in {options.out}")
    for reason, count in summary.gaps.items():
        print(f"  {reason:14} {count}")
    if summary.gaps:
        print(f"why each clip is missing: kinetics-download report {options.out}")
        if summary.num_retryable < sum(summary.gaps.values()):
            print("permanent gaps are tried again only with --retry permanent")
    return _exit_code(summary)


def _exit_code(summary: DownloadSummary) -> int:
    """The exit code that says what the part has; why the run stopped is printed."""
    if summary.stopped is not None:
        is_blocked = summary.stopped.reason in IDENTITY
        advice = (
            "rerun the same command then, or use another --source, --cookies or --proxy"
            if is_blocked
            else "rerun the same command when the network is up"
        )
        console.tell(f"error: stopped: {summary.stopped}; {advice}")
        return Exit.STOPPED if is_blocked else Exit.RETRYABLE_GAPS
    if summary.num_retryable:
        return Exit.RETRYABLE_GAPS
    return Exit.PERMANENT_GAPS if summary.gaps else Exit.COMPLETE


def report_main(argv: Sequence[str]) -> int:
    """Run `kinetics-download report`, and return the exit code."""
    options = report_parser().parse_args(argv)
    from kinetics_tools.download.report import write_report

    coverage, written = write_report(options.out, absolute=options.absolute)
    _print_coverage(coverage)
    print("\nwritten:")
    for path in written:
        print(f"  {path}")
    return Exit.COMPLETE


def _print_coverage(coverage: Coverage) -> None:
    from kinetics_tools.download.coverage import reason_table, source_table, split_table

    for rows in (split_table(coverage), reason_table(coverage), source_table(coverage)):
        if rows:
            print(console.text_table(rows) + "\n")
    print(f"on disk: {coverage.num_files:,} clips, {console.size_text(coverage.num_bytes)}")


def verify_main(argv: Sequence[str]) -> int:
    """Run `kinetics-download verify`, and return the exit code."""
    options = verify_parser().parse_args(argv)
    from kinetics_tools.download.verify import verify

    with verify(options.out, splits=options.split or (), jobs=options.jobs) as run:
        for result in console.progress(run, total=len(run), what="clips"):
            if result.problem is not None:
                print(f"{result.path}: {result.problem}", flush=True)
        for path in run.untracked():
            print(f"{path}: is not in the ledger as done; left alone")
    print(f"{run.num_whole} clips are whole, {run.num_damaged} must be made again")
    if run.num_damaged == 0:
        return Exit.COMPLETE
    print("to make them again, rerun the kinetics-download command that filled this folder")
    return Exit.RETRYABLE_GAPS


VERBS = {"report": (report_parser, report_main), "verify": (verify_parser, verify_main)}

if __name__ == "__main__":
    main()

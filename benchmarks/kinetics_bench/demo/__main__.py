"""The demo: synthetic videos -> clips -> flow shards -> I3D -> results page.

`python -m kinetics_bench.demo FOLDER` generates the videos, serves them over HTTP on loopback, and
runs the three commands on them as a user would. The commands treat them as any other videos.
"""

import argparse
import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from kinetics_bench.demo.videos import serve, write_videos
from kinetics_tools.core import cli, system
from kinetics_tools.core.errors import KineticsError

logger = logging.getLogger("kinetics_bench.demo")


def _command(name: str, *arguments: object) -> None:
    """Run one of the three commands, as installed with this Python, in a process."""
    words = [name, *map(str, arguments)]
    logger.info("$ %s", shlex.join(words))
    start = time.monotonic()
    program = Path(sys.executable).with_name(name)
    code = subprocess.run([program, *words[1:]], check=False).returncode
    if code != 0:
        raise KineticsError(f"{name} ended with exit code {code}; its messages are above")
    logger.info("%s took %.0f s", name, time.monotonic() - start)


def demo(folder: Path, *, seed: int) -> None:
    """Run the whole demo in `folder`; finished steps are not done again.

    Raises:
        KineticsError: one of the commands failed.
    """
    videos = folder / "videos"
    clips, shards, run = folder / "clips", folder / "shards", folder / "run"
    start = time.monotonic()
    manifest = write_videos(folder, seed=seed, jobs=system.num_processors())
    logger.info("generated the videos in %.0f s: %s", time.monotonic() - start, videos)
    with serve(videos) as address:
        source = f"url:{address}/{{youtube_id}}.mp4"
        _command("kinetics-download", manifest, clips, "--source", source)
    _command("extract-flow", clips, shards, "--short-side", "keep")
    _command(
        "run-benchmark",
        *("--arch", "i3d", "--recipe", "sample", "--seed", seed),
        *("--data", shards, "--work-dir", run, "--resume"),
    )
    logger.info("the whole demo took %.0f s", time.monotonic() - start)


def _main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m kinetics_bench.demo", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder to fill")
    parser.add_argument("--seed", type=int, default=0, help="of the videos and the training")
    options = parser.parse_args(argv)
    demo(options.folder, seed=options.seed)
    return cli.Exit.COMPLETE


if __name__ == "__main__":
    cli.run(partial(_main, sys.argv[1:]))

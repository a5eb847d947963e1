"""`youtube` and `url:TEMPLATE`: videos that yt-dlp fetches, a section or all of them.

A site is asked in its own time: under the pace that everything on this host shares which it takes
for one visitor. A refusal of the visitor says nothing about the video: a later run asks again.
"""

import importlib.metadata
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kinetics_tools.core.errors import (
    IDENTITY,
    KineticsError,
    MediaError,
    Reason,
    SourceError,
    lookup,
)
from kinetics_tools.core.files import digest
from kinetics_tools.core.units import Part
from kinetics_tools.dataset.ledger import History
from kinetics_tools.dataset.manifest import Segment
from kinetics_tools.download.sources import base
from kinetics_tools.download.sources.base import FETCHES, Footage, SourceUnit
from kinetics_tools.download.sources.rate_limit import LockedOut, RateLimiter
from kinetics_tools.download.sources.ytdlp_options import redacted, settle
from kinetics_tools.media import encode, sections

if TYPE_CHECKING:
    from kinetics_tools.download.sources import ytdlp

T = TypeVar("T")

SECTION_OVERHEAD_S = 5  # of video that a section takes besides its segment, with the index


@dataclass(frozen=True, slots=True)
class OnlineSource:
    """A source that yt-dlp fetches: YouTube, or any HTTP address.

    Attributes:
        name: the ledger's, without secrets.
        template: the address, with {youtube_id}. Always a full address: 3 % of ids begin with `-`.
        words: options of yt-dlp, as `ytdlp.parse` takes them.
        pace: of the identity that these options make.
        fetch: a name in FETCHES.
        keep_audio: whether sections have sound.
    """

    name: str
    template: str
    words: tuple[str, ...]
    pace: RateLimiter
    fetch: str = "auto"
    keep_audio: bool = False

    @property
    def by_video(self) -> bool:
        """Parts share the videos out."""
        return True

    def wants(self, history: History) -> bool:  # noqa: ARG002 - any video may be there
        """Any segment, whatever became of it elsewhere."""
        return True

    def check(self, segments: Sequence[Segment]) -> None:
        """Address and options were looked at when it was made."""

    def lockout(self) -> LockedOut | None:
        """Until when the visitor is locked out, and why."""
        return self.pace.lockout()

    def units(
        self,
        segments: Sequence[Segment],
        part: Part,  # noqa: ARG002 - the segments are the part's already
        scratch: Path,  # noqa: ARG002 - nothing is fetched before it is opened
    ) -> Generator[SourceUnit, None, None]:
        """A unit a video."""
        for own in base.by_video(segments):
            yield SourceUnit(tuple(own))

    def open(self, unit: SourceUnit, into: Path) -> "Video":
        """Begin with a unit's video; nothing is asked before its first footage is."""
        return Video(self, unit, into)

    def versions(self) -> Mapping[str, str]:
        """Of yt-dlp."""
        return {"yt-dlp": importlib.metadata.version("yt-dlp")}


def youtube(
    words: Sequence[str], pace: RateLimiter, *, keep_audio: bool, fetch: str = "auto"
) -> OnlineSource:
    """The source `youtube`.

    Args:
        words: the user's options of yt-dlp.
        pace: of the identity that they make.
        keep_audio: whether sound is fetched too.
        fetch: a name in FETCHES.

    Raises:
        KineticsError: an option cannot be used.
    """
    # The smallest picture that still covers a short side of 256, else the largest (which is the
    # "worst" in this order), with sound only where it is kept.
    sound = "+ba" if keep_audio else ""
    own = (
        f"format=bv*[height>=256][width>=256]{sound}/b[height>=256][width>=256]/wv*{sound}/w",
        "format-sort=+res,fps~30,br",
        "use-extractors=youtube",
        f"ffmpeg-location={encode.find_ffmpeg()}",
    )
    address = "https://www.youtube.com/watch?v={youtube_id}"
    return _checked(
        OnlineSource("youtube", address, (*own, *settle(words)), pace, fetch, keep_audio)
    )


def url(
    template: str, words: Sequence[str], pace: RateLimiter, *, keep_audio: bool, fetch: str = "auto"
) -> OnlineSource:
    """The source `url:TEMPLATE`.

    Args:
        template: an http(s) address with {youtube_id} in it.
        words: the user's options of yt-dlp.
        pace: of the identity that they make.
        keep_audio: whether sections have sound.
        fetch: a name in FETCHES.

    Raises:
        KineticsError: the template or an option cannot be used.
    """
    if "{youtube_id}" not in template or not re.match(r"https?://", template):
        raise KineticsError(
            f"--source url:{redacted(template)} is not an http(s) address with {{youtube_id}} in it"
        )
    own = ("force-generic-extractor", "use-extractors=generic")
    name = f"url:{_public(template)}"
    return _checked(OnlineSource(name, template, (*own, *settle(words)), pace, fetch, keep_audio))


def _public(template: str) -> str:
    """A template as the ledger may name it, and still no other one by the same name."""
    shown = redacted(template)
    return shown if shown == template else f"{shown}#{digest(template)[:8]}"


def _checked(web: OnlineSource) -> OnlineSource:
    from kinetics_tools.download.sources import ytdlp  # 0.3 s; --help does without it

    lookup("--fetch", web.fetch, FETCHES)
    ytdlp.session(web.words)
    return web


class Video:
    """A unit's video: asked for once, fetched whole once at most, whatever its segments.

    A refusal of the visitor ends all of them: others' videos show whether it was meant for all.
    """

    def __init__(self, web: OnlineSource, unit: SourceUnit, into: Path) -> None:
        from kinetics_tools.download.sources import ytdlp

        self._session = ytdlp.session(web.words)
        self._web = web
        self._unit = unit
        self._into = into
        self._answer: ytdlp.Facts | SourceError | None = None
        self._whole: Path | SourceError | None = None
        self._is_renewed = False  # its address: that is done once

    def footage(self, segment: Segment) -> Iterator[Footage]:
        """Yield a section that shows the segment, where that is wanted and can be had, and then,
        where that is wanted, all of the video.

        Raises:
            SourceError: the video, or the last thing that would have been yielded, cannot be had.
            LockedOut: the visitor is locked out, so that it was not asked for.
            OSError: the disk is full.
        """
        wants_whole = self._web.fetch != "section"
        if self._begins_with_section():
            try:
                yield self._section(segment)
            except SourceError as error:
                if not wants_whole or error.reason in IDENTITY:
                    raise
            except MediaError as error:
                if not wants_whole:
                    raise SourceError(error.reason, error.detail) from error
        if wants_whole:
            video = self._all()
            yield Footage(video, detail=f"all of {_format(self._facts())}")

    def _begins_with_section(self) -> bool:
        if self._web.fetch != "auto":
            return self._web.fetch == "section"
        if self._whole is not None:
            return False
        duration_s = self._facts().get("duration")
        segments = self._unit.segments
        wanted_s = sum(s.end_s - s.start_s + SECTION_OVERHEAD_S for s in segments)
        return duration_s is None or wanted_s < duration_s

    def _section(self, segment: Segment) -> Footage:
        path = self._into / f"{segment.key}.mp4"
        return self._of_media(
            lambda facts: Footage(
                path, self._copy(facts, segment, path), f"section of {_format(facts)}"
            ),
            is_last=self._web.fetch == "section",
        )

    def _copy(self, facts: "ytdlp.Facts", segment: Segment, path: Path) -> Fraction:
        files = self._session.remote_files(facts)
        if not files:
            raise SourceError(Reason.NO_FORMATS, "the format comes in fragments, not in sections")
        return sections.copy_section(
            files,
            path,
            start_s=segment.start_s,
            end_s=segment.end_s,
            with_sound=self._web.keep_audio,
        )

    def _all(self) -> Path:
        if self._whole is None:
            try:
                self._whole = self._of_media(
                    lambda facts: self._session.fetch(facts, self._into), is_last=True
                )
            except SourceError as error:
                self._whole = error
        if isinstance(self._whole, SourceError):
            raise self._whole
        return self._whole

    def _facts(self) -> "ytdlp.Facts":
        """What the site says of the video; it is asked once."""
        if self._answer is None:
            try:
                self._answer = self._ask()
            except SourceError as error:
                self._answer = error
        if isinstance(self._answer, SourceError):
            raise self._answer
        return self._answer

    def _ask(self) -> "ytdlp.Facts":
        """Ask when it is our turn."""
        address = self._web.template.replace("{youtube_id}", self._unit.segments[0].youtube_id)
        self._web.pace.wait()
        try:
            return self._session.ask(address)
        except SourceError as error:
            self._tell(error)
            raise

    def _of_media(self, take: "Callable[[ytdlp.Facts], T]", *, is_last: bool) -> T:
        """Take something from the video's own address, renewed once where it has aged.

        Args:
            take: asks the site for it.
            is_last: where this fails, nothing else is asked for.
        """
        from kinetics_tools.download.sources.ytdlp import FORBIDDEN, FetchError

        while True:
            facts = self._facts()
            try:
                taken = take(facts)
            except (SourceError, MediaError) as error:
                is_aged = isinstance(error, FetchError) and error.status == FORBIDDEN
                if not is_aged or self._is_renewed:
                    if is_last or error.reason in IDENTITY:
                        self._tell(error)
                    raise
                self._is_renewed = True
                self._answer = None
            else:
                self._web.pace.granted()
                return taken

    def _tell(self, error: SourceError | MediaError) -> None:
        """Tell the pace what the end of a video says of the visitor."""
        from kinetics_tools.download.sources.ytdlp import FetchError

        if error.reason in IDENTITY:
            self._answer = SourceError(error.reason, error.detail)
            asked_s = error.retry_after_s if isinstance(error, FetchError) else None
            self._web.pace.refused(error.reason, asked_s, detail=error.detail)
        elif error.reason is not Reason.NETWORK:  # that is no answer at all
            self._web.pace.granted()


def _format(facts: "ytdlp.Facts") -> str:
    """Which format was chosen, in the site's own names, and its size in pixels."""
    name = facts.get("format_id") or "?"
    width, height = facts.get("width"), facts.get("height")
    return f"{name}, {width}x{height}" if width and height else str(name)

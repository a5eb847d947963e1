"""`youtube` and `url:TEMPLATE`: videos that yt-dlp fetches, as a section or whole.

A site counts the requests of an address or account, whichever worker sends them, so everything on
this host that uses the same one shares a rate limiter. Where the site blocks the address or
account, that says nothing about the video: a later run tries it again.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from kinetics_tools.core.files import OTHER_CACHE_DIR, digest, require_locks
from kinetics_tools.core.units import Part
from kinetics_tools.dataset.manifest import Segment
from kinetics_tools.download.sources.base import (
    FETCHES,
    FetchError,
    Footage,
    Source,
    SourceUnit,
    group_by_video,
)
from kinetics_tools.download.sources.rate_limit import LockedOut, RateLimiter
from kinetics_tools.download.sources.ytdlp_options import redacted, settle
from kinetics_tools.media import encode, sections

if TYPE_CHECKING:
    from kinetics_tools.download.sources.ytdlp import RemoteVideo

T = TypeVar("T")

FORBIDDEN = 403  # of media addresses: they expire, and a new one may work
SECTION_OVERHEAD_S = 5  # of video that a section takes besides its segment, with the index


@dataclass(frozen=True, slots=True)
class OnlineSource(Source):
    """A source that yt-dlp fetches: YouTube, or any HTTP address.

    Attributes:
        name: of the source in the ledger, without secrets.
        template: the address, with {youtube_id}. Always a full address: 3 % of ids begin with `-`.
        words: options of yt-dlp, as `ytdlp.parse` takes them.
        limiter: of the address or account that these options name.
        fetch: a name in FETCHES.
        keep_audio: whether sections have sound.
    """

    name: str
    template: str
    words: tuple[str, ...]
    limiter: RateLimiter
    fetch: str = "auto"
    keep_audio: bool = False

    def rehearse(self) -> None:
        """See that the rate limit can be shared.

        Raises:
            NoLocksError: the files of its folder cannot be locked.
        """
        require_locks(self.limiter.path.parent, OTHER_CACHE_DIR)

    def lockout(self) -> LockedOut | None:
        """Why and until when the site blocks this address or account; None where it does not."""
        return self.limiter.lockout()

    def cookie_problem(self) -> str | None:
        """Why the site gets none of the user's cookies; None where it does, or there are none."""
        from kinetics_tools.download.sources import ytdlp

        return ytdlp.session(self.words).cookie_problem(self.template)

    def units(
        self,
        segments: Sequence[Segment],
        part: Part,  # noqa: ARG002 - these are the part's segments already
        scratch: Path,  # noqa: ARG002 - nothing is fetched before it is opened
    ) -> Generator[SourceUnit, None, None]:
        """Yield one unit per video."""
        for own in group_by_video(segments):
            yield SourceUnit(tuple(own))

    def open(self, unit: SourceUnit, into: Path) -> VideoFetch:
        """Begin with a unit's video; the first request is that for its first footage."""
        return VideoFetch(self, unit, into)

    def versions(self) -> Mapping[str, str]:
        """The version of yt-dlp."""
        return {"yt-dlp": importlib.metadata.version("yt-dlp")}


def youtube(
    words: Sequence[str], limiter: RateLimiter, *, keep_audio: bool, fetch: str = "auto"
) -> OnlineSource:
    """The source `youtube`.

    Args:
        words: the user's options of yt-dlp, as NAME or NAME=VALUE.
        limiter: of the address or account that they name.
        keep_audio: whether sound is fetched too.
        fetch: a name in FETCHES.

    Raises:
        KineticsError: an option cannot be used.
    """
    # The smallest picture that still covers a short side of 256, without HDR if that exists, else
    # the largest (which is the "worst" in this order), with sound only where it is kept.
    sound = "+ba" if keep_audio else ""
    own = (
        f"format=bv*[height>=256][width>=256]{sound}/b[height>=256][width>=256]/wv*{sound}/w",
        "format-sort=+res,+hdr,fps~30,br",
        "use-extractors=youtube",
        f"ffmpeg-location={encode.find_ffmpeg()}",
    )
    address = "https://www.youtube.com/watch?v={youtube_id}"
    return _checked(
        OnlineSource("youtube", address, (*own, *settle(words)), limiter, fetch, keep_audio)
    )


def url(
    template: str,
    words: Sequence[str],
    limiter: RateLimiter,
    *,
    keep_audio: bool,
    fetch: str = "auto",
) -> OnlineSource:
    """The source `url:TEMPLATE`.

    Args:
        template: an http(s) address with {youtube_id} in it.
        words: the user's options of yt-dlp, as NAME or NAME=VALUE.
        limiter: of the address or account that they name.
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
    return _checked(
        OnlineSource(name, template, (*own, *settle(words)), limiter, fetch, keep_audio)
    )


def _public(template: str) -> str:
    """The template without secrets; where that changed it, a hash keeps the name unique."""
    shown = redacted(template)
    return shown if shown == template else f"{shown}#{digest(template)[:8]}"


def _checked(source: OnlineSource) -> OnlineSource:
    from kinetics_tools.download.sources import ytdlp  # 0.3 s; --help does without it

    lookup("--fetch", source.fetch, FETCHES)
    ytdlp.session(source.words)
    return source


class VideoFetch:
    """A unit's video: looked up once, fetched whole once at most, for all its segments.

    Where the site blocks this address or account, no further segment of the video is tried: other
    videos show whether the block holds for all.
    """

    def __init__(self, source: OnlineSource, unit: SourceUnit, into: Path) -> None:
        from kinetics_tools.download.sources import ytdlp

        self._session = ytdlp.session(source.words)
        self._source = source
        self._unit = unit
        self._into = into
        self._video: RemoteVideo | SourceError | None = None
        self._whole: Path | SourceError | None = None
        self._is_renewed = False  # its address: that is done once

    def footage(self, segment: Segment) -> Iterator[Footage]:
        """Yield a section that shows the segment, then the whole video, as `fetch` says.

        Raises:
            SourceError: the video, or the last file that would have been yielded, was not given.
            LockedOut: the site was not asked, because it blocks this address or account.
            OSError: the disk is full.
        """
        wants_whole = self._source.fetch != "section"
        if self._begins_with_section():
            try:
                yield self._fresh(
                    partial(self._copy_section, segment), is_last=self._source.fetch == "section"
                )
            except SourceError as error:
                if not wants_whole or error.reason in IDENTITY:
                    raise
            except MediaError as error:
                if not wants_whole:
                    raise SourceError(error.reason, error.detail) from error
        if wants_whole:
            path = self._fetch_whole()
            yield Footage(path, detail=f"all of {self._look_up().format}")

    def _begins_with_section(self) -> bool:
        if self._source.fetch != "auto":
            return self._source.fetch == "section"
        if self._whole is not None:
            return False
        duration_s = self._look_up().duration_s
        segments = self._unit.segments
        wanted_s = sum(s.end_s - s.start_s + SECTION_OVERHEAD_S for s in segments)
        return duration_s is None or wanted_s < duration_s

    def _copy_section(self, segment: Segment, video: RemoteVideo) -> Footage:
        path = self._into / f"{segment.key}.mp4"
        files = self._session.remote_files(video)
        if not files:
            raise SourceError(Reason.NO_FORMATS, "the format comes in fragments, not in sections")
        zero_s = sections.copy_section(
            files,
            path,
            start_s=segment.start_s,
            end_s=segment.end_s,
            with_sound=self._source.keep_audio,
        )
        return Footage(path, zero_s, f"section of {video.format}")

    def _fetch_whole(self) -> Path:
        if self._whole is None:
            try:
                self._whole = self._fresh(
                    partial(self._session.fetch, into=self._into), is_last=True
                )
            except SourceError as error:
                self._whole = error
        if isinstance(self._whole, SourceError):
            raise self._whole
        return self._whole

    def _look_up(self) -> RemoteVideo:
        """What the site says of the video: one request, when the rate limiter allows it."""
        if self._video is None:
            youtube_id = self._unit.segments[0].youtube_id
            address = self._source.template.replace("{youtube_id}", youtube_id)
            try:
                self._source.limiter.wait()
                self._video = self._session.look_up(address)
            except LockedOut as error:
                self._video = error
            except SourceError as error:
                self._video = error
                self._report(error)
        if isinstance(self._video, SourceError):
            raise self._video
        return self._video

    def _fresh(self, take: Callable[[RemoteVideo], T], *, is_last: bool) -> T:
        """What `take` makes of the video, whose address is renewed once where it has expired.

        Args:
            take: requests something from the video's own address.
            is_last: whether nothing else is tried where this fails.
        """
        while True:
            video = self._look_up()
            try:
                taken = take(video)
            except (SourceError, MediaError) as error:
                is_expired = isinstance(error, FetchError) and error.status == FORBIDDEN
                if not is_expired or self._is_renewed:
                    if is_last or error.reason in IDENTITY:
                        self._report(error)
                    raise
                self._is_renewed = True
                self._video = None
            else:
                self._source.limiter.granted()
                return taken

    def _report(self, error: SourceError | MediaError) -> None:
        """Tell the rate limiter what a failure says of this address or account."""
        if error.reason in IDENTITY:
            self._video = SourceError(error.reason, error.detail)
            retry_after_s = error.retry_after_s if isinstance(error, FetchError) else None
            self._source.limiter.refused(error.reason, retry_after_s, detail=error.detail)
        elif error.reason is not Reason.NETWORK:  # then no answer came
            self._source.limiter.granted()

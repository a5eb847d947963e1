"""A YouTube on loopback: yt-dlp's own extractor asks it, and downloads what it answers.

It has the innertube endpoint `/youtubei/v1/player` and `/media/<id>/<itag>` with ranges, over
HTTPS. What it says of a video that it does not give are YouTube's own words.
"""

import contextlib
import http.server
import json
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme

from kinetics_tools.core.errors import Reason

# What YouTube says of a video that it does not give: status, reason, and a second sentence.
_REMOVED = ("ERROR", "Video unavailable")
_UNPLAYABLE = ("UNPLAYABLE", "Video unavailable")
_LOGIN = ("LOGIN_REQUIRED", "Sign in to confirm your age")
_CLAIM = "This video is no longer available due to a "
_VIOLATING = "This video has been removed for violating YouTube's "
_CONTENT = "This video contains content from UMG, "
ANSWERS: Mapping[Reason, Sequence[tuple[str, str] | tuple[str, str, str]]] = {
    Reason.GONE: (
        (*_REMOVED, "This video has been removed by the uploader"),
        (*_REMOVED, "This video isn't available anymore"),
        (*_REMOVED, "This video isn\u2019t available any more"),
        (*_REMOVED, f"{_VIOLATING}Terms of Service"),
        (*_REMOVED, f"{_VIOLATING}Community Guidelines."),
        (
            *_REMOVED,
            f"{_VIOLATING}policy on hate speech. Learn more about combating hate speech "
            "in your country.",
        ),
        (*_REMOVED, f"{_VIOLATING}policy on spam, deceptive practices, and scams"),
        (*_REMOVED, f"{_VIOLATING}policy on nudity or sexual content"),
        (*_REMOVED, "This video has been removed because it was too long"),
        (*_REMOVED, f"{_CLAIM}privacy claim by a third party"),
        (*_REMOVED, f"{_CLAIM}trademark claim by a third party"),
        ("ERROR", "This video does not exist."),
        ("ERROR", "This video was deleted by its owner."),
        ("ERROR", "This video is no longer available."),
    ),
    Reason.TERMINATED: (
        (
            *_REMOVED,
            "This video is no longer available because the YouTube account associated "
            "with this video has been terminated.",
        ),
        (
            *_REMOVED,
            "This video is no longer available because the YouTube account associated "
            "with this video has been terminated due to multiple third-party notifications of "
            "copyright infringement.",
        ),
        (
            *_REMOVED,
            "This video is no longer available because the uploader has closed their "
            "YouTube account.",
        ),
    ),
    Reason.COPYRIGHT: (
        (*_UNPLAYABLE, f"{_CONTENT}who has blocked it on copyright grounds"),
        (*_REMOVED, f"{_CLAIM}copyright claim by Private Label Ltd."),
    ),
    Reason.GEO_BLOCKED: (
        (*_UNPLAYABLE, "The uploader has not made this video available in your country"),
        (*_UNPLAYABLE, f"{_CONTENT}who has blocked it in your country on copyright grounds"),
        (*_UNPLAYABLE, "This content isn't available in your region."),
        (
            *_UNPLAYABLE,
            "This content is not available on this country domain due to a legal "
            "complaint from the government.",
        ),
        ("ERROR", "This video is not available in your country."),
        ("ERROR", "This video is not available from your location due to geo restriction"),
    ),
    Reason.PRIVATE: (
        ("LOGIN_REQUIRED", "Private video", "Sign in if you've been granted access to this video"),
        (
            "LOGIN_REQUIRED",
            "This is a private video. Please sign in to verify that you may see it.",
        ),
        (*_UNPLAYABLE, "This video is private"),
    ),
    Reason.AGE_GATED: (
        (*_LOGIN, "This video may be inappropriate for some users."),
        (
            "AGE_CHECK_REQUIRED",
            "Content Warning",
            "This video may be inappropriate for some users. Sign in to confirm your age",
        ),
        ("AGE_VERIFICATION_REQUIRED", "Verify your age to watch this video"),
        (*_UNPLAYABLE, "This video is age-restricted and only available on YouTube."),
    ),
    Reason.MEMBERS_ONLY: (
        (
            "UNPLAYABLE",
            "Join this channel to get access to members-only content like this video, "
            "and other exclusive perks.",
        ),
        (
            "UNPLAYABLE",
            "This video is available to this channel's members on level: Private "
            "Friends (or any higher level). Join this channel to get access to it.",
        ),
        (*_UNPLAYABLE, "This video is only available to Music Premium members"),
        ("UNPLAYABLE", "This video requires payment to watch."),
        ("UNPLAYABLE", "This video is available for rent or purchase."),
    ),
    Reason.BOT_CHECK: (
        (
            "LOGIN_REQUIRED",
            "Sign in to confirm you\u2019re not a bot",
            "This helps protect our community. Learn more",
        ),
        ("LOGIN_REQUIRED", "Please sign in"),
        ("LOGIN_REQUIRED", "This video is only available for registered users"),
    ),
    Reason.RATE_LIMITED: (
        (*_UNPLAYABLE, "This content isn't available, try again later."),
        (*_UNPLAYABLE, "This content isn\u2019t available, try again later."),
    ),
    Reason.REFUSED: (
        (
            *_UNPLAYABLE,
            "The following content is not available on this app. Watch on the latest "
            "version of YouTube.",
        ),
        (
            "UNPLAYABLE",
            "The following content is not available on this app.",
            "Watch on the latest version of YouTube.",
        ),
        (
            *_UNPLAYABLE,
            "This video is restricted. Please check the Google Workspace administrator "
            "and/or the network administrator restrictions.",
        ),
        (*_UNPLAYABLE, "This video is restricted. Try signing in with a G Suite account."),
        (*_UNPLAYABLE, "Playback on other websites has been disabled by the video owner"),
        (
            "UNPLAYABLE",
            "Watch this video on YouTube. Playback on other websites has been disabled "
            "by the video owner.",
        ),
        (*_UNPLAYABLE, f"{_CONTENT}who has blocked it from display on this website or application"),
        (*_UNPLAYABLE, f"{_CONTENT}It is restricted from playback on certain sites."),
        (*_UNPLAYABLE, "This content isn't available"),
        (*_UNPLAYABLE, "This content isn\u2019t available."),
        (
            *_UNPLAYABLE,
            "This video is unavailable with Restricted Mode enabled. To view this "
            "video, you will need to disable Restricted Mode.",
        ),
        (*_UNPLAYABLE, "This video is not available on this device"),
        (*_UNPLAYABLE, "This video isn't available on this device."),
        (*_UNPLAYABLE, "The content owner has not made this video available on mobile."),
        (*_UNPLAYABLE, "YouTube is no longer available on this device."),
        (*_UNPLAYABLE, "This video can't be played in this browser."),
        (*_UNPLAYABLE, "Your account does not have access to this video."),
        (*_UNPLAYABLE, "Error code: 152 - 4"),
        ("ERROR", "This video is unavailable", "Error code: 152 - 18"),
        ("ERROR", "Video player configuration error"),
        ("UNPLAYABLE", "The page needs to be reloaded."),
    ),
    Reason.NO_FORMATS: (
        # Said of videos that are deleted, and of videos that another client plays.
        _REMOVED,
        _UNPLAYABLE,
        ("ERROR", "This video is unavailable"),
        (*_UNPLAYABLE, "This video is not available"),
        ("ERROR", "An error occurred. Please try again later. (Playback ID: 0aF)"),
        # A warning that another client passes.
        (
            "CONTENT_CHECK_REQUIRED",
            "The following content has been identified by the YouTube "
            "community as inappropriate or offensive to some audiences.",
            "Viewer discretion is advised",
        ),
        (
            "CONTENT_CHECK_REQUIRED",
            "The following content may contain suicide or self-harm topics.",
        ),
        # Not yet.
        ("LIVE_STREAM_OFFLINE", "This live event will begin in a few moments."),
        ("LIVE_STREAM_OFFLINE", "This live event has ended."),
        ("LIVE_STREAM_OFFLINE", "Premieres in 3 hours"),
        ("LIVE_STREAM_OFFLINE", "Premiere will begin shortly"),
        ("UNPLAYABLE", "This live stream recording is not available."),
        ("UNPLAYABLE", "We're processing this video. Check back later."),
        # Unknown.
        (*_UNPLAYABLE, "Words of another year"),
        ("UNPLAYABLE", "Vid\u00e9o non disponible", "Cette vid\u00e9o est priv\u00e9e"),
    ),
}
# One of them for each reason, by name.
REFUSALS: Mapping[str, tuple[str, str] | tuple[str, str, str]] = {
    "removed": ANSWERS[Reason.GONE][0],
    "unknown": ANSWERS[Reason.GONE][1],
    **{str(reason): said[0] for reason, said in ANSWERS.items() if reason is not Reason.GONE},
}


@dataclass(frozen=True)
class Format:
    """One of a video's formats.

    Attributes:
        content: of its file.
        itag: YouTube's number of the kind of format.
        width: pixels; 0 where it holds sound only.
        height: pixels; 0 where it holds sound only.
        mime: type and codecs.
        progressive: picture and sound in one file.
    """

    content: bytes
    itag: int = 133
    width: int = 426
    height: int = 240
    mime: str = 'video/mp4; codecs="avc1.4d4015"'
    progressive: bool = False


@dataclass
class Entry:
    """What the server knows of a video.

    Attributes:
        formats: what there is to download.
        refusal: a name in REFUSALS, or what YouTube says: status, reason, second sentence.
        player: HTTP statuses of the next answers about it; after them it answers as usual.
        media: the same for its media; the last one stays when `media_stays`.
        media_stays: whether the last of `media` is answered without end.
        retry_after: header of the answers that `player` and `media` make.
        fault: of the media: "truncated", "no-ranges", "page", "silent", "lies", "slow", "drips".
        seconds: its length, for `lengthSeconds`.
        hls: offer an HLS playlist only.
        playlist: what stands in it; there is none by default.
        oddities: of what is offered: fields of each format that differ from YouTube's.
        adaptive: what stands in the list of formats, whatever `formats` says.
    """

    formats: Sequence[Format] = ()
    refusal: str | Sequence[str] | None = None
    player: list[int] = field(default_factory=list)
    media: list[int] = field(default_factory=list)
    media_stays: bool = False
    retry_after: str | None = None
    fault: str | None = None
    seconds: int = 600
    hls: bool = False
    playlist: bytes | None = None
    oddities: Mapping[str, object] = field(default_factory=dict)
    adaptive: Sequence[object] | None = None


class YouTubeStandIn:
    """The server's contents, and what it was asked.

    Attributes:
        requests: paths, in order; those of the player with the video's id behind a colon.
        cookies: what came with each of them.
        bytes_sent: of media, by video.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._videos: dict[str, Entry] = {}
        self.requests: list[str] = []
        self.cookies: list[str] = []
        self.bytes_sent: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.closing = threading.Event()

    def put(self, youtube_id: str, *content: Path | bytes | Format, **behaviour: Any) -> None:
        """Have a video, or a refusal of it.

        Args:
            youtube_id: 11 characters.
            content: its formats; a file is one of 426x240.
            behaviour: fields of Entry.
        """
        assert re.fullmatch(r"[A-Za-z0-9_-]{11}", youtube_id), youtube_id
        formats = tuple(
            each
            if isinstance(each, Format)
            else Format(each if isinstance(each, bytes) else each.read_bytes())
            for each in content
        )
        self._videos[youtube_id] = Entry(formats, **behaviour)

    @property
    def address(self) -> str:
        """Of the server."""
        return f"https://127.0.0.1:{self._port}"

    @property
    def words(self) -> tuple[str, ...]:
        """Options of yt-dlp that bring its extractor here, as `ytdlp.parse` takes them."""
        host = f"innertube_host=127.0.0.1:{self._port}"
        only = "player_skip=webpage,configs,initial_data;player_client=android_vr"
        return (
            "no-check-certificates",
            f"extractor-args=youtube:{host};{only};formats=missing_pot",
        )

    @property
    def options(self) -> list[str]:
        """The same as words of a command line."""
        flag, extractor = self.words
        name, _, value = extractor.partition("=")
        return [f"--{flag}", f"--{name}", value]

    def num_asked(self, youtube_id: str) -> int:
        """How often the player was asked for a video."""
        return self.requests.count(f"/youtubei/v1/player:{youtube_id}")

    def entry(self, youtube_id: str) -> Entry:
        """What is known of a video; nobody has one that was not put."""
        return self._videos.get(youtube_id, Entry(refusal="unknown"))

    def answer(self, youtube_id: str) -> dict[str, Any]:
        """The player's answer about a video."""
        entry = self.entry(youtube_id)
        details = {
            "videoId": youtube_id,
            "title": "A title",
            "lengthSeconds": str(entry.seconds),
            "shortDescription": "",
        }
        if entry.refusal is not None:
            return {"playabilityStatus": _playability(entry.refusal), "videoDetails": details}
        streaming: dict[str, Any] = {"expiresInSeconds": "21540"}
        if entry.hls:
            streaming["hlsManifestUrl"] = f"{self.address}/media/{youtube_id}/list.m3u8"
        for each in () if entry.hls else entry.formats:
            kind = "formats" if each.progressive else "adaptiveFormats"
            offer = self._offer(youtube_id, each, entry.seconds) | dict(entry.oddities)
            streaming.setdefault(kind, []).append(offer)
        if entry.adaptive is not None:
            streaming["adaptiveFormats"] = entry.adaptive
        return {
            "playabilityStatus": {"status": "OK", "playableInEmbed": True},
            "videoDetails": details,
            "streamingData": streaming,
        }

    def _offer(self, youtube_id: str, each: Format, seconds: int) -> dict[str, Any]:
        bitrate = len(each.content) * 8 // max(seconds, 1)
        offer: dict[str, Any] = {
            "itag": each.itag,
            "url": f"{self.address}/media/{youtube_id}/{each.itag}",
            "mimeType": each.mime,
            "bitrate": bitrate,
            "averageBitrate": bitrate,
            "contentLength": str(len(each.content)),
            "approxDurationMs": str(seconds * 1000),
        }
        if each.height:
            short = min(each.width, each.height)
            offer |= {"width": each.width, "height": each.height, "fps": 30}
            offer |= {"qualityLabel": f"{short}p", "quality": "small" if short < 300 else "medium"}
        else:
            offer |= {"audioQuality": "AUDIO_QUALITY_MEDIUM", "audioSampleRate": "44100"}
        return offer


def _playability(refusal: str | Sequence[str]) -> dict[str, Any]:
    said = REFUSALS.get(refusal, ("UNPLAYABLE", refusal)) if isinstance(refusal, str) else refusal
    answer: dict[str, Any] = dict(zip(("status", "reason"), said, strict=False))
    if len(said) > 2:
        message = {"reason": {"simpleText": said[1]}, "subreason": {"simpleText": said[2]}}
        answer["errorScreen"] = {"playerErrorMessageRenderer": message}
    return answer


class _Handler(http.server.BaseHTTPRequestHandler):
    known: YouTubeStandIn  # each server has a class of its own

    def log_message(self, *arguments: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):  # yt-dlp hangs up early
            super().handle()

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        youtube_id = json.loads(self.rfile.read(length)).get("videoId", "")
        path = self.path.partition("?")[0]
        with self.known.lock:
            self.known.requests.append(f"{path}:{youtube_id}")
            self.known.cookies.append(self.headers.get("Cookie", ""))
            entry = self.known.entry(youtube_id)
            status = entry.player.pop(0) if entry.player else 200
        if status != 200:
            self._refuse(status, entry)
            return
        self._send(200, "application/json", json.dumps(self.known.answer(youtube_id)).encode())

    def do_HEAD(self) -> None:
        self._refuse(405, Entry())

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        with self.known.lock:
            self.known.requests.append(path)
            self.known.cookies.append(self.headers.get("Cookie", ""))
        found = re.fullmatch(r"/media/([^/]{11})/(\d+|list\.m3u8)", path)
        playlist = self.known.entry(found[1]).playlist if found else None
        if found and found[2] == "list.m3u8" and playlist is not None:
            self._send(200, "application/vnd.apple.mpegurl", playlist)
            return
        if found is None or not found[2].isdecimal():
            self._refuse(404, Entry())
            return
        entry = self.known.entry(found[1])
        with self.known.lock:
            kept = entry.media_stays and len(entry.media) == 1
            status = (entry.media[0] if kept else entry.media.pop(0)) if entry.media else 200
        if status != 200:
            self._refuse(status, entry)
            return
        content = next(f.content for f in entry.formats if f.itag == int(found[2]))
        self._media(found[1], entry.fault, content)

    def _media(self, youtube_id: str, fault: str | None, content: bytes) -> None:
        if fault == "silent":
            self.known.closing.wait()
            return
        if fault == "page":
            self._send(200, "text/html", b"<html><body>Sorry</body></html>")
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None or fault == "no-ranges":
            self._bytes(youtube_id, 200, {}, content, fault)
            return
        start, end = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
        if start >= len(content):
            self._refuse(416, Entry())
            return
        header = {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        self._bytes(youtube_id, 206, header, content[start:end], fault)

    def _bytes(
        self,
        youtube_id: str,
        status: int,
        headers: dict[str, str],
        data: bytes,
        fault: str | None,
    ) -> None:
        sent = data[: len(data) // 2] if fault in ("truncated", "lies") else data
        announced = len(sent) if fault == "lies" else len(data)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        step = 1 if fault == "drips" else 65536
        for start in range(0, len(sent), step):
            self.wfile.write(sent[start : start + step])
            with self.known.lock:
                self.known.bytes_sent[youtube_id] += len(sent[start : start + step])
            if fault in ("slow", "drips"):
                time.sleep(0.05)

    def _send(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: int, entry: Entry) -> None:
        self.send_response(status)
        if entry.retry_after is not None:
            self.send_header("Retry-After", entry.retry_after)
        self.send_header("Content-Length", "0")
        self.end_headers()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
        # The handshake is the handler's: one that hangs would else hold all others up.
        self.socket = context.wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )

    def handle_error(self, *_: Any) -> None:
        pass  # a client that does not trust the certificate, or hangs up


@contextlib.contextmanager
def serve() -> Iterator[YouTubeStandIn]:
    """A stand-in that serves for the block."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    server = _Server(context)
    known = YouTubeStandIn(server.server_port)
    server.RequestHandlerClass = type("Handler", (_Handler,), {"known": known})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield known
    finally:
        known.closing.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def youtube() -> Iterator[YouTubeStandIn]:
    """A YouTube on loopback."""
    with serve() as known:
        yield known

"""Videos through yt-dlp: its own YouTube extractor and network, against servers on loopback."""

import contextlib
import errno
import http.client
import http.server
import pickle
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import yt_dlp

from conftest import MakeVideo
from kinetics_tools.core.errors import (
    IDENTITY,
    PERMANENT,
    KineticsError,
    Reason,
    SourceError,
    UnknownNameError,
)
from kinetics_tools.dataset.manifest import Segment
from kinetics_tools.download import cli
from kinetics_tools.download.sources import youtube as youtube_module
from kinetics_tools.download.sources import ytdlp, ytdlp_options
from kinetics_tools.download.sources.base import FetchError, Footage, SourceUnit
from kinetics_tools.download.sources.rate_limit import MAX_REFUSALS, LockedOut, RateLimiter
from kinetics_tools.download.sources.youtube import OnlineSource
from kinetics_tools.media.clips import cut
from kinetics_tools.media.recipe import ClipRecipe
from support import MediaServer
from youtube_standin import ANSWERS, Format, YouTubeStandIn, youtube

__all__ = ["youtube"]  # a fixture

HASTY = ("retries=0", "extractor-retries=0", "socket-timeout=2")
LONG = "-c:v libx264 -preset ultrafast -b:v 300k -g 60 -bf 2 -movflags +faststart"


def segment(youtube_id: str, start: object = 20, end: object = 22) -> Segment:
    start_s, end_s = Fraction(str(start)), Fraction(str(end))
    return Segment(youtube_id=youtube_id, start_s=start_s, end_s=end_s, label=None, split="val")


@pytest.fixture
def limiter(tmp_path: Path) -> RateLimiter:
    return RateLimiter(tmp_path / "limiter", interval_s=0, lockout_s=60)


@pytest.fixture
def source(youtube: YouTubeStandIn, limiter: RateLimiter) -> OnlineSource:
    return youtube_module.youtube((*youtube.words, *HASTY), limiter, keep_audio=False)


Ask = Callable[..., list[Footage]]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """All footage of segments of a video, as one unit: what each asks for, in order."""

    def ask(source: OnlineSource, *segments: Segment, all_of_it: bool = False) -> list[Footage]:
        into = tmp_path / f"100% $HOME {segments[0].youtube_id} {time.monotonic_ns()}"
        into.mkdir()
        opened = source.open(SourceUnit(segments), into)
        found: list[Footage] = []
        for each in segments:
            footage = opened.footage(each)
            found.extend(footage if all_of_it else [next(footage)])
        return found

    return ask


@pytest.fixture(scope="session")
def long_video(make_video: MakeVideo) -> Path:
    return make_video(seconds=60, size="340x256", options=LONG)


def test_a_section_makes_the_clip_that_the_whole_video_makes(
    youtube: YouTubeStandIn,
    source: OnlineSource,
    ask: Ask,
    long_video: Path,
    ffmpeg: Path,
    recipe: ClipRecipe,
    tmp_path: Path,
) -> None:
    youtube.put("-bcdefghijk", long_video, seconds=60)
    wanted = segment("-bcdefghijk")
    section, whole = ask(source, wanted, all_of_it=True)
    assert section.path.stat().st_size < whole.path.stat().st_size / 4
    assert whole == Footage(whole.path, detail="all of 133, 426x240")
    assert whole.path.read_bytes() == long_video.read_bytes()
    clips = []
    for footage in (section, whole):
        clip = tmp_path / "clip.mp4"
        start_s, end_s = wanted.start_s - footage.zero_s, wanted.end_s - footage.zero_s
        cut(footage.path, clip, start_s=start_s, end_s=end_s, recipe=recipe, binary=ffmpeg)
        clips.append(clip.read_bytes())
    assert clips[0] == clips[1]
    assert youtube.num_asked("-bcdefghijk") == 1


def test_a_video_is_asked_for_once_and_fetched_whole_once_whatever_its_segments(
    youtube: YouTubeStandIn, source: OnlineSource, ask: Ask, long_video: Path
) -> None:
    youtube.put("good0000000", long_video, seconds=60)
    wanted = [segment("good0000000", start, start + 2) for start in (5, 20, 40)]
    sections = ask(source, *wanted)
    assert len({footage.path for footage in sections}) == 3
    assert youtube.bytes_sent["good0000000"] < long_video.stat().st_size / 2
    assert youtube.num_asked("good0000000") == 1
    whole = ask(replace(source, fetch="full"), *wanted)
    assert len({footage.path for footage in whole}) == 1
    assert youtube.num_asked("good0000000") == 2


def test_a_section_of_a_long_video_costs_little_more_than_its_share(
    youtube: YouTubeStandIn,
    source: OnlineSource,
    ask: Ask,
    make_video: MakeVideo,
    ffmpeg: Path,
    tmp_path: Path,
) -> None:
    twenty_s = make_video(seconds=20, size="340x256", options=LONG)
    video = tmp_path / "ten-minutes.mp4"
    again = ("-loglevel", "error", "-stream_loop", "29", "-i", str(twenty_s), "-c", "copy")
    subprocess.run([ffmpeg, *again, "-movflags", "+faststart", str(video)], check=True)
    share = video.stat().st_size / 60
    for number, start in enumerate((0, 61, 300, "433.5", 590)):
        name = f"tenminutes{number}"
        youtube.put(name, video, seconds=600)
        ask(source, segment(name, start, Fraction(str(start)) + 10))
        assert youtube.bytes_sent[name] < 2.5 * share, (start, youtube.bytes_sent[name] / share)


def test_a_dead_video_is_asked_for_once_whatever_its_segments(
    youtube: YouTubeStandIn, source: OnlineSource, tmp_path: Path
) -> None:
    youtube.put("dead0000000", refusal="removed")
    wanted = (segment("dead0000000", 1, 2), segment("dead0000000", 5, 6))
    opened = source.open(SourceUnit(wanted), tmp_path)
    for each in wanted:
        with pytest.raises(SourceError, match="removed by the uploader"):
            next(opened.footage(each))
    assert youtube.num_asked("dead0000000") == 1
    assert not list(tmp_path.glob("video*"))


def test_sections_that_would_take_all_of_a_video_are_not_tried(
    youtube: YouTubeStandIn, source: OnlineSource, ask: Ask, long_video: Path
) -> None:
    youtube.put("good0000000", long_video, seconds=60)
    wanted = [segment("good0000000", start, start + 10) for start in (0, 10, 20, 30)]
    assert {footage.zero_s for footage in ask(source, *wanted)} == {0}
    assert len(ask(replace(source, fetch="section"), *wanted)) == 4


def test_of_the_formats_the_smallest_that_covers_256_is_fetched(
    youtube: YouTubeStandIn, source: OnlineSource, ask: Ask, make_video: MakeVideo
) -> None:
    sizes = {160: (256, 144), 133: (426, 240), 134: (640, 360), 136: (1280, 720), 137: (1920, 1080)}
    content = make_video(seconds=4).read_bytes()
    formats = [Format(content, itag, *size) for itag, size in sizes.items()]
    sound = Format(content, 140, 0, 0, 'audio/mp4; codecs="mp4a.40.2"')
    both = Format(content, 18, 640, 360, 'video/mp4; codecs="avc1.42001E, mp4a.40.2"', True)
    youtube.put("formats0000", *formats, sound, seconds=4)
    ask(source, segment("formats0000", 0, 4))
    assert youtube.requests[-1] == "/media/formats0000/134"
    hdr = Format(content + bytes(9999), 332, 640, 360, 'video/webm; codecs="vp9.2"')
    youtube.put("withhdr0000", hdr, *formats, sound, seconds=4)
    ask(source, segment("withhdr0000", 0, 4))
    assert youtube.requests[-1] == "/media/withhdr0000/134"
    youtube.put("smallsizes0", *formats[:2], sound, seconds=4)
    ask(source, segment("smallsizes0", 0, 4))
    assert youtube.requests[-1] == "/media/smallsizes0/133"
    youtube.put("progressive", both, seconds=4)
    ask(source, segment("progressive", 0, 4))
    assert youtube.requests[-1] == "/media/progressive/18"


@pytest.mark.parametrize(
    ("reason", "said"),
    [(reason, said) for reason, all_said in ANSWERS.items() for said in all_said],
)
def test_each_answer_has_its_reason_and_the_sites_last_words(
    youtube: YouTubeStandIn, source: OnlineSource, ask: Ask, reason: Reason, said: tuple[str, ...]
) -> None:
    youtube.put("refused0000", refusal=said)
    words = re.split(r"[.\u2019]", said[-1])[0]
    if "not a bot" in said[1]:
        words = "not a bot"
    with pytest.raises(SourceError, match=re.escape(words)) as caught:
        ask(source, segment("refused0000"))
    assert caught.value.reason is reason
    assert "\n" not in caught.value.detail
    assert "report this issue" not in caught.value.detail


@pytest.mark.parametrize(
    ("behaviour", "reason", "words"),
    [
        ({"player": [500] * 9}, Reason.SERVER, "HTTP Error 500"),
        ({"player": [404] * 9}, Reason.SERVER, "HTTP Error 404"),
        ({"player": [410] * 9}, Reason.SERVER, "HTTP Error 410"),
        ({"player": [451] * 9}, Reason.SERVER, "HTTP Error 451"),
        ({"hls": True}, Reason.NO_FORMATS, "No video formats"),
        ({"media": [403], "media_stays": True}, Reason.SERVER, "HTTP Error 403"),
        ({"media": [404], "media_stays": True}, Reason.SERVER, "HTTP Error 404"),
        ({"fault": "truncated"}, Reason.DAMAGED, "bytes read"),
        ({"fault": "lies"}, Reason.NETWORK, "never came"),
        ({"fault": "silent"}, Reason.NETWORK, "timed out"),
        ({"fault": "drips"}, Reason.NETWORK, "below minimum throughput"),
        ({"media": [500], "media_stays": True}, Reason.SERVER, "HTTP Error 500"),
        ({"adaptive": ["x", 5]}, Reason.NO_FORMATS, "failed on the response"),
        ({"oddities": {"url": 5}}, Reason.NO_FORMATS, "failed on the response"),
        ({"oddities": {"url": "http://[bad"}}, Reason.NO_FORMATS, "Invalid IPv6"),
        ({"oddities": {"mimeType": 7}}, Reason.NO_FORMATS, "failed on the response"),
    ],
)
def test_each_failure_of_the_server_has_its_reason(
    youtube: YouTubeStandIn,
    source: OnlineSource,
    ask: Ask,
    long_video: Path,
    behaviour: dict[str, object],
    reason: Reason,
    words: str,
) -> None:
    youtube.put("faulty00000", long_video, seconds=60, **behaviour)
    with pytest.raises(SourceError, match=words) as caught:
        ask(source, segment("faulty00000"))
    assert caught.value.reason is reason


def test_a_section_from_a_server_that_drips_ends(
    youtube: YouTubeStandIn, source: OnlineSource, ask: Ask, long_video: Path
) -> None:
    youtube.put("drips000000", long_video, seconds=60, fault="drips")
    with pytest.raises(SourceError, match="below minimum throughput") as caught:
        ask(replace(source, fetch="section"), segment("drips000000"))
    assert caught.value.reason is Reason.NETWORK
    assert youtube.requests.count("/media/drips000000/133") == 1


def test_no_ffmpeg_is_let_on_the_network(
    youtube: YouTubeStandIn, source: OnlineSource, ask: Ask
) -> None:
    encrypted = (
        "#EXTM3U",
        "#EXT-X-TARGETDURATION:9",
        '#EXT-X-KEY:METHOD=SAMPLE-AES,URI="key"',
        "#EXTINF:9,",
        "1.ts",
        "#EXT-X-ENDLIST",
    )
    youtube.put("encrypted00", hls=True, playlist="\n".join(encrypted).encode())
    with pytest.raises(SourceError, match="only ffmpeg could fetch this format") as caught:
        ask(source, segment("encrypted00"))
    assert caught.value.reason is Reason.NO_FORMATS
    assert "/media/encrypted00/1.ts" not in youtube.requests


def test_words_that_are_no_text_can_be_written(
    youtube: YouTubeStandIn, source: OnlineSource, ask: Ask
) -> None:
    youtube.put("surrogate00", refusal="Video \ud800 removed")
    with pytest.raises(SourceError, match=r"Video \\ud800 removed") as caught:
        ask(source, segment("surrogate00"))
    caught.value.detail.encode()


@pytest.mark.parametrize("fault", ["no-ranges", "page"])
def test_any_trouble_with_a_section_is_followed_by_the_whole_video(
    youtube: YouTubeStandIn, source: OnlineSource, ask: Ask, long_video: Path, fault: str
) -> None:
    youtube.put("faulty00000", long_video, seconds=60, fault=fault)
    (footage,) = ask(source, segment("faulty00000"))
    assert footage.path.suffix == ".mp4"
    assert footage.zero_s == 0
    with pytest.raises(SourceError, match="does not give parts"):
        ask(replace(source, fetch="section"), segment("faulty00000"))


def test_a_slow_server_is_waited_for(
    youtube: YouTubeStandIn, source: OnlineSource, ask: Ask, long_video: Path
) -> None:
    youtube.put("slow0000000", long_video, seconds=60, fault="slow")
    assert ask(source, segment("slow0000000"))[0].zero_s > 0


def test_a_media_address_that_has_aged_is_asked_for_again_once(
    youtube: YouTubeStandIn, source: OnlineSource, ask: Ask, long_video: Path
) -> None:
    youtube.put("aged0000000", long_video, seconds=60, media=[403])
    assert ask(source, segment("aged0000000"))[0].zero_s > 0
    assert youtube.num_asked("aged0000000") == 2
    youtube.put("barred00000", long_video, seconds=60, media=[403], media_stays=True)
    with pytest.raises(SourceError, match="403"):
        ask(source, segment("barred00000"))
    assert youtube.num_asked("barred00000") == 2


def refused(source: OnlineSource, ask: Ask, youtube_id: str) -> None:
    with pytest.raises(SourceError) as caught:
        ask(source, segment(youtube_id))
    assert caught.value.reason in IDENTITY
    assert not isinstance(caught.value, LockedOut)


def test_a_video_that_is_refused_is_not_asked_for_again_whatever_its_segments(
    youtube: YouTubeStandIn, source: OnlineSource, ask: Ask, long_video: Path, tmp_path: Path
) -> None:
    youtube.put("refused0000", long_video, seconds=60, player=[429])
    wanted = [segment("refused0000", start, start + 2) for start in (5, 20, 40)]
    opened = source.open(SourceUnit(tuple(wanted)), tmp_path)
    for each in wanted:
        with pytest.raises(SourceError, match="429") as caught:
            next(opened.footage(each))
        assert caught.value.reason is Reason.RATE_LIMITED
    assert youtube.num_asked("refused0000") == 1
    assert source.lockout() is None
    assert ask(source, segment("refused0000"))[0].zero_s > 0


def test_the_third_refusal_in_a_row_locks_the_visitor_out_and_nothing_more_is_asked(
    youtube: YouTubeStandIn, source: OnlineSource, ask: Ask
) -> None:
    for number in range(MAX_REFUSALS):
        assert source.lockout() is None
        youtube.put(f"refused000{number}", refusal="bot-check")
        refused(source, ask, f"refused000{number}")
    assert source.lockout() is not None
    num_asked = len(youtube.requests)
    with pytest.raises(LockedOut, match=r"not a bot.*locked out until") as caught:
        ask(source, segment("another0000"))
    assert caught.value.reason is Reason.BOT_CHECK
    assert len(youtube.requests) == num_asked


@pytest.mark.parametrize(
    ("behaviour", "is_answer"),
    [
        ({"refusal": "removed"}, True),
        ({"player": [500]}, True),
        ({"media": [404]}, True),
        ({"fault": "silent"}, False),
        ({}, True),
    ],
)
def test_a_row_of_refusals_ends_with_whatever_else_became_of_a_video(
    youtube: YouTubeStandIn,
    source: OnlineSource,
    ask: Ask,
    long_video: Path,
    behaviour: dict[str, object],
    is_answer: bool,
) -> None:
    youtube.put("refused0000", refusal="rate-limited")
    for _ in range(MAX_REFUSALS - 1):
        refused(source, ask, "refused0000")
    youtube.put("another0000", long_video, seconds=60, **behaviour)
    with contextlib.suppress(SourceError):
        ask(source, segment("another0000"))
    refused(source, ask, "refused0000")
    assert (source.lockout() is None) == is_answer


def test_what_retry_after_says_is_kept(youtube: YouTubeStandIn) -> None:
    session = ytdlp.session((*youtube.words, *HASTY))
    youtube.put("refused0000", player=[429, 402], retry_after="77")
    for status in (429, 402):
        with pytest.raises(FetchError) as caught:
            session.look_up("https://www.youtube.com/watch?v=refused0000")
        assert (caught.value.status, caught.value.retry_after_s) == (status, 77)
        assert caught.value.reason is Reason.RATE_LIMITED
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.reason, copy.detail, copy.retry_after_s) == (*caught.value.args, 77)


@pytest.mark.parametrize(
    "behaviour",
    [
        {"media": [429]},
        {"media": [200, 429], "fault": "no-ranges"},  # the section is not had, then the video
        {"media": [403], "player": [200, 429]},  # an address that has aged is asked for again
    ],
)
def test_media_that_are_refused_to_the_visitor_count_although_the_site_tells_of_the_videos(
    youtube: YouTubeStandIn,
    source: OnlineSource,
    ask: Ask,
    long_video: Path,
    behaviour: dict[str, list[int]],
) -> None:
    for number in range(MAX_REFUSALS):
        assert source.lockout() is None
        name = f"refused000{number}"
        own = {
            what: list(value) if isinstance(value, list) else value
            for what, value in behaviour.items()
        }
        youtube.put(name, long_video, seconds=60, media_stays=True, **own)
        refused(source, ask, name)
        assert youtube.num_asked(name) == len(behaviour.get("player", [0]))
    assert source.lockout() is not None


def test_a_lockout_while_an_address_is_renewed_is_no_refusal_of_the_video(
    youtube: YouTubeStandIn, source: OnlineSource, long_video: Path, tmp_path: Path
) -> None:
    youtube.put("aged0000000", long_video, seconds=60)
    opened = source.open(SourceUnit((segment("aged0000000"),)), tmp_path)
    footage = opened.footage(segment("aged0000000"))
    next(footage)
    for _ in range(MAX_REFUSALS):
        source.limiter.refused(Reason.BOT_CHECK)
    youtube.put("aged0000000", long_video, seconds=60, media=[403])
    with pytest.raises(LockedOut):
        next(footage)
    assert youtube.num_asked("aged0000000") == 1


def test_a_section_is_read_again_where_the_connection_breaks(
    youtube: YouTubeStandIn, limiter: RateLimiter, ask: Ask, long_video: Path
) -> None:
    source = youtube_module.youtube(
        (*youtube.words, "retries=2"), limiter, keep_audio=False, fetch="section"
    )
    youtube.put("broken00000", long_video, seconds=60, fault="truncated")
    with pytest.raises(SourceError) as caught:
        ask(source, segment("broken00000"))
    assert caught.value.reason is Reason.DAMAGED
    assert youtube.requests.count("/media/broken00000/133") == 3


def test_a_section_is_read_again_no_sooner_than_the_user_says(
    youtube: YouTubeStandIn, limiter: RateLimiter, ask: Ask, long_video: Path
) -> None:
    words = (*youtube.words, "retries=2", "retry-sleep=linear=0.2::0.2")
    source = youtube_module.youtube(words, limiter, keep_audio=False, fetch="section")
    youtube.put("broken00000", long_video, seconds=60, fault="truncated")
    start_s = time.monotonic()
    with pytest.raises(SourceError):
        ask(source, segment("broken00000"))
    assert time.monotonic() - start_s >= 0.2 + 0.4


def test_the_innermost_cause_counts() -> None:
    disk = OSError(errno.ENOSPC, "No space left on device")
    wrapped = RuntimeError("unable to write data")
    wrapped.exc_info = (OSError, disk, None)  # type: ignore[attr-defined]  # as yt-dlp does
    assert ytdlp._cause(wrapped) is disk
    broken = http.client.IncompleteRead(b"", 9)
    assert ytdlp._reason(str(broken), broken) is Reason.DAMAGED


@pytest.fixture
def url_source(media_server: MediaServer, limiter: RateLimiter) -> Iterator[OnlineSource]:
    yield youtube_module.url(
        media_server.template.removeprefix("url:"), ("retries=0",), limiter, keep_audio=False
    )


def test_an_address_gives_the_video_under_the_name_its_server_gives(
    media_server: MediaServer, url_source: OnlineSource, ask: Ask, make_video: MakeVideo
) -> None:
    content = make_video().read_bytes()
    media_server.put("-bcdefghijk", content)
    (footage,) = ask(url_source, segment("-bcdefghijk", 0, 4))
    assert (footage.path.read_bytes(), footage.path.suffix) == (content, ".mp4")
    assert url_source.name == media_server.template


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("absent", Reason.GONE, "HTTP Error 404"),
        ("status-410", Reason.GONE, "HTTP Error 410"),
        ("status-403", Reason.SERVER, "HTTP Error 403"),
        ("status-429", Reason.RATE_LIMITED, "HTTP Error 429"),
        ("status-500", Reason.SERVER, "HTTP Error 500"),
        ("page", Reason.NO_FORMATS, "Unsupported URL"),
        ("advertisement", Reason.NO_FORMATS, "HTML page"),
        ("embeds", Reason.NO_FORMATS, "HTML page"),
        ("leads-on", Reason.NO_FORMATS, "HTML page"),
        ("empty", Reason.DAMAGED, "Did not get any data blocks"),
        ("half-of-good", Reason.DAMAGED, "expected"),
    ],
)
def test_each_failure_of_an_address_has_its_reason_and_the_tools_last_words(
    media_server: MediaServer,
    url_source: OnlineSource,
    ask: Ask,
    make_video: MakeVideo,
    name: str,
    reason: Reason,
    words: str,
) -> None:
    media_server.put("good", make_video())
    media_server.put("page", b"<html><body>gone fishing</body></html>")
    there = media_server.address
    for page, text in {
        "advertisement": f'<script>video_url: "{there}/good.mp4"</script>',
        "embeds": '<meta property="og:video" content="/good.mp4">',
        "leads-on": '<meta http-equiv="refresh" content="0; URL=/good.mp4">',
    }.items():
        media_server.put(page, f"<html><body>{text}</body></html>".encode())
    media_server.put("empty", b"")
    with pytest.raises(SourceError, match=words) as caught:
        ask(url_source, segment(name))
    assert caught.value.reason is reason
    assert "report this issue" not in caught.value.detail


@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "ftp://127.0.0.1:1/x", "http://[::1", "http://h:99999999/", "//"]
)
def test_a_redirect_to_nowhere_costs_its_clip(to: str, limiter: RateLimiter, ask: Ask) -> None:
    class Redirect(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", to)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirect) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        template = f"http://127.0.0.1:{server.server_port}/{{youtube_id}}.mp4"
        source = youtube_module.url(template, ("retries=0",), limiter, keep_audio=False)
        with pytest.raises(SourceError) as caught:
            ask(source, segment("good", 0, 4))
        server.shutdown()
    assert caught.value.reason not in PERMANENT
    assert "\n" not in caught.value.detail


def test_an_address_may_be_redirected_by_its_server(
    media_server: MediaServer, limiter: RateLimiter, ask: Ask, make_video: MakeVideo
) -> None:
    class Redirect(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", f"{media_server.address}{self.path}")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    content = make_video().read_bytes()
    media_server.put("good", content)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirect) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        template = f"http://127.0.0.1:{server.server_port}/{{youtube_id}}.mp4"
        source = youtube_module.url(template, ("retries=0",), limiter, keep_audio=False)
        (footage,) = ask(source, segment("good", 0, 4))
        server.shutdown()
    assert footage.path.read_bytes() == content


def test_what_is_secret_in_an_address_is_sent_and_not_told(
    media_server: MediaServer, limiter: RateLimiter, ask: Ask, make_video: MakeVideo
) -> None:
    host = media_server.address.removeprefix("http://")
    media_server.put("good", make_video())

    def source(query: str, user: str = "me:SECRET@") -> OnlineSource:
        template = f"http://{user}{host}/{{youtube_id}}.mp4{query}"
        return youtube_module.url(template, ("retries=0",), limiter, keep_audio=False)

    assert ask(source(""), segment("good", 0, 4))
    plain, token, other = source("", ""), source("?token=SECRET"), source("?token=SECRET2")
    assert token.name.startswith(f"{plain.name}#")
    assert len({plain.name, token.name, other.name}) == 3
    for name in ("absent", "status-500"):
        with pytest.raises(SourceError) as caught:
            ask(token, segment(name))
        assert media_server.requests[-1] == f"/{name}.mp4?token=SECRET"
        assert "SECRET" not in caught.value.detail + token.name
    with pytest.raises(KineticsError) as refused:
        youtube_module.url("http://me:SECRET@host/?token=SECRET", (), limiter, keep_audio=False)
    assert "SECRET" not in str(refused.value)


def test_a_server_that_does_not_listen_is_the_network(limiter: RateLimiter, ask: Ask) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    template = f"http://127.0.0.1:{port}/{{youtube_id}}"
    with pytest.raises(SourceError) as caught:
        ask(youtube_module.url(template, ("retries=0",), limiter, keep_audio=False), segment("any"))
    assert caught.value.reason is Reason.NETWORK


def test_sources_are_values_with_full_addresses(source: OnlineSource) -> None:
    assert pickle.loads(pickle.dumps(source)) == source
    assert source.template == "https://www.youtube.com/watch?v={youtube_id}"
    assert source.versions() == {"yt-dlp": yt_dlp.version.__version__}


def test_unusable_sources_are_one_line(limiter: RateLimiter) -> None:
    for template in ("http://host/fixed.mp4", "ftp://host/{youtube_id}", "/etc/{youtube_id}"):
        with pytest.raises(KineticsError, match="--source url:"):
            youtube_module.url(template, (), limiter, keep_audio=False)
    with pytest.raises(UnknownNameError, match="--fetch"):
        youtube_module.youtube((), limiter, keep_audio=False, fetch="some")


def test_options_mean_what_yt_dlp_makes_of_them() -> None:
    given = (
        "limit-rate=50K",
        "proxy=socks5://127.0.0.1:9",
        "extractor-args=youtube:player_client=web;lang=de",
        "retry-sleep=exp=1:20",
        "cookies-from-browser=firefox:Profile",
        "no-check-certificates",
        "socket_timeout=7",
    )
    parameters = ytdlp.parse(given)
    assert parameters["ratelimit"] == 51200
    assert parameters["proxy"] == "socks5://127.0.0.1:9"
    assert parameters["extractor_args"] == {"youtube": {"player_client": ["web"], "lang": ["de"]}}
    assert parameters["retry_sleep_functions"]["http"](2) == 4
    assert parameters["cookiesfrombrowser"] == ("firefox", "Profile", None, None)
    assert parameters["nocheckcertificate"] is True
    assert parameters["socket_timeout"] == 7


def test_every_option_that_passes_is_one_of_yt_dlp() -> None:
    known = yt_dlp.parse_options(["--ignore-config"]).parser
    for name in (*ytdlp_options.PASSED_THROUGH, *ytdlp_options.FREE):
        option = known.get_option(f"--{name}")
        assert option is not None, name
        if name in ytdlp_options.PASSED_THROUGH:
            assert option.takes_value() == (ytdlp_options.PASSED_THROUGH[name] is not None), name


@pytest.mark.parametrize(
    "word",
    [
        "exec=touch owned",
        "--exec=touch owned",
        "exe=touch owned",
        "downloader=curl",
        "downloader-args=curl:-o x",
        "netrc-cmd=touch owned",
        "config-locations=/tmp",
        "batch-file=/etc/passwd",
        "output=/tmp/x",
        "paths=/tmp",
        "print-to-file=a b",
        "plugin-dirs=/tmp",
        "use-postprocessor=Exec",
        "ffmpeg-location=/tmp",
        "cookies\n--exec=touch owned",
        "",
    ],
)
def test_what_could_run_a_program_or_write_elsewhere_does_not_pass(word: str) -> None:
    with pytest.raises(KineticsError, match="is not passed to yt-dlp"):
        ytdlp.parse([word])
    with pytest.raises(KineticsError, match="is not passed to yt-dlp"):
        ytdlp_options.settle([word])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("limit-rate=fast", "invalid rate limit"),
        ("retries=x", "invalid"),
        ("cookies-from-browser=nobrowser", "unsupported browser"),
        ("force-ipv4=1", "does not take a value"),
        ("proxy", "requires 1 argument"),
    ],
)
def test_what_yt_dlp_does_not_take_is_one_line(word: str, said: str) -> None:
    with pytest.raises(KineticsError, match=said) as caught:
        ytdlp.parse(["username=me", "password=SECRET", word])
    assert "\n" not in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert f"--{ytdlp_options.name_of(word)}:" in str(caught.value)


def test_options_of_the_command_line_reach_yt_dlp(tmp_path: Path) -> None:
    jar = tmp_path / "jar.txt"
    jar.touch()
    values: dict[str, list[str | None]] = {
        "cookies": [str(jar)],
        "cookies-from-browser": ["firefox"],
        "proxy": ["http://127.0.0.1:9"],
        "source-address": ["127.0.0.1"],
        "limit-rate": ["50K"],
        "retries": ["3"],
        "retry-sleep": ["http:2", "fragment:5"],
        "sleep-requests": ["1.5"],
        "sleep-interval": ["2"],
        "max-sleep-interval": ["3"],
        "extractor-args": ["youtube:lang=de", "generic:impersonate"],
        "impersonate": ["chrome"],
        "js-runtimes": ["node", "deno:/opt/deno"],
        "no-check-certificates": [None],
    }
    assert values.keys() == ytdlp_options.PASSED_THROUGH.keys()
    argv = ["list.csv", "out", "--ytdlp-option", "force-ipv4"]
    for name, given in values.items():
        for value in given:
            argv += [f"--{name}"] if value is None else [f"--{name}", value]
    words = cli._ytdlp_options(cli.build_parser().parse_args(argv))
    parameters = ytdlp.parse(words)
    sleeps = parameters.pop("retry_sleep_functions")
    assert (sleeps["http"](n=0), sleeps["fragment"](n=0)) == (2, 5)
    assert str(parameters.pop("impersonate")) == "chrome"
    expected = {
        "cookiefile": str(jar),
        "cookiesfrombrowser": ("firefox", None, None, None),
        "proxy": "http://127.0.0.1:9",
        "ratelimit": 51200,
        "retries": 3,
        "sleep_interval_requests": 1.5,
        "sleep_interval": 2,
        "max_sleep_interval": 3,
        "extractor_args": {"youtube": {"lang": ["de"]}, "generic": {"impersonate": [""]}},
        "js_runtimes": {"node": {"path": None}, "deno": {"path": "/opt/deno"}},
        "nocheckcertificate": True,
        "source_address": "0.0.0.0",  # of force-ipv4, which comes later
    }
    assert {name: parameters[name] for name in expected} == expected


def test_options_that_yt_dlp_cannot_start_with_are_one_line(
    limiter: RateLimiter, tmp_path: Path
) -> None:
    broken = tmp_path / "cookies.txt"
    broken.write_text("no cookies\n")
    for word, said in {
        "impersonate=netscape": "netscape",
        f"cookies={broken}": f"--cookies {broken} cannot be used (line 1 is not of Netscape",
        "cookies=/nowhere/cookies.txt": "--cookies /nowhere/cookies.txt: no such file",
        "cookies-from-browser=safari": "--cookies-from-browser safari cannot be used (",
        "cookies-from-browser=opera:me": "(opera does not support profiles)",
        f"cookies-from-browser=firefox:{tmp_path}": "(could not find firefox cookies database in ",
    }.items():
        with pytest.raises(KineticsError, match=re.escape(said)) as caught:
            youtube_module.youtube((word,), limiter, keep_audio=False)
        assert "\n" not in str(caught.value)
    (tmp_path / "cookies.sqlite").write_bytes(b"no database" * 99)
    with pytest.raises(KineticsError, match=r"firefox cannot be used \(file is not a database\)"):
        ytdlp.Session([f"cookies-from-browser=firefox:{tmp_path}"])


def test_the_users_cookies_are_sent_and_their_file_stays_as_it_is(
    youtube: YouTubeStandIn, limiter: RateLimiter, ask: Ask, long_video: Path, tmp_path: Path
) -> None:
    jar = tmp_path / "cookies.txt"
    jar.write_text(
        "# Netscape HTTP Cookie File\n"
        f"127.0.0.1\tFALSE\t/\tTRUE\t{int(time.time()) + 9999}\tVISITOR\tme\n"
    )
    before = jar.read_bytes()
    youtube.put("good0000000", long_video, seconds=60)
    source = youtube_module.youtube((*youtube.words, f"cookies={jar}"), limiter, keep_audio=False)
    section, whole = ask(source, segment("good0000000"), all_of_it=True)
    assert section != whole
    assert len(youtube.cookies) > 3
    assert all("VISITOR=me" in cookies for cookies in youtube.cookies)
    assert jar.read_bytes() == before


def test_one_visitor_may_be_written_in_many_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jar").touch()
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    ways = [
        ("cookies=../jar", "proxy=http://a", "netrc-location=../jar"),
        ("--cookies=../run/../jar", "--proxy=http://a", "netrc_location=~/jar"),
    ]
    assert len({ytdlp_options.identity(ytdlp_options.settle(words)) for words in ways}) == 1
    for name in ("cookies", "netrc-location", "client-certificate", "client-certificate-key"):
        assert ytdlp_options.settle([f"{name}=../jar"]) == (f"{name}={tmp_path / 'jar'}",)
        with pytest.raises(KineticsError, match=f"--{name} nowhere: no such file"):
            ytdlp_options.settle([f"{name}=nowhere"])


def test_an_identity_is_what_a_site_takes_for_one_visitor(tmp_path: Path) -> None:
    jar = tmp_path / "cookies.txt"
    jar.touch()
    nobody = ytdlp_options.identity(ytdlp_options.settle(["retries=3"]))
    assert nobody == ytdlp_options.identity(())
    one = ytdlp_options.identity(
        ytdlp_options.settle([f"cookies={jar}", "limit-rate=1M", "proxy=http://a"])
    )
    same = ytdlp_options.identity(ytdlp_options.settle(["proxy=http://a", f"cookies={jar}"]))
    other = ytdlp_options.identity(ytdlp_options.settle(["proxy=http://b", f"cookies={jar}"]))
    assert one == same
    assert len({nobody, one, other}) == 3

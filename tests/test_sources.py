"""Sources on a real HTTP server: what each failure is called, and that nothing stays behind."""

import errno
import http.client
import socket
from pathlib import Path

import pytest
from conftest import MakeVideo
from support import MediaServer, tree

from kinetics_tools import sources
from kinetics_tools.errors import KineticsError, Reason, SourceError, UnknownNameError


def test_an_address_gives_the_video_under_the_name_its_server_gives(
    media_server: MediaServer, make_video: MakeVideo, tmp_path: Path
) -> None:
    content = make_video().read_bytes()
    media_server.put("-bcdefghijk", content)
    source = sources.make_source(media_server.template, {})
    video = source.video("-bcdefghijk", tmp_path)
    assert tree(tmp_path) == {video.name: content}
    assert source.clip("-bcdefghijk_000000_000010") is None


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("absent", Reason.GONE, "HTTP Error 404"),
        ("status-410", Reason.GONE, "HTTP Error 410"),
        ("status-403", Reason.SERVER, "HTTP Error 403"),
        ("status-429", Reason.RATE_LIMITED, "HTTP Error 429"),
        ("status-500", Reason.SERVER, "HTTP Error 500"),
        ("page", Reason.NO_FORMATS, "Unsupported URL"),
        ("empty", Reason.DAMAGED, "Did not get any data blocks"),
        ("half-of-good", Reason.DAMAGED, "expected"),
    ],
)
def test_each_failure_has_its_reason_and_the_tools_last_words(
    media_server: MediaServer,
    make_video: MakeVideo,
    tmp_path: Path,
    name: str,
    reason: Reason,
    words: str,
) -> None:
    media_server.put("good", make_video())
    media_server.put("page", b"<html><body>gone fishing</body></html>")
    media_server.put("empty", b"")
    with pytest.raises(SourceError, match=words) as caught:
        sources.make_source(media_server.template, {"retries": 0}).video(name, tmp_path)
    assert caught.value.reason is reason
    assert "report this issue" not in caught.value.detail


def test_a_server_that_does_not_listen_is_the_network(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source = sources.make_source(f"url:http://127.0.0.1:{port}/{{youtube_id}}", {"retries": 0})
    with pytest.raises(SourceError) as caught:
        source.video("any", tmp_path)
    assert caught.value.reason is Reason.NETWORK


def test_a_folder_has_clips_by_key_and_videos_by_id(tmp_path: Path) -> None:
    (tmp_path / "some class").mkdir()
    clip = tmp_path / "some class" / "abc_000001_000011.mkv"
    video = tmp_path / "-bc.webm"
    for path in (clip, video, tmp_path / "abc_000001_000011.json", tmp_path / "note.txt"):
        path.touch()
    source = sources.make_source(f"dir:{tmp_path}", {})
    assert source.clip("abc_000001_000011") == clip
    assert source.clip("-bc_000000_000010") is None
    assert source.video("-bc", tmp_path / "unused") == video
    with pytest.raises(SourceError, match=r"no file note\.\*") as caught:
        source.video("note", tmp_path)
    assert caught.value.reason is Reason.GONE


def test_unusable_sources_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'youtube'"):
        sources.make_source("youtub", {})
    for named in (
        f"dir:{tmp_path / 'none'}",
        "dir:",
        "url:http://host/fixed.mp4",
        "url:ftp://host/{youtube_id}",
        "url:/etc/{youtube_id}",
        "youtube:cookies",
    ):
        with pytest.raises(KineticsError, match="--source"):
            sources.make_source(named, {})


def test_youtube_is_asked_by_its_full_address() -> None:
    source = sources.make_source("youtube", {})
    assert isinstance(source, sources.Web)
    assert source.template == "https://www.youtube.com/watch?v={youtube_id}"


# yt-dlp's own texts, as its extractor raises them.
TEXTS = {
    "[youtube] x: Private video. Sign in if you've been granted access": Reason.PRIVATE,
    "[youtube] x: Video unavailable. This video has been removed by the uploader": Reason.GONE,
    "[youtube] x: Video unavailable. This video is no longer available because the YouTube account "
    "associated with this video has been terminated.": Reason.TERMINATED,
    "[youtube] x: Video unavailable. This video contains content from UMG, who has blocked it on "
    "copyright grounds": Reason.COPYRIGHT,
    "[youtube] x: Video unavailable. The uploader has not made this video available in your "
    "country": Reason.GEO_BLOCKED,
    "[youtube] x: Sign in to confirm your age. This video may be inappropriate for some users.": (
        Reason.AGE_GATED
    ),
    "[youtube] x: Join this channel to get access to members-only content": Reason.MEMBERS_ONLY,
    "[youtube] x: Sign in to confirm you\u2019re not a bot. Use --cookies": Reason.BOT_CHECK,
    "[youtube] x: Video unavailable. This content isn't available, try again later. The current "
    "session has been rate-limited by YouTube for up to an hour.": Reason.RATE_LIMITED,
    "[youtube] x: Requested format is not available. Use --list-formats": Reason.NO_FORMATS,
}


@pytest.mark.parametrize("text", TEXTS)
def test_what_youtube_says_is_classed(text: str) -> None:
    error = RuntimeError(text)
    assert sources._reason(error, error) is TEXTS[text]


def test_the_innermost_cause_counts() -> None:
    disk = OSError(errno.ENOSPC, "No space left on device")
    wrapped = RuntimeError("unable to write data")
    wrapped.exc_info = (OSError, disk, None)  # type: ignore[attr-defined]  # as yt-dlp does
    assert sources._cause(wrapped) is disk
    broken = http.client.IncompleteRead(b"", 9)
    assert sources._reason(RuntimeError(str(broken)), broken) is Reason.DAMAGED

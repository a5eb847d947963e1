"""The sentences of YouTube: those that its stand-in says, and all that yt-dlp's source holds."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yt_dlp
import yt_dlp.extractor.common
import yt_dlp.utils
from hypothesis import given
from hypothesis import strategies as st

from kinetics_tools.core.errors import IDENTITY, PERMANENT, Reason
from kinetics_tools.download.sources.youtube_answers import sentence_reason
from youtube_standin import ANSWERS

# What yt-dlp says in YouTube's place, or of itself.
OWN_WORDS = {
    "[youtube] x: Video unavailable. YouTube is requiring a captcha challenge before playback": (
        Reason.BOT_CHECK
    ),
    "[youtube] x: Please sign in. Use --cookies-from-browser or --cookies for the authentication": (
        Reason.BOT_CHECK
    ),
    "[youtube] x: Private video. Sign in if you've been granted access to this video. Use "
    "--cookies-from-browser or --cookies for the authentication": Reason.PRIVATE,
    "[youtube] x: Video unavailable. This content isn't available, try again later. Your account "
    "has been rate-limited by YouTube for up to an hour.": Reason.RATE_LIMITED,
    "[youtube] x: Requested format is not available. Use --list-formats": Reason.NO_FORMATS,
    "[youtube] x: n challenge solving failed: Some formats may be missing": Reason.NO_RUNTIME,
    "[youtube] No supported JavaScript runtime could be found.": Reason.NO_RUNTIME,
    "[youtube] x: This video is DRM protected": Reason.NO_FORMATS,
    "[youtube] abc-Private: Video unavailable": Reason.NO_FORMATS,
    "Unsupported URL: http://host/private/removed.mp4": Reason.NO_FORMATS,
}


@pytest.mark.parametrize("said", OWN_WORDS)
def test_what_yt_dlp_says_is_classed(said: str) -> None:
    assert sentence_reason(said) is OWN_WORDS[said]


REASONS = [(reason, each[1:]) for reason, said in ANSWERS.items() for each in said]


@pytest.mark.parametrize(("reason", "said"), REASONS)
def test_a_sentence_means_the_same_with_and_without_the_headline(
    reason: Reason, said: tuple[str, ...]
) -> None:
    if said[0] == "Video unavailable":
        said = said[1:]
    for begin in ([], ["Video unavailable"], ["Video unavailable."]):
        whole = ". ".join([*begin, *said])
        assert (sentence_reason(f"[youtube] x: {whole}") or Reason.NO_FORMATS) is reason


of_visitors = st.sampled_from([said[-1] for reason, said in REASONS if reason in IDENTITY])


@given(of_visitors, st.text(max_size=40))
def test_what_is_said_of_a_visitor_is_never_permanent_whatever_follows(
    said: str, more: str
) -> None:
    assert sentence_reason(f"Video unavailable. {said}. {more}") not in PERMANENT


@pytest.mark.parametrize(
    "said",
    [
        "Turn off private browsing to watch this video",
        "The session was terminated",
        "YouTube Premium is needed to play videos in the background",
        "This playlist does not exist",
        "This preview was removed",
        "You have not finished copyright school",
        "This video is not available",
        "Video unavailable",
    ],
)
def test_words_that_are_also_said_of_lost_videos_are_not_permanent(said: str) -> None:
    assert sentence_reason(f"[youtube] x: Video unavailable. {said}") not in PERMANENT


# Of addresses that are none of a video, of options, of files; and why yt-dlp leaves a test out.
NOT_ANSWERS = (
    " Visit {} for more details",
    "A video URL was given without video ID",
    "Android client broken",
    "Could not parse value",
    "Did you forget to quote the URL?",
    "Failed to resolve album to playlist",
    "If you are not downloading private content",
    "Incomplete YouTube ID",
    "Incomplete data received for comment reply thread",
    "Invalid URL",
    "Invalid cookie consent redirect URL",
    "Invalid netrc machine",
    "Login with OAuth is no longer supported",
    "Missing netrc_machine",
    "No player clients have been requested",
    "PO Token which was not provided",
    "Playlists that require authentication",
    "Query for sorting no longer works",
    "Response data has no m3u header",
    "The channel/playlist does not exist",
    "The extractor is attempting impersonation",
    "This channel does not have a",
    "This helps protect our community. Learn more",
    "This playlist is private",
    "Unable to find selected tab",
    "Unable to find video ID",
    "Unable to recognize tab page",
    "Unsupported language code",
    "YouTube may have enabled the SABR-only streaming experiment",
    "channels tab removed",
    "https://github.com/yt-dlp/yt-dlp/issues/13690",
    "invalid download number",
)
ERRORS = {
    name
    for name, kind in vars(yt_dlp.utils).items()
    if inspect.isclass(kind) and issubclass(kind, yt_dlp.utils.YoutubeDLError)
}


def literal(node: ast.AST | None) -> str:
    """A string as it stands in the source; `{}` for what is put into it."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(part) or "{}" for part in node.values)
    if isinstance(node, ast.BinOp):
        return literal(node.left) + literal(node.right)
    return ""


def literals(node: ast.AST) -> Iterator[str]:
    """All whole strings in an expression."""
    if isinstance(node, ast.Constant | ast.JoinedStr):
        yield literal(node)
    else:
        for part in ast.iter_child_nodes(node):
            yield from literals(part)


def names(node: ast.AST) -> str:
    return " ".join(each.id for each in ast.walk(node) if isinstance(each, ast.Name))


def sentences(tree: ast.AST) -> Iterator[str]:
    """What an extractor raises, compares with a site's reason, adds to one, or says in its tests
    of why a video is not had."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=called)) | ast.Call(func=ast.Name(id=called)):
                if called in ERRORS or called.startswith("raise_") or "reason" in names(node.func):
                    yield from map(literal, node.args[:1])
            case ast.Compare() | ast.Assign() | ast.AugAssign():
                if re.search(r"reason|REASON|\bmsg\b", names(node)):
                    yield from literals(node)
            case ast.FunctionDef(name=name) if name.startswith("raise_"):
                yield from map(literal, node.args.defaults)
            case ast.Dict():
                for key, value in zip(node.keys, node.values, strict=True):
                    if literal(key) in ("skip", "expected_exception"):
                        yield literal(value)


def is_classed(said: str) -> bool:
    return sentence_reason(said) is not None or any(known in said for known in NOT_ANSWERS)


def test_all_sentences_that_yt_dlp_knows_are_classed() -> None:
    """A newer yt-dlp may know more: class them in youtube_answers.py, or name them above."""
    sources = [
        *Path(inspect.getfile(yt_dlp.extractor.youtube)).parent.glob("*.py"),
        Path(inspect.getfile(yt_dlp.extractor.common)),
    ]
    texts = [path.read_text(encoding="utf-8") for path in sources]
    found = {said for text in texts for said in sentences(ast.parse(text))}
    found = {said for said in found if len(re.findall(r"[A-Za-z']{2,}", said)) > 2}
    assert {
        "The uploader has not made this video available in your country",
        "This content isn't available, try again later",
        "This video is only available for registered users",
        "This video does not exist.",
        "All player responses are invalid. Your IP is likely being blocked by Youtube",
    } <= found
    assert sorted(said for said in found if not is_classed(said)) == []


def test_a_new_sentence_would_be_found() -> None:
    new = """
if not formats:
    if reason == "This video is on the moon":
        reason += ". Nobody brings it back"
    raise ExtractorError(f"This video was eaten by {animal} today", expected=True)
    self.raise_no_formats("This video is being painted", expected=True)
"""
    found = [said for said in sentences(ast.parse(new)) if said and not is_classed(said)]
    assert sorted(found) == [
        ". Nobody brings it back",
        "This video is being painted",
        "This video is on the moon",
        "This video was eaten by {} today",
    ]

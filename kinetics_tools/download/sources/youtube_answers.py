"""What the sentences mean by which YouTube, or yt-dlp in its place, says that it gives no video.

Three things can be the cause: the video, who asks (an address, an account, an app), or the tool.
Only what is surely said of the video is permanent. A sentence that YouTube also says of videos that
play elsewhere is not, and neither is one that is unknown: a language other than English, or words
of another year.
"""

import re
from collections.abc import Iterator

from kinetics_tools.core.errors import Reason

# The first row that has a match counts, so the order matters where one sentence has words of two
# rows. "isn't" is written "is not" here.
_ROWS: tuple[tuple[Reason, str], ...] = (
    # Of the visitor: said of any video.
    (Reason.BOT_CHECK, r"not a bot|captcha|IP is likely being blocked"),
    (
        Reason.RATE_LIMITED,
        r"this content is not available, try again later|rate.?limited|too many requests",
    ),
    (
        # The owner does not allow this app, or the app is too old, or it is taken for an embed.
        Reason.REFUSED,
        r"on (this|the|your|some|certain|other) "
        r"(apps?|applications?|devices?|websites?|sites?|browsers?|platforms?|networks?|tv)\b"
        r"|(this|your) (app|application|device|website|site|browser|player)\b"
        r"|\bon mobile|made for mobile|latest version of YouTube|update (the|your) (YouTube )?app"
        r"|error code: ?\d|player configuration error",
    ),
    (
        # A network or an account that somebody else restricts.
        Reason.REFUSED,
        r"\bis restricted\b|restricted mode|administrator|g suite account|google apps account"
        r"|your (YouTube |Google )?(account|network|client|IP)\b|YouTube( \w+)? is not available"
        r"|this content is not available(?! (in|from|on)\b)|page needs to be reloaded"
        r"|access to this webpage has been blocked",
    ),
    # Of the video: whole phrases, since a visitor may be told of a private window too.
    (Reason.TERMINATED, r"account\b.* (terminated|suspended)|closed their (YouTube )?account"),
    (
        Reason.GEO_BLOCKED,
        r"(available|blocked)( it)? (in|from|to) your (country|region|location)"
        r"|on this country domain|geo.?restrict",
    ),
    (Reason.COPYRIGHT, r"(on|due to an?|because of) copyright (grounds|claim|infringement)"),
    (
        # Payment counts as membership.
        Reason.MEMBERS_ONLY,
        r"members.only content|to this channel's members|join this channel|Premium members"
        r"|requires (payment|purchase)|for (rent|purchase)\b|\brental\b",
    ),
    (Reason.PRIVATE, r"private video|video is private"),
    (
        Reason.AGE_GATED,
        r"(confirm|verify) your age|age.restricted|age_\w+_required|inappropriate for some users",
    ),
    (
        Reason.BOT_CHECK,  # logged-in users may see it
        r"please (sign|log) in|sign in to continue|registered users|login details are needed",
    ),
    (
        Reason.GONE,
        r"video (has been|was) (removed|deleted)|video is not available any ?more"
        r"|video is no longer available|video does not exist",
    ),
    # Of the tool, or of nobody.
    (
        Reason.NO_RUNTIME,
        r"no supported JavaScript runtime|challenge solving failed|signature solving failed",
    ),
    (Reason.NETWORK, r"network error has occurred"),
    (Reason.SERVER, r"incomplete \S*( initial)? ?data received"),
    (
        Reason.NO_FORMATS,
        r"requested format is not available|no video formats|unsupported URL|only ffmpeg could"
        r"|DRM|PO token required|format \d+ not served|failed to extract any player response"
        r"|cannot identify player|unable to extract|extractor error has occurred",
    ),
    (
        Reason.NO_FORMATS,  # not yet
        r"premieres? |live event|is offline|not currently live|live stream recording"
        r"|processing this video|being processed",
    ),
    (
        Reason.NO_FORMATS,  # a warning before the video; other clients pass it
        r"identified by the YouTube community|suicide or self-harm",
    ),
    (
        Reason.NO_FORMATS,  # said of deleted videos, and of videos that another client plays
        r"^(this )?video (is )?(unavailable|not available)\W*$|something went wrong"
        r"|an error occurred|something is not working",
    ),
)
_HEADLINE = r"^Video unavailable\W+(?=\w)"


def sentence_reason(said: str) -> Reason | None:
    """The reason that a message of yt-dlp about YouTube stands for; None for an unknown one.

    Args:
        said: "[youtube] ID: REASON. SUBREASON", as yt-dlp puts YouTube's words together.
    """
    # An id or an address may contain any word.
    sentence = re.sub(r"\w+://\S+|\[[\w:+]+\] ([\w-]+: )?", "", said).strip()
    sentence = sentence.replace("\u2019", "'").replace("isn't", "is not")
    sentence = re.sub(_HEADLINE, "", sentence)
    return next(_matching(sentence), None)


def _matching(sentence: str) -> Iterator[Reason]:
    return (reason for reason, pattern in _ROWS if re.search(pattern, sentence, re.IGNORECASE))

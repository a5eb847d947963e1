"""Cookie files as browsers' exporters and editors leave them; yt-dlp's own jar reads the result."""

import io
import os
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yt_dlp.cookies import YoutubeDLCookieJar

from kinetics_tools.download.sources.cookies import CookiesError, read_cookies

HEADER = "# Netscape HTTP Cookie File\n"
ROW = ".youtube.com\tTRUE\t/\tTRUE\t4102444800\tSID\tSECRET\n"
ADDRESS = "https://www.youtube.com/"


def jar(text: str) -> YoutubeDLCookieJar:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = YoutubeDLCookieJar(io.StringIO(text))
        found.load()
    return found


@pytest.mark.parametrize(
    "text",
    [
        HEADER + ROW,
        ROW,
        ROW.removesuffix("\n"),
        "\ufeff" + HEADER + ROW,
        "\ufeff" + ROW,
        (HEADER + ROW).replace("\n", "\r\n"),
        "# Exported by an add-on\n\n# two cookies\n" + ROW,
        f"{HEADER}#HttpOnly_{ROW}",
        f"#HttpOnly_{ROW}",
        ROW.replace("4102444800", "0"),
        ROW.replace("4102444800", ""),
        ROW.replace("4102444800", "-1"),
        ROW.replace("4102444800", "4102444800.25"),
        ROW.replace("4102444800", "4102444800000"),
        ROW.replace("TRUE", "true"),
        ROW.replace(".youtube.com", "youtube.com"),
        ROW.replace("TRUE", "FALSE", 1),
        ROW + ROW.replace("SID", "OTHER").replace("4102444800", "1000"),
        ROW + ".youtube.com\tTRUE\t/\tTRUE\t0\tEMPTY\n",
    ],
)
def test_what_exporters_write_is_read(
    tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cookies.txt"
    path.write_bytes(text.encode())
    assert "SID=SECRET" in jar(read_cookies(path)).get_cookie_header(ADDRESS)
    assert path.read_bytes() == text.encode()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it holds no cookies"),
        (b"\xef\xbb\xbf", "it holds no cookies"),
        (HEADER.encode(), "it holds no cookies"),
        ((HEADER + ROW).encode("utf-16"), "it is not UTF-8 text"),
        (ROW.encode() + b"\xff\n", "it is not UTF-8 text"),
        (b'[{"domain": ".youtube.com", "value": "SECRET"}]', "it is JSON"),
        (b'\n{"cookies": [{"value": "SECRET"}]}', "it is JSON"),
        ((HEADER + ROW.replace("\t", "    ")).encode(), "line 2 has spaces where tabs belong"),
        (ROW.replace("\t", " ").encode(), "line 1 has spaces where tabs belong"),
        ((ROW + ROW.replace("\t", " ")).encode(), "line 2 has spaces where tabs belong"),
        (b"<html>SECRET</html>", "line 1 is not of Netscape format"),
        (b"SID=SECRET; HSID=SECRET", "line 1 is not of Netscape format"),
        (ROW.replace("TRUE", "yes").encode(), "line 1 is not of Netscape format"),
        (ROW.replace("4102444800", "2100-01-01").encode(), "line 1 is not of Netscape format"),
        (ROW.replace("4102444800", "9" * 400).encode(), "line 1 is not of Netscape format"),
        (ROW.replace("SECRET", "SEC\x01RET").encode(), "line 1 is not of Netscape format"),
        (ROW.replace("SECRET", "SEC\rRET").encode(), "line 2 is not of Netscape format"),
        ((ROW + "a\tSECRET\n").encode(), "line 2 is not of Netscape format"),
        (ROW.replace("4102444800", "1000").encode(), "all its cookies have expired"),
        (ROW.replace("4102444800", "A-MOMENT-AGO").encode(), "have expired"),
    ],
)
def test_what_cannot_be_used_is_one_line_without_a_value(
    tmp_path: Path, content: bytes, problem: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cookies.txt"
    path.write_bytes(content.replace(b"A-MOMENT-AGO", b"%d" % (time.time() - 9)))
    with pytest.raises(CookiesError) as caught:
        read_cookies(path)
    said = str(caught.value)
    assert said.startswith(f"--cookies {path} cannot be used (")
    assert problem in said
    assert "cookies.txt file" in said
    assert "\n" not in said
    assert "SEC" not in said
    assert caught.value.__cause__ is None
    assert capfd.readouterr() == ("", "")


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, problem in {
        "none": "it cannot be read: No such file or directory",
        ".": "it is a folder",
        "pipe": "it is not a file",
    }.items():
        with pytest.raises(CookiesError, match=f"cannot be used \\({problem}\\)"):
            read_cookies(tmp_path / name)


cells = st.sampled_from(
    ["TRUE", "FALSE", "/", "0", "1", "-1", "4102444800", ".a.b", "a", "#HttpOnly_.a", "", ".", '"']
)
fields = cells | st.text(max_size=5)
tables = st.lists(st.lists(fields, min_size=5, max_size=8).map("\t".join)).map("\n".join)


@given(tables | st.text())
@example("a\tTRUE\t/\tTRUE\t0\t\tSECRET")
@example("a\tTRUE\t/\tTRUE\t\u0661\tSID\tSECRET")
@example("#HttpOnly_#a\tTRUE\t/\tTRUE\t0\tSID\tSECRET")
def test_yt_dlp_never_meets_a_line_that_it_would_print(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "cookies.txt"
    path.write_bytes(text.encode(errors="replace"))
    try:
        read = read_cookies(path)
    except CookiesError as error:
        assert "\n" not in str(error)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yt_dlp.cookies.write_string", lambda said: pytest.fail(said))
        assert len(jar(read)) > 0

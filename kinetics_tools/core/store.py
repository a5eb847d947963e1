"""Files in stores elsewhere: s3://, gs://, hf://, https://. The only importer of fsspec.

Parts of files are read, and small files whole. What may be over within seconds (no answer, a broken
connection, a store in trouble) is tried again after a pause; what stays is a StoreError that names
the address. http and https are read by `http_client`, which reads no more than was asked for; the
others by fsspec, and the packages that it needs for them (s3fs, gcsfs, huggingface_hub).
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from kinetics_tools.core import http_client
from kinetics_tools.core.errors import Reason, SourceError, StoreError
from kinetics_tools.core.file_cache import FileCache
from kinetics_tools.core.http_answers import limits

T = TypeVar("T")
logger = logging.getLogger(__name__)

PIECE_BYTES = 2**22  # of a file that is read whole
PAUSES_S: Sequence[float] = (1.0, 2.0, 4.0, 8.0)  # before each retry
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_WITH_PASSWORDS = ("http", "https", "ftp", "sftp", "ssh", "smb", "webhdfs")  # USER:PASSWORD@HOST
_FINAL = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError),
    *(NotImplementedError, TypeError, ValueError),
)
_NO_CREDENTIALS = re.compile("Credential|Auth")  # in the names of such errors
# A file system of fsspec belongs to the process that made it: its connections, and the thread that
# serves them, do not survive a fork.
_filesystems: dict[tuple[int, str], Any] = {}


def is_address(text: str) -> bool:
    """Whether a text is the address of a store, not a path."""
    return _SCHEME.match(text) is not None


@dataclass(frozen=True, slots=True)
class Address:
    """A folder or a file in a store: small, picklable, and used in any process.

    Attributes:
        text: such as s3://bucket/folder.
        cache: of what is read from there; None: nothing is kept.
    """

    text: str
    cache: FileCache | None = None

    @staticmethod
    def of(text: str, cache: FileCache | None = None) -> Address:
        """The address that a user gave.

        Raises:
            StoreError: it holds a password, which results would show, or a query.
        """
        limits()  # a variable that is no number is said now
        scheme, _, rest = text.partition("://")
        scheme = scheme.lower()
        host = rest.partition("/")[0]
        if scheme in _WITH_PASSWORDS and ":" in host.rpartition("@")[0]:
            shown = f"{scheme}://...@{host.rpartition('@')[2]}"
            raise StoreError(
                f"{shown} holds a password; put it into ~/.netrc, or where the store looks for "
                "credentials"
            )
        odd = {*text} & {"?", "#"} or "::" in text or not text.isprintable()
        if odd or not rest.strip("/"):
            raise StoreError(
                f"{text.partition('?')[0][:200]!r} is not the address of a folder, such as "
                "s3://bucket/shards: without ?, # and ::"
            )
        return Address(f"{scheme}://{rest}".rstrip("/"), cache)

    def __str__(self) -> str:
        return self.text

    def joinpath(self, *names: str) -> Address:
        """The address of these names below this one."""
        return Address("/".join((self.text, *names)), self.cache)

    def __truediv__(self, name: str) -> Address:
        return self.joinpath(name)

    def read(self, max_bytes: int) -> bytes:
        """The whole file.

        Raises:
            FileNotFoundError: there is none.
            StoreError: the store does not give it, or it has more than `max_bytes`.
        """
        data = self._read_http(max_bytes) if self._is_http else self._read_other(max_bytes)
        if data is None:
            raise StoreError(f"{self} is larger than {max_bytes} bytes, so it is not ours")
        return data

    def read_part(self, first: int, size: int) -> bytes:
        """`size` bytes of the file from byte `first` on; fewer where it ends before.

        Raises:
            FileNotFoundError: there is no such file.
            StoreError: the store does not give them.
        """
        if not self._is_http:
            return self._read_part_other(first, size)
        return self._asked_http(
            lambda: http_client.read_part(
                self.text, first, size, timeout_s=limits().timeout_s, pauses_s=PAUSES_S
            )
        )

    @property
    def _is_http(self) -> bool:
        return self.text.startswith(("http://", "https://"))

    def _read_http(self, max_bytes: int) -> bytes | None:
        def read() -> bytes | None:
            options = {"timeout_s": limits().timeout_s, "pauses_s": PAUSES_S}
            with http_client.open_stream(self.text, **options) as stream:  # type: ignore[arg-type]
                data = bytearray()
                while piece := stream.read(http_client.CHUNK_BYTES):
                    data += piece
                    if len(data) > max_bytes:
                        return None
            return bytes(data)

        return self._asked_http(read)

    def _asked_http(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except http_client.RetryableError as error:
            raise self._unanswered(error.detail) from error
        except SourceError as error:
            if error.reason == Reason.GONE:
                raise FileNotFoundError(self.text) from error
            raise self._refused(error.detail) from error

    def _read_other(self, max_bytes: int) -> bytes | None:
        size = self._ask("size")
        most = max_bytes + 1 if size is None else size
        if size is not None and size > max_bytes:
            return None
        data = bytearray()
        while len(data) < most:  # in pieces, of which each has the whole time limit
            part = self._read_part_other(len(data), min(PIECE_BYTES, most - len(data)))
            if not part:
                break
            data += part
        return bytes(data) if len(data) <= max_bytes else None

    def _read_part_other(self, first: int, size: int) -> bytes:
        try:
            data: bytes = self._ask("cat_file", start=first, end=first + size)
        except StoreError as error:
            if getattr(error.__cause__, "errno", None) == errno.EINVAL:  # s3fs: it ends before
                return b""
            raise
        return data[:size]

    def _ask(self, what: str, **arguments: Any) -> Any:
        """Call a method of the file system, again after each pause if it fails."""
        timeout_s = limits().timeout_s
        for pause_s in (*PAUSES_S, None):
            try:
                filesystem = _filesystem(self.text)
                if filesystem.async_impl:  # the others have time limits of their own
                    arguments["timeout"] = timeout_s
                return getattr(filesystem, what)(self.text, **arguments)
            except (FileNotFoundError, MemoryError, AttributeError):
                raise
            except Exception as error:  # each store has errors of its own
                said = f"{self}: {_message(error)}"
                if isinstance(error, ImportError):
                    raise StoreError(said) from error
                if _is_final(error):
                    raise self._refused(said) from error
                if pause_s is None:
                    raise self._unanswered(said) from error
            logger.info("%s; trying again in %.0f s", said, pause_s)
            time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def _refused(self, said: str) -> StoreError:
        return StoreError(f"{said}; check the address, and the credentials for this store")

    def _unanswered(self, said: str) -> StoreError:
        return StoreError(
            f"{said}, in {len(PAUSES_S) + 1} tries; run the same command again when the store "
            "answers"
        )


def _message(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer in {limits().timeout_s:g} s"
    return " ".join(str(error).split())[:300] or type(error).__name__


def _is_final(error: Exception) -> bool:
    """Whether an error would come again."""
    is_argument = isinstance(error, OSError) and error.errno == errno.EINVAL
    named = _NO_CREDENTIALS.search(type(error).__name__)
    return isinstance(error, _FINAL) or is_argument or named is not None


# Of file systems of fsspec: one process reads each file once, so lists of folders are of no use.
_OPTIONS: Mapping[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}


def _filesystem(address: str) -> Any:
    """The file system of an address, made in this process; kept for all of its files.

    Raises:
        ImportError: a package is missing; says which.
        ValueError: fsspec knows no such store.
    """
    import fsspec  # plain paths do not need it

    root = "/".join(address.split("/", 3)[:3])
    key = (os.getpid(), root)
    if key not in _filesystems:
        _filesystems[key], _ = fsspec.url_to_fs(address, **_OPTIONS)
    return _filesystems[key]

"""The weights that authors publish: where they lie, and how a file of theirs comes here once a user asks for it.

Nothing else in edgevit touches the network, and this does so only for `weights="official"`. A file is written as
`<name>.part` in the cache and renamed when it is whole; what a cut connection leaves is gone on with the next time,
unless the file at the address has changed since. `<name>.part.json` tells that.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from io import FileIO
from pathlib import Path
from typing import TypeAlias

from edgevit.errors import MissingError, UsageError
from edgevit.files import cache_folder, file_sha256, try_lock

OFFICIAL = "official"  # what stands in place of a file name
ATTEMPTS = 5  # connections a call
PAUSE_S = 0.5  # before the second one, and twice as long before each further one
TIMEOUT_S = 30.0  # without a byte
_WAIT_S = 0.2  # between two looks at a file that another process fetches
_BLOCK = 1 << 18
_PASSING = (429, 500, 502, 503, 504)  # answers that a moment later can be others

OnDownload: TypeAlias = Callable[[int, int | None], None]
"""Is told how many bytes have come and how many there are, None where the server does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """Where the authors' file lies: at an address, or behind a form or on a drive, which `where` names in words.

    `filename` is empty where the authors' page does not tell it. `sha256` is the hash, or its first digits where no
    more are known (PyTorch's habit is to end a file's name in eight of them).
    """

    url: str | None = None
    filename: str = ""
    where: str = ""
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.url is None:
            if not self.where:
                raise UsageError("published weights need a url, or words that say where they lie")
        elif not self.url.startswith(("https://", "http://")) or Path(self.filename).name != self.filename:
            raise UsageError(f"{self.url}: published weights have a web address and a plain file name")
        elif not self.filename:
            raise UsageError(f"{self.url}: give the name that the file has in the cache")


def official(model: str, weights: PublishedWeights | None, *, on_download: OnDownload | None = None) -> Path:
    """The authors' weights of a model, from the cache or fetched into it.

    Raises UsageError where there are none, or none that a program can fetch, MissingError where they cannot be had.
    """
    if weights is None:
        raise UsageError(
            f"the authors of {model} published no weights of it; pass your own with --weights FILE, "
            "or leave --weights out for random ones"
        )
    if weights.url is None:
        raise UsageError(
            f"the authors' weights of {model} lie {weights.where}, where only a person can fetch them: download "
            f"{weights.filename or 'the file'} and pass it with --weights {weights.filename or 'FILE'}"
        )
    return fetch(weights, cache=cache_folder(), progress=on_download)


def fetch(weights: PublishedWeights, *, cache: Path, progress: OnDownload | None = None) -> Path:
    """The file in `cache`, fetched where it is not there yet. Of two calls at once one fetches and the other waits.

    Raises MissingError where the address cannot be reached, does not give the authors' file, or the disk is full.
    """
    assert weights.url is not None
    path = cache / weights.filename
    if _is_there(path, weights):
        return path
    report = progress or _silent
    with _writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache / f"{weights.filename}.part", report) as part:
        if _is_there(path, weights):  # another process has been faster
            part.discard()
            return path
        try:
            _download(weights.url, part, report)
            _check_hash(weights, part)
            part.rename(path)
        except BaseException:
            if part.origin(weights.url) is None:
                part.discard()
            raise
    return path


# The file as far as it has come


@dataclass(frozen=True, slots=True)
class _Origin:
    """What a file is the beginning of. `validator` is the server's word for this very version of it."""

    url: str
    validator: str | None
    total: int | None


class _Part:
    """A file that is being fetched, open and locked, with the note beside it that tells its origin."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path = path
        self.file = file
        self.note = path.with_name(f"{path.name}.json")

    @property
    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def origin(self, url: str) -> _Origin | None:
        """What the file is the beginning of, where it can be gone on with from `url`."""
        try:
            origin = _Origin(**json.loads(self.note.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return origin if origin.url == url and origin.validator and self.size else None

    def begin(self, origin: _Origin) -> None:
        """Starts over. The file is emptied first, so that no beginning ever stands beside another file's note."""
        with _writing(self.path):
            self.file.truncate(0)
            self.note.write_text(json.dumps(asdict(origin)), "utf-8")

    def append(self, block: bytes) -> None:
        with _writing(self.path):
            rest = memoryview(block)
            while rest:  # a disk that fills up takes some of it first
                rest = rest[self.file.write(rest) :]

    def forget_origin(self) -> None:
        """Makes the next connection start over."""
        with _writing(self.note):
            self.note.unlink(missing_ok=True)

    def rename(self, path: Path) -> None:
        with _writing(path):
            os.fsync(self.file.fileno())
            self.note.unlink(missing_ok=True)
            os.replace(self.path, path)

    def discard(self) -> None:
        with _writing(self.path):
            self.note.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)


@contextmanager
def _alone(path: Path, report: OnDownload) -> Iterator[_Part]:
    """The partial file, for this call alone. Waits for another that has it, and reports how far that one is."""
    while True:
        with _writing(path):
            file = path.open("ab", buffering=0)
        with file:
            part = _Part(path, file)
            while not _lock(file, path):
                report(part.size, None)
                time.sleep(_WAIT_S)
            if _is_same(file, path):
                yield part
                return


def _lock(file: FileIO, path: Path) -> bool:
    with _writing(path):
        return try_lock(file)


def _is_same(file: FileIO, path: Path) -> bool:
    """Whether `path` still leads to the open file: whoever had the lock may have renamed or removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


# The connection


def _download(url: str, part: _Part, report: OnDownload) -> None:
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S * 2 ** (attempt - 1))
        failure = _attempt(url, part, report)
        if failure is None:
            return
    again = "try again (what has come is kept)" if part.origin(url) else "try again"
    raise MissingError(
        f"cannot fetch {url}: {failure}, at the last of {ATTEMPTS} attempts; {again}, "
        "or download it yourself and pass --weights FILE"
    )


def _attempt(url: str, part: _Part, report: OnDownload) -> str | None:
    """One connection. None where the file is whole after it, else why not. Raises where another would not help."""
    try:
        return _receive(url, part, report)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.forget_origin()
        elif error.code not in _PASSING:
            raise _unreachable(url, f"the server answers {error.code} {error.reason}") from error
        return f"the server answers {error.code} {error.reason}"
    except urllib.error.URLError as error:
        raise _unreachable(url, _words(error.reason)) from error
    except (OSError, HTTPException) as error:
        return f"the connection was cut after {_megabytes(part.size)} ({_words(error)})"


def _receive(url: str, part: _Part, report: OnDownload) -> str | None:
    origin = part.origin(url)
    if origin and part.size == origin.total:
        return None  # an earlier call was ended between the last byte and the renaming
    response: HTTPResponse
    with urllib.request.urlopen(_request(url, part, origin), timeout=TIMEOUT_S) as response:  # noqa: S310  # see _request
        if response.status == HTTPStatus.PARTIAL_CONTENT:
            if origin is None or not _continues(response, origin, part.size):
                part.forget_origin()
                return "the server sent another part of the file than it was asked for"
        else:
            origin = _describe(url, response)
            part.begin(origin)
        report(part.size, origin.total)
        while block := response.read1(_BLOCK):
            part.append(block)
            report(part.size, origin.total)
    if origin.total is not None and part.size != origin.total:
        return f"the connection was cut after {_megabytes(part.size)} of {_megabytes(origin.total)}"
    return None


def _request(url: str, part: _Part, origin: _Origin | None) -> urllib.request.Request:
    """For the rest of the file where it is still the same file, else for all of it."""
    headers = {"User-Agent": "edgevit", "Accept-Encoding": "identity"}
    if origin and origin.validator:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": origin.validator}
    return urllib.request.Request(url, headers=headers)  # noqa: S310  # PublishedWeights has web addresses alone


def _continues(response: HTTPResponse, origin: _Origin, size: int) -> bool:
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if found is None or _validator(response) not in (None, origin.validator):
        return False
    return int(found[1]) == size and origin.total in (None, int(found[2]))


def _describe(url: str, response: HTTPResponse) -> _Origin:
    """What a server sends from its beginning. Raises MissingError where it is no file, or could end unnoticed."""
    if response.headers.get_content_type() == "text/html":
        raise _unreachable(url, "a web page came in place of the file")
    if not response.length and not response.chunked:
        raise _unreachable(url, "the server does not say how long the file is")
    return _Origin(url, _validator(response), response.length)


def _validator(response: HTTPResponse) -> str | None:
    """What tells this version of a file from all others, byte for byte, which weak tags do not promise."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


# What both need


def _is_there(path: Path, weights: PublishedWeights) -> bool:
    with _writing(path):
        return path.is_file() and (weights.sha256 is None or file_sha256(path).startswith(weights.sha256))


def _check_hash(weights: PublishedWeights, part: _Part) -> None:
    if weights.sha256 is None:
        return
    found = file_sha256(part.path)
    if not found.startswith(weights.sha256):
        part.forget_origin()
        raise MissingError(
            f"what came from {weights.url} is not the authors' file: its SHA-256 begins with "
            f"{found[: len(weights.sha256)]}, not {weights.sha256}. Try again, or pass a file that you trust "
            "with --weights FILE"
        )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A disk that is full, or a folder that may not be written, in one line."""
    try:
        yield
    except OSError as error:
        raise MissingError(
            f"cannot write {error.filename or path}: {error.strerror or error}; free some space, "
            "or set EDGEVIT_CACHE to another folder"
        ) from error


def _unreachable(url: str, reason: str) -> MissingError:
    return MissingError(f"cannot reach {url}: {reason}; download it yourself and pass --weights FILE")


def _words(reason: object) -> str:
    text = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    return (text.strip() or type(reason).__name__).splitlines()[0]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _silent(done: int, total: int | None) -> None:
    """Reports to nobody."""
    del done, total

"""Download official weights into the cache, for `--weights official` only."""

from __future__ import annotations

import sys
import urllib.error
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from edgevit.errors import MissingError, UsageError
from edgevit.files import cache_folder, class_and_first_line, file_sha256, first_line, os_reason

OFFICIAL = "official"  # value of --weights in place of a file name


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """Location of the authors' file: an address, or a form or shared drive that `where` describes in words.

    `filename` is empty if the authors' page does not give one. `sha256` is the hash or its leading digits (file names
    in PyTorch's convention end in eight of them).
    """

    url: str | None = None
    filename: str = ""
    where: str = ""
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.url is None:
            if not self.where:
                raise UsageError("published weights need a url, or words that say where to find them")
        elif not self.url.startswith(("https://", "http://")) or Path(self.filename).name != self.filename:
            raise UsageError(f"{self.url}: published weights need a web address and a plain file name")
        elif not self.filename:
            raise UsageError(f"{self.url}: published weights need a file name for the cache")


def download_official(model: str, weights: PublishedWeights | None) -> Path:
    """Return the authors' weights of `model` from the cache; download them if they are not there yet.

    Raises UsageError if the authors published none or none that a program can download, MissingError if the download
    fails.
    """
    if weights is None:
        raise UsageError(
            f"the authors of {model} published no weights; pass your own with --weights FILE, "
            "or omit --weights for random ones"
        )
    if weights.url is None:
        raise UsageError(
            f"the authors' weights of {model} are {weights.where} and need a manual download: get "
            f"{weights.filename or 'the file'} and pass it with --weights {weights.filename or 'FILE'}"
        )
    return download(weights, cache=cache_folder())


def download(weights: PublishedWeights, *, cache: Path) -> Path:
    """Return the path of the file in `cache`, downloaded if it is missing. It appears whole or not at all.

    Raises MissingError if the address is unreachable, the hash differs, or the cache cannot be written.
    """
    from torch.hub import download_url_to_file

    assert weights.url is not None
    path = cache / weights.filename
    manual = "download it yourself and pass it with --weights FILE"
    try:
        if path.is_file() and (weights.sha256 is None or file_sha256(path).startswith(weights.sha256)):
            return path
        cache.mkdir(parents=True, exist_ok=True)
        download_url_to_file(weights.url, str(path), weights.sha256, progress=sys.stderr.isatty())
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise MissingError(f"cannot download {weights.url}: {class_and_first_line(error)}; {manual}") from error
    except RuntimeError as error:  # torch.hub's word for a wrong hash
        raise MissingError(
            f"{weights.url} is not the authors' file: {first_line(error)}; try again, or {manual}"
        ) from error
    except OSError as error:
        raise MissingError(
            f"cannot write {error.filename or path}: {os_reason(error)}; free some space, "
            "or set EDGEVIT_CACHE to another folder"
        ) from error
    return path

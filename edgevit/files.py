"""File helpers: atomic write, file lock, SHA-256, cache directory, an error in one line."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
import unicodedata
from collections.abc import Container, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import IO, Any, BinaryIO

from edgevit.errors import MissingError

MODEL_FILE = "model.onnx"  # the ONNX file of a bundle, and of a build

_BLOCK_BYTES = 1 << 18  # fits into the second level of most caches
_MAX_MESSAGE = 1000  # characters of a message on the terminal; it may repeat a value from a file or the command line
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h


def cache_folder() -> Path:
    """Return the folder for downloads, calibration ranges and timing caches. It is not created.

    It is `$EDGEVIT_CACHE` if that is set, else `edgevit` in `$XDG_CACHE_HOME`, else `~/.cache/edgevit`. Raises
    MissingError if none of them is set and there is no home directory.
    """
    if own := os.environ.get("EDGEVIT_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "edgevit"
    try:
        return Path.home() / ".cache" / "edgevit"
    except RuntimeError as error:
        raise MissingError("no home directory for the cache; set EDGEVIT_CACHE to a folder") from error


def as_path(path: str | os.PathLike[str] | None) -> Path | None:
    """Return a Path; None stays None."""
    return None if path is None else Path(path)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for block in blocks(file):
            digest.update(block)
    return digest.hexdigest()


def blocks(file: FileIO) -> Iterator[memoryview]:
    """Yield the content of a file for a checksum, in blocks that share one buffer: each is valid until the next."""
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    while count := file.readinto(buffer):
        yield buffer[:count]


def weights_file(model: Path) -> Path:
    """Return the file beside an ONNX file that holds its large weights if both together exceed 2 GB."""
    return model.with_name(f"{model.name}.data")


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that no reader sees a part of it: into a temporary file next to it, which is then renamed.

    A string is written as UTF-8. A pipe or a device is written to, as `replacing` does. Raises OSError if the folder
    cannot be written or the disk is full; the temporary file is removed, and an older file at `path` stays.
    """
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def is_replaceable(path: Path) -> bool:
    """Return whether `write_atomically` can write at `path`: not a folder, and a stream or in a writable folder."""
    folder = path.absolute().parent
    is_writable = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
    return _is_stream(path) or (is_writable and not path.is_dir())


def require_space(folder: Path, size_bytes: int = 1 << 20) -> None:
    """Raise OSError if no file of that size can be written in a folder: not every library reports a full disk."""
    probe = folder / f".space-{secrets.token_hex(4)}"
    try:
        with probe.open("wb") as file:
            for _ in range(0, size_bytes, _BLOCK_BYTES):
                file.write(bytes(_BLOCK_BYTES))
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file next to `path`, which replaces it on exit.

    A pipe, a device or a link to an open file, such as /dev/stdout, stays: the content is written to it on exit.

    If the block raises, the temporary file is removed, and an older file at `path` stays. Raises IsADirectoryError if
    it is a folder.
    """
    if path.is_dir():  # "." has no name that a temporary file could have
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if _is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            content = Path(folder) / "content"
            yield content
            with content.open("rb") as source, _open_stream(path) as target:
                shutil.copyfileobj(source, target)
        return
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _is_stream(path: Path) -> bool:
    """Return whether a path is that of a pipe, a device or an open file, and not of a file or folder on a disk."""
    return path.exists() and not path.is_dir() and (not path.is_file() or _descriptor(path) is not None)


def _open_stream(path: Path) -> BinaryIO:
    """Open a stream for writing: an open file of this process where it stands, after what has been written to it."""
    number = _descriptor(path)
    return path.open("wb") if number is None else open(number, "wb", closefd=False)


def _descriptor(path: Path) -> int | None:
    """Return the number of the open file of this process that an existing path names, as /dev/stdout does; or None."""
    open_files = Path("/proc/self/fd").resolve()
    while path.is_symlink():
        if path.parent.resolve() == open_files:
            return int(path.name)
        path = path.parent / path.readlink()
    return None


def exchange(first: Path, second: Path) -> bool:
    """Swap two existing paths of one file system in one atomic step. Return False if the system cannot do that.

    It is renameat2 with RENAME_EXCHANGE, which Linux has on ext4, XFS, Btrfs, tmpfs and most others, and not on NFS.
    Raises OSError if a path does not exist or its folder cannot be written.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:  # another system, or a C library without it
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(first), None, str(second))


def link_or_copy(source: Path | str, target: Path | str) -> str:
    """Link a file, which takes no time and no space, or copy it if the file system has no links or is another one.

    Returns the target, as a copy function of `shutil.copytree` does. Raises OSError if it cannot be written.
    """
    with contextlib.suppress(OSError):
        os.link(source, target)
        return str(target)
    return str(shutil.copy2(source, target))


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file for this process without waiting. Return False if another process holds the lock.

    The lock ends when the file is closed; the system also releases it if the process dies.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its class name if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip()


def class_and_first_line(error: BaseException) -> str:
    """Return the class name of an exception and the first line of its message: `ValueError: no such axis`."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


def message_line(message: object) -> str:
    """Return a message as one line for the terminal: control characters escaped, the middle left out if it is long."""
    line = " ".join(part for part in map(str.strip, str(message).splitlines()) if part)
    half = _MAX_MESSAGE // 2
    if len(line) > _MAX_MESSAGE:
        line = f"{line[:half]} [...] {line[-half:]}"
    return escape_control_characters(line)


def escape_control_characters(text: str, *, keep: Container[str] = ()) -> str:
    """Return a text with escapes such as `\\x1b` for what is not printable, but for the characters in `keep`."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode() for each in text
    )


def has_control_characters(text: str) -> bool:
    """Return whether a text could steer a terminal: control characters but tabs, or a change of writing direction."""
    return any(each in _DIRECTIONS or (unicodedata.category(each) == "Cc" and each != "\t") for each in text)


def os_reason(error: OSError) -> str:
    """Return the reason of an OSError without its number and path, such as "No space left on device"."""
    return error.strerror or first_line(error)  # an OSError that a library raises with a text only has no strerror

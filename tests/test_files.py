"""File helpers: the cache folder, atomic writes, locks and one-line errors."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edgevit import files
from edgevit.errors import MissingError


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("EDGEVIT_CACHE", "")
    assert files.cache_folder() == tmp_path / ".cache" / "edgevit"
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert files.cache_folder() == Path("/shared/edgevit")
    monkeypatch.setenv("EDGEVIT_CACHE", "/own")
    assert files.cache_folder() == Path("/own")


def test_without_a_home_directory_the_error_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("EDGEVIT_CACHE", "")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(MissingError, match="set EDGEVIT_CACHE"):
        files.cache_folder()


def test_the_hash_is_of_the_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000  # several blocks
    (tmp_path / "file").write_bytes(content)
    assert files.file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("content", [b"\x00\xff", "größer"])
def test_an_atomic_write_replaces_the_whole_file(content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("older and longer")
    files.write_atomically(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_atomic_write_obeys_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    files.write_atomically(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_atomic_write_leaves_the_older_file(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise failure

    (tmp_path / "file").write_text("older")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(failure)):
        files.write_atomically(tmp_path / "file", "newer")
    assert (tmp_path / "file").read_text() == "older"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", [".", "folder"])
def test_a_folder_is_not_replaced_by_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IsADirectoryError):
        files.write_atomically(Path(name), "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("name", ["pipe", "link"])
def test_a_pipe_is_written_to_and_not_replaced(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    assert files.is_replaceable(tmp_path / name)
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(reader, "rb") as read:
        files.write_atomically(tmp_path / name, "content")
        assert read.read() == b"content"
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")
def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    device = tmp_path / "null"
    os.mknod(device, stat.S_IFCHR | 0o600, Path("/dev/null").stat().st_rdev)
    files.write_atomically(device, "content")
    assert device.is_char_device()
    assert [entry.name for entry in tmp_path.iterdir()] == ["null"]


def test_a_link_to_an_open_file_stays_and_the_file_keeps_what_it_has(tmp_path: Path) -> None:
    """As /dev/stdout does in `edgevit list --json /dev/stdout > file`, whose folder root can write."""
    stdout = tmp_path / "stdout"
    with (tmp_path / "file").open("w") as file:
        stdout.symlink_to(f"/proc/self/fd/{file.fileno()}")
        print("before", file=file, flush=True)
        assert files.is_replaceable(stdout)
        files.write_atomically(stdout, "content\n")
        print("after", file=file)
        assert stdout.is_symlink()
    assert (tmp_path / "file").read_text() == "before\ncontent\nafter\n"


def test_a_block_that_raises_writes_nothing_to_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / "pipe") as part:
        part.write_text("half")
        raise KeyboardInterrupt  # without a reader, opening the pipe would wait for ever
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("no such file", "no such file"),
        ("one\n\n  two\r\nthree", "one two three"),
        ("\x1b[2J\x07 red \u202e", "\\x1b[2J\\x07 red \\u202e"),
        ("a" * 4000 + "; do this", "a" * 500 + " [...] " + "a" * 491 + "; do this"),
    ],
)
def test_a_message_is_one_short_line_without_control_characters(message: str, line: str) -> None:
    assert files.message_line(message) == line


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_is_linked_or_else_copied(has_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"weights")
    if not has_links:
        monkeypatch.setattr("os.link", refused_link)
    assert files.link_or_copy(source, target) == str(target)
    assert target.read_bytes() == b"weights"
    assert target.samefile(source) is has_links


def refused_link(*_: object, **__: object) -> None:
    """Stands for a file system without links, such as exFAT."""
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_a_lock_keeps_other_processes_out_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    other = f"from edgevit.files import try_lock; print(try_lock(open({str(path)!r}, 'a')))"

    def other_gets_it() -> str:
        return subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=True).stdout.strip()

    with path.open("a") as file:
        assert files.try_lock(file)
        assert other_gets_it() == "False"
    assert other_gets_it() == "True"


@pytest.mark.parametrize(
    ("error", "line", "with_class"),
    [
        (ValueError("\n no such axis \nat all"), "no such axis", "ValueError: no such axis"),
        (ValueError(), "ValueError", "ValueError"),
        (ValueError(" \n"), "ValueError", "ValueError"),
    ],
)
def test_an_error_has_one_line(error: Exception, line: str, with_class: str) -> None:
    assert files.first_line(error) == line
    assert files.class_and_first_line(error) == with_class

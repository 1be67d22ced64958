"""A lock that goes with its process, however that ends, and files that are there whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from beadwork.disk import alone, reading, write_whole
from beadwork.errors import BeadworkError, ConfigError, ResourceError

HOLD = "from beadwork.disk import alone; from pathlib import Path; import sys, time\n"
HOLD += "with alone(Path(sys.argv[1]), 'busy', 'wait'):\n    print(flush=True); time.sleep(600)"


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    """As long as it lives a second one is refused, which hears who it is; kill -9 frees the folder at once."""
    lock = tmp_path / "made" / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            with (
                pytest.raises(ConfigError, match=rf"^busy \(process {holder.pid} on .*\); wait$"),
                alone(lock, "busy", "wait"),
            ):
                pass
            assert lock.exists()
        finally:
            holder.kill()
    with alone(lock, "busy", "wait"):
        assert f"process {os.getpid()}" in lock.read_text()
    assert not lock.exists()


def test_one_at_a_time(tmp_path: Path) -> None:
    """Whoever comes in the instant in which another lets go has the lock of the file that stands there, not of the
    one that was removed."""
    inside, most, turns = 0, 0, 0
    counting = threading.Lock()

    def work() -> None:
        nonlocal inside, most, turns
        end = time.monotonic() + 60
        done = 0
        while done < 50 and time.monotonic() < end:
            try:
                with alone(tmp_path / "lock", "busy", "wait"):
                    with counting:
                        inside += 1
                        most = max(most, inside)
                    with counting:
                        inside -= 1
                        turns += 1
                    done += 1
            except ConfigError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, turns) == (1, 200)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems have none: a run goes on there as before."""

    def flock(*ignored: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with alone(tmp_path / "lock", "busy", "wait"), alone(tmp_path / "lock", "busy", "wait"):
        pass


FAILURES = [
    ("flock", errno.EIO, ResourceError, "Input/output error: the disk or network file system failed; check it"),
    ("flock", errno.EINVAL, ConfigError, "Invalid argument; check the path and your rights to it"),
    ("fstat", errno.ESTALE, ConfigError, "Stale file handle; check the path and your rights to it"),
]


@pytest.mark.parametrize(("call", "number", "kind", "said"), FAILURES)
def test_a_file_system_that_fails_at_a_lock_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, kind: type[BeadworkError], said: str
) -> None:
    """Network file systems fail in ways of their own: the file and the error are named, and nothing is locked."""

    def fails(*ignored: object) -> None:
        raise OSError(number, os.strerror(number))

    lock = tmp_path / "lock"
    with monkeypatch.context() as patched:
        patched.setattr(fcntl if call == "flock" else os, call, fails)
        with pytest.raises(kind, match=re.escape(f"cannot write {lock}: {said}")), alone(lock, "busy", "wait"):
            pass
    with alone(lock, "busy", "wait"):
        pass


def test_no_room_for_a_lock_is_a_sentence(tmp_path: Path) -> None:
    """Who has it cannot be written: the stream that is closed after that does not raise once more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(ResourceError, match="File too large; make room there"), alone(tmp_path / "lock", "", ""):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_whole_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power failure there is the old text or the new one: all of it is waited for, and renamed after that."""
    seen: list[tuple[str, int, int]] = []
    fsync, replace = os.fsync, os.replace

    def waited(descriptor: int) -> None:
        fsync(descriptor)
        seen.append(("fsync", os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))

    def renamed(part: Path, file: Path) -> None:
        seen.append(("replace", part.stat().st_ino, part.stat().st_size))
        replace(part, file)

    monkeypatch.setattr(os, "fsync", waited)
    monkeypatch.setattr(os, "replace", renamed)
    file = tmp_path / "file"
    write_whole(file, "new" * 5000)
    inode = file.stat().st_ino
    assert seen == [("fsync", inode, 15000), ("replace", inode, 15000)]


def test_a_full_disk_leaves_the_old_text_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it is found to be full: no half text under the file's name, and no temporary file beside it."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "file"
    write_whole(file, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "raised",
    [
        IndexError("1"),
        KeyError("kind"),
        zipfile.BadZipFile("no zip"),
        RecursionError(),
        NotImplementedError("zip file version 10.9"),
        RuntimeError("File is encrypted, password required for extraction"),
    ],
)
def test_what_a_reader_stumbles_over_is_a_sentence(tmp_path: Path, raised: Exception) -> None:
    """Whatever Python says of a damaged file is an error of ours that names the file and what to do; an error of ours
    stays what it is, and what is no matter of files is not hidden."""
    said = rf"^{tmp_path} cannot be read \(.+\); copy it again$"
    with pytest.raises(ConfigError, match=said), reading(tmp_path, ConfigError, "copy it again"):
        raise raised
    with pytest.raises(ResourceError, match=r"^full$"), reading(tmp_path, ConfigError, "copy it again"):
        raise ResourceError("full")
    with pytest.raises(AssertionError), reading(tmp_path, ConfigError, "copy it again"):
        raise AssertionError

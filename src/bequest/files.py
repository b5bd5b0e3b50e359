"""Files that are there whole or not at all: atomic replacement, locks, and disk faults as one sentence."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from .types import FolderError

DISK_FAULTS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission denied; choose another or change its permissions",
    errno.EPERM: "permission denied; choose another or change its permissions",
    errno.ENAMETOOLONG: "its name is too long; check the path",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.EISDIR: "a folder of that name is in the way; move it away",
    errno.ELOOP: "symbolic links lead back to themselves; check the path",
    errno.EFBIG: "a file would be larger than is allowed here; raise the limit or choose another folder",
    errno.EEXIST: "a file of that name is in the way; choose another folder",
}

SAMPLES = 64


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_text(path: Path, text: str) -> None:
    """Replace a file's text in one step: readers, and a crash, see the old or the new one."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)  # writing does not say where
        raise
    temporary.replace(path)
    sync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that takes the name `path` in one step when the block ends well, replacing an older one."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        sync_folder(temporary)
        if path.exists():
            old = path.with_name(f".{path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sampled(path: Path) -> str:
    """A fingerprint of a file's content: its size, and samples spread over it; of a small file, all of it."""
    stat = path.stat()
    return _sampled(path.resolve(), stat.st_size, stat.st_mtime_ns)


@cache
def _sampled(path: Path, size: int, changed: int) -> str:
    digest = hashlib.blake2b(f"{size}".encode(), digest_size=10)
    with path.open("rb") as handle:
        for sample in range(SAMPLES):
            handle.seek(sample * size // SAMPLES)
            digest.update(handle.read(1 << 16))
    return digest.hexdigest()


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[None]:
    """Hold a lock file for the block. Without `wait`, raises FolderError when another process holds it."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderError(
                f"{path.parent} is in use by another process; wait for it or choose another folder with --out"
            ) from None
        yield


def machine_errors() -> tuple[type[Exception], ...]:
    """What a full or forbidden disk and too little memory raise, in Python, safetensors and PyTorch."""
    from safetensors import SafetensorError

    return (OSError, SafetensorError, MemoryError, RuntimeError)


def machine_fault(error: BaseException) -> str | None:
    """How to say that a disk or the memory is at its end, or that a file is out of reach; None for any other error."""
    if isinstance(error, MemoryError | RuntimeError):
        spent = isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)
        lower = "lower train.micro_batch_tokens, data.sequence or the student's sizes"
        return f"there is not enough memory for this run; {lower}" if spent else None
    if isinstance(error, OSError):
        number, where = error.errno, error.filename or "a file"
    else:  # safetensors gives the system's error number in its message only
        found = re.search(r"os error (\d+)", str(error))
        number, where = int(found[1]) if found else None, "the checkpoint"
    fault = DISK_FAULTS.get(number or 0)
    return f"cannot use {where}: {fault}" if fault else None

"""A content-addressed cache of finished steps, safe against a kill at any point.

A step's key is the sha256 of everything that determines its result. Its files are written into a private directory,
which is renamed into place when it is complete: an entry is there whole or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.ask.artifact import sha256_of, verify_files
from paretune.errors import ArtifactError, OutputError

try:
    import fcntl
except ImportError:  # Windows: scratch directories are not locked, and what a killed process left is not swept
    fcntl = None  # type: ignore[assignment]

ENTRY = "entry.json"
FAILED = "failed.json"
"""In the entry of a step that failed: why."""
KEPT_DAYS = 14
"""So long is kept what a step that was stopped, or failed, had so far."""
WAIT_S = 0.2
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
_AGAIN = "delete this directory; it is made again"
_HELD: dict[Path, int] = {}
"""The scratch directories of this process, and the handles that keep them locked while it lives."""


def key_of(kind: str, parts: Mapping[str, Any]) -> str:
    """The key of a step: sha256 over its kind and everything (plain JSON) that determines its result."""
    return hashlib.sha256(json.dumps([kind, parts], sort_keys=True).encode()).hexdigest()


@contextmanager
def writing(where: Path) -> Iterator[None]:
    """Turn what a full or read-only disk says into an :class:`OutputError`."""
    try:
        yield
    except OSError as error:
        full = error.errno in _FULL
        do = "free some space, or write to another disk" if full else "choose a place that you may write to"
        if full or error.errno in _CLOSED:
            raise OutputError(
                os.strerror(error.errno or 0).lower(), where=str(error.filename or where), do=do
            ) from error
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, also when the machine dies.

    Raises
    ------
    OutputError
        If the place cannot be written or the disk is full; an earlier file is left as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@dataclass(frozen=True)
class Store:
    """Finished steps below ``root``; several processes may use it at once."""

    root: Path

    def get(self, key: str) -> Path | None:
        """The directory of a finished step, its digests checked; None when it was never finished.

        Raises
        ------
        ArtifactError
            If a file of the entry is missing or is not what was stored.
        """
        place = self._place(key)
        if not place.is_dir():
            return None
        try:
            files = json.loads((place / ENTRY).read_text())["files"]
            whole = isinstance(files, dict)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArtifactError(f"is not a whole store entry: {error}", where=str(place), do=_AGAIN) from error
        if not whole:
            raise ArtifactError("is not a whole store entry", where=str(place), do=_AGAIN)
        verify_files(place, files)
        return place

    def put(self, key: str, kind: str, make: Callable[[Path], None]) -> Path:
        """Let ``make`` write a step's files into an empty directory, then put it in place under ``key``.

        Raises
        ------
        OutputError
            If the store cannot be written.
        """
        place = self._place(key)
        with writing(self.root):
            scratch = self.scratch()
            try:
                make(scratch)
                files = {
                    path.relative_to(scratch).as_posix(): sha256_of(path)
                    for path in sorted(scratch.rglob("*"))
                    if path.is_file()
                }
                (scratch / ENTRY).write_text(json.dumps({"kind": kind, "key": key, "files": files}, indent=1))
                sync(scratch)
                place.parent.mkdir(parents=True, exist_ok=True)
                try:
                    scratch.rename(place)
                except OSError:
                    # losing a race is fine: the other process made the same content
                    if not place.is_dir():
                        raise
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return place

    def scratch(self) -> Path:
        """A new empty directory on the store's own disk."""
        with writing(self.root):
            (self.root / "scratch").mkdir(parents=True, exist_ok=True)
            while True:
                place = Path(tempfile.mkdtemp(dir=self.root / "scratch", prefix=f"{os.getpid()}-"))
                if _hold(place):
                    return place

    def unfinished(self, key: str) -> Path:
        """Where a step that takes long may keep what it has so far: it outlives a kill, and is no entry. Not made."""
        return self.root / "unfinished" / key

    @contextmanager
    def alone(self, key: str, wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Keep every other process from this step meanwhile; ``wait`` is called again and again while one is at it.

        Raises
        ------
        OutputError
            If the store cannot be written.
        """
        handle = self._locked(key, wait)
        try:
            yield
        finally:
            if handle is not None:
                self._lock(key).unlink(missing_ok=True)
                os.close(handle)

    def _locked(self, key: str, wait: Callable[[], None]) -> int | None:
        """The handle that holds the step's lock; None where a disk has no locks."""
        if fcntl is None:
            return None
        place = self._lock(key)
        while True:
            with writing(self.root):
                place.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(place, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                wait()
                time.sleep(WAIT_S)
                continue
            except OSError:
                os.close(handle)
                return None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), place.stat()):
                    return handle
            os.close(handle)  # who held it before took the file away: the lock is that of another file by now

    def _lock(self, key: str) -> Path:
        return self.root / "locks" / key

    def sweep(self) -> None:
        """Remove what killed processes left half-written; what a living one works on stays.

        What a step kept on its way goes when the step is finished, and otherwise after :data:`KEPT_DAYS` days.
        """
        if fcntl is None:
            return
        for kept in (self.root / "unfinished").glob("*"):
            if self._is_done(kept.name) or time.time() - _newest(kept) > KEPT_DAYS * 86_400:
                with suppress(BlockingIOError, OutputError), self.alone(kept.name, _leave):
                    shutil.rmtree(kept, ignore_errors=True)
        for leftover in (self.root / "scratch").glob("*-*"):
            with suppress(OSError):
                handle = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(leftover, ignore_errors=True)
                finally:
                    os.close(handle)

    def _is_done(self, key: str) -> bool:
        place = self._place(key)
        return (place / ENTRY).is_file() and not (place / FAILED).exists()

    def _place(self, key: str) -> Path:
        return self.root / key[:2] / key


def _newest(place: Path) -> float:
    """When something below it was last written, as seconds since 1970; now, where another process just removed it."""
    found = []
    with suppress(OSError):
        for path in (place, *place.rglob("*")):
            with suppress(OSError):
                found.append(path.stat().st_mtime)
    return max(found, default=time.time())


def _leave() -> None:
    raise BlockingIOError


def _hold(place: Path) -> bool:
    """Lock a scratch directory as long as this process lives; False when a sweep took it just before.

    A lock and not the process's number: numbers come again, and mean nothing to another container on the same disk.
    """
    if fcntl is None:
        return True
    for gone in [held for held in list(_HELD) if not held.is_dir()]:
        with suppress(KeyError):  # another thread was quicker
            os.close(_HELD.pop(gone))
    with suppress(FileNotFoundError):
        handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        _HELD[place] = handle
        with suppress(OSError):  # a disk without locks: nothing is ever swept from it
            fcntl.flock(handle, fcntl.LOCK_SH)
    return place.is_dir()


def sync(directory: Path) -> None:
    """Flush a directory and all that lies in it to the disk."""
    # a directory can be opened, and flushed, only where there is O_DIRECTORY
    directories = hasattr(os, "O_DIRECTORY")
    for path in (*directory.rglob("*"), directory):
        if path.is_file() or (directories and path.is_dir()):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

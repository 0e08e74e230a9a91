"""Who is working on a folder: a small file with a heartbeat, which distinguishes a dead worker from a slow one.

On the same machine a dead process is known at once, by its id and the time it started. Of another machine only the
heartbeat is known: a lease whose count has not changed for `PATIENCE` seconds *of the observer's clock* is taken over,
so clocks need not agree.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from cirbench import json_text
from cirbench.files import write_json
from cirbench.types import CirbenchError

__all__ = ["BEAT", "PATIENCE", "Watch", "held", "identity", "lock", "repeating"]

BEAT = 5.0
"""Seconds between two heartbeats."""
PATIENCE = 60.0
"""Seconds without a heartbeat after which a worker of another machine counts as dead."""

#: What a lease holds; `born` is null where a process cannot be looked at.
SHAPE: Mapping[str, Any] = {"machine": str, "pid": int, "born": int | float | None, "token": str, "beat": int}


@lru_cache(maxsize=1)
def _machine() -> str:
    """This machine since it was started, and the process ids that are visible here (containers have their own)."""
    parts = [socket.gethostname()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        lambda: Path("/proc/self/ns/pid").readlink().name,
    ):
        with contextlib.suppress(OSError):
            parts.append(read())
    return " ".join(parts)


def _born(pid: int) -> float | None:
    """When a process started, or None where there is none; a zombie no longer works.

    On Linux in ticks since the machine was started, which stay the same when somebody sets the clock.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            return None if fields[0] == "Z" else float(fields[19])
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time(), 1)
    except (psutil.Error, ValueError):  # none, or a number that no process can have
        return None


def identity() -> dict[str, Any]:
    """What identifies this process: machine, process id, its start time, and a token."""
    return {"machine": _machine(), "pid": os.getpid(), "born": _born(os.getpid()), "token": uuid.uuid4().hex, "beat": 0}


class Watch:
    """Decides whether the holder of a lease is dead; keeps what it saw, so ask the same object again."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
        self._seen: dict[str, tuple[Any, float]] = {}

    def dead(self, holder: Mapping[str, Any] | None) -> bool:
        """Whether the holder of this lease is dead (None: there never was one)."""
        if not holder:
            return True
        if holder.get("machine") == _machine():
            born = _born(int(holder["pid"]))
            # The clock may be adjusted while a process runs, so its start may seem to move a little.
            return born is None or abs(born - float(holder.get("born") or 0)) > 2
        token, beat, now = str(holder.get("token")), holder.get("beat"), time.monotonic()
        last, since = self._seen.setdefault(token, (beat, now))
        if last != beat:
            self._seen[token] = (beat, now)
            return False
        return now - since > self.patience


#: Errors of a file system that has no locks (Lustre, some NFS).
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def lock(path: Path, needed: str = "") -> Iterator[None]:
    """Mutual exclusion for a moment. The operating system frees it when its holder dies, however it dies.

    The holder may delete the file; processes that waited for it then lock its successor. On a file system without
    locks the block runs all the same, unless they are needed.

    Args:
        path: the file that is locked.
        needed: who cannot do without, for the message; "" where one process alone is safe.

    Raises:
        CirbenchError: the file system has no locks and they are needed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            import fcntl
        except ImportError:  # Windows
            import msvcrt

            while True:
                with contextlib.suppress(OSError):
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined,unused-ignore]
                    break
            try:
                yield
            finally:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined,unused-ignore]
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            if needed:
                raise CirbenchError(
                    f"{path.parent} is on a file system without file locks ({error.strerror}), which {needed} needs. "
                    "Name a folder on another file system."
                ) from None
            yield
            return
        if _is(path, file.fileno()):
            yield  # closing the file frees the lock
            return
    with lock(path, needed):
        yield


def _is(path: Path, handle: int) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def repeating(action: Any, seconds: float) -> Iterator[None]:
    """Call `action` every so many seconds, in a thread, while the block runs. Its failures do not stop the block."""
    done = threading.Event()

    def loop() -> None:
        while not done.wait(seconds):
            with contextlib.suppress(Exception):
                action()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _read(path: Path) -> dict[str, Any] | None:
    """A lease, or None where there is none: a file of another shape was not written by `held`, so nobody holds it."""
    try:
        found = json_text.parse(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None  # whoever may not read it must not take it over
    return found if isinstance(found, dict) and all(_fits(found.get(n), kind) for n, kind in SHAPE.items()) else None


def _fits(value: Any, kind: Any) -> bool:
    number = isinstance(value, int | float)
    return isinstance(value, kind) and not isinstance(value, bool) and (not number or abs(value) < 2**53)


@contextlib.contextmanager
def held(folder: Path, patience: float = PATIENCE, poll: float = 0.3) -> Iterator[bool]:
    """Hold the lease of a folder; waits while a living process holds it. Yields whether it had to wait.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, held(Path(folder)) as waited:
        ...     waited, (Path(folder) / "lease.json").is_file()
        (False, True)
    """
    path, mine, watch = folder / "lease.json", identity(), Watch(patience)
    waited = False
    while True:
        # No other process may replace a dead lease between our reading and replacing it.
        with lock(folder / "lease.lock"):
            if watch.dead(_read(path)):
                try:
                    write_json(path, mine)
                except Exception:  # a full disk
                    with contextlib.suppress(OSError):
                        (folder / "lease.lock").unlink()
                    raise
                break
        waited = True
        time.sleep(poll)

    def beat() -> None:
        if not folder.is_dir():
            return  # somebody moved or deleted it; the holder is told when it writes
        with lock(folder / "lease.lock"):
            found = _read(path)
            if found is not None and found.get("token") == mine["token"]:
                mine["beat"] += 1
                write_json(path, mine)

    try:
        with repeating(beat, BEAT):
            yield waited
    finally:
        with lock(folder / "lease.lock"):
            found = _read(path)
            if found is not None and found.get("token") == mine["token"]:
                path.unlink()
            with contextlib.suppress(OSError):
                (folder / "lease.lock").unlink()

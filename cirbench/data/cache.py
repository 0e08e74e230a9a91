"""The cache folder of reproducible files: features, decoded pictures, content hashes of files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cirbench.files import replacing
from cirbench.lease import lock

__all__ = ["ELSEWHERE", "alone", "cache_dir", "keep", "renewing", "usable"]

#: What to do where the disk of the cache is full (files.no_room).
ELSEWHERE = "set CIRBENCH_CACHE to a folder on a larger disk"

#: Files made since `renewing` began, or None while existing files of the cache are used.
_renewed: set[Path] | None = None


def cache_dir() -> Path:
    """`CIRBENCH_CACHE`, else `~/.cache/cirbench`."""
    return Path(os.environ.get("CIRBENCH_CACHE") or "~/.cache/cirbench").expanduser()


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Make other processes that need the same cache file wait; check for the file again inside the block."""
    mark = path.with_suffix(".lock")
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # a file system without locks: it may be made twice, with equal bytes
            held.enter_context(lock(mark))
            for left in path.parent.glob(f"{path.name}.*.tmp"):  # by an earlier version; today files.py removes them
                left.unlink()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                mark.unlink()


def keep(path: Path, array: np.ndarray) -> None:
    """Write an array to the cache, whole or not at all.

    Raises:
        DiskFullError: no room.
    """
    with replacing(path, ELSEWHERE) as file:
        np.save(file, array)


@contextlib.contextmanager
def renewing() -> Iterator[None]:
    """Inside the block, ignore cache files made before it (`--force`)."""
    global _renewed
    before, _renewed = _renewed, set()
    try:
        yield
    finally:
        _renewed = before


def usable(path: Path, shape: tuple[int | None, ...], kind: np.dtype, mapped: bool = False) -> np.ndarray | None:
    """The array cached at `path`, or None if it must be made: it is absent, damaged, or being renewed.

    Args:
        path: of an .npy file.
        shape: what it must have; None for any length of an axis.
        kind: what its values must be.
        mapped: leave the values on disk until they are read.
    """
    if _renewed is not None and path not in _renewed:
        _renewed.add(path)  # the caller makes it now
        return None
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except Exception:
        return None  # absent, or damaged by another program: then reading may raise nearly anything
    fits = array.ndim == len(shape) and all(b in (None, a) for a, b in zip(array.shape, shape, strict=True))
    if not fits or array.dtype != kind:
        return None
    with contextlib.suppress(OSError):
        path.with_suffix(".lock").unlink()  # by a process that was killed when it had just made the file
    return array

"""Files are written whole: to a temporary name beside the final one, then renamed, so that readers see all or none.

A disk that is full is told in one place, `no_room`. Only the standard library and numpy.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import socket
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from cirbench.types import CirbenchError

__all__ = [
    "EPOCH", "DiskFullError", "allocate", "as_numbers", "check_home", "dumps", "is_full", "nearest_folder", "no_room",
    "replacing", "write_json", "write_jsonl", "write_npz", "writing",
]

#: Zip members carry a time; a fixed one makes equal contents equal bytes.
EPOCH = (1980, 1, 1, 0, 0, 0)


class DiskFullError(CirbenchError):
    """A file does not fit on its disk; nothing is left of it."""


#: Errors of a disk, or of a share of it, that takes no more bytes.
FULL = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)
#: What to do where there is no room, if no more is known.
ELSEWHERE = "name a place on another disk"
#: Libraries that write files themselves lose the error number; with fewer bytes left than this, the disk is to blame.
NOTHING_LEFT = 1 << 20


def is_full(error: BaseException, path: Path | None = None) -> bool:
    """Whether an error says that the disk is full.

    Args:
        error: of whoever wrote.
        path: what was written, for libraries whose errors do not say why; None to judge by the error alone.
    """
    if isinstance(error, OSError):
        return error.errno in FULL
    if "No space left" in str(error) or "quota exceeded" in str(error):  # safetensors
        return True
    # torch: "unexpected pos 128 vs 0".
    return path is not None and isinstance(error, RuntimeError) and _free(path) < NOTHING_LEFT


def nearest_folder(path: Path) -> Path:
    """The nearest folder above a path that exists, as the path is written; the current one for a bare name."""
    return next((p for p in (path.parent, *path.parent.parents) if p.is_dir()), Path())


def _existing(path: Path) -> Path:
    """The nearest folder of a path that exists."""
    return next((p for p in path.absolute().parents if p.is_dir()), Path("/"))


def _free(path: Path) -> int:
    try:
        return shutil.disk_usage(_existing(path)).free
    except OSError:
        return NOTHING_LEFT


def _size(count: int) -> str:
    unit, size = ("GB", 1e9) if count >= 1e9 else ("MB", 1e6) if count >= 1e6 else ("kB", 1e3)
    return f"{count / size:.{int(size > 1e3)}f} {unit}"


def no_room(path: Path, needed: int = 0, instead: str = ELSEWHERE) -> DiskFullError:
    """The error of a file that does not fit on its disk.

    Args:
        path: of the file.
        needed: bytes that it needs; 0 where that is not known.
        instead: what to do without making room.
    """
    folder = _existing(path)
    disk = next((p for p in (folder, *folder.parents) if os.path.ismount(p)), folder)
    need = f"{_size(needed)} are needed, " if needed else ""
    return DiskFullError(
        f"the disk is full: {path} could not be written ({need}{_size(_free(path))} are free on {disk}). Make room and "
        f"repeat the command, which resumes; or {instead}."
    )


def _mark(path: Path) -> str:
    """How temporary names of a file begin on this machine; then follows the process that writes."""
    return f".{path.name[:100]}.{socket.gethostname()[:60]}-"


def _sweep(path: Path) -> None:
    """Remove what processes of this machine left that were killed while they wrote the same file."""
    mark = _mark(path)
    with contextlib.suppress(OSError):
        for left in [p for p in path.parent.iterdir() if p.name.startswith(mark) and p.suffix == ".tmp"]:
            import psutil

            number = left.name[len(mark) :].partition(".")[0]
            if number.isdigit() and not psutil.pid_exists(int(number)):
                left.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path, needed: int = 0, instead: str = ELSEWHERE) -> Iterator[Path]:
    """A temporary name beside `path`, for whoever writes files itself; it replaces `path` when the block succeeds.

    Args:
        path: of the file; its folder is made.
        needed, instead: for the message, as in `no_room`.

    Raises:
        CirbenchError: `path` is no regular file.
        DiskFullError: the disk is full.
    """
    path = Path(path)
    temporary: Path | None = None
    made = not path.parent.exists()
    try:
        if path.exists() and not path.is_file():
            raise CirbenchError(f"{path} is not a regular file and is left as it is. Name another file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        handle, name = tempfile.mkstemp(prefix=f"{_mark(path)}{os.getpid()}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes the file private to its owner; a record is as readable as any other file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except BaseException as error:
        full = isinstance(error, Exception) and is_full(error, path)
        told = no_room(path, needed, instead) if full else None
        with contextlib.suppress(OSError):
            if temporary is not None:
                temporary.unlink()
            if made:
                path.parent.rmdir()
        if told is not None:
            raise told from None
        raise


@contextlib.contextmanager
def replacing(path: Path, instead: str = ELSEWHERE) -> Iterator[IO[bytes]]:
    """A binary file that replaces `path` when the block succeeds and is removed when it fails.

    Raises:
        CirbenchError: `path` is no regular file.
        DiskFullError: the disk is full.
    """
    with writing(path, instead=instead) as temporary, temporary.open("wb") as file:
        yield file


def allocate(path: Path) -> None:
    """Give every byte of a sparse file its place on the disk.

    A write into a memory map of a byte without one ends the process by SIGBUS where the disk is full.

    Raises:
        OSError: no room.
    """
    with path.open("rb+") as file:
        size = os.fstat(file.fileno()).st_size
        if hasattr(os, "posix_fallocate") and size:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
                return
            except OSError as error:
                if error.errno in FULL:
                    raise
        for start in range(0, size, 1 << 20):  # a system, or a file system, without that call
            file.seek(start)
            block = file.read(1 << 20)
            file.seek(start)
            file.write(block)


def as_numbers(log: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a log that can be written whatever it holds: what is no finite number becomes null."""
    out = dict[str, Any]()
    for name, value in log.items():
        if isinstance(value, Mapping):
            out[str(name)] = as_numbers(value)
            continue
        with contextlib.suppress(AttributeError, TypeError, ValueError, RuntimeError):
            value = value.item()  # of numpy or torch
        out[str(name)] = value if isinstance(value, int | float) and math.isfinite(value) else None
    return out


def check_home(folder: Path, begun: os.stat_result) -> None:
    """Refuse to go on writing to a folder that is another one than at the beginning.

    Args:
        folder: as it is named.
        begun: what `folder.stat()` was then.

    Raises:
        CirbenchError: it was moved or deleted meanwhile.
    """
    try:
        same = os.path.samestat(folder.stat(), begun)
    except FileNotFoundError:
        same = False
    if not same:
        raise CirbenchError(
            f"{folder} was moved or deleted while the run was working in it, so nothing more is written. If it was "
            "moved, move it back; then repeat the command, which resumes from the last checkpoint in the folder."
        )


def _plain(value: Any) -> Any:
    """Plain values for what `json` cannot write: numpy numbers and arrays, tuples of mappings, paths."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON text; numpy values and paths are written as plain ones. NaN and infinity raise ValueError."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, default=_plain)


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write `value` to `path` as UTF-8 JSON, indented or on one line, atomically. NaN and infinity raise ValueError."""
    text = dumps(value, indent=indent) + "\n"
    with replacing(path) as file:
        file.write(text.encode("utf-8", "surrogatepass"))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    with replacing(path) as file:
        for row in rows:
            file.write((dumps(row) + "\n").encode("utf-8", "surrogatepass"))


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as a compressed .npz, atomically; equal arrays give equal bytes."""
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=4) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)

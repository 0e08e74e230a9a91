"""Files are written whole: to a temporary name beside the final one, then renamed, so that readers see all or none.

Only the standard library and numpy.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from cirbench.types import CirbenchError

__all__ = ["EPOCH", "dumps", "replacing", "write_json", "write_jsonl", "write_npz"]

#: Zip members carry a time; a fixed one makes equal contents equal bytes.
EPOCH = (1980, 1, 1, 0, 0, 0)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that replaces `path` when the block succeeds and is removed when it fails."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise CirbenchError(f"{path} is not a regular file and is left as it is. Name another file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private to its owner; a record is as readable as any other file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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

"""Arrays of .npz files that others wrote. Their heads are checked before anything is allocated; nothing is unpickled.

Only the standard library and numpy: records are listed with it.
"""

from __future__ import annotations

import math
import zipfile
from typing import IO

import numpy as np

from cirbench.types import CirbenchError

__all__ = ["head", "head_of", "read_member"]

#: Arrays below this size are read without asking how much memory is free.
SMALL = 1 << 28


def head(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the .npy array that begins here; the file then stands before its values.

    Raises:
        ValueError: no head that can be read.
    """
    try:
        version = np.lib.format.read_magic(file)
        old = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except Exception as error:
        # numpy evaluates the head as Python text, so a damaged one may raise nearly anything.
        said = (str(error).splitlines() or [""])[0][:100]
        raise ValueError(f"the head of the array cannot be read ({said})") from None
    return shape, dtype


def head_of(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array of an .npz, which is not read.

    Raises:
        ValueError: no plain array, or one of another size than the file holds.
        KeyError: no such array.
    """
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        shape, dtype = head(file)
        held, wanted = info.file_size - file.tell(), math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise ValueError(f"it holds Python objects ({dtype}), which are never read")
    if held != wanted or any(length < 0 for length in shape):
        raise ValueError(f"{name} should have shape {shape} of {dtype}, {wanted} bytes, and has {held} bytes")
    return shape, dtype


def read_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an .npz.

    Raises:
        CirbenchError: larger than the memory that is free.
        ValueError: no plain array, or one of another size than the file holds.
        KeyError: no such array.
    """
    shape, dtype = head_of(archive, name)
    size = math.prod(shape) * dtype.itemsize
    if size > SMALL:
        import psutil

        free = psutil.virtual_memory().available
        if size > free:
            raise CirbenchError(
                f"{archive.filename}: {name} has shape {shape} and needs {size / 1e9:.1f} GB of memory; "
                f"{free / 1e9:.1f} GB are free."
            )
    with archive.open(f"{name}.npy") as file:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return array

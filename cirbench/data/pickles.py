"""Pickles that others wrote: plain values and arrays, nothing that runs, nothing larger than the file it comes from.

A pickle is a program. Unpickling an arbitrary file runs arbitrary code, and a few bytes of one can ask for any amount
of memory: by a place in the table of remembered values (the memo), a length or the shape of an array.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import pickletools
import re
import struct
from typing import Any

import numpy as np

from cirbench.types import CirbenchError

__all__ = ["load_plain"]

#: Kinds of numpy types that are read, without fields: numbers, texts, bytes, Python objects.
_CODE = re.compile(r"[|<>=]?[?biufcSUO]\d{0,5}")
#: Bytes that hold the length of an argument, by how `pickletools` describes it.
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4, pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
#: Code of an operation -> bytes it takes with its argument, where that is fixed; else 0.
_FIXED = [0] * 256
#: Code of an operation -> bytes of the length that stands before its argument.
_PREFIX: dict[int, int] = {}
#: Code of an operation -> lines of text that follow it.
_LINES: dict[int, int] = {}
for _operation in pickletools.opcodes:
    _argument = _operation.arg
    if _argument is None or _argument.n >= 0:
        _FIXED[ord(_operation.code)] = 1 + (_argument.n if _argument is not None else 0)
    elif _argument.n == pickletools.UP_TO_NEWLINE:
        _LINES[ord(_operation.code)] = 2 if _argument.name == "stringnl_noescape_pair" else 1
    else:
        _PREFIX[ord(_operation.code)] = _LENGTHS[_argument.n]
_STOP, _PUT, _LONG_BINPUT, _FRAME = b".pr\x95"


def _scan(pickled: bytes) -> None:
    """Refuse what would allocate more than the file can fill, before anything is loaded.

    The operations are followed without being executed, as `pickletools.genops` does, which takes four times as long.

    Raises:
        ValueError: what is wrong.
    """
    size, at = len(pickled), 0
    index, fixed = struct.Struct("<I").unpack_from, _FIXED
    while at < size:
        code = pickled[at]
        if step := fixed[code]:
            if code == _LONG_BINPUT:
                (place,) = index(pickled, at + 1)
                if place >= size:
                    raise ValueError(f"place {place:,} of the memo in {size:,} bytes")
            elif code == _FRAME:
                _fits(int.from_bytes(pickled[at + 1 : at + 9], "little"), size - at - 9)
            elif code == _STOP:
                return
            at += step
        elif code in _PREFIX:
            start = at + 1 + _PREFIX[code]
            length = int.from_bytes(pickled[at + 1 : start], "little")
            _fits(length, size - start)
            at = start + length
        elif code in _LINES:
            end = at
            for _ in range(_LINES[code]):
                end = pickled.index(b"\n", end + 1)
            if code == _PUT and not 0 <= (place := int(pickled[at + 1 : end])) < size:
                raise ValueError(f"place {place:,} of the memo in {size:,} bytes")
            at = end + 1
        else:
            raise ValueError(f"byte {at:,} is no operation of a pickle")
    raise ValueError("it ends too early")


def _fits(length: int, left: int) -> None:
    if length > left:
        raise ValueError(f"{length:,} bytes are announced where {left:,} are left")


class _Type:
    """Stands for `numpy.dtype`, whose own `__setstate__` believes whatever it is told."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise ValueError(f"arrays of type {str(code)[:40]!r} are not read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """Stands for `numpy.ndarray`; takes as many values as there are, no more."""

    def __new__(cls, *_: Any) -> _Array:
        return super().__new__(cls, (0,), "b")

    def __setstate__(self, state: Any) -> None:
        *_, shape, kind, fortran, values = state
        dtype = kind.dtype
        held, wanted = len(values), math.prod(shape) * (1 if dtype.hasobject else dtype.itemsize)
        if isinstance(values, list) != dtype.hasobject or held != wanted or any(length < 0 for length in shape):
            raise ValueError(f"an array of shape {shape} of {dtype} with {held:,} values or bytes")
        super().__setstate__((1, shape, dtype, bool(fortran), values))  # type: ignore[arg-type]  # plain bool is right


def _scalar(kind: _Type, value: Any) -> Any:
    """Stands for `numpy.core.multiarray.scalar`."""
    data = value.encode("latin-1") if isinstance(value, str) else value
    if kind.dtype.hasobject or len(data) != kind.dtype.itemsize:
        raise ValueError(f"a value of {kind.dtype} that is not one")
    return np.frombuffer(data, kind.dtype)[0]


def _encode(text: str, encoding: str) -> bytes:
    """Stands for `_codecs.encode`, with which protocol 2 writes bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes written as {str(encoding)[:40]!r}")
    return text.encode("latin-1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Type, ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
    **{(f"numpy.{core}.multiarray", name): made for core in ("core", "_core")
       for name, made in (("_reconstruct", _Array), ("scalar", _scalar))},
}


class _Plain(pickle.Unpickler):
    """Arrays and plain values; what numpy would make of its own is made here, within bounds."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise CirbenchError(
                f"refers to {module}.{name}, which plain data never does. It could run code, so it was not read. Fetch "
                "the file again from its authors."
            )
        return _KNOWN[module, name]


def load_plain(pickled: bytes) -> Any:
    """The value of a pickle; texts of Python 2 are taken as Latin-1.

    Raises:
        CirbenchError: one that is more than plain data; the message begins with a verb.
        ValueError: a damaged one, or one that asks for more than its own size.
    """
    try:
        _scan(pickled)
        return _Plain(io.BytesIO(pickled), encoding="latin1").load()
    except CirbenchError:
        raise
    except Exception as error:
        # A damaged pickle may raise nearly any exception.
        raise ValueError(str(error)[:200] if type(error) is ValueError else
                         f"{type(error).__name__}: {str(error)[:200]}") from None

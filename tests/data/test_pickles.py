"""Pickles as plain values: what numpy and Python write comes back, and a few bytes cannot ask for gigabytes or run code."""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
import tracemalloc
from typing import Any

import numpy as np
import pytest

from cirbench.data.pickles import load_plain
from cirbench.types import CirbenchError

MANY = (1 << 23).to_bytes(4, "little")
LARGE = (1 << 31).to_bytes(8, "little")
ARRAY, DTYPE = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\0\0\0\0tU\x01btR", b"cnumpy\ndtype\n"
OBJECTS = DTYPE + b"(U\x02O8J\0\0\0\0J\x01\0\0\0tR"

VALUES: list[Any] = [
    {"a": [1, 2.5, None, True, "é", "x" * 300], "b": (1, (2, 3)), "long": 10**40, "bytes": b"\xff\0"},
    [list(range(600)), [str(n) for n in range(600)], {n: [n] for n in range(600)}],
    collections.OrderedDict(a=1), np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.array(["a", "bcd"]), np.array([b"x", b"yz"]), np.array([True, False]), np.arange(3, dtype=">i4"),
    np.array([[1, "a"], [None, [2]]], dtype=object), np.array({"a": 1}, dtype=object), np.array([], dtype=object),
    np.int64(-5), np.float32(0.5), np.bool_(True), np.str_("ab"), np.bytes_(b"cd"),
]


def same(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray | np.generic):
        return np.asarray(first).dtype.kind == np.asarray(second).dtype.kind and np.array_equal(first, second)
    return type(first) is type(second) and first == second


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("value", VALUES, ids=lambda v: f"{type(v).__name__}-{str(v)[:20]}")
def test_plain_values_come_back(value: Any, protocol: int) -> None:
    written = pickle.dumps(value, protocol)
    assert same(load_plain(written), value)
    assert same(load_plain(pickletools.optimize(written)), value)
    if not isinstance(value, np.ndarray | np.generic):  # of a file; in many pieces, which protocol 4 frames
        file = io.BytesIO()
        pickle.Pickler(file, protocol).dump([value] * 3 + [b"x" * 70_000])
        assert load_plain(file.getvalue())[0] == value


@pytest.mark.parametrize(("pickled", "message"), [
    (b"\x80\x02]r" + MANY + b".", "place 8,388,608 of the memo in 9 bytes"),
    (b"(lp8388608\n.", "place 8,388,608 of the memo in 12 bytes"),
    (b"(lp-1\n.", "place -1 of the memo"),
    (b"\x80\x05\x95" + LARGE + b"abc.", "2,147,483,648 bytes are announced where 4 are left"),
    (b"\x80\x05\x8e" + LARGE + b"abc.", "2,147,483,648 bytes are announced where 4 are left"),
    (b"\x80\x05\x96" + LARGE + b"abc.", "2,147,483,648 bytes are announced where 4 are left"),
    (b"\x80\x05\x8d" + LARGE + b"abc.", "2,147,483,648 bytes are announced where 4 are left"),
    (b"\x80\x03B" + MANY + b"abc.", "8,388,608 bytes are announced where 4 are left"),
    (b"\x80\x02T\xff\xff\xff\xff.", "bytes are announced where 1 are left"),
    (b"\x80\x02\x8b" + MANY + b".", "8,388,608 bytes are announced where 1 are left"),
    (b"\x80\x02]", "it ends too early"),
    (b"\x80\x02\xff.", "byte 2 is no operation"),
    (b"cnumpy\nndarray\n(J" + MANY + b"U\x01OtR.", None),  # an array of that shape
    (ARRAY + b"(J\x01\0\0\0(J" + MANY + b"t" + OBJECTS + b"I00\n]tb.", "array of shape (8388608,)"),
    (ARRAY + b"(J\x01\0\0\0(J\xff\xff\xff\xffJ\xff\xff\xff\xfft" + OBJECTS + b"I00\n(I1\nltb.", "array of shape (-1, -1)"),
    (DTYPE + b"(U\x0aV200000000J\0\0\0\0J\x01\0\0\0tR.", "'V200000000' are not read"),
    (b"cnumpy.core.multiarray\nscalar\n(" + DTYPE + b"(U\x06S99999J\0\0\0\0J\x01\0\0\0tRU\x01xtR.", "a value of |S99999"),
    (b"c_codecs\nencode\n(U\x01xU\x06base64tR.", "written as 'base64'"),
])
def test_a_few_bytes_get_no_memory(pickled: bytes, message: str | None) -> None:
    tracemalloc.start()
    try:
        if message is None:
            assert load_plain(pickled).size == 0
        else:
            with pytest.raises(ValueError) as error:
                load_plain(pickled)
            assert message in str(error.value)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("named", [b"cos\nsystem\n", b"cbuiltins\neval\n", b"cnumpy\nzeros\n", b"cnumpy\nload\n"])
def test_nothing_else_is_called(named: bytes) -> None:
    with pytest.raises(CirbenchError, match=r"refers to .* could run code"):
        load_plain(named + b"(U\x01xtR.")


def test_a_place_of_the_memo_may_be_as_large_as_the_file() -> None:
    """The last valid and the first invalid place."""
    for place, refused in ((9, True), (8, False)):
        pickled = b"\x80\x02]r" + place.to_bytes(4, "little") + b"."
        if refused:
            with pytest.raises(ValueError, match="memo"):
                load_plain(pickled)
        else:
            assert load_plain(pickled) == []

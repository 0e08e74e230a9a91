"""Damage to files, by their format: values deleted, doubled, replaced; types, encodings, headers and bytes changed.

Every function takes a `random.Random`, which hypothesis (`st.randoms`) or a fuzzer (guided.py) drives.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

Rng = random.Random

# ------------------------------------------------------------------------------------------ any file

MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\0", b"\xff", b"\xed\xa0\x80", b"\r", b"\r\n", b"\x0b", b"\xc2\x85", b"\xe2\x80\xa8", b'"', b",", b"\t", b"\n\n", b"<html>")


def of_bytes(body: bytes, rng: Rng) -> bytes:
    """Cut, doubled, overwritten or re-encoded."""
    for _ in range(rng.randint(1, 3)):
        body = _changed(body, rng)
    return body


def _changed(body: bytes, rng: Rng) -> bytes:
    a = rng.randint(0, len(body))
    b = min(len(body), a + rng.choice((1, 1, 4, 16, 64, 1000)))
    changes: tuple[Callable[[], bytes], ...] = (
        lambda: body[:a],
        lambda: body[:a] + body[b:],
        lambda: body[:b] + body[a:],
        lambda: body[:a] + rng.choice(MARKS) + body[a:],
        lambda: rng.choice(MARKS) + body,
        lambda: body[:a] + bytes(rng.randrange(256) for _ in range(min(b - a, 16))) + body[b:],
        lambda: body[:a] + rng.choice((b"\0", b"\xff")) * (b - a) + body[b:],
        lambda: body.decode("utf-8", "replace").encode("utf-16"),
        lambda: body.decode("utf-8", "replace").encode("utf-16-le"),
        lambda: body.replace(b"\n", b"\r\n", rng.choice((-1, 1))),
        lambda: b"",
    )
    return rng.choice(changes)()


# ------------------------------------------------------------------------------------------ JSON


class Raw(str):
    """Text that is written as it stands."""


class Pairs(list):
    """An object as its (key, value) pairs, so that a key may stand in it twice."""


DEEP = 100_000
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, -(10**400), 0.5, -0.5, 1e308, Raw("1e999"), Raw("NaN"),
    Raw("-Infinity"), Raw("-0"), Raw("9" * 5000), Raw("-" + "9" * 5000), "", " ", "\0", "a\0b", Raw('"\\ud800"'), Raw('"x\\udcffy"'),
    Raw('"\\u0000"'), "../../x", "/etc/passwd", "C:\\x", "é", "e\u0301", "\u202e", "x" * 5000, "1", "nan", "a/b", "#", "*", "[a]", "{id}", "~", [], {}, [[]],
    [None], {"": None}, {"a": [1]}, Raw("[" * DEEP + "]" * DEEP), Raw('{"a":' * DEEP + "1" + "}" * DEEP), Raw("[" * 900 + "]" * 900), Raw("{,}"),
)


def pairs_of(text: str) -> Any:
    return json.loads(text, object_pairs_hook=Pairs)


def text_of(value: Any) -> str:
    if isinstance(value, Raw):
        return value
    if isinstance(value, Pairs | dict):
        items = value.items() if isinstance(value, dict) else value
        return "{" + ", ".join(f"{text_of(k)}: {text_of(v)}" for k, v in items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(text_of, value)) + "]"
    return json.dumps(value)


def containers(value: Any) -> list[list[Any]]:
    """Every list and object that holds something."""
    out, seen = [], {id(ENDLESS)}
    todo = [value]
    while todo:
        found = todo.pop()
        if isinstance(found, list) and found and id(found) not in seen:
            seen.add(id(found))
            out.append(found)
            todo += [v for _, v in found] if isinstance(found, Pairs) else found
    return out


def _odd(rng: Rng, odd: tuple[Any, ...]) -> Any:
    """A copy: a list that stood in two values, or inside itself, would carry one example into the next."""
    chosen = rng.choice(odd)
    return copy.deepcopy(chosen) if isinstance(chosen, list | dict) and chosen is not ENDLESS else chosen


def edit(value: Any, rng: Rng, odd: tuple[Any, ...] = ODD) -> Any:
    """One change somewhere inside a value made of lists and `Pairs`."""
    places = containers(value)
    if not places or rng.random() < 0.03:
        return _odd(rng, odd)
    where = rng.choice(places)
    n = rng.randrange(len(where))
    kind = rng.randrange(6)
    keyed = isinstance(where, Pairs)
    held = where[n][1] if keyed else where[n]
    put: Callable[[Any], Any] = lambda new: where.__setitem__(n, (where[n][0], new) if keyed else new)  # noqa: E731
    if kind == 0:
        del where[n]
    elif kind == 1:
        where.insert(rng.randint(0, len(where)), where[n])
    elif kind == 2:
        put([held] if rng.random() < 0.5 else Pairs([("a", held)]))
    elif kind == 3 and keyed:
        where[n] = (rng.choice([w[0] for w in where] + ["", "x", "\0", Raw('"\\ud800"'), "é"]), held)
    elif kind == 3:
        where.reverse()
    else:
        put(_odd(rng, odd))
    return value


def of_json(body: bytes, rng: Rng) -> bytes:
    value = pairs_of(body.decode())
    for _ in range(rng.randint(1, 2)):
        value = edit(value, rng)
    return text_of(value).encode("utf-8", "surrogatepass")


def of_jsonl(body: bytes, rng: Rng) -> bytes:
    lines: list[Any] = [pairs_of(line) for line in body.decode().split("\n") if line]
    for _ in range(rng.randint(1, 2)):
        lines = edit(lines, rng)
        lines = lines if isinstance(lines, list) else [lines]
    return "".join(text_of(line) + rng.choice(("\n", "\n", "\n", "\r\n", "\n\n")) for line in lines).encode("utf-8", "surrogatepass")


# ------------------------------------------------------------------------------------------ tables, lists, TOML

CELLS = ("", " ", '"', '""', '"a', "a,b", '"a,b"', "\0", "é", "e\u0301", "x" * 200_000, "../../x", "/", ".", "..", "a\tb", "nan", "a\nb", '"a\nb"', "#", "train", "Test", "\ufeff")


def of_text(body: bytes, rng: Rng) -> bytes:
    """Lines, and fields between commas, tabs or blanks."""
    lines = body.decode().split("\n")
    for _ in range(rng.randint(1, 3)):
        n = rng.randrange(len(lines))
        mark = rng.choice((",", "\t", " "))
        fields = lines[n].split(mark)
        m = rng.randrange(len(fields))
        kind = rng.randrange(6)
        if kind == 0:
            del lines[n]
        elif kind == 1:
            lines.insert(rng.randint(0, len(lines)), lines[n])
        elif kind == 2:
            del fields[m]
        elif kind == 3:
            fields.insert(m, rng.choice(fields))
        elif kind == 4:
            fields[m] = rng.choice(CELLS)
        else:
            fields.reverse()
        if kind > 1:
            lines[n] = mark.join(fields)
        lines = lines or [""]
    return rng.choice(("\n", "\n", "\n", "\r\n", "\r")).join(lines).encode("utf-8", "surrogatepass")


TOML = (
    "nan", "-inf", "1e400", "9" * 5000, "0x" + "f" * 5000, "-1", "0", "1", "true", '""', '"\\u0000"', '"x"', "[]", "{}", "[[]]", "[nan]", "[1, 1]", "1979-05-27",
    "[1979-05-27]", "07:32:00", '["a", 1]', "[" * 5000 + "]" * 5000, "{low = 0, high = 1}", "{low = nan, high = 1}", "{low = 0, high = 0x" + "f" * 400 + "}",
    "{low = 0, high = 1, step = nan}", "{low = 0, high = 1, step = 1e-300}", '{low = "a", high = []}', "{low = 1, high = 2, log = true}", "{low = 5e-324, high = 1e308, log = true}", '"../x"', '"random"', '"tpe"', '"a" "b"',
    "99999999999999999999", "9223372036854775808",
)


def of_toml(body: bytes, rng: Rng) -> bytes:
    lines = body.decode().split("\n")
    for _ in range(rng.randint(1, 2)):
        n = rng.randrange(len(lines))
        key, sign, _ = lines[n].partition("=")
        kind = rng.randrange(7)
        if kind == 0:
            del lines[n]
        elif kind == 1:
            lines.insert(rng.randint(0, len(lines)), lines[n])
        elif kind == 2 and sign:
            lines[n] = rng.choice(("timeout", "trials", "seeds", "name", "x", '"method.x"', '"\\u0000"', "arms", "variants", "fixed")) + " =" + lines[n].partition("=")[2]
        elif sign:
            lines[n] = f"{key}= {rng.choice(TOML)}"
        lines = lines or [""]
    return "\n".join(lines).encode()


# ------------------------------------------------------------------------------------------ arrays and archives


class Code:
    """Says so when it is unpickled: loading a file must never run code."""

    def __reduce__(self) -> Any:
        return eval, ("__import__('mutations').ran.append(1)",)


#: What `Code` did.
ran: list[int] = []

HEADS = (
    (), (0,), (-1,), (-1, -1), (1,), (10**12,), (10**18, 10**18), (10**9, 10**9), (2**63,), (3, 10**10), (1,) * 70, (0, 10**12),
)
DTYPES = ("<f4", "<f8", "<f2", "<f16", "<i4", "<i8", "|b1", "<U3", "|S3", "|O", "<M8[s]", "|V4", "<c8", [("a", "<f4")], "nonsense", 3)


def header(shape: Any, dtype: Any) -> bytes:
    """The head of an .npy file, whatever it says."""
    said = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(said) + 1) + said + b"\n"


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def array_like(array: np.ndarray, rng: Rng) -> bytes:
    """An .npy file near an array."""
    n = rng.randrange(11)
    if n == 0:
        return header(rng.choice(HEADS), rng.choice(DTYPES)) + bytes(rng.randrange(64))
    if n == 1:
        return header(array.shape, rng.choice(DTYPES)) + array.tobytes()
    if n == 2:
        return npy(np.array([Code()], dtype=object))
    if n == 3:
        return npy(array[:-1] if array.ndim and len(array) else array)
    if n == 4:
        return npy(array.reshape(-1))
    if n == 5:
        return npy(np.asfortranarray(array))
    if n == 6 and array.size and array.dtype.kind in "fiu":
        flat = array.copy().reshape(-1)
        flat[rng.randrange(flat.size)] = rng.choice((-1, 0, 120) if array.dtype.kind != "f" else (np.nan, np.inf, -1.0, 1e30))
        return npy(flat.reshape(array.shape))
    if n == 7:
        with np.errstate(all="ignore"):
            return npy(array.astype(rng.choice(("f4", "f8", "f2", "i8", "i4", "u1", "U3", "S3", "?"))) if array.dtype.kind in "fiub" else array.astype("U1"))
    if n == 8:
        literal = rng.choice((b"(" * 3000 + b")" * 3000, b"{1: 2, 'a': 3}", b"'''", b"{'descr': ", b"\xff\xff", b"{}", b"[" * 90 + b"]" * 90, b"  x\n y"))
        return b"\x93NUMPY" + rng.choice((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00")) + struct.pack("<H", len(literal)) + literal + bytes(32)
    if n == 9:
        return npy(np.array([b"\xff", b"\xfe"] * 20)) if rng.random() < 0.5 else header((2,), "<U1") + b"\xff\xff\xff\x7f\x00\xd8\x00\x00"
    return of_bytes(npy(array), rng)


NAMES = ("../x", "/x", "C:\\x", "a/../../x", "x\0y", "", ".", "..", "a" * 300, "é", "a/", "a", "a/b", "index.json", "CON", "\\x", "./x", "x.npy")


def members(body: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return [(i.filename, archive.read(i)) for i in archive.infolist()]


def zipped(entries: list[tuple[str, bytes]], rng: Rng | None = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            info = zipfile.ZipInfo(name or "x")
            info.filename, info.compress_type = name, zipfile.ZIP_DEFLATED
            if rng is not None and rng.random() < 0.1:
                info.external_attr = 0o120777 << 16
            archive.writestr(info, data)
    return out.getvalue()


#: Fields of an entry in the directory of a zip: offset behind its signature, format.
FIELDS = ((8, "<H"), (10, "<H"), (16, "<I"), (20, "<I"), (24, "<I"), (28, "<H"), (30, "<H"), (42, "<I"))


def twisted(body: bytes, rng: Rng) -> bytes:
    """A zip whose directory says something else: encrypted, another compression, sizes, checksum, place."""
    out = bytearray(body)
    at = out.find(b"PK\x01\x02")
    for _ in range(rng.randrange(4)):
        further = out.find(b"PK\x01\x02", at + 4)
        at = further if further > 0 else at
    if at < 0 or at + 46 > len(out):
        return body
    offset, form = rng.choice(FIELDS)
    top = 2 ** (8 * struct.calcsize(form)) - 1
    value = rng.choice((0, 1, 9, 12, 14, 93, 99, 0x800, top, top // 2, rng.randint(0, top)))
    struct.pack_into(form, out, at + offset, value)
    if offset in (8, 10) and (local := struct.unpack_from("<I", out, at + 42)[0]) + 10 < len(out):
        struct.pack_into(form, out, local + offset - 2, value)
    return bytes(out)


def of_zip(body: bytes, rng: Rng) -> bytes:
    entries = members(body)
    n = rng.randrange(len(entries)) if entries else 0
    kind = rng.randrange(7)
    if kind == 0 and entries:
        del entries[n]
    elif kind == 1 and entries:
        entries.insert(n, entries[n])
    elif kind == 2 and entries:
        entries[n] = (rng.choice(NAMES), entries[n][1])
    elif kind == 3:
        entries.append((rng.choice(NAMES), b"x" * rng.randrange(9)))
    elif kind == 4 and entries:
        name, data = entries[n]
        entries[n] = (name, of_json(data, rng) if name.endswith(".json") else of_bytes(data, rng))
    elif kind == 5:
        return twisted(body, rng)
    else:
        return of_bytes(body, rng)
    return zipped(entries, rng)


def of_npz(body: bytes, rng: Rng) -> bytes:
    if rng.random() < 0.4:
        return of_zip(body, rng)
    entries = members(body)
    n = rng.randrange(len(entries))
    array = np.load(io.BytesIO(entries[n][1]), allow_pickle=False)
    entries[n] = (entries[n][0], array_like(array, rng))
    return zipped(entries)


def of_npy(body: bytes, rng: Rng) -> bytes:
    return array_like(np.load(io.BytesIO(body), allow_pickle=False), rng)


# ------------------------------------------------------------------------------------------ pickles, tensors


def plain(value: Any) -> Any:
    """`Pairs` as dictionaries again."""
    if value is ENDLESS:
        return value
    if isinstance(value, Pairs):
        try:
            return {plain(k): plain(v) for k, v in value}
        except TypeError:
            return [plain(v) for _, v in value]
    return [plain(v) for v in value] if isinstance(value, list) else value


def pairs(value: Any) -> Any:
    if isinstance(value, dict):
        return Pairs((k, pairs(v)) for k, v in value.items())
    return [pairs(v) for v in value] if isinstance(value, list) else value


#: A list that holds itself.
ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
PICKLED: tuple[Any, ...] = (
    *(v for v in ODD if not isinstance(v, Raw)), float("nan"), float("inf"), 10**5000, "\ud800", b"x", (1, 2), {1}, np.float32(1), np.int64(3), np.arange(3),
    np.array("x"), ENDLESS, Code(), 1 + 2j,
)


def harmless(body: bytes) -> bool:
    """Whether a pickle may be tried: a memo index beyond its length makes Python's own unpickler take gigabytes."""
    try:
        return all(not (op.name == "LONG_BINPUT" and (arg or 0) > len(body)) for op, arg, _ in pickletools.genops(body))
    except Exception:
        return True  # cut off or damaged behind what was seen


def of_pickle(body: bytes, rng: Rng) -> bytes:
    """One pickled object in an .npy file."""
    if rng.random() < 0.3:
        out = of_bytes(body, rng)
        return out if harmless(out[out.find(b"\n") + 1 :]) else body
    value = pairs(np.load(io.BytesIO(body), allow_pickle=True).item())
    for _ in range(rng.randint(1, 2)):
        value = edit(value, rng, PICKLED)
    out = np.empty((), dtype=object)
    out[()] = plain(value)
    return npy(out)


def torched(value: Any) -> bytes:
    import torch

    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def of_tensors(body: bytes, rng: Rng) -> bytes:
    """A file of `torch.save`: a dictionary, perhaps of dictionaries, of tensors."""
    import torch

    if rng.random() < 0.2:
        return of_zip(body, rng)
    value = torch.load(io.BytesIO(body), weights_only=True)
    tables = [value, *(v for v in value.values() if isinstance(v, dict) and v)]
    table = rng.choice(tables)
    name = rng.choice(list(table))
    held = table[name]
    kind = rng.randrange(9)
    if kind == 0:
        del table[name]
    elif kind == 1:
        table[rng.choice((*table, "x", 3, "", "module." + str(name), (1, 2), None))] = table.pop(name)
    elif kind == 2:
        return torched(rng.choice(([], {}, [value], None, 3, "x", torch.ones(2), {"model_state_dict": {}}, {"model_state_dict": []}, Code(), {"a": Code()})))
    elif kind == 3:
        return pickle.dumps(rng.choice((Code(), {}, [1])))
    elif kind == 4 and isinstance(held, torch.Tensor):
        table[name] = rng.choice((
            held.reshape(-1), held[..., None], held.double(), held.to(torch.int64), held.to(torch.complex64), held.to(torch.bool), held.half(), held.T if held.ndim == 2 else held,
            held[:0] if held.ndim else held, torch.tensor(float("nan")), torch.full_like(held, float("inf")) if held.is_floating_point() else held, held.to_sparse() if held.ndim else held,
            torch.ones(1).expand(2**40), held.to(torch.float8_e4m3fn) if held.is_floating_point() else held, torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        ))
    else:
        table[name] = rng.choice((None, 1, "x", [], {}, torch.ones(1), torch.ones(2, 2), held, [held]))
    return torched(value)


def of_weights(body: bytes, rng: Rng) -> bytes:
    """A safetensors file: its header is JSON."""
    if rng.random() < 0.2 or len(body) < 8:
        return of_bytes(body, rng)
    size = int.from_bytes(body[:8], "little")
    head = of_json(body[8 : 8 + size], rng)
    told = rng.choice((len(head), len(head), len(head), len(head), 0, 2**62, len(head) + 1))
    return told.to_bytes(8, "little") + head + body[8 + size :]


MUTATORS: dict[str, Callable[[bytes, Rng], bytes]] = {
    "json": of_json, "jsonl": of_jsonl, "text": of_text, "toml": of_toml, "npz": of_npz, "npy": of_npy, "zip": of_zip, "pickle": of_pickle, "tensors": of_tensors,
    "weights": of_weights, "bytes": of_bytes,
}


def mutate(kind: str, body: bytes, rng: Rng) -> bytes:
    """A file near `body`."""
    if kind not in ("pickle", "tensors") and rng.random() < 0.25:
        return of_bytes(body, rng)
    return MUTATORS[kind](body, rng)

"""Reading annotation files: clear messages for files that are absent, damaged or of another dataset."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cirbench import json_text
from cirbench.settings import nearest, unknown
from cirbench.types import CirbenchError

# ------------------------------------------------------------------------------------- reading files


def read_text(path: Path) -> str:
    """A UTF-8 text file, or a UTF-16 one that begins with its mark.

    Raises:
        CirbenchError: absent, a folder, unreadable, empty, or in another encoding.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CirbenchError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise CirbenchError(f"{path} is a folder, expected a file.") from None
    except OSError as error:
        raise CirbenchError(f"{path} cannot be read: {error.strerror or error}.") from None
    text = _decoded(data, path) if data.strip() else ""
    if not text.strip():
        raise CirbenchError(f"{path} is empty ({len(data)} bytes). Fetch it again.")
    return text


def _decoded(data: bytes, path: Path) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        # "Unicode text" of Excel.
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError:
            raise CirbenchError(f"{path} begins as UTF-16 and is not. Save it as UTF-8.") from None
    if b"\0" in data:
        raise CirbenchError(f"{path} holds zero bytes: it is UTF-16 or no text file at all. Save it as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise CirbenchError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8 (the file may be latin-1). "
            f"Convert it, e.g. `iconv -f latin1 -t utf-8`, or fetch it again."
        ) from None


def _parse(text: str, where: str) -> Any:
    """The value of a JSON text; what JSON lacks, repeated keys of one object and texts that are no UTF-8 are refused.

    Raises:
        CirbenchError: such a value.
        json.JSONDecodeError: no JSON at all.
    """

    def constant(name: str) -> Any:
        raise CirbenchError(f"{where}: holds {name}, which is not JSON and not a usable value.")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(items)
        if len(out) != len(items):
            seen: set[str] = set()
            twice = next(k for k, _ in items if k in seen or seen.add(k))  # type: ignore[func-returns-value]
            raise CirbenchError(f"{where}: the key {twice!r} occurs twice in one object; only one of them can count.")
        return out

    try:
        value = json_text.parse(text, constant, pairs)
        json_text.check_texts(text, value)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise CirbenchError(f"{where}: {error}. Correct the file, or fetch it again.") from None
    return value


def read_json(path: Path) -> Any:
    """A JSON file; NaN and infinity are refused, and so are repeated keys of one object."""
    text = read_text(path)
    if text.lstrip()[:1] == "<":
        raise CirbenchError(f"{path} is a web page, not JSON: the download returned an error page. Fetch it again.")
    try:
        return _parse(text, str(path))
    except json.JSONDecodeError as error:
        cut = " The file seems cut off: fetch it again." if error.pos >= len(text.rstrip()) - 1 else ""
        raise CirbenchError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}.{cut}") from None


def read_list(path: Path) -> list[Any]:
    """A JSON file that holds a non-empty list."""
    value = read_json(path)
    if not isinstance(value, list):
        raise CirbenchError(f"{path}: a JSON list is expected, found {kind(value)}. Is it another dataset's file?")
    if not value:
        raise CirbenchError(f"{path}: an empty list. Fetch it again.")
    return value


def read_lines(path: Path) -> list[str]:
    """Lines of a text file without their ends; blank lines at the end are dropped."""
    lines = read_text(path).split("\n")
    lines = [line.rstrip("\r") for line in lines]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def read_names(path: Path) -> list[str]:
    """One name per line, each once.

    Raises:
        CirbenchError: a blank line in the middle, or a name that occurs twice.
    """
    names = [line.strip() for line in read_lines(path)]
    for number, name in enumerate(names, 1):
        if not name:
            raise CirbenchError(f"{path}, line {number}: empty; one image name per line is expected.")
    unique(names, f"{path}: image name")
    return names


def read_jsonl(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank."""
    out = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            value = _parse(line, f"{path}, line {number}")
        except json.JSONDecodeError as error:
            raise CirbenchError(f"{path}, line {number}: not valid JSON: {error.msg}.") from None
        if not isinstance(value, dict):
            raise CirbenchError(f"{path}, line {number}: an object {{...}} is expected, found {kind(value)}.")
        out.append((number, value))
    return out


def read_csv(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file with a header line; a quoted field may hold line breaks."""
    try:
        reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
        rows = [(number, row) for number, row in enumerate(reader, 1) if "".join(row).strip()]
    except csv.Error as error:
        raise CirbenchError(f"{path} is not a CSV file: {error}.") from None
    if not rows:
        raise CirbenchError(f"{path} is empty; a header line with {', '.join(needed)} is needed.")
    header = rows[0][1]
    for name in needed:
        if name not in header:
            raise unknown("column", name, header, f"{path} needs the columns {', '.join(needed)}.")
    unique(header, f"{path}: column")
    out = []
    for number, row in rows[1:]:
        if len(row) != len(header):
            raise CirbenchError(
                f"{path}, row {number}: {len(row)} fields, but the header has {len(header)} "
                f"({', '.join(header)}). Quote fields that hold commas."
            )
        out.append(dict(zip(header, row, strict=True)))
    if not out:
        raise CirbenchError(f"{path} has a header but no rows.")
    return out


# ------------------------------------------------------------------------------------- checking values


def kind(value: Any) -> str:
    """JSON word for the type of a value."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", int: "a number",
             float: "a number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


def shown(value: Any) -> str:
    """Part of a value for a message, or its type: a pickled number may be too long to have a text."""
    try:
        return repr(str(value)[:40])
    except (ValueError, RecursionError):
        return type(value).__name__


def unique(names: Iterable[Hashable], what: str) -> None:
    """Raise for a repeated name."""
    seen: set[Hashable] = set()
    for name in names:
        if name in seen:
            raise CirbenchError(f"{what} {name!r} occurs twice; each may occur once.")
        seen.add(name)


def get(entry: Any, key: str, want: type | tuple[type, ...], where: str) -> Any:
    """`entry[key]`, of a wanted type.

    Raises:
        CirbenchError: not an object, no such key (with the existing keys), or another type.
    """
    if not isinstance(entry, dict):
        raise CirbenchError(f"{where}: an object is expected, found {kind(entry)}.")
    if key not in entry:
        keys = sorted(name for name in entry if isinstance(name, str))
        near = nearest(key, keys)
        guess = f" Did you mean {near!r}?" if near else ""
        raise CirbenchError(f"{where}: no key {key!r} (it has {', '.join(keys) or 'none'}).{guess}")
    value = entry[key]
    if not isinstance(value, want) or (isinstance(value, bool) and want is not bool):
        raise CirbenchError(f"{where}: {key!r} is {kind(value)} ({shown(value)}), another type is expected.")
    return value


def strings(entry: Any, key: str, where: str) -> tuple[str, ...]:
    """A list of strings under a key."""
    value = get(entry, key, list, where)
    for item in value:
        if not isinstance(item, str):
            raise CirbenchError(f"{where}: {key!r} holds {kind(item)} ({shown(item)}), only strings are expected.")
    return tuple(value)


def subset(ids: Iterable[str], gallery: Iterable[str], where: str, then: str) -> None:
    """Raise for ids that are not in a gallery."""
    have = set(gallery)
    absent = [name for name in dict.fromkeys(ids) if name not in have]
    if absent:
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        raise CirbenchError(f"{where}: {', '.join(map(repr, absent[:5]))}{more} not in the gallery. {then}")

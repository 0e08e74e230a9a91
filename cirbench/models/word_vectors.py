"""Word vectors from a text file: GloVe's, or fastText's `.vec`, plain or packed with gzip."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

from cirbench.models.weights import vectors_file
from cirbench.types import CirbenchError, shown

__all__ = ["read_vectors", "rows_sha256"]

#: Bytes of the longest line, for vectors of usual width: a file without line ends is never read whole.
LONGEST = 1 << 20


class _Misfit(ValueError):
    """What is wrong with a line."""


def read_vectors(name: str, words: Sequence[str], width: int) -> tuple[list[int], Tensor]:
    """The vectors of some words; the file is read line by line, and only these words are kept.

    Lines of other words are not looked at, apart from the first. Where a word stands twice the first line counts, since
    files are sorted by frequency. A word is found as it is written, in lower case if it is.

    Args:
        name: the file; a line holds a word and `width` numbers. A first line of two whole numbers (fastText's number of
            words and width) is skipped.
        words: what is looked up.
        width: of a vector.

    Returns:
        n indices into `words`, ascending, and their vectors (n, width), float32.

    Raises:
        CirbenchError: no such file, one that cannot be read, vectors of another width, a number that is none or not
            finite, none of the words in it.
    """
    path = vectors_file(name)
    wanted = {word.encode("utf-8", "replace"): index for index, word in enumerate(words)}
    found: dict[int, Tensor] = {}
    number, longest = 0, max(LONGEST, 64 * width)
    try:
        with path.open("rb") as file:
            packed = file.peek(2)[:2] == b"\x1f\x8b"
            lines = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
            for line in iter(partial(lines.readline, longest), b""):
                number += 1
                if len(line) == longest and not line.endswith(b"\n"):
                    raise _Misfit(f"is longer than {longest} bytes")
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                    if _is_header(line, width):
                        continue
                    _row(line, width)
                index = wanted.get(next(iter(line.split(None, 1)), b""))
                row = _row(line, width) if index is not None and index not in found else None
                if index is not None and row is not None:
                    found[index] = row
                    if len(found) == len(wanted):
                        break
    except _Misfit as error:
        raise _refused(path, f"line {number} {error}", width) from None
    except (OSError, EOFError, zlib.error) as error:
        raise _refused(path, f"after line {number}: {error}", width) from None
    if not found:
        raise _refused(path, f"none of the {len(wanted)} words of the vocabulary stands in it", width)
    ids = sorted(found)
    return ids, torch.stack([found[index] for index in ids])


def rows_sha256(words: Sequence[str], rows: Tensor) -> str:
    """sha256 of words and their vectors (n, width)."""
    hasher = hashlib.sha256("\n".join(words).encode("utf-8", "replace"))
    hasher.update(rows.contiguous().numpy().tobytes())
    return hasher.hexdigest()


def _refused(path: Path, what: str, width: int) -> CirbenchError:
    return CirbenchError(
        f"the word vectors {path} cannot be used: {what}. Give a text file of GloVe's or fastText's, unpacked or .gz, "
        f"with a word and {width} numbers on a line."
    )


def _is_header(line: bytes, width: int) -> bool:
    """Whether a first line is fastText's, of the right width."""
    fields = line.split()
    if len(fields) != 2 or not all(field.isdigit() and len(field) < 12 for field in fields):
        return False
    if int(fields[1]) != width:
        raise _Misfit(f"says that its vectors have {int(fields[1])} numbers, but words are {width} wide")
    return True


def _row(line: bytes, width: int) -> Tensor | None:
    """The numbers of a line; None for a word with blanks in it (GloVe has some), which is never looked up.

    Raises:
        _Misfit: another number of numbers, or something else.
    """
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        raise _Misfit("is not UTF-8 text") from None
    numbers = [_number(field) for field in line.split()[1:]]
    if len(numbers) > width and None in numbers[:-width] and None not in numbers[-width:]:
        return None
    if len(numbers) != width:
        raise _Misfit(f"holds {len(numbers)} values behind its word, but words are {width} wide")
    if None in numbers:
        raise _Misfit(f"holds {shown(line.split()[1 + numbers.index(None)].decode())} where a number should be")
    row = torch.tensor(numbers, dtype=torch.float32)
    if not row.isfinite().all():
        raise _Misfit("holds a number that is not finite")
    return row


def _number(field: bytes) -> float | None:
    try:
        return float(field)
    except ValueError:
        return None

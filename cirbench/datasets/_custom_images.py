"""Which pictures a folder of one's own data has: listed in images.csv, or found under images/."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cirbench.data import reading
from cirbench.data.image_files import EXTENSIONS, Reading, nfc
from cirbench.data.outside import files_below
from cirbench.types import CirbenchError

#: From this likeness on, a value of the column `split` is taken for a slip of the pen.
_SLIP = 0.7


def in_folder(root: Path, manual: str) -> tuple[dict[str, str], list[str]]:
    """Image id (the file's name without extension) -> path under the root, and notes on files that take no part.

    Linked folders are followed. A link with a picture's name that leads nowhere counts as a picture that is missing.

    Raises:
        CirbenchError: no folder images/, no picture in it, or two pictures of one name.
    """
    folder = root / "images"
    if not folder.is_dir():
        here = ", ".join(sorted(p.name for p in root.iterdir())[:6]) or "nothing"
        raise CirbenchError(f"custom: {root} has neither images.csv nor a folder images/ (it holds {here}). {manual}")
    paths: dict[str, str] = {}
    others: Counter[str] = Counter()
    for file in sorted(files_below(folder)):
        path = file.relative_to(root).as_posix()
        if file.suffix.lower() not in EXTENSIONS:
            others[file.suffix.lower() or "no ending"] += 1
            continue
        if path != path.encode(errors="replace").decode():
            raise CirbenchError(
                f"custom: the name of the picture {os.fsencode(path)!r} is not UTF-8, so it cannot be an id. Rename it."
            )
        image_id = nfc(file.stem)
        if image_id in paths:
            raise CirbenchError(
                f"custom: two pictures are named {image_id!r}: {paths[image_id]} and {path}. Rename one, or list them "
                "in images.csv."
            )
        paths[image_id] = path
    listing = ", ".join(f"{ending} ({n})" for ending, n in others.most_common())
    if not paths:
        raise CirbenchError(
            f"custom: {folder} holds no picture ({', '.join(EXTENSIONS)}). It holds {listing or 'nothing'}."
        )
    note = f"{others.total()} files under images/ take no part, by their endings: {listing}"
    return paths, [note] if others else []


def listed(table: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Image id -> path under the root, and all rows, of images.csv."""
    rows = reading.read_csv(table, ("image_id", "path"))
    for number, row in enumerate(rows, 2):
        if not row["image_id"] or not row["path"]:
            raise CirbenchError(f"{table}, row {number}: image_id or path is empty.")
        row["image_id"], row["path"] = nfc(row["image_id"]), row["path"].replace("\\", "/")
    for column in rows[0]:
        if column != "split" and column.strip().casefold() == "split":
            raise CirbenchError(f"{table}: the column {column!r} limits no gallery. Call it 'split', or otherwise.")
    reading.unique((row["image_id"] for row in rows), f"{table}: image_id")
    return {row["image_id"]: row["path"] for row in rows}, rows


def split_notes(table: Path, rows: Sequence[dict[str, str]], names: Sequence[str], limits: bool) -> list[str]:
    """What the column `split` holds beside the names of splits.

    Args:
        table: images.csv, for messages.
        rows: of it.
        names: splits that have triplets.
        limits: whether the column limits galleries; then a value that looks like a misspelt name is refused.

    Raises:
        CirbenchError: such a value.
    """
    if not rows or "split" not in rows[0]:
        return []
    notes = []
    for value, count in Counter(row["split"] for row in rows).items():
        if value in names:
            continue
        if not value.strip():
            notes.append(
                f"{count} rows of images.csv have an empty split: they stand in no gallery of a split"
                if any(row["split"].strip() for row in rows) else
                "the column `split` of images.csv is empty, so every query ranks all images"
            )
            continue
        near = difflib.get_close_matches(value.strip().casefold(), names, n=1, cutoff=0.5)
        likeness = difflib.SequenceMatcher(None, value.strip().casefold(), near[0]).ratio() if near else 0.0
        if limits and likeness >= _SLIP:
            raise CirbenchError(
                f"{table}: {count} rows have the split {value!r}, and there is no triplets.{value}.jsonl. Did you mean "
                f"{near[0]!r}? Correct the column `split`, or rank all images: --set data.gallery=all."
            )
        guess = f" (the nearest is {near[0]!r})" if near else ""
        notes.append(
            f"{count} rows of images.csv have the split {value!r}, which has no triplets.{value}.jsonl{guess}: they "
            "stand in no gallery of a split"
        )
    return notes


def of_split(table: Path, rows: Sequence[dict[str, str]], name: str, needed: bool) -> tuple[str, ...]:
    """Ids whose row names a split; all where there is no such column, or nothing in it.

    Raises:
        CirbenchError: no row names the split, and it is `needed`.
    """
    mine = tuple(row["image_id"] for row in rows if row.get("split") == name)
    found = Counter(row["split"] for row in rows if row.get("split", "").strip())
    if not mine and found and needed:
        have = ", ".join(f"{value!r} ({n})" for value, n in found.most_common(8))
        raise CirbenchError(
            f"{table}: no row has the split {name!r}, so its queries would rank nothing; the column holds {have}. "
            "Correct the column `split`, or rank all images: --set data.gallery=all."
        )
    return mine or tuple(row["image_id"] for row in rows)


def reading_of(upright: bool, background: str) -> Reading:
    """How pictures are read.

    Raises:
        CirbenchError: a background that is no colour.
    """
    from PIL import ImageColor

    if background == "raw":
        return Reading(upright)
    try:
        ImageColor.getrgb(background)
    except ValueError:
        near = difflib.get_close_matches(background.lower(), [*ImageColor.colormap, "raw"], n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        raise CirbenchError(
            f"data.background = {background!r} is no colour.{guess} Give a name such as white, #rrggbb, or raw, which "
            "takes the stored colour of transparent parts."
        ) from None
    return Reading(upright, background)

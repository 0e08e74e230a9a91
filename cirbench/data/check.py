"""What `cirbench data check` looks at: counts against the facts, pictures, texts, and what missing ones imply."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cirbench.data.file_hashes import file_sha256s
from cirbench.data.image_files import DESCRIBED, FolderImages, Reading
from cirbench.data.loading import load
from cirbench.data.verdicts import verdicts
from cirbench.plugins import find_dataset
from cirbench.settings import parse_assignments, resolve
from cirbench.types import CirbenchError, Dataset

#: Ids listed of each problem; the count is always complete.
SHOWN = 20
#: Words that fit between the start and the end of a text: of CLIPs with 77 tokens, and of small ones with 32.
CLIP_WORDS, SMALL_WORDS = 75, 30
#: CLIP's tokenizer splits texts into these before it splits them further, so a text has at least so many tokens.
_PIECE = re.compile(r"[^\W\d_]+|\d|(?:[^\w\s]|_)+")
_ASCII_WORD = re.compile(r"[a-z0-9]+")


def _counts(module: Any, root: Path | None, knobs: Any) -> list[dict[str, Any]]:
    """One entry per count. A file that cannot be read makes its own entries wrong, not those of other files.

    Raises:
        CirbenchError: nothing can be counted, since the folder does not hold the dataset.
    """
    spec, counter = module.SPEC, getattr(module, "counts", None)
    if counter is None or root is None:
        return []
    found = counter(knobs, root)
    if found and all(isinstance(n, str) for n in found.values()):
        raise CirbenchError(next(iter(found.values())))
    out = []
    for what, n in found.items():
        expected = spec.counts.get(what)
        if isinstance(n, str):
            out.append({"what": what, "expected": expected, "found": None, "ok": False, "why": n})
        else:
            out.append({"what": what, "expected": expected, "found": n, "ok": expected in (None, n)})
    return out


def _duplicates(files: dict[str, Path]) -> list[list[str]]:
    """Groups of ids whose files are equal byte for byte; only files of one size are read."""
    sizes: dict[int, list[str]] = {}
    for image_id, path in files.items():
        sizes.setdefault(path.stat().st_size, []).append(image_id)
    alike = [image_id for size, ids in sizes.items() if len(ids) > 1 and size for image_id in ids]
    groups: dict[str, list[str]] = {}
    for image_id, sha in zip(alike, file_sha256s([files[i] for i in alike]), strict=True):
        groups.setdefault(sha, []).append(image_id)
    return [ids for ids in groups.values() if len(ids) > 1 and len({files[i] for i in ids}) > 1]


@dataclass(frozen=True)
class Looked:
    """What decoding every picture told.

    Attributes:
        problems: kind -> ids of the pictures that cannot be used.
        oriented: how many pictures ask to be turned (EXIF orientation).
        transparent: how many have an alpha channel or a transparent colour.
    """

    problems: dict[str, list[str]]
    oriented: int = 0
    transparent: int = 0

    def notes(self, reading: Reading) -> list[str]:
        """How a run reads those that can be read in two ways."""
        out = []
        if self.oriented:
            how = "turned upright" if reading.upright else "read as stored, not turned"
            out.append(f"{self.oriented} pictures carry an EXIF orientation; they are {how}")
        if self.transparent:
            how = f"laid on {reading.background}" if reading.background else "read without their transparency"
            out.append(f"{self.transparent} pictures have an alpha channel or a transparent colour; they are {how}")
        return out


def look(images: FolderImages, ids: Sequence[str], quiet: bool = True) -> Looked:
    """Decode every picture that was not decoded before: neither name nor first and last bytes tell if that works."""
    problems: dict[str, list[str]] = {kind: [] for kind in ("missing", *DESCRIBED)}
    paths = {image_id: images.path(image_id) for image_id in ids}
    files = list(dict.fromkeys(path for path in paths.values() if path is not None))
    found = verdicts(files, quiet)
    for image_id, path in paths.items():
        problem = "missing" if path is None else found[path].problem
        if problem:
            problems[problem].append(image_id)
    counts = [sum(getattr(f, name) for f in found.values()) for name in ("oriented", "transparent")]
    return Looked(problems, *counts)


def text_notes(dataset: Dataset) -> list[str]:
    """How many texts and captions CLIPs cannot read as they stand, as far as that shows without their tokenizers."""
    forms = dict.fromkeys(p.form for p in dataset.protocols)
    queries = [q for split in dataset.splits.values() for q in split.queries]
    texts = {s for q in queries for form in forms for row in dataset.forms[form](q) for s in row}
    captions = {caption for said in dataset.captions.values() for caption in said}
    out = []
    for what, strings in (("texts", texts), ("captions", captions)):
        plain = {s: unicodedata.normalize("NFKD", s).encode("ascii", "ignore").decode().lower() for s in strings}
        longest = sum(len(_PIECE.findall(s)) > CLIP_WORDS for s in strings)
        long = sum(len(_ASCII_WORD.findall(s)) > SMALL_WORDS for s in plain.values())
        foreign = sum(bool(s.strip()) and not _ASCII_WORD.search(p) for s, p in plain.items())
        if longest:
            out.append(f"{longest} {what} have more than {CLIP_WORDS} words and marks; CLIPs of 77 tokens cut them")
        if long:
            out.append(f"{long} {what} have more than {SMALL_WORDS} words; small CLIPs (scenes-*) cut them")
        if foreign:
            out.append(
                f"{foreign} {what} have no Latin letter or digit; small CLIPs (scenes-*) read nothing in them, and "
                "OpenAI's were trained on English"
            )
    return out


def check(
    name: str, root: Path | None, sets: Sequence[str] = (), quiet: bool = True,
    implied: Callable[[Dataset, Collection[str]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """All checks of one dataset on disk, as JSON values; `ok` is whether all pass.

    Args:
        name: of the dataset.
        root: folder of the data.
        sets: `data.field=value` texts.
        quiet: no progress bar.
        implied: what missing pictures imply for the numbers, protocol by protocol; called only if some are missing.

    Raises:
        CirbenchError: annotations that cannot be read at all.
    """
    module = find_dataset(name)
    knobs = resolve(module.Knobs, "data", parse_assignments(sets, ("data",))["data"])
    counts = _counts(module, root, knobs)
    try:
        dataset = load(module, knobs, root)
    except CirbenchError as error:
        if not counts:
            raise
        # Counts show which files are there; pictures are checked once all annotations are.
        return {
            "dataset": module.SPEC.name, "splits": {}, "counts": counts, "images": 0, "problems": {},
            "fingerprint": "", "image_fingerprint": "", "notes": [f"cannot be loaded yet: {error}"], "ok": False,
        }
    ids = list(dict.fromkeys(i for split in dataset.splits.values() for i in split.images()))
    problems: dict[str, list[str]] = {}
    notes = list(dataset.notes)
    if isinstance(dataset.images, FolderImages):
        seen = look(dataset.images, ids, quiet)
        problems = seen.problems
        notes += seen.notes(dataset.images.reading)
        bad = {i for found in problems.values() for i in found}
        whole = {i: path for i in ids if i not in bad and (path := dataset.images.path(i)) is not None}
        problems["duplicate"] = [" = ".join(group) for group in _duplicates(whole)]
    bad = {i for kind, found in problems.items() if kind != "duplicate" for i in found}
    result: dict[str, Any] = {
        "dataset": module.SPEC.name,
        "splits": {role: {"queries": len(s.queries), "images": len(s.images())} for role, s in dataset.splits.items()},
        "counts": counts, "images": len(ids),
        "problems": {kind: {"count": len(found), "ids": found[:SHOWN]} for kind, found in problems.items()},
        "fingerprint": dataset.fingerprint, "image_fingerprint": dataset.images.fingerprint(ids),
        "notes": notes + text_notes(dataset),
        "ok": all(c["ok"] for c in counts) and not bad,
    }
    if bad and implied is not None and "report" in dataset.splits:
        result["bounds"] = implied(dataset, bad)
    return result

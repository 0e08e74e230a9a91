"""The checks of `cirbench data check`: published counts, every picture's file, and what missing ones imply."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cirbench.data.image_files import FolderImages, quick_problem
from cirbench.plugins import find_dataset
from cirbench.settings import parse_assignments, resolve
from cirbench.types import CirbenchError, Dataset

#: Ids listed of each problem; the count is always complete.
SHOWN = 20


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
    groups: dict[str, list[str]] = {}
    for size, ids in sizes.items():
        if len(ids) > 1 and size:
            for image_id in ids:
                key = hashlib.sha256(files[image_id].read_bytes()).hexdigest()
                groups.setdefault(key, []).append(image_id)
    return [ids for ids in groups.values() if len(ids) > 1 and len({files[i] for i in ids}) > 1]


def broken(images: FolderImages, ids: Sequence[str], quiet: bool = True) -> dict[str, list[str]]:
    """Problem -> ids of the pictures that cannot be used."""
    out: dict[str, list[str]] = {k: [] for k in ("missing", "zero-byte", "html", "truncated", "unreadable")}
    for image_id in tqdm(ids, desc="pictures", disable=quiet, leave=False):
        path = images.path(image_id)
        if path is None:
            out["missing"].append(image_id)
            continue
        problem = quick_problem(path)
        if problem == "truncated":
            # A missing end marker is only a suspicion: decoding decides.
            try:
                images.open(image_id)
                problem = ""
            except CirbenchError:
                pass
        if problem:
            out[problem].append(image_id)
    return out


def pictures(images: FolderImages, ids: Sequence[str], quiet: bool = True) -> dict[str, list[str]]:
    """`broken`, and `duplicate`, each as `a = b = c`."""
    out = broken(images, ids, quiet)
    bad = {i for found in out.values() for i in found}
    files = {i: path for i in ids if i not in bad and (path := images.path(i)) is not None}
    out["duplicate"] = [" = ".join(group) for group in _duplicates(files)]
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
        dataset: Dataset = module.load(knobs, root)
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
    if isinstance(dataset.images, FolderImages):
        problems = pictures(dataset.images, ids, quiet)
    bad = {i for kind, found in problems.items() if kind != "duplicate" for i in found}
    result: dict[str, Any] = {
        "dataset": module.SPEC.name,
        "splits": {role: {"queries": len(s.queries), "images": len(s.images())} for role, s in dataset.splits.items()},
        "counts": counts, "images": len(ids),
        "problems": {kind: {"count": len(found), "ids": found[:SHOWN]} for kind, found in problems.items()},
        "fingerprint": dataset.fingerprint, "image_fingerprint": dataset.images.fingerprint(ids),
        "notes": list(dataset.notes),
        "ok": all(c["ok"] for c in counts) and not bad,
    }
    if bad and implied is not None and "report" in dataset.splits:
        result["bounds"] = implied(dataset, bad)
    return result

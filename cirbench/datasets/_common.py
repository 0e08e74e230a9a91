"""What several dataset files share: finding their files, carving `select`, fingerprints, text forms."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cirbench.seeds import digest
from cirbench.settings import nearest, unknown
from cirbench.types import CirbenchError, DatasetSpec, Query

# ------------------------------------------------------------------------------------- finding files


def need_root(root: Path | str | None, spec: DatasetSpec) -> Path:
    """The data folder as a path that exists.

    Raises:
        CirbenchError: none given, no such folder, or a file.
    """
    how = f"`cirbench data get {spec.name} --root DIR` fetches what is public and says what to do about the rest."
    if root is None:
        raise CirbenchError(f"the dataset {spec.name} is read from disk and no folder was given. Add --root DIR. {how}")
    path = Path(root)
    if not path.exists():
        raise CirbenchError(f"--root {path}: no such folder, so there is no {spec.name} data in it. {how}")
    if not path.is_dir():
        raise CirbenchError(f"--root {path} is a file; it must be the folder that holds the {spec.name} data.")
    return path


def find(root: Path, names: Sequence[str], spec: DatasetSpec, hint: str = "") -> Path:
    """The first of `names` that exists under root.

    Raises:
        CirbenchError: none does; lists what is there instead.
    """
    for name in names:
        if (root / name).is_file():
            return root / name
    near = nearest(Path(names[0]).name, sorted(p.name for p in (root / names[0]).parent.glob("*")))
    guess = f" There is {near!r} beside where it should be." if near else ""
    here = sorted(p.name for p in root.iterdir())[:6]
    listing = ", ".join(here) if here else "nothing"
    also = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
    raise CirbenchError(
        f"{spec.name}: {names[0]}{also} is not under {root}, which holds {listing}.{guess} "
        f"{hint or f'Give the folder that holds it as --root, or run `cirbench data get {spec.name} --root {root}`.'}"
    )


def choose(splits: Mapping[str, Any] | Sequence[str], name: str, dataset: str) -> str:
    """A split name that exists.

    Raises:
        CirbenchError: it does not; with the nearest.
    """
    if name not in splits:
        raise unknown(f"split of {dataset}", name, list(splits))
    return name


# ------------------------------------------------------------------------------------- splits


def components(edges: Sequence[Sequence[str]]) -> list[str]:
    """For each edge (images of one query) the smallest image id of its connected component."""
    parent: dict[str, str] = {}

    def top(x: str) -> str:
        parent.setdefault(x, x)
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for images in edges:
        first = top(images[0])
        for other in images[1:]:
            a, b = top(first), top(other)
            # The smaller id remains the root, so that a component's name does not depend on the order of edges.
            parent[max(a, b)] = min(a, b)
    return [top(images[0]) for images in edges]


def pictures(query: Query) -> tuple[str, ...]:
    """Every image a query touches: reference, targets, subset members."""
    return (query.reference, *query.targets, *query.extra.get("members", ()))


def carve(queries: Sequence[Query], share: float, seed: int) -> tuple[list[Query], list[Query]]:
    """Split queries so that no image is on both sides: (the rest, about `share` of them).

    Whole connected components (queries linked by a shared reference, target or subset member) are taken in the
    order of a seeded hash of their smallest image id, skipping those that would exceed the share. The result does not
    depend on the machine or on the order of the file.
    """
    if share <= 0 or len(queries) < 2:
        return list(queries), []
    names = components([pictures(q) for q in queries])
    sizes: dict[str, int] = {}
    for name in names:
        sizes[name] = sizes.get(name, 0) + 1
    quota = max(1, round(share * len(queries)))
    taken: set[str] = set()
    for name in sorted(sizes, key=lambda n: hashlib.sha256(f"{seed}:{n}".encode()).digest()):
        if sizes[name] <= quota and len(taken) < len(sizes) - 1:
            taken.add(name)
            quota -= sizes[name]
    rest = [q for q, name in zip(queries, names, strict=True) if name not in taken]
    return rest, [q for q, name in zip(queries, names, strict=True) if name in taken]


def not_carved(queries: Sequence[Query], share: float) -> str:
    """A note for the record: why `carve` found nothing to set aside, and what would change that."""
    sizes = Counter(components([pictures(q) for q in queries])).values()
    least = min(sizes, default=0)
    start = f"no `select` was carved out of the {len(queries)} train queries"
    if share <= 0:
        return f"{start}: data.select_share is 0"
    if len(sizes) < 2:
        return f"{start}: shared pictures or targets link them all, so none can be set aside without its pictures"
    return (
        f"{start}: the smallest group that shares no picture with the others has {least}, more than data.select_share "
        f"({share:g}) allows; {least / len(queries):.3f} would do"
    )


def images_of(queries: Iterable[Query]) -> tuple[str, ...]:
    """References and targets of some queries, each once, in order."""
    seen: dict[str, None] = {}
    for query in queries:
        seen[query.reference] = None
        seen.update(dict.fromkeys(query.targets))
    return tuple(seen)


def counted(names: Sequence[str], count: Callable[[], Sequence[int]]) -> dict[str, int | str]:
    """Name -> number, or -> the error of the file that holds it, so that other files are still counted."""
    try:
        return dict(zip(names, count(), strict=True))
    except CirbenchError as error:
        return dict.fromkeys(names, str(error))


def id_list_digest(queries: Iterable[Query]) -> str:
    """sha256 of the sorted query ids, one per line: identifies a carved split in documents and tests."""
    return hashlib.sha256("\n".join(sorted(q.id for q in queries)).encode()).hexdigest()


def annotations_fingerprint(name: str, files: Iterable[Path], knobs: Mapping[str, Any], extra: Any = None) -> str:
    """Hash of the annotations and how they were read: file contents and knobs, not paths."""
    hashes = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    return digest([name, hashes, dict(knobs), extra])


Form = Callable[[Query], "list[list[str]]"]


def plain(query: Query) -> list[list[str]]:
    """The text form `text`: one row, the query's first text."""
    return [[query.texts[0]]]

"""One model per FashionIQ category, under one name: the three runs of a seed read as one record.

Its queries, gallery and numbers are those of a run on all three categories, so both kinds stand in one table. Nothing
is written: the runs remain what they are, and are reported on their own as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from cirbench.runs.record import Rankings, Record
from cirbench.runs.record_types import read_run

__all__ = ["CATEGORIES", "EACH", "Joined", "joined"]

CATEGORIES = ("dress", "shirt", "toptee")
#: `data.category` of the record that stands for the three.
EACH = "each"


class _Arrays(Rankings):
    """The arrays of `rankings.npz` of all parts, end to end, positions moved to the joint lists."""

    def __init__(self, parts: Sequence[Record], place: Mapping[str, int]) -> None:
        super().__init__(parts[0].rankings.path)
        self.parts, self.place = parts, place

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays that all parts have."""
        return tuple(n for n in self.parts[0].rankings if all(n in p.rankings for p in self.parts))

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        out, before = [], 0
        for part in self.parts:
            array = part.rankings[name]
            if name.startswith("row_query/"):
                array = array + np.int32(before)
            elif name.startswith("top/"):
                # The last entry is what -1, past the end, becomes.
                moved = np.array([*(self.place[i] for i in part.gallery), -1], dtype=np.int32)
                array = moved[array]
            out.append(array)
            before += len(part.queries)
        return np.concatenate(out)


class _Pictures(dict[str, bytes]):
    """Those of all parts."""

    @property
    def index(self) -> dict[str, str]:
        """As `Pictures.index`: which there are."""
        return dict.fromkeys(self, "")

    def many(self, image_ids: Sequence[str]) -> dict[str, bytes]:
        """As `Pictures.many`."""
        return {i: self[i] for i in dict.fromkeys(image_ids) if i in self}


class Joined(Record):
    """A record made of one run per category.

    Args:
        parts: the runs, in the order of `CATEGORIES`.
    """

    def __init__(self, parts: Sequence[Record]) -> None:
        self.parts, self.folder, first = list(parts), parts[0].folder, parts[0].data
        run_id = hashlib.sha256("".join(p.id for p in parts).encode()).hexdigest()
        inputs = {
            **first["inputs"], "data": {**first["inputs"]["data"], "category": EACH},
            **{key: _digest([p.data["inputs"][key] for p in parts]) for key in ("fingerprint", "images")},
        }
        notes = dict.fromkeys(n for p in parts for n in p.run.notes)
        self.data = {
            **first, "id": run_id, "inputs": inputs, "select": None,
            "name": f"{first['inputs']['dataset']}-{first['inputs']['method']}-{EACH}-{run_id[:10]}",
            "protocols": {
                name: _protocol(name, parts) for name in first["protocols"]
                if all(name in p.run.protocols for p in parts)
            },
            "cost": _cost([p.data["cost"] for p in parts]),
            "notes": [*notes, f"One model per category: {', '.join(p.name for p in parts)}."],
        }
        self.run = read_run(self.data)

    @cached_property
    def queries(self) -> list[dict[str, Any]]:
        """Of all parts, in order."""
        return [q for p in self.parts for q in p.queries]

    @cached_property
    def gallery(self) -> list[str]:
        """Of all parts, each image once."""
        return list(dict.fromkeys(i for p in self.parts for i in p.gallery))

    @cached_property
    def rankings(self) -> Any:
        """The arrays, end to end."""
        return _Arrays(self.parts, {i: n for n, i in enumerate(self.gallery)})

    @cached_property
    def training(self) -> list[dict[str, Any]]:
        """None: three trainings make no curve."""
        return []

    @cached_property
    def pictures(self) -> Any:
        """Of all parts."""
        return _Pictures({i: data for p in self.parts for i, data in p.pictures.items()})

    @cached_property
    def explain(self) -> dict[str, Any]:
        """Of all parts."""
        return {k: v for p in self.parts for k, v in p.explain.items()}

    def files(self) -> tuple[bytes, bytes]:
        """`queries.jsonl` and `gallery.json` as a run on all categories would have written them."""
        lines = b"".join((p.folder / "queries.jsonl").read_bytes() for p in self.parts)
        return lines, (json.dumps(self.gallery, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "surrogatepass")


def _digest(values: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _protocol(protocol: str, records: Sequence[Record]) -> dict[str, Any]:
    """Means over categories, unweighted where the protocol averages over groups; single groups as they are."""
    parts: list[dict[str, Any]] = [r.data["protocols"][protocol] for r in records]
    definition = records[0].definition(protocol)
    weights = [p["queries"] for p in parts] if definition is not None and definition.average == "queries" else None
    names = list(dict.fromkeys(n for p in parts for n in p["metrics"]))
    metrics = {
        n: float(np.average([p["metrics"][n] for p in parts], weights=weights)) for n in names
        if "/" not in n and all(p["metrics"].get(n) is not None for p in parts)
    }
    metrics |= {n: next(p["metrics"][n] for p in parts if n in p["metrics"]) for n in names if "/" in n}
    out = {
        **parts[0], "queries": sum(p["queries"] for p in parts), "gallery": max(p["gallery"] for p in parts),
        "ties": sum(p["ties"] for p in parts), "metrics": metrics,
    }
    lacking = [p.get("missing") for p in parts]
    out.pop("missing", None)
    if any(lacking):
        whole = [
            m or {"queries_lost": 0, "gallery_lost": 0, "bounds": {k: [v, v] for k, v in p["metrics"].items()}}
            for m, p in zip(lacking, parts, strict=True)
        ]
        bounds = {
            n: np.mean([m["bounds"][n] for m in whole], axis=0).tolist()
            for n in names if all(n in m["bounds"] for m in whole)
        }
        out["missing"] = {
            "queries_lost": sum(m["queries_lost"] for m in whole),
            "gallery_lost": max(m["gallery_lost"] for m in whole), "bounds": bounds,
        }
    return out


def _cost(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Three models: parameters and seconds add up, memory is the largest; a query still asks one of them."""
    out = dict(parts[0])
    for group in ("parameters", "seconds"):
        known = [p[group] for p in parts if isinstance(p.get(group), Mapping)]
        if known:
            out[group] = {k: sum(f.get(k) or 0 for f in known) for k in known[0]}
    out["peak_memory_mb"] = max((p.get("peak_memory_mb") or 0 for p in parts), default=0)
    return out


def joined(records: Sequence[Record], identity: Any) -> list[Joined]:
    """One record for every three runs that are equal but for the category.

    Args:
        records: any.
        identity: `collect.identity`, text that is equal for equal inputs.
    """
    models: dict[tuple[str, Any], dict[str, Record]] = {}
    for record in records:
        inputs = record.run.inputs
        category = inputs.data.get("category")
        if inputs.dataset == "fashioniq" and category in CATEGORIES:
            models.setdefault((identity(inputs, "data.category"), inputs.seed), {})[category] = record
    return [Joined([runs[c] for c in CATEGORIES]) for runs in models.values() if len(runs) == len(CATEGORIES)]

"""Records -> one self-contained HTML page. The same records give the same bytes: no date, no path, no chance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cirbench.files import replacing
from cirbench.runs.record import Record
from cirbench.runs.store import Study
from cirbench.types import CirbenchError

from . import explorer as exploring
from .collect import TestSet, collect
from .filters import environment
from .parts import part_of, sections

__all__ = ["build", "write"]


def build(
    records: Sequence[Record], *, sweeps: Sequence[Study] = (), title: str = "", max_mb: float = 5.0,
    images: bool = True, figures: Path | None = None,
) -> str:
    """The page.

    Args:
        records: finished runs.
        sweeps: those that some of them belong to.
        title: heading; by default the datasets reported on.
        max_mb: pictures are left out beyond this size.
        images: False leaves every picture of the dataset out.
        figures: a folder that also gets the figures, as PDF and PNG.

    Raises:
        CirbenchError: no records, or damaged ones.
    """
    tests, sweeps = collect(records), sorted(sweeps, key=lambda s: (s.sweep.name, s.sweep.study))
    parts = [part_of(test, number, images, sweeps) for number, test in enumerate(tests)]
    explorers = [exploring.explorer(part.test, part.protocol, part.index) for part in parts]
    blocks = [block for explorer in explorers for block in explorer.blocks]
    context: dict[str, Any] = {
        "title": title or "Composed image retrieval: " + ", ".join(dict.fromkeys(t.dataset for t in tests)),
        "tests": tests, "parts": parts, "sections": sections(parts), "images": images, "max_mb": max_mb,
        "explorers": explorers, "blocks": blocks, "provenance": _provenance(tests),
    }
    if figures is not None:
        from .figures import save

        save([figure for part in parts for figure in part.figures.all()], figures)
    page = environment().get_template("report.html.j2")
    if images:
        # The page without the explorers' pictures is measured; what the budget leaves is theirs, in equal shares.
        left = int(max_mb * 1e6) - len(page.render(context).encode("utf-8", "replace")) - 2000
        for number, explorer in enumerate(explorers):
            before = len(explorer.blocks)
            exploring.add_pictures(explorer, left // (len(parts) - number))
            left -= sum(len(b.text) + 60 for b in explorer.blocks[before:])
            blocks += explorer.blocks[before:]
    return page.render(context)


@dataclass
class Environment:
    """Hardware and versions, (name, value), that so many `runs` share; when the first began and the last ended."""

    items: list[tuple[str, Any]]
    runs: int
    first: str
    last: str


@dataclass(frozen=True)
class Provenance:
    """All runs of a report, and what their records say beside numbers, equal sentences once."""

    records: list[Record]
    environments: list[Environment]
    notes: list[str]
    omitted: list[str]

    @staticmethod
    def inputs(record: Record) -> str:
        """Everything that a run depends on, as JSON text."""
        return json.dumps(
            {"inputs": record.run.inputs.raw, "overrides": record.run.overrides}, indent=1, ensure_ascii=False
        )


def _provenance(tests: Sequence[TestSet]) -> Provenance:
    records = [r for t in tests for a in t.arms for r in a.records]
    environments: dict[str, Environment] = {}
    for record in records:
        names = dict(record.run.environment)
        names.pop("commit", None)  # it stands with the run
        machine = names.pop("machine", None)
        names |= machine if isinstance(machine, dict) else {}
        items = [(k, v) for k, v in names.items() if isinstance(v, str | int | float) and v != ""]
        started, finished = record.run.started[:16], record.run.finished[:16]
        group = environments.setdefault(repr(items), Environment(items, 0, started, finished))
        group.runs += 1
        group.first, group.last = min(group.first, started), max(group.last, finished)
    return Provenance(
        records, list(environments.values()), list(dict.fromkeys(n for r in records for n in r.run.notes)),
        list(dict.fromkeys(f"{k}: {v}" for r in records for k, v in r.run.omitted.items())),
    )


def write(path: Path, page: str) -> None:
    """Write the page as a whole or not at all.

    Raises:
        CirbenchError: the folder cannot be written to.
    """
    try:
        with replacing(path) as file:
            file.write(page.encode("utf-8", "replace"))
    except OSError as error:
        raise CirbenchError(f"cannot write {path}: {error.strerror or error}. Name another file with -o.") from None

"""Records -> one self-contained HTML page. The same records give the same bytes: no date, no path, no chance."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from cirbench.reports import explorer as exploring
from cirbench.reports import tables
from cirbench.reports.collect import TestSet, collect

from cirbench.records import Record
from cirbench.types import CirbenchError

__all__ = ["build", "write"]

TEMPLATES = Path(__file__).parent / "templates"
EXAMPLES = 12


def build(
    records: Sequence[Record], *, title: str = "", max_mb: float = 5.0, images: bool = True, figures: Path | None = None
) -> str:
    """The page.

    Args:
        records: finished runs.
        title: heading; by default the datasets reported on.
        max_mb: pictures are left out beyond this size.
        images: False leaves every picture of the dataset out.
        figures: a folder that also gets the figures, as PDF and PNG.

    Raises:
        CirbenchError: no records, or damaged ones.
    """
    tests = collect(records)
    parts = [_test_part(test, number, images) for number, test in enumerate(tests)]
    context: dict[str, Any] = {
        "title": title or "Composed image retrieval: " + ", ".join(dict.fromkeys(t.dataset for t in tests)),
        "records": [r for t in tests for a in t.arms for r in a.records],
        "tests": tests, "parts": parts, "images": images, "max_mb": max_mb,
        "explorers": [], "blocks": [], **_provenance(tests),
    }
    context["sections"] = _sections(context)
    environment = _environment()
    page = environment.get_template("report.html.j2")
    # What is on the page without the explorer is measured, the rest of the budget is for pictures.
    left = int(max_mb * 1e6) - len(page.render(context).encode("utf-8", "replace")) if images else 0
    for part in parts:
        share = left // (len(parts) - part["index"]) if images else 0
        found = exploring.explorer(part["test"], part["protocol"], part["index"], share)
        left -= sum(len(b.text) for b in found.blocks)
        context["explorers"].append(found)
        context["blocks"] += found.blocks
    return page.render(context)


def _test_part(test: TestSet, number: int, images: bool) -> dict[str, Any]:
    protocols = test.protocols()
    return {
        "index": number, "test": test, "protocol": protocols[0],
        "tables": [tables.main_table(test, name) for name in protocols],
        "costs": tables.cost_rows(test.arms), "published": [], "published_metrics": [], "figures": {"summary": []},
        "examples": exploring.examples(test, protocols[0], EXAMPLES, images),
    }


def _sections(context: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(anchor, heading, template) of the sections that have something to show."""
    return [("summary", "Summary", "summary.html.j2"), ("queries", "Queries", "queries.html.j2"),
            ("provenance", "Provenance", "provenance.html.j2")]


def _provenance(tests: Sequence[TestSet]) -> dict[str, Any]:
    """Environments, notes and omissions of all runs, equal ones told once."""
    records = [r for t in tests for a in t.arms for r in a.records]
    environments: dict[str, dict[str, Any]] = {}
    for record in records:
        told = dict(record.data.get("environment") or {})
        told.pop("commit", None)  # it stands with the run
        machine = told.pop("machine", None)
        told |= machine if isinstance(machine, dict) else {}
        items = [(k, v) for k, v in told.items() if isinstance(v, str | int | float) and v != ""]
        started, finished = str(record.data.get("started", ""))[:16], str(record.data.get("finished", ""))[:16]
        group = environments.setdefault(repr(items), {"items": items, "runs": 0, "first": started, "last": finished})
        group["runs"] += 1
        group["first"], group["last"] = min(group["first"], started), max(group["last"], finished)
    return {
        "environments": list(environments.values()),
        "notes": list(dict.fromkeys(str(n) for r in records for n in r.data.get("notes") or ())),
        "omitted": list(dict.fromkeys(f"{k}: {v}" for r in records for k, v in (r.data.get("omitted") or {}).items())),
        "inputs_text": lambda record: json.dumps(
            {"inputs": record.data["inputs"], "overrides": record.data.get("overrides")}, indent=1, ensure_ascii=False
        ),
    }


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(num=_number, big=_big, isnan=math.isnan, said=_said, exact=_exact, slug=_slug)
    return environment


def _number(value: float | None, digits: int = 2) -> str:
    """A number for people, or a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def _exact(value: float | None) -> str:
    """A number for sorting and for tests: nothing rounded away."""
    return "" if value is None or math.isnan(value) else repr(float(value))


def _big(value: float | None) -> str:
    """Counts with a unit: 1234567 -> 1.23 M."""
    if value is None or math.isnan(value):
        return "–"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _said(value: Any) -> str:
    """Text of a dataset, as one string. The template isolates it (`<bdi>`), so that its marks stay inside."""
    text = " / ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text.encode("utf-8", "replace").decode()


def _slug(text: str) -> str:
    """Letters, digits and dashes only."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def write(path: Path, page: str) -> None:
    """Write the page as a whole or not at all.

    Raises:
        CirbenchError: the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8", errors="replace", newline="\n")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CirbenchError(f"cannot write {path}: {error.strerror or error}. Name another file with -o.") from None

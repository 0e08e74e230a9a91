"""Records -> one self-contained HTML page. The same records give the same bytes: no date, no path, no chance."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from cirbench.records import Record
from cirbench.reports import explorer as exploring
from cirbench.reports import tables
from cirbench.reports.collect import TestSet, collect

__all__ = ["build"]

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
        "explorers": [], "blocks": [],
    }
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
        "costs": tables.cost_rows(test.arms),
        "examples": exploring.examples(test, protocols[0], EXAMPLES, images),
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

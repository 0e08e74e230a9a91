"""Numbers and text as the templates print them."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from cirbench.scoring import statistics

__all__ = ["environment", "slug"]

TEMPLATES = Path(__file__).parent / "templates"


def environment() -> jinja2.Environment:
    """The templates, with every filter that they use; a name that a template misspells is an error."""
    out = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    out.filters.update(
        num=number, signed=signed, big=big, isnan=math.isnan, plain=plain, exact=exact, slug=slug,
        breakable=breakable, command=command, deviation=lambda scores: statistics.mean_std(scores)[1],
    )
    return out


def number(value: float | None, digits: int = 2) -> str:
    """A number for people, or a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float) -> str:
    """A difference, its sign always shown."""
    return "–" if math.isnan(value) else f"{value:+.2f}".replace("-", "−")


def exact(value: float | None) -> str:
    """A number for sorting and for tests: nothing rounded away."""
    return "" if value is None or math.isnan(value) else repr(float(value))


def big(value: float | None) -> str:
    """Counts with a unit: 1234567 -> 1.23 M."""
    if value is None or math.isnan(value):
        return "–"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def plain(value: Any) -> str:
    """Text of a dataset, as one string. The template isolates it (`<bdi>`), so that its marks stay inside."""
    text = " / ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text.encode("utf-8", "replace").decode()


def breakable(text: Any) -> markupsafe.Markup:
    """A name of knobs and values that a narrow column may break where a reader would."""
    return markupsafe.Markup(re.sub(r"([_=,/])(?=\S)", r"\1<wbr>", str(markupsafe.escape(plain(text)))))


def command(text: Any) -> str:
    """The command that repeats a run, without where its folder went and how much it printed."""
    try:
        words = shlex.split(plain(text))
    except ValueError:
        return plain(text)
    before = ["", *words][: len(words)]
    dropped = ("--out", "-q", "--quiet")
    return shlex.join(
        w for w, last in zip(words, before, strict=True)
        if w not in dropped and last != "--out" and not w.startswith("--out=")
    )


def slug(text: str) -> str:
    """Letters, digits and dashes only."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")

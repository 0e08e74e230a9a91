"""Records -> one self-contained HTML page. The same records give the same bytes: no date, no path, no chance."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
from cirbench.reports import analysis, attention, claims, modalities, studies, tables
from cirbench.reports import explorer as exploring
from cirbench.reports.collect import TestSet, collect

from cirbench import statistics
from cirbench.folders import Study
from cirbench.records import Record
from cirbench.types import CirbenchError

__all__ = ["build", "write"]

TEMPLATES = Path(__file__).parent / "templates"
EXAMPLES = 6


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
    parts = [_test_part(test, number, images, sweeps) for number, test in enumerate(tests)]
    context: dict[str, Any] = {
        "title": title or "Composed image retrieval: " + ", ".join(dict.fromkeys(t.dataset for t in tests)),
        "records": [r for t in tests for a in t.arms for r in a.records],
        "tests": tests, "parts": parts, "images": images, "max_mb": max_mb,
        "explorers": [], "blocks": [], **_provenance(tests),
    }
    context["sections"] = _sections(parts)
    if figures is not None:
        from cirbench.reports.figures import save

        save([f for part in parts for found in part["figures"].values() for f in found], figures)
    environment = _environment()
    page = environment.get_template("report.html.j2")
    for part in parts:
        context["explorers"].append(exploring.explorer(part["test"], part["protocol"], part["index"]))
        context["blocks"] += context["explorers"][-1].blocks
    if images:
        # The page without the explorers' pictures is measured; what the budget leaves is theirs, in equal shares.
        left = int(max_mb * 1e6) - len(page.render(context).encode("utf-8", "replace")) - 2000
        for number, found in enumerate(context["explorers"]):
            before = len(found.blocks)
            exploring.add_pictures(found, left // (len(parts) - number))
            left -= sum(len(b.text) + 60 for b in found.blocks[before:])
            context["blocks"] += found.blocks[before:]
    return page.render(context)


def _test_part(test: TestSet, number: int, images: bool, found: Sequence[Study]) -> dict[str, Any]:
    """Everything the templates show of one test set."""
    protocols = test.protocols()
    default = protocols[0]
    shown = [tables.main_table(test, name) for name in protocols]
    metric = shown[0].metrics[0] if shown[0].metrics else ""
    published = _published(test.dataset)
    part: dict[str, Any] = {
        "index": number, "test": test, "protocol": default, "metric": metric, "tables": shown,
        "costs": tables.cost_rows(test.arms),
        "published": published, "published_metrics": list(dict.fromkeys(m for e in published for m in e["metrics"])),
        "examples": exploring.examples(test, default, EXAMPLES, images),
        "families": analysis.ablations(test, default, metric), "curves": analysis.curves(test, default, metric),
        "noise": analysis.curves(test, default, metric, analysis.NOISE, least=2),
        "backbones": [
            {"curve": c, "costs": {r.arm.key: r for r in tables.cost_rows([p[2] for p in c.points])}}
            for c in analysis.curves(test, default, metric, analysis.BACKBONE, least=2)
        ],
        "audit": modalities.audit(test, default, metric), "studies": studies.studies(test, found, metric),
        "attention": attention.attention(test, images), "doubtful": _pictured(test, default, images),
        "training": analysis.training(test),
    }
    part["modality"] = modalities.modality(test, part["audit"])
    part["answers"] = claims.answers(test, default, metric, part["modality"], part["audit"], part["attention"])
    part["figures"] = _figures(part)
    return part


def _published(dataset: str) -> list[dict[str, Any]]:
    """Numbers of papers on a dataset, each with its source and protocol (published.toml)."""
    found = tomllib.loads((TEMPLATES.parent / "published.toml").read_text(encoding="utf-8"))
    return [entry for entry in found["result"] if entry["dataset"] == dataset]


def _pictured(test: TestSet, protocol: str, images: bool) -> list[dict[str, Any]]:
    """Likely false negatives with their pictures, where kept."""
    found = analysis.false_negatives(test, protocol)
    ids = [i for d in found for i in (d["query"]["reference"], d["query"]["targets"][0], d["image"])]
    known = exploring.pictures(test.arms, ids) if images and ids else {}
    uri = {image_id: exploring.data_uri(data) for image_id, data in known.items()}
    return [d | {"uri": uri} for d in found]


def _figures(part: dict[str, Any]) -> dict[str, list[Any]]:
    """Section -> figures of one test set."""
    from cirbench.reports import figures as draw

    n, metric, test = part["index"], part["metric"], part["test"]
    scores = {row.arm.key: row.cells[metric].mean for row in part["tables"][0].rows if row.cells.get(metric)}
    by_knob: dict[str, list[Any]] = {}
    for curve in part["curves"]:
        by_knob.setdefault(curve.knob, []).append(curve)
    by_stream = [row for row in part["modality"] if row["arm"] is part["modality"][0]["arm"]]
    return {
        "summary": [f for f in [draw.score_figure(f"score-{n}", part["tables"][0], metric)] if f],
        "cost": [f for f in [draw.cost_figure(f"cost-{n}", part["costs"], scores, metric)] if f],
        "ablation": [draw.ablation_figure(f"ablation-{n}-{k}", f) for k, f in enumerate(part["families"])
                     if len(f.deltas) > 1],
        "sensitivity": [
            draw.curve_figure(f"curve-{n}-{_slug(knob)}", found[:8], metric) for knob, found in by_knob.items()
        ],
        "noise": [draw.curve_figure(f"noise-{n}", part["noise"][:8], metric)] if part["noise"] else [],
        "modality": [
            draw.modality_figure(f"modality-{n}-{_slug(row['stream'])}", row, test.groups) for row in by_stream
        ],
        "training": [
            *draw.training_figures(f"losses-{n}", part["training"], "losses", ""),
            *draw.training_figures(f"select-{n}", part["training"], "select", "%"),
            *draw.training_figures(f"bound-{n}", part["training"], "bound", "nats"),
        ],
    }


SECTIONS = (
    ("questions", "Questions", ("answers",)), ("ablation", "Ablation", ("families",)),
    ("sensitivity", "Sensitivity", ("curves", "studies")),
    ("backbones", "Backbones", ("backbones",)), ("modality", "Modality importance", ("modality", "audit")),
    ("queries", "Queries", ("examples",)), ("attention", "Attention", ("attention",)),
    ("noise", "Label noise", ("noise", "doubtful")), ("training", "Training", ("training",)),
)


def _sections(parts: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(anchor, heading, template) of the sections that have something to show."""
    middle = [(i, name, f"{i}.html.j2") for i, name, keys in SECTIONS if any(p[k] for p in parts for k in keys)]
    return [("summary", "Summary", "summary.html.j2"), *middle, ("provenance", "Provenance", "provenance.html.j2")]


def _provenance(tests: Sequence[TestSet]) -> dict[str, Any]:
    """Environments, notes and omissions of all runs, equal ones told once."""
    records = [r for t in tests for a in t.arms for r in a.records]
    environments: dict[str, dict[str, Any]] = {}
    for record in records:
        told = dict(record.run.environment)
        told.pop("commit", None)  # it stands with the run
        machine = told.pop("machine", None)
        told |= machine if isinstance(machine, dict) else {}
        items = [(k, v) for k, v in told.items() if isinstance(v, str | int | float) and v != ""]
        started, finished = record.run.started[:16], record.run.finished[:16]
        group = environments.setdefault(repr(items), {"items": items, "runs": 0, "first": started, "last": finished})
        group["runs"] += 1
        group["first"], group["last"] = min(group["first"], started), max(group["last"], finished)
    return {
        "environments": list(environments.values()),
        "notes": list(dict.fromkeys(n for r in records for n in r.run.notes)),
        "omitted": list(dict.fromkeys(f"{k}: {v}" for r in records for k, v in r.run.omitted.items())),
        "inputs_text": lambda record: json.dumps(
            {"inputs": record.run.inputs.raw, "overrides": record.run.overrides}, indent=1, ensure_ascii=False
        ),
    }


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        num=_number, signed=_signed, big=_big, isnan=math.isnan, said=_said, exact=_exact, slug=_slug,
        breakable=_breakable, command=_command, deviation=lambda scores: statistics.mean_std(scores)[1],
    )
    return environment


def _number(value: float | None, digits: int = 2) -> str:
    """A number for people, or a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def _signed(value: float) -> str:
    """A difference, its sign always shown."""
    return "–" if math.isnan(value) else f"{value:+.2f}".replace("-", "−")


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


def _breakable(text: Any) -> markupsafe.Markup:
    """A name of knobs and values that a narrow column may break where a reader would."""
    return markupsafe.Markup(re.sub(r"([_=,/])(?=\S)", r"\1<wbr>", str(markupsafe.escape(_said(text)))))


def _command(text: Any) -> str:
    """What repeats a run: where it was put, and whether it was told about, are no part of that."""
    try:
        words = shlex.split(_said(text))
    except ValueError:
        return _said(text)
    before = ["", *words][: len(words)]
    gone = ("--out", "-q", "--quiet")
    return shlex.join(
        w for w, last in zip(words, before, strict=True)
        if w not in gone and last != "--out" and not w.startswith("--out=")
    )


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
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise CirbenchError(f"cannot write {path}: {error.strerror or error}. Name another file with -o.") from None

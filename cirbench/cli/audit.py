"""Say which queries need composition at all, and who answers those."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click


@click.command(epilog="""\b
Examples:
  cirbench run --method text-only  --variant clip-only --dataset scenes
  cirbench run --method image-only --variant clip-only --dataset scenes
  cirbench audit runs                       (with the runs to be judged beside them)
  cirbench audit runs --metric R@1 --json
""")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option("--protocol", default="", help="Protocol to judge under. [each dataset's default]")
@click.option("--metric", default="", help="A query is answered where it is one half or more. [R@10, or the summary]")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def audit(runs: tuple[Path, ...], protocol: str, metric: str, as_json: bool) -> None:
    """Judge RUNS (default: runs/) on the queries that neither the text nor the image answers alone.

    Needs runs of text-only and image-only on the same dataset, best with the encoder of the runs that are judged.
    """
    import json

    from cirbench.reports.collect import collect, metric_names
    from cirbench.reports.modalities import SINGLE
    from cirbench.reports.modalities import audit as audited
    from cirbench.reports.shortcuts import labels, rest
    from cirbench.runs.store import find_records
    from cirbench.settings import unknown
    from cirbench.types import CirbenchError

    tests = collect(find_records(list(runs) or [Path("runs")]))
    known = list(dict.fromkeys(p for test in tests for p in test.protocols()))
    if protocol and protocol not in known:
        raise unknown("protocol", protocol, known, "They are those of these runs.")
    found = []
    for test in (t for t in tests if not protocol or protocol in t.protocols()):
        name = protocol or test.protocols()[0]
        names = metric_names(test.arms, name)
        if metric and metric not in names:
            raise unknown("metric", metric, names, f"They are those of {name}.")
        made = audited(test, name, metric or ("R@10" if "R@10" in names else names[0]))
        if made is None:
            lacking = [m for m in SINGLE if m not in {a.method for a in test.arms}]
            what = f"no run of {' and '.join(lacking)}" if lacking else "no run of a method that composes"
            if len(tests) > 1:
                click.echo(f"{test.dataset}: {what}, so it is left out.", err=True)
                continue
            more = f" Make one: cirbench run --method {lacking[0]} --dataset {test.dataset}." if lacking else ""
            raise CirbenchError(f"{what} on {test.dataset} ({len(test.arms)} methods found).{more}")
        found.append((test, name, made, rest(test, made, name), labels(test, made, name)))
    if not found:
        raise CirbenchError("none of these datasets has runs of text-only, image-only and a method that composes.")
    if as_json:
        click.echo(json.dumps([_data(*one) for one in found], indent=1))
        return
    click.echo("\n".join(_text(*one) for one in found), nl=False)


def _data(test: Any, protocol: str, made: Any, rows: list[Any], labels: list[Any]) -> dict[str, Any]:
    def value(x: float) -> float | None:
        return None if math.isnan(x) else x

    return {
        "dataset": test.dataset, "protocol": protocol, "metric": made.metric,
        "text": {"run": made.text_arm.records[0].id, "value": made.text},
        "image": {"run": made.image_arm.records[0].id, "value": made.image},
        "gap": {"method": made.arm.label, "value": made.gap, "low": made.gap_low, "high": made.gap_high},
        "queries": {cell.name: cell.count for cell in made.cells},
        "methods": [
            {
                "method": row.arm.label, "runs": [r.id for r in row.arm.records],
                "all": {"value": row.all, "low": row.all_low, "high": row.all_high},
                "needs_composition": {"value": value(row.rest), "low": value(row.low), "high": value(row.high)},
                "by": {name: value(x) for name, x in row.cells.items()},
            }
            for row in rows
        ],
        "labels": {row.label: {"queries": row.count, **row.cells} for row in labels},
    }


def _text(test: Any, protocol: str, made: Any, rows: list[Any], labels: list[Any]) -> str:
    from cirbench.reports.modalities import CELLS

    count = sum(cell.count for cell in made.cells)
    order = [*CELLS[1:], CELLS[0]]
    by = {cell.name: cell for cell in made.cells}
    lines = [
        f"{test.dataset}, {protocol}, {made.metric}, {count} queries",
        f"text alone {made.text:.1f} ({made.text_arm.label}), image alone {made.image:.1f} ({made.image_arm.label})",
        "",
        f"{'answered by':16}" + "".join(f"{name:>13}" for name in order),
        f"{'queries':16}" + "".join(f"{by[name].count:13}" for name in order),
    ]
    if labels:
        wide = max(16, *(len(row.label) + 2 for row in labels))
        lines += [f"{row.label:{wide}}" + "".join(f"{row.cells[name]:13}" for name in order) for row in labels]
    width = max(len(row.arm.label) for row in rows)
    lines += ["", f"{'':{width}}{'all':>22}{'needs composition':>24}" + "".join(f"{name:>13}" for name in order[:-1])]
    for row in rows:
        parts = [f"{row.all:.1f} [{row.all_low:.1f}, {row.all_high:.1f}]".rjust(22)]
        rest = "no query" if math.isnan(row.rest) else f"{row.rest:.1f} [{row.low:.1f}, {row.high:.1f}]"
        by_one = ("" if math.isnan(row.cells[n]) else f"{row.cells[n]:.1f}" for n in order[:-1])
        parts += [rest.rjust(24), *(text.rjust(13) for text in by_one)]
        lines.append(f"{row.arm.label:{width}}" + "".join(parts))
    lines += [
        "", f"Needs composition: the {by['neither'].count} queries that neither {made.text_arm.label} nor "
        f"{made.image_arm.label} answers.", "Intervals: 95 %, over queries and, where there are several, seeds.", "",
    ]
    return "\n".join(lines)

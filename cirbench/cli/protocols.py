"""What each protocol means, who uses it, what papers report under it, and what it is worth on one's own run."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import click


@click.command(epilog="""\b
Examples:
  cirbench protocols
  cirbench protocols fashioniq
  cirbench protocols fashioniq --published     (figures of papers, each under what was counted)
  cirbench protocols --run runs/fashioniq-...  (the same weights under every protocol)
""")
@click.argument("dataset", required=False)
@click.option("--published", is_flag=True, help="Figures of papers instead, by protocol, with what is odd about them.")
@click.option("--run", "folder", default=None, metavar="RUN", type=click.Path(path_type=Path),
              help="What each protocol makes of this run, against its default one.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def protocols(dataset: str | None, published: bool, folder: Path | None, as_json: bool) -> None:
    """Every protocol of DATASET, or of all datasets, the default first."""
    from cirbench.plugins import dataset_names, find_dataset
    from cirbench.types import CirbenchError

    if folder is not None:
        if dataset or published:
            raise CirbenchError("--run shows the protocols of that run; give it without a dataset and --published.")
        _translate(folder, as_json)
        return
    names = [dataset] if dataset else dataset_names()
    facts = {name: find_dataset(name).SPEC for name in names}
    if published:
        _published({name: spec.name for name, spec in facts.items()}, as_json, bool(dataset))
        return
    if as_json:
        click.echo(json.dumps({
            name: [{
                "name": p.name, "form": p.form, "gallery": p.gallery, "drop_reference": p.drop_reference, "hit": p.hit,
                "average": p.average, "metrics": list(p.metrics), "summary": p.summary, "known_as": list(p.known_as),
                "note": p.note,
            } for p in spec.protocols] for name, spec in facts.items()
        }, indent=1))
        return
    for name, spec in facts.items():
        click.echo(f"{name}: {spec.title}")
        for number, p in enumerate(spec.protocols):
            default = " (default)" if number == 0 else ""
            known = f"  [{', '.join(p.known_as)}]" if p.known_as else ""
            click.echo(f"  {p.name}{default}{known}")
            click.echo(f"      {p.note or 'all images of the split'}; text form {p.form}; {', '.join(p.metrics)}")


def _published(names: dict[str, str], as_json: bool, one: bool) -> None:
    from dataclasses import asdict

    from cirbench.reports.published import mixtures, published

    found = {name: published(spec) for name, spec in names.items()}
    if as_json:
        click.echo(json.dumps({
            name: {"figures": [asdict(row) for row in rows], "mixtures": [asdict(m) for m in mixtures(names[name])]}
            for name, rows in found.items() if rows or one
        }, indent=1))
        return
    for name, rows in found.items():
        if not rows:
            if one:
                click.echo(f"{name}: no published figure is known.")
            continue
        click.echo(f"{name}, as printed in the sources named; none was measured here; only rows of one heading compare")
        width = max(len(_row(row)) for row in rows)
        for protocol, group in groupby(rows, key=lambda row: row.protocol):
            together = list(group)
            columns = list(dict.fromkeys(m for row in together for m in row.metrics))
            click.echo(f"\n  {protocol}\n    {'':{width}}" + "".join(f"{m:>8}" for m in columns))
            for row in together:
                numbers = "".join(f"{row.metrics[m]:8.2f}" if m in row.metrics else f"{'':8}" for m in columns)
                more = "; ".join(part for part in (row.equals, row.note) if part)
                click.echo(f"    {_row(row):{width}}{numbers}" + (f"   {more}" if more else ""))
        click.echo("\n  sources: " + "; ".join(dict.fromkeys(row.source for row in rows)))
        for mixture in mixtures(names[name]):
            click.echo(f"  unlike numbers in one column: {mixture.text} ({mixture.source})")
        click.echo()


def _row(row: Any) -> str:
    return row.method + (f", {row.backbone}" if row.backbone else "")


def _translate(folder: Path, as_json: bool) -> None:
    from cirbench.reports.translate import translate
    from cirbench.runs.record import Record

    record = Record(folder)
    rows = translate(record)
    if as_json:
        click.echo(json.dumps({"run": record.id, "protocols": rows}, indent=1))
        return
    click.echo(f"{record.name}: the same weights under every protocol; differences are from {rows[0]['protocol']}")
    width = max(len(row["protocol"]) for row in rows)
    for row in rows:
        change = "" if row["delta"] is None else f"{row['delta']:+8.2f}"
        if row["low"] is not None:
            change += f"  [{row['low']:+.2f}, {row['high']:+.2f}]"
        what = ", ".join(row["switches"])
        value = "" if row["value"] is None else f"{row['value']:.2f}"
        line = f"  {row['protocol']:{width}}  {row['metric']:>16} {value:>7}{change:26}  {what}"
        click.echo(line.rstrip() + (f"  [{', '.join(row['known_as'])}]" if row["known_as"] else ""))
    click.echo("Intervals: 95 %, over the queries of this run, where both protocols have the same ones.")
    for name, why in record.run.omitted.items():
        click.echo(f"  {name} was left out: {why}")

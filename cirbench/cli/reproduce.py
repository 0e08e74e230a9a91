"""Run a paper's recipe and compare with its published figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from cirbench.cli._shared import command_line, is_quiet, run_options


@click.command(epilog="""\b
Examples:
  cirbench reproduce dwc --dataset shoes --root DATA --dry-run
  cirbench reproduce dwc --dataset shoes --root DATA --device cuda
""")
@click.argument("method")
@click.option("--dataset", "-d", required=True, help="A dataset that the paper reports.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--backbone", default="", help="CLIP to use instead; the paper's figures are then no target.")
@click.option("--set", "sets", multiple=True, metavar="SCOPE.FIELD=VALUE", help="Override a field of the recipe.")
@click.option("--dry-run", is_flag=True, help="Print plan, memory and time from a few measured steps; train nothing.")
@run_options
def reproduce(
    method: str, dataset: str, seed: int, backbone: str, sets: tuple[str, ...], dry_run: bool, root: Path | None,
    out: Path, device: str, quiet: bool, as_json: bool,
) -> None:
    """Run the recipe of METHOD's paper on a dataset; print expected and own figures and OK, OKish or FAIL.

    Exit code 1 if a metric fails.
    """
    from cirbench.runs import reproduce as recipes

    expected = recipes.find(method, dataset)
    plans = [e.plan(seed, sets, root, backbone) for e in expected]
    results: list[dict[str, Any]] = []
    failed = False
    for row, planned in zip(expected, plans, strict=True):
        if not as_json:
            _head(row, planned)
        if dry_run:
            from cirbench.runs.estimate import estimate

            found = estimate(planned, device, quiet=is_quiet(quiet) or as_json)
            results.append({"recipe": dict(planned.overrides), **vars(found), "seconds": found.seconds})
            if not as_json:
                _cost(found)
            continue
        from cirbench.runs import execution

        options = execution.Options(out, device, quiet=is_quiet(quiet) or as_json, command=command_line())
        record = execution.run(planned, options)
        rows = recipes.compare(row, record.run)
        failed |= any(r.verdict == "FAIL" for r in rows)
        results.append({"folder": str(record.folder), "rows": [{**vars(r), "difference": r.difference} for r in rows]})
        if not as_json:
            click.echo(f"  {'':<14}{'expected':>9}{'ours':>9}{'diff':>9}")
            for r in rows:
                click.echo(f"  {r.metric:<14}{r.expected:>9.2f}{r.ours:>9.2f}{r.difference:>+9.2f}  {r.verdict}")
            if row.doubt and any(r.verdict != "OK" for r in rows):
                click.echo(f"  {row.doubt}")
    if as_json:
        click.echo(json.dumps(results, indent=1))
    if failed:
        sys.exit(1)


def _head(row: Any, planned: Any) -> None:
    """What is run, and what it is compared with."""
    label = " ".join(p for p in (row.method, row.variant) if p)
    click.echo(f"{label} on {row.dataset}, protocol {row.protocol}, seed {planned.seed}")
    click.echo(f"  source: {row.source}")
    settings = planned.train
    click.echo(f"  {settings.epochs} epochs of batches of {settings.batch_size}; checkpoint: {settings.selection}")
    click.echo(f"  recipe: {', '.join(f'{k}={json.dumps(v)}' for k, v in planned.overrides.items())}")


def _cost(found: Any) -> None:
    """An estimate in a few lines."""
    click.echo(
        f"  {found.parameters:,} trainable parameters; {found.steps:,} steps of {found.step_seconds:.2f} s; frozen "
        f"features {_time(found.feature_seconds)}; {found.evaluations} evaluations of {_time(found.evaluate_seconds)}"
    )
    click.echo(
        f"  about {_time(found.seconds)} here, decoding of pictures not counted; memory {found.memory_mb:,.0f} MB"
    )


def _time(seconds: float) -> str:
    """`40 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

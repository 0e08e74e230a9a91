"""Evaluate the weights of a run again, on its own or on another dataset."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cirbench.cli._shared import command_line, is_quiet, parse_forms, run_options, scoring_options


@click.command("eval")
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--dataset", "-d", default=None, help="Dataset to evaluate on. [the run's own]")
@click.option("--set", "sets", multiple=True, metavar="data.FIELD=VALUE", help="Override a knob of the dataset.")
@scoring_options
@run_options
def command(
    folder: Path, dataset: str | None, sets: tuple[str, ...], forms: str | None, allow_missing: bool,
    root: Path | None, out: Path, device: str, quiet: bool, as_json: bool,
) -> None:
    """Evaluate RUN's weights and write a new record."""
    from cirbench.runs.evaluate_run import evaluate_run, plan_eval

    planned, record = plan_eval(folder, dataset, sets, root, parse_forms(forms))
    from cirbench.cli.run import show

    found = evaluate_run(
        planned, record, out, device, is_quiet(quiet) or as_json, command_line(), allow_missing
    )
    if as_json:
        click.echo(json.dumps({"folder": str(found.folder), **found.data}, indent=1))
    elif not quiet:
        show(found)

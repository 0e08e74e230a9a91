"""Train and evaluate a method on a dataset, and keep a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cirbench.cli._shared import (
    command_line,
    is_quiet,
    parse_forms,
    parse_seeds,
    run_options,
    scoring_options,
    summary_line,
)


@click.command(epilog="""\b
Examples:
  cirbench run --method dwc --dataset scenes
  cirbench run --method dwc --variant no-emd --dataset scenes --seeds 0,1,2
  cirbench run --method dwc --dataset custom --root photos/ --backbone my-clip/ --recipe scenes
  cirbench run --method dwc --dataset scenes --set train.epochs=2 --set method.soft_label_weight=0.5
""")
@click.option("--method", "-m", required=True, help="Name (`cirbench list methods`) or path of a .py file.")
@click.option("--dataset", "-d", required=True, help="Name (`cirbench list datasets`).")
@click.option("--variant", default="", help="A named set of overrides (`cirbench list variants`).")
@click.option("--backbone", default="", metavar="NAME",
              help="Encoder to use instead: MODEL:TAG, MODEL:FILE, a packaged name, a folder, hf-hub:OWNER/NAME, "
              "run:FOLDER or timm:NAME (`cirbench list backbones`).")
@click.option("--recipe", default="", metavar="DATASET",
              help="Use the method's sizes and rates for this dataset: `scenes` fits two CPU cores.")
@click.option("--seed", type=int, default=None, help="Training seed. [0]")
@click.option("--seeds", default=None, help="Several seeds, such as 0,1,2: one run each.")
@click.option("--set", "sets", multiple=True, metavar="SCOPE.FIELD=VALUE", help="Override a field; repeatable.")
@click.option("--force", is_flag=True, help="Run again even if a record exists.")
@click.option("--export-embeddings", is_flag=True, help="Also write embeddings.npz, as `cirbench score` reads it.")
@click.option("--explain", type=click.IntRange(1, 1_000_000), metavar="N",
              help="Also store words and regions of N queries, as `cirbench explain` does.")
@scoring_options
@run_options
def run(
    method: str, dataset: str, variant: str, backbone: str, recipe: str, seed: int | None, seeds: str | None,
    sets: tuple[str, ...], force: bool, export_embeddings: bool, explain: int | None, forms: str | None,
    allow_missing: bool, root: Path | None, out: Path, device: str, quiet: bool, as_json: bool,
) -> None:
    """Train METHOD on DATASET, choose the checkpoint by the stated rule, evaluate once, keep a record.

    Repeating the command shows the finished record; after an interruption it resumes.
    """
    from cirbench.runs import planning

    plans = [
        planning.plan(method, dataset, variant, backbone, s, sets, root, recipe=recipe, forms=parse_forms(forms))
        for s in parse_seeds(seed, seeds)
    ]
    from cirbench.runs import execution

    records = []
    for planned in plans:
        if not is_quiet(quiet) and not as_json:
            label = " ".join(p for p in (planned.method.name, variant) if p)
            click.echo(f"{label} on {planned.facts.name}, seed {planned.seed}", err=True)
        record = execution.run(planned, execution.Options(
            out, device, force, is_quiet(quiet) or as_json, command_line(), export_embeddings, allow_missing
        ))
        records.append(record)
        if explain:
            _explain(record, explain, device, is_quiet(quiet) or as_json, root)
        if not quiet and not as_json:
            show(record)
    if as_json:
        data: list[dict[str, Any]] = [{"folder": str(r.folder), **r.data} for r in records]
        click.echo(json.dumps(data[0] if len(data) == 1 else data, indent=1))


def _explain(record: Any, count: int, device: str, quiet: bool, root: Path | None) -> None:
    """Words and regions, where the method has them; the run is finished either way."""
    from cirbench.runs.explain_run import explain_run
    from cirbench.types import CirbenchError

    if len(record.explain) >= count:
        return
    try:
        explain_run(record.folder, count, device, quiet, root)
    except CirbenchError as error:
        click.echo(f"no words or regions stored: {error}", err=True)


def show(record: Any) -> None:
    """A finished run in a few lines."""
    cost, selection = record.run.cost, record.run.selection
    click.echo(record.name)
    click.echo(summary_line(record.data))
    trainable, seconds = cost.parameters.get("trainable"), cost.seconds.get("total")
    parts = [
        f"checkpoint: {selection.rule} (epoch {selection.epoch})",
        *([f"{trainable:,} trainable parameters"] if trainable is not None else []),
        *([f"{seconds:.0f} s"] if seconds is not None else []), str(record.folder),
    ]
    click.echo(f"  {'; '.join(parts)}")

"""Compute evidence of a finished run that needs its model: words and regions."""

from __future__ import annotations

from pathlib import Path

import click

from cirbench.cli._shared import is_quiet

QUERIES = 400


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--queries", "-n", type=click.IntRange(1, 1_000_000), default=QUERIES, show_default=True,
              help="Number of queries, spread over the groups of the dataset.")
@click.option("--root", type=click.Path(path_type=Path), help="Folder that holds the dataset.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def explain(runs: tuple[Path, ...], queries: int, root: Path | None, device: str, quiet: bool) -> None:
    """Store in each RUN how its method weighs words and regions; reports then show it.

    The method's `explain` provides them. Repeating the command replaces them; no number of the run changes.
    """
    from cirbench.runs.explain_run import explain_run

    for run in runs:
        explained = explain_run(run, queries, device, is_quiet(quiet), root)["queries"]
        maps = list(dict.fromkeys(name for t in explained.values() for name in t["regions"]))
        words = ", words" if any(t["words"] for t in explained.values()) else ""
        if not quiet:
            click.echo(f"{run}: {len(explained)} queries{words}, maps {', '.join(maps) or 'none'}")

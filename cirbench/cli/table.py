"""Print the main table of runs as markdown, LaTeX or CSV."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option("--format", "style", type=click.Choice(["markdown", "latex", "csv"]), default="markdown",
              show_default=True, help="CSV holds unrounded numbers, intervals and run ids.")
@click.option("--protocol", default="", help="Protocol to show. [each dataset's default]")
def table(runs: tuple[Path, ...], style: str, protocol: str) -> None:
    """Print the main table of RUNS (default: runs/), one per dataset: means and spread over seeds."""
    from cirbench.reports.collect import collect
    from cirbench.reports.tables import main_table, text_table
    from cirbench.runs.store import find_records
    from cirbench.types import CirbenchError

    tests = collect(find_records(list(runs) or [Path("runs")]))
    known = list(dict.fromkeys(p for test in tests for p in test.protocols()))
    if protocol and protocol not in known:
        raise CirbenchError(f"unknown protocol {protocol!r}. These runs were scored under: {', '.join(known)}.")
    shown = [main_table(t, protocol or t.protocols()[0]) for t in tests if not protocol or protocol in t.protocols()]
    click.echo("\n".join(text_table(t, style) for t in shown), nl=False)

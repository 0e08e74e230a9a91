"""Fuse finished runs: what several methods answer together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cirbench.cli._shared import command_line, is_quiet, run_options


@click.command(epilog="""\b
Examples:
  cirbench fuse runs/scenes-sum-s0-... runs/scenes-dwc-s0-...
  cirbench fuse A B C --how ranks
  cirbench fuse A B --shares 0.5,0.5
""")
@click.argument("runs", nargs=-1, required=True, metavar="A B [C]", type=click.Path(path_type=Path))
@click.option("--how", type=click.Choice(["scores", "ranks"]), default="scores", show_default=True,
              help="Add scores, each run's divided by their spread, or 1 / (60 + rank).")
@click.option("--shares", default=None, metavar="X,Y[,Z]", help="Of each run. [the best on select]")
@click.option("--allow-missing", is_flag=True, help="Go on without pictures that are missing.")
@run_options
def fuse(
    runs: tuple[Path, ...], how: str, shares: str | None, allow_missing: bool, root: Path | None, out: Path,
    device: str, quiet: bool, as_json: bool,
) -> None:
    """Fuse two or three finished runs into one, which is a run like any other.

    Their weights are evaluated together, with shares that the split `select` chooses. Then: whether that beats the best
    of them (by select), and what an oracle that picks the right run for every query would reach.
    """
    import json

    from cirbench.cli.compare import small
    from cirbench.reports.compare import compare
    from cirbench.reports.complementarity import complementarity
    from cirbench.runs.fuse import best_of, members
    from cirbench.runs.fuse import fuse as fused

    given = members(runs, root)
    found = fused(given, out, how, _shares(shares), device, is_quiet(quiet) or as_json, command_line(), allow_missing)
    records = [m.record for m in given]
    protocol = found.run.default_protocol
    single = best_of(records)
    rows = compare([[single], [found]], protocol)[0]
    between = complementarity(records, protocol)
    if as_json:
        click.echo(json.dumps({
            "folder": str(found.folder), **found.data, "best_single": single.id, "comparison": rows,
            "complementarity": between,
        }, indent=1))
        return
    if quiet:
        return
    _show([*records, found], protocol, between)
    click.echo(f"\nAgainst {single.name}, the best of them on "
               f"{'select' if single.data.get('select') else 'the reported split, since there is no select'}:")
    for row in rows:
        interval = f"[{row['low']:+.2f}, {row['high']:+.2f}]"
        click.echo(f"  {row['metric']:8}{row['delta']:+7.2f}{interval:>19}  p {small(row['p'])}")
    click.echo("One seed: p (Holm-corrected) and intervals are over queries, so they are about these runs.\nFuse the "
               "runs of other seeds too, then `cirbench compare`.")
    click.echo("\n" + found.run.notes[-1].replace(". ", ".\n").replace(", ", "\n       ") + f"\n{found.folder}")


def _shares(given: str | None) -> list[float] | None:
    from cirbench.types import CirbenchError

    if given is None:
        return None
    try:
        return [float(part) for part in given.split(",")]
    except ValueError:
        raise CirbenchError(f"--shares {given!r}: give one number a run, such as 0.5,0.5.") from None


def _show(records: list[Any], protocol: str, between: list[dict[str, Any]]) -> None:
    width = max(len(r.name) for r in records)
    # Those of single groups are in the record.
    names = [name for name in records[-1].run.protocols[protocol].metrics if "/" not in name]
    click.echo(f"{protocol}\n{'':{width}}" + "".join(f"{name:>9}" for name in names))
    for record in records:
        metrics = record.run.protocols[protocol].metrics if protocol in record.run.protocols else {}
        numbers = (f"{metrics[name]:9.2f}" if metrics.get(name) is not None else f"{'':9}" for name in names)
        click.echo(f"{record.name:{width}}" + "".join(numbers))
    if not between:
        return
    click.echo("\nPercent of queries hit by" + f"{'any':>10}{'all':>8}"
               + "".join(f"{f'only {n}':>9}" for n in range(1, len(records))))
    for row in between:
        click.echo(f"  {row['metric']:23}{row['any']:10.2f}{row['all']:8.2f}"
                   + "".join(f"{share:9.2f}" for share in row["only"]))

"""Compare runs query by query, and say whether the difference is real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command(epilog="""\b
Examples:
  cirbench compare runs/scenes-dwc-s0-... runs/scenes-sum-s0-...    (names: cirbench runs)
  cirbench compare A B C D --protocol NAME      (A against each of them, Holm-corrected over all)
""")
@click.argument("runs", nargs=-1, required=True, metavar="A B [MORE]...", type=click.Path(path_type=Path))
@click.option("--protocol", default="", help="Protocol to compare under. [the default one]")
@click.option("--one-seed", is_flag=True, help="Compare only the runs named, without their other seeds.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable; a list for more than two runs.")
def compare(runs: tuple[Path, ...], protocol: str, one_seed: bool, as_json: bool) -> None:
    """Compare finished runs, which must have answered the same queries over the same gallery.

    Runs beside A and B that differ from them only in the seed are included: seeds are averaged within a query.
    """
    import json

    from cirbench.reports import compare as comparing
    from cirbench.runs.record import Record
    from cirbench.types import CirbenchError

    if len(runs) < 2:
        raise CirbenchError(f"compare needs at least two runs, got only {runs[0]}. `cirbench runs` lists them.")
    named = [Record(path) for path in runs]
    twice = [r for n, r in enumerate(named) if r.id in {other.id for other in named[:n]}]
    if twice:
        raise CirbenchError(f"{twice[0].name} is named twice: it is the same run ({twice[0].id}). Give different ones.")
    arms = [[record] if one_seed else comparing.other_seeds(record) for record in named]
    results = comparing.compare(arms, protocol)
    seeds = [[r.run.inputs.seed for r in arm] for arm in arms]
    inputs = [comparing.differing_inputs(named[0], other) for other in named[1:]]
    if not one_seed:
        for changed in inputs:
            changed.pop("seed", None)
    if as_json:
        out = [
            {"a": named[0].id, "b": other.id, "seeds": {"a": seeds[0], "b": s}, "inputs": changed, "metrics": rows}
            for other, s, changed, rows in zip(named[1:], seeds[1:], inputs, results, strict=True)
        ]
        click.echo(json.dumps(out[0] if len(out) == 1 else out, indent=1))
        return
    for other, s, changed, rows in zip(named[1:], seeds[1:], inputs, results, strict=True):
        _show(_named(named[0], seeds[0]), _named(other, s), changed, rows)
    count = sum(map(len, results))
    click.echo(f"p: t test with the spread over reference images and over seeds, Holm-corrected over these {count} "
               "numbers.\ndetectable: the smallest difference found with a power of 0.8 by so many queries and seeds.")
    if min(map(len, seeds)) < 2:
        click.echo("One seed: p and intervals are over queries alone, so they are about these runs, not about the "
                   "methods. `cirbench run --seeds 0,1,2` adds seeds.")


def _named(record: Any, seeds: list[int]) -> str:
    oracle = ", test-oracle" if record.run.selection.on_report else ""
    return f"{record.name}, seed{'s'[:len(seeds) > 1]} {', '.join(map(str, seeds))}{oracle}"


def _show(a: str, b: str, changed: dict[str, tuple[object, object]], rows: list[dict]) -> None:
    click.echo(f"A  {a}\nB  {b}")
    # Fields that only one method has are listed by name alone: there is nothing to compare them with.
    own: dict[str, list[str]] = {}
    for name, (x, y) in changed.items():
        if "method" in changed and name.startswith("method.") and None in (x, y):
            own.setdefault("A" if y is None else "B", []).append(name.partition(".")[2])
        else:
            click.echo(f"   {name}: {x!r} -> {y!r}")
    for side, names in own.items():
        click.echo(f"   fields only {side} has: {', '.join(names)}")
    about = f"± over seeds; intervals over {rows[0]['over']}, 95 %"
    click.echo(f"{rows[0]['protocol']}, {rows[0]['queries']} queries; {about}")
    click.echo(f"{'':8}{'A':>15}{'B':>15}{'B - A':>9}{'interval':>19}{'p':>9}{'detectable':>12}   only A / only B hit")
    for row in rows:
        flips = f"{row['only_a']} / {row['only_b']}, exact p {small(row['mcnemar'])}" if "only_a" in row else ""
        interval = f"[{row['low']:+.2f}, {row['high']:+.2f}]"
        sides = "".join(
            (f"{row[s]:.2f}" + (f" ± {row[f'{s}_std']:.2f}" if row[f"{s}_std"] is not None else "")).rjust(15)
            for s in ("a", "b")
        )
        least = "" if row.get("detectable") is None else f"{row['detectable']:.2f}"
        line = f"{row['metric']:8}{sides}{row['delta']:+9.2f}{interval:>19}{small(row['p']):>9}{least:>12}   {flips}"
        click.echo(line.rstrip())
    click.echo()


def small(p: float) -> str:
    """A p-value that is never printed as 0."""
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"

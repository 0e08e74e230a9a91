"""Compare two runs query by query, and say whether the difference is real."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--protocol", default="", help="Another than the default.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def compare(a: Path, b: Path, protocol: str, as_json: bool) -> None:
    """Compare the finished runs A and B, which must have answered the same queries over the same gallery."""
    import json

    from cirbench.records import Record
    from cirbench.reports.compare import compare_runs, differing_inputs

    first, second = Record(a), Record(b)
    rows = compare_runs(first, second, protocol)
    changed = differing_inputs(first, second)
    if as_json:
        click.echo(json.dumps({"a": first.id, "b": second.id, "inputs": changed, "metrics": rows}, indent=1))
        return
    click.echo(f"A  {first.name}\nB  {second.name}")
    for name, (x, y) in changed.items():
        click.echo(f"   {name}: {x!r} -> {y!r}")
    click.echo(f"{rows[0]['protocol']}, {rows[0]['queries']} queries; intervals over reference images, 95 %")
    click.echo(f"{'':8}{'A':>8}{'B':>8}{'B - A':>9}{'interval':>19}{'p':>9}   only A / only B hit")
    for row in rows:
        flips = f"{row['only_a']} / {row['only_b']}, exact p {small(row['mcnemar'])}" if "only_a" in row else ""
        interval = f"[{row['low']:+.2f}, {row['high']:+.2f}]"
        numbers = f"{row['a']:8.2f}{row['b']:8.2f}{row['delta']:+9.2f}"
        click.echo(f"{row['metric']:8}{numbers}{interval:>19}{small(row['p']):>9}   {flips}")
    click.echo("p by paired permutation, Holm-corrected over these metrics. Two runs say nothing about other seeds.")


def small(p: float) -> str:
    """A p-value that is never printed as 0."""
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"

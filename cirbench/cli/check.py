"""Check that a method keeps the contract, in seconds."""

from __future__ import annotations

import json
import sys

import click

from cirbench.types import CirbenchError


@click.command(epilog="""\b
Examples:
  cirbench check ./mine.py
  cirbench check dwc --variant no-emd
  cirbench check tirg --all-variants
""")
@click.argument("method")
@click.option("--variant", default="", help="Check this variant instead of the defaults.")
@click.option("--all-variants", is_flag=True, help="Check the defaults and every variant.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def check(method: str, variant: str, all_variants: bool, as_json: bool) -> None:
    """Run the contract on METHOD, a name or the path of a .py file, on a small `scenes`.

    Shapes and finite values; the same seed gives the same ranking; no dependence on batch size or gallery order;
    losses fall; weights survive saving; every field of Config is used; no network. Exit code 1 if a check fails.
    """
    from cirbench.plugins import find_method
    from cirbench.settings import unknown

    found = find_method(method)
    if variant and all_variants:
        raise CirbenchError(f"--variant {variant} and --all-variants exclude each other. Keep one.")
    if variant and variant not in found.variants:
        raise unknown(f"variant of {found.name}", variant, list(found.variants))
    from cirbench.runs import contract

    outcomes = []
    for outcome in contract.examine(method, ["", *found.variants] if all_variants else [variant]):
        outcomes.append(outcome)
        if not as_json:
            label = f"{found.name} {outcome.variant}".strip()
            click.echo(f"{'broken' if outcome.problem else 'ok':<6}  {label}: {outcome.check}  {outcome.seconds:.1f} s")
            if outcome.problem:
                click.echo(f"        {outcome.problem}")
    broken = sum(bool(o.problem) for o in outcomes)
    if as_json:
        click.echo(json.dumps([vars(o) for o in outcomes], indent=1))
    else:
        click.echo(f"{len(outcomes) - broken} of {len(outcomes)} checks pass")
    if broken:
        sys.exit(1)

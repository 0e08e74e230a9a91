"""List methods, datasets, variants, backbones or sweeps."""

from __future__ import annotations

import json

import click


def _table(rows: list[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        click.echo(f"{name:<{width}}  {text}".rstrip())


@click.command("list")
@click.argument("what", type=click.Choice(["methods", "datasets", "variants", "backbones", "sweeps"]))
@click.option("--method", "-m", default=None, help="Only this method's variants.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def command(what: str, method: str | None, as_json: bool) -> None:
    """List the names that commands accept."""
    from cirbench import plugins

    rows: list[tuple[str, str]]
    if what == "methods":
        rows = [(m.name, m.summary) for m in plugins.methods()]
    elif what == "variants":
        found = [plugins.find_method(method)] if method else plugins.methods()
        rows = [
            (f"{m.name} {name}", ", ".join(f"{k}={json.dumps(v)}" for k, v in overrides.items()))
            for m in found for name, overrides in m.variants.items()
        ]
    elif what == "sweeps":
        from cirbench.studies import design_file

        rows = [(name, design_file.question(name)) for name in design_file.sweep_names()]
    elif what == "datasets":
        rows = [(n, plugins.find_dataset(n).SPEC.title) for n in plugins.dataset_names()]
    else:
        from cirbench.models.names import FORMS

        rows = list(FORMS)
    if as_json:
        click.echo(json.dumps([{"name": n, "summary": t} for n, t in rows], indent=1))
    else:
        _table(rows)

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
        rows = [(name, found.summary if found else f"broken: {why}") for name, found, why in plugins.listed()]
    elif what == "variants":
        entries = [(method, plugins.find_method(method), "")] if method else plugins.listed()
        rows = [
            (f"{m.name} {name}", ", ".join(f"{k}={json.dumps(v, default=str)}" for k, v in overrides.items()))
            for _, m, _ in entries if m is not None for name, overrides in m.variants.items()
        ]
        rows += [(name, f"broken: {why}") for name, m, why in entries if m is None]
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

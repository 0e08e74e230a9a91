"""What each protocol means, and who uses it."""

from __future__ import annotations

import json

import click


@click.command(epilog="""\b
Examples:
  cirbench protocols
  cirbench protocols fashioniq
""")
@click.argument("dataset", required=False)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def protocols(dataset: str | None, as_json: bool) -> None:
    """Every protocol of DATASET, or of all datasets, the default first."""
    from cirbench.plugins import dataset_names, find_dataset

    names = [dataset] if dataset else dataset_names()
    facts = {name: find_dataset(name).SPEC for name in names}
    if as_json:
        click.echo(json.dumps({
            name: [{
                "name": p.name, "form": p.form, "gallery": p.gallery, "drop_reference": p.drop_reference, "hit": p.hit,
                "average": p.average, "metrics": list(p.metrics), "summary": p.summary, "known_as": list(p.known_as),
                "note": p.note,
            } for p in spec.protocols] for name, spec in facts.items()
        }, indent=1))
        return
    for name, spec in facts.items():
        click.echo(f"{name}: {spec.title}")
        for number, p in enumerate(spec.protocols):
            default = " (default)" if number == 0 else ""
            known = f"  [{', '.join(p.known_as)}]" if p.known_as else ""
            click.echo(f"  {p.name}{default}{known}")
            click.echo(f"      {p.note or 'all images of the split'}; text form {p.form}; {', '.join(p.metrics)}")

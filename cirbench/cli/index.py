"""Build or renew the index of a folder of photographs, for `cirbench search`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cirbench.cli._shared import is_quiet


@click.command(epilog="""\b
Examples:
  cirbench index photos --run runs/scenes-dwc-s0-1a2b3c4d5e
""")
@click.argument("photos", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--run", required=True, type=click.Path(path_type=Path), help="Folder of the run whose method encodes.")
@click.option("--index-dir", type=click.Path(path_type=Path), help="Folder of the index. [one in cirbench's cache]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--quiet", "-q", is_flag=True, help="No progress, no message.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def index(photos: Path, run: Path, index_dir: Path | None, device: str, quiet: bool, as_json: bool) -> None:
    """Encode every picture below DIR with RUN's method.

    Repeating the command encodes what is new or changed; an interruption loses at most 128 pictures.
    """
    from cirbench.cli._photos import up_to_date
    from cirbench.runs.search import Searcher

    made = up_to_date(Searcher(run, device), photos, index_dir, is_quiet(quiet) or as_json, quiet or as_json)
    names, gallery = made.load()
    if as_json:
        told = {"pictures": len(names), "dim": gallery.shape[1], "folder": str(made.folder)}
        click.echo(json.dumps(told, indent=1))
    elif not quiet:
        click.echo(f"{len(names)} pictures, D = {gallery.shape[1]}: {made.folder}")

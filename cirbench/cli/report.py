"""Make one self-contained HTML page from finished runs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUNS_OR_SWEEPS]...", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), default=Path("report.html"),
              show_default=True, help="The page to write.")
@click.option("--title", default="", help="Heading; by default the datasets.")
@click.option("--max-mb", type=click.FloatRange(0.1, 10_000), default=5.0, show_default=True,
              help="Largest page in MB; pictures that would exceed it are left out.")
@click.option("--no-images", is_flag=True, help="Leave every picture out, for data that may not be redistributed.")
@click.option("--figures", type=click.Path(path_type=Path, file_okay=False),
              help="Also write the figures into this folder (PDF, PNG).")
def report(
    runs: tuple[Path, ...], output: Path, title: str, max_mb: float, no_images: bool, figures: Path | None
) -> None:
    """Write a report of RUNS: run folders, folders that hold them, or sweeps (default: runs/)."""
    from cirbench.reports.build import build, write
    from cirbench.runs.store import find_records, find_studies

    paths = list(runs) or [Path("runs")]
    records = find_records(paths)
    page = build(records, sweeps=find_studies(paths), title=title, max_mb=max_mb, images=not no_images, figures=figures)
    write(output, page)
    click.echo(f"{output}: {len(records)} runs, {len(page.encode()) / 1e6:.1f} MB")

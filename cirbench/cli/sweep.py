"""Run a sweep: a question in one TOML file, many points, several seeds, one report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from cirbench.cli._shared import command_line, parse_seeds
from cirbench.settings import nearest
from cirbench.types import CirbenchError


@click.command(epilog="""\b
Examples:
  cirbench sweep lambda
  cirbench sweep lambda --variant full --seeds 0,1,2,3,4 --workers 2
  cirbench sweep methods --workers 2
  cirbench sweep tune --method tirg --method-variant like-dwc --trials 16 --seeds 0
  cirbench sweep ./mine.toml --dry-run
  cirbench sweep lambda --storage postgresql://user@host/sweeps      (the same on every machine)
  cirbench sweep status lambda
""")
@click.argument("words", nargs=-1, required=True, metavar="NAME | status [NAME]")
@click.option("--dataset", "-d", default="", help="Dataset to use instead of the sweep's own.")
@click.option("--variant", default="", help="One of the variants in the sweep's file.")
@click.option("--method", "-m", default="", help="Method to use, if the sweep's file has just one.")
@click.option("--method-variant", default="", help="Variant of that method.")
@click.option("--seeds", default=None, help="Such as 0,1,2: every point runs once per seed.")
@click.option("--set", "sets", multiple=True, metavar="SCOPE.FIELD=VALUE", help="Fix a field for every point.")
@click.option("--trials", type=click.IntRange(1, 10_000), default=None,
              help="Number of points; of a grid, the first ones.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=None,
              help="Seconds after which no further point is started.")
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Worker processes.")
@click.option("--dry-run", is_flag=True, help="Print the plan and a time estimate from a few measured steps.")
@click.option("--retry-failed", is_flag=True, help="Run points that failed before once more.")
@click.option("--storage", default="", help="postgresql://... or mysql://... for many machines. [a file]")
@click.option("--slurm", is_flag=True, help="Submit the workers as Slurm jobs.")
@click.option("--slurm-set", multiple=True, metavar="NAME=VALUE", help="Such as slurm_partition=gpu, timeout_min=240.")
@click.option("--root", type=click.Path(path_type=Path), help="Folder that holds the dataset.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True,
              help="Folder for run folders; the sweep's own files go below sweeps/.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--no-report", is_flag=True, help="Do not write report.html; `cirbench report` can write it later.")
@click.option("--quiet", "-q", is_flag=True, help="No progress, no table.")
@click.option("--json", "as_json", is_flag=True, help="Print the contents of sweep.json.")
def sweep(
    words: tuple[str, ...], dataset: str, variant: str, method: str, method_variant: str, seeds: str | None,
    sets: tuple[str, ...], trials: int | None,
    timeout: float | None, workers: int, dry_run: bool, retry_failed: bool, storage: str, slurm: bool,
    slurm_set: tuple[str, ...], root: Path | None, out: Path, device: str, no_report: bool, quiet: bool, as_json: bool,
) -> None:
    """Run every point of a sweep, each seed an ordinary run, and write a report.

    Runs that already have a record are not repeated. After an interruption the same command resumes.
    """
    if words[0] == "status":
        if len(words) > 2:
            raise CirbenchError(f"sweep status takes one name, got {len(words) - 1}.")
        status(words[1] if len(words) > 1 else "", out, as_json)
        return
    if len(words) > 1:
        meant = words[1] if nearest(words[0], ["status"]) else words[0]
        raise CirbenchError(f"sweep takes one name, got {' '.join(words)!r}. Did you mean `sweep status {meant}`?")
    from cirbench.studies import design_file

    arguments: dict[str, Any] = {
        "name": words[0], "dataset": dataset, "variant": variant, "trials": trials, "timeout": timeout,
        "seeds": parse_seeds(None, seeds) if seeds is not None else None, "sets": list(sets), "root": root,
        "method": method, "method_variant": method_variant,
    }
    found = design_file.read(**arguments)
    say = not quiet and not as_json
    if say and found.note:
        click.echo(f"{found.name} on {found.dataset}: {found.note}", err=True)
    from cirbench.studies import display, launch
    from cirbench.studies.storage import hide_password
    from cirbench.studies.worker import Options, Worker

    shown = command_line().replace(storage, hide_password(storage)) if storage else command_line()
    options = Options(out, device, storage, True, shown, retry_failed=retry_failed)
    launch.check_select(found)
    if dry_run:
        click.echo(display.plan_text(found))
        cost = launch.estimate(found, options, workers)
        click.echo(
            f"  {cost['runs']} runs, {cost['kept']} already finished; about {cost['seconds_run']:.0f} s per run as "
            f"measured here, {display.duration(cost['seconds'])} in all with {workers} worker{'s'[:workers > 1]}, "
            "features, loading and reports not counted"
        )
        return
    if slurm:
        jobs = launch.slurm(arguments, options, Worker(found, options).folder, workers, slurm_set)
        click.echo(f"submitted {', '.join(j.job_id for j in jobs)}; `cirbench sweep status {found.name}` follows them")
        return
    data = launch.start(found, arguments, options, workers, _show if say else _nothing, sys.stderr.isatty())
    if as_json:
        click.echo(json.dumps(data, indent=1))
    elif not quiet:
        click.echo(display.table(data, out))
    path = None if no_report else launch.write_report(found, data, out)
    if path is not None and say:
        click.echo(f"report: {path}")
    if any(row["state"] == "fail" for row in data["points"]):
        click.echo("cirbench: some points failed; --retry-failed tries them once more.", err=True)
        sys.exit(1)


def _show(text: str) -> None:
    click.echo(text, err=True, nl=False)


def _nothing(text: str) -> None:
    pass


def status(name: str, out: Path, as_json: bool = False) -> None:
    """Print the state of the studies of a sweep, as last written by any of its workers on this file system."""
    from cirbench.runs.store import Study

    stem = Path(name).stem if name.endswith(".toml") else name
    found = []
    for path in sorted((out / "sweeps").glob("*/sweep.json")):
        data = Study(path.parent).data
        if stem in ("", data["name"], data["study"]):
            found.append(data)
    if not found:
        known = sorted({p.parent.name for p in (out / "sweeps").glob("*/sweep.json")})
        more = f" Existing: {', '.join(known)}." if known else " `cirbench sweep NAME` starts one."
        raise CirbenchError(f"no study of the sweep {stem!r} under {out / 'sweeps'}.{more}")
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    from cirbench.studies import display

    for data in found:
        states = [row["state"] for row in data["points"]]
        counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        click.echo(display.table(data, out))
        click.echo(f"  {data['total']} points: {counts or 'none started'}")

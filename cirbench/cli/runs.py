"""List finished and interrupted runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs"))
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def runs(folder: Path, as_json: bool) -> None:
    """List the runs under FOLDER."""
    from cirbench.runs.record import Record, is_finished
    from cirbench.types import CirbenchError

    if not folder.is_dir():
        raise CirbenchError(
            f"{folder}: no such folder. `cirbench run` creates runs/ in the current folder, or in --out."
        )
    rows: list[dict[str, Any]] = []
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        if is_finished(path):
            run = Record(path).run
            name = run.default_protocol
            rows.append({"name": path.name, "state": "finished", "protocol": name,
                         "metrics": run.protocols[name].metrics, "seconds": run.cost.seconds.get("total"),
                         "variant": run.variant, "overrides": run.overrides})
        elif (path / "checkpoint.pt").is_file() or not any(path.iterdir()):
            rows.append({"name": path.name, "state": "interrupted"})
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        click.echo(f"no runs under {folder}")
    for row in rows:
        if row["state"] == "finished":
            plain = [(k, v) for k, v in row["metrics"].items() if "/" not in k]
            numbers = "  ".join(f"{k} {v:5.2f}" for k, v in plain if v is not None)
            # A variant is in the name already; what was set by hand or by a sweep is not.
            given = {} if row["variant"] else row["overrides"]
            settings = "  " + " ".join(f"{k}={v}" for k, v in given.items()) if given else ""
            took = "" if row["seconds"] is None else f"  {row['seconds']:.0f} s"
            click.echo(f"{row['name']}  {row['protocol']}: {numbers}{took}{settings}")
        else:
            click.echo(f"{row['name']}  interrupted: repeat the command that started it to resume")

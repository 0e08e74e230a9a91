"""Write files for the CIRR and CIRCO servers from a run, or check such files."""

from __future__ import annotations

from pathlib import Path

import click

from cirbench.cli._shared import is_quiet


@click.command(epilog="""\b
Examples:
  cirbench submit runs/cirr-dwc-s0-9f3c --root data/cirr -o submission/
  cirbench submit --validate submission/*.json --root data/cirr
""")
@click.argument("paths", metavar="RUN | FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--validate", "check", is_flag=True, help="Check files instead of writing them; needs no network.")
@click.option("--root", type=click.Path(path_type=Path), default=None, help="Folder of the annotations.")
@click.option("--dataset", "-d", type=click.Choice(["cirr", "circo"]), default=None, help="Default: the run's own.")
@click.option("--out", "-o", type=click.Path(path_type=Path, file_okay=False), default=Path("submission"),
              show_default=True, help="Folder for the files.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def submit(
    paths: tuple[Path, ...], check: bool, root: Path | None, dataset: str | None, out: Path, device: str, quiet: bool
) -> None:
    """Write CIRR's two files or CIRCO's file from RUN; with --validate, check FILEs.

    With --root the ids are compared with the annotations of the test split too.
    """
    if check:
        validate(paths, root)
        return
    from cirbench.types import CirbenchError

    if len(paths) != 1:
        raise CirbenchError(f"expected one run folder, got {len(paths)} paths. To check files, add --validate.")
    from cirbench.runs.evaluate_run import plan_eval

    planned, record = plan_eval(paths[0], dataset, (), root)
    from cirbench.scoring.submit import SERVERS, write

    name = planned.facts.name
    if name not in SERVERS:
        raise CirbenchError(f"no server for the dataset {name!r}; --dataset must be {' or '.join(SERVERS)}.")
    from cirbench.data.splits import load_named
    from cirbench.runs import planning
    from cirbench.runs.building import load_method
    from cirbench.runs.training import pick_device

    data, split = load_named(name, root, SERVERS[name])
    where = pick_device(device)
    method = load_method(planned, planning.load(planned), record.folder / "model.safetensors", where)
    for path in write(method, data, split, where, out, is_quiet(quiet)):
        click.echo(str(path))


def validate(paths: tuple[Path, ...], root: Path | None) -> None:
    """Check files one by one, up to the first invalid one."""
    from cirbench.data.reading import read_json
    from cirbench.data.splits import load_named
    from cirbench.scoring.server_files import validate as one

    for path in paths:
        split = None
        if root is not None:
            head = read_json(path)
            is_cirr = isinstance(head, dict) and ("version" in head or "metric" in head)
            _, split = load_named("cirr" if is_cirr else "circo", root, "test1" if is_cirr else "test")
        found = one(path, split)
        against = "compared with the annotations" if found.known else "ids not compared: no --root"
        click.echo(f"{path}: valid {found.kind} file, {found.queries} queries ({against})")

"""Options that several subcommands share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cirbench.types import CirbenchError


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--root, --out, --device, --quiet, --json."""
    for option in reversed([
        click.option("--root", type=click.Path(path_type=Path), help="Folder that holds the dataset."),
        click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"),
                     show_default=True, help="Where run folders go."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."),
        click.option("--quiet", "-q", is_flag=True, help="No progress, no table."),
        click.option("--json", "as_json", is_flag=True, help="Machine-readable result on standard output."),
    ]):
        function = option(function)
    return function


def is_quiet(quiet: bool) -> bool:
    """No progress bars where nobody is looking."""
    return quiet or not sys.stderr.isatty()


def command_line() -> str:
    """The command as typed, to be repeated."""
    return shlex.join(["cirbench", *sys.argv[1:]])


def parse_seeds(seed: int | None, seeds: str | None) -> list[int]:
    """`--seed 0` or `--seeds 0,1,2`.

    Raises:
        CirbenchError: both, none a number, negative, or one twice.
    """
    if seeds is None:
        return [0 if seed is None else seed]
    if seed is not None:
        raise CirbenchError(f"--seed {seed} and --seeds {seeds} exclude each other. Keep one.")
    try:
        found = [int(s) for s in seeds.split(",") if s.strip()]
    except ValueError:
        raise CirbenchError(f"--seeds {seeds!r} is not a list of whole numbers such as 0,1,2.") from None
    if not found or min(found) < 0:
        raise CirbenchError(f"--seeds {seeds!r}: seeds are 0 or more, such as 0,1,2.")
    if len(set(found)) < len(found):
        raise CirbenchError(f"--seeds {seeds!r} names a seed twice. Each seed is one run.")
    return found


def summary_line(record: dict[str, Any]) -> str:
    """One line a protocol: metrics, queries, gallery, ties."""
    lines = []
    for name, scored in record["protocols"].items():
        shown = {k: v for k, v in scored["metrics"].items() if "/" not in k}
        numbers = "  ".join(f"{k} {v:.2f}" for k, v in shown.items())
        lines.append(
            f"  {name}: {numbers}  ({scored['queries']} queries, gallery {scored['gallery']}, {scored['ties']} ties)"
        )
    return "\n".join(lines)

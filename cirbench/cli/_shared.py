"""Options that several subcommands share."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cirbench.process import DEBUG
from cirbench.types import CirbenchError, short, shown

#: Largest whole number that an option without a bound of its own takes: larger ones do not fit into 64 bits.
LARGEST = 2**63 - 1


class _Path(click.Path):
    """A path; an empty one would silently be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and not value.strip():
            self.fail(f"{value!r} is empty. Name a path; the current folder is '.'.", param, ctx)
        if isinstance(value, str) and any(len(os.fsencode(part)) > 255 for part in Path(value).parts):
            self.fail(f"{value[:40]!r}... has a part of more than 255 bytes, longer than any file name.", param, ctx)
        return super().convert(value, param, ctx)


def settle(command: click.Command) -> click.Command:
    """What holds for every command: it has `--debug`; no path is empty, no number is NaN, infinite or beyond 64 bits.

    Settled in one place, so that it holds for an option that is added later.
    """
    if isinstance(command, click.Group):
        for sub in command.commands.values():
            settle(sub)
        return command
    if any(param.name == "debug" for param in command.params):
        return command  # commands are kept by their modules
    for param in command.params:
        if type(param.type) is click.Path:
            kept, param.type = vars(param.type), _Path()
            vars(param.type).update(kept)
        elif param.type.name.startswith(("integer", "float")):
            param.callback = param.callback or _sane
    command.params.append(click.Option(
        ["--debug"], is_flag=True, expose_value=False, is_eager=True, callback=_debug,
        help="Show the traceback of an error as well.",
    ))
    return command


def _sane(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """A number, or several of a repeatable option, that somebody can have meant."""
    for one in value if isinstance(value, tuple) else (value,):
        if isinstance(one, int | float) and not abs(one) <= LARGEST:  # NaN is not either
            raise click.BadParameter(f"{shown(one)}: a number must be finite and below 2^63 in size.", ctx, param)
    return value


def _debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        os.environ[DEBUG] = "1"  # of this command, and of the processes that it starts


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--root, --out, --device, --quiet, --json."""
    for option in reversed([
        click.option("--root", type=click.Path(path_type=Path), help="Folder that holds the dataset."),
        click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"),
                     show_default=True, help="Folder for run folders."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."),
        click.option("--quiet", "-q", is_flag=True, help="No progress, no table."),
        click.option("--json", "as_json", is_flag=True, help="Machine-readable result on standard output."),
    ]):
        function = option(function)
    return function


def scoring_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--forms, --allow-missing: what is scored."""
    for option in reversed([
        click.option("--forms", default=None, metavar="A,B",
                     help="Score only these text forms, besides the default one (`cirbench protocols`)."),
        click.option("--allow-missing", is_flag=True,
                     help="Continue without missing pictures; counts and bounds are then printed with the numbers."),
    ]):
        function = option(function)
    return function


def parse_forms(forms: str | None) -> list[str] | None:
    """`ab,ba` -> names, None for all."""
    return None if forms is None else [name.strip() for name in forms.split(",") if name.strip()]


def is_quiet(quiet: bool) -> bool:
    """Whether to show no progress bars: --quiet, or standard error is no terminal."""
    return quiet or not sys.stderr.isatty()


def command_line() -> str:
    """The command as typed, so that it can be repeated."""
    return shlex.join(["cirbench", *sys.argv[1:]])


def parse_seeds(seed: int | None, seeds: str | None) -> list[int]:
    """`--seed 0` or `--seeds 0,1,2`.

    Raises:
        CirbenchError: both options, not a number, a negative seed, or a seed given twice.
    """
    if seeds is None:
        return [0 if seed is None else seed]
    if seed is not None:
        raise CirbenchError(f"--seed {seed} and --seeds {seeds} exclude each other. Keep one.")
    try:
        found = [int(s) for s in seeds.split(",") if s.strip()]
    except ValueError:
        raise CirbenchError(f"--seeds {short(seeds, 80)!r} is not a list of whole numbers such as 0,1,2.") from None
    if not found or min(found) < 0 or max(found) > LARGEST:
        raise CirbenchError(f"--seeds {short(seeds, 80)!r}: seeds must be >= 0 and below 2^63, such as 0,1,2.")
    if len(set(found)) < len(found):
        raise CirbenchError(f"--seeds {seeds!r} names a seed twice. Each seed is one run.")
    return found


def missing_text(missing: dict[str, Any]) -> str:
    """What missing pictures imply for one protocol, in one line."""
    bounds = "  ".join(f"{k} {low:.2f}..{high:.2f}" for k, (low, high) in missing["bounds"].items() if "/" not in k)
    return (
        f"missing pictures: {missing['queries_lost']} queries lost, up to {missing['gallery_lost']} images missing "
        f"from a gallery; bounds on the complete data: {bounds or 'none for these metrics'}"
    )


def summary_line(record: dict[str, Any]) -> str:
    """One line per protocol: metrics, queries, gallery, ties."""
    from cirbench.runs.record import chosen_on_report

    lines = []
    for name, scored in record["protocols"].items():
        shown = {k: v for k, v in scored["metrics"].items() if "/" not in k}
        numbers = "  ".join(f"{k} {v:.2f}" for k, v in shown.items() if v is not None)
        lines.append(
            f"  {name}: {numbers}  ({scored['queries']} queries, gallery {scored['gallery']}, {scored['ties']} ties)"
            + ("  test-oracle" if chosen_on_report(record) else "")
        )
        if "missing" in scored:
            lines.append(f"    {missing_text(scored['missing'])}")
    lines += [f"  omitted {name}: {why}" for name, why in record.get("omitted", {}).items()]
    return "\n".join(lines)

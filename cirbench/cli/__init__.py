"""The command line: one file per subcommand, loaded by its name when it is called.

Imports everything else, heavy modules inside the subcommand that needs them, so that help and lists stay quick.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import importlib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from cirbench import __version__, process
from cirbench.cli._shared import settle
from cirbench.types import CirbenchError, short

FOLDER = Path(__file__).parent
#: Characters of a message that a terminal shows.
LONGEST = 2000


class LazyGroup(click.Group):
    """A group whose commands are the files of this folder: `new_method.py` is `new-method`, `list_.py` is `list`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, from file names without importing anything."""
        return sorted(p.stem.rstrip("_").replace("_", "-") for p in FOLDER.glob("*.py") if p.stem[0] != "_")

    def _file(self, name: str) -> Path | None:
        if "_" in name:  # a command has one name
            return None
        stem = name.replace("-", "_")
        return next((p for s in (stem, f"{stem}_") if (p := FOLDER / f"{s}.py").is_file() and s[0] != "_"), None)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the one file that holds it."""
        path = self._file(cmd_name)
        if path is None:
            return None
        module = importlib.import_module(f"cirbench.cli.{path.stem}")
        command: click.Command = getattr(module, path.stem.rstrip("_"), None) or module.command
        return settle(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command, or the nearest name."""
        if args and self._file(args[0]) is None and not args[0].startswith("-"):
            from cirbench.settings import unknown

            raise unknown("command", args[0], self.list_commands(ctx), "`cirbench --help` describes them.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """First docstring line of every file, without importing any."""
        rows = []
        for name in self.list_commands(ctx):
            path = self._file(name)
            assert path is not None
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            rows.append((name, doc.split("\n")[0].rstrip(".")))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="cirbench")
def cli() -> None:
    """Benchmark and ablation suite for composed image retrieval.

    \b
    cirbench run --method dwc --dataset scenes
    cirbench list methods
    cirbench report runs -o report.html
    """


def main(args: list[str] | None = None) -> None:
    """Entry point: bad input is one message and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        # What an encoding cannot hold (a lone surrogate; anything beyond ASCII in the locale C) is shown as \udc80.
        with contextlib.suppress(AttributeError, ValueError):  # no such stream, or not one of text
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    process.catch_signals()
    debug = os.environ.get(process.DEBUG)
    try:
        _readable(sys.argv[1:] if args is None else args)
        cli.main(args, standalone_mode=False, prog_name="cirbench")
    except click.ClickException as error:
        said = click.ClickException.format_message(error)
        if len(said) > LONGEST:
            _fail(error, said)
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt, process.Terminated) as error:
        # click turns the end of a file into Abort as well.
        early = next((e for e in (error, error.__cause__) if isinstance(e, EOFError)), None)
        if early is not None:
            _fail(early, "a file ended too early (EOFError); --debug shows where.")
        ended = isinstance(error, process.Terminated)
        click.echo(f"cirbench: {'terminated' if ended else 'interrupted'}; repeat the command to resume.", err=True)
        sys.exit(143 if ended else 130)
    except Exception as error:
        message = _message(error)
        if not message:
            raise
        _fail(error, message)
    finally:
        if debug is None:  # --debug holds for one command
            os.environ.pop(process.DEBUG, None)


def _message(error: Exception) -> str:
    """What to say of an error that is no fault of cirbench's code; "" for one that is."""
    if isinstance(error, CirbenchError):
        return str(error)
    if isinstance(error, OSError):
        return _of_the_system(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _TOO_LARGE.search(str(error))):
        return (
            f"this does not fit into memory: {process.described(error)}. Lower the widths of the method, "
            "train.batch_size or the size of the data."
        )
    if isinstance(error, RecursionError):
        return "something is nested too deeply to be read; --debug shows where."
    return ""


def _of_the_system(error: OSError) -> str:
    """What to say of an error of the operating system; "" where only a traceback helps."""
    from cirbench.files import is_full, no_room

    if is_full(error):
        if error.filename is not None:
            return str(no_room(Path(os.fsdecode(error.filename))))
        with contextlib.suppress(OSError):
            # Standard output may be such a file: what waits for it would fail once more when Python ends.
            sys.stdout.flush()
            return f"{error.strerror}: the disk is full. Make room and repeat the command, which resumes."
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return f"standard output cannot be written: {error.strerror}."
    if error.filename is None:
        return ""
    denied = error.errno in (errno.EACCES, errno.EPERM)
    advice = "Name another place, or look at its permissions" if denied else "Name another place, or make room for it"
    return f"{error.filename}: {error.strerror}. {advice}."


#: How torch says that a tensor cannot be allocated.
_TOO_LARGE = re.compile(
    "can't allocate memory|not enough memory|out of memory|[Ss]torage size calculation overflowed|"
    "multiplication overflow"
)


def _fail(error: BaseException, message: str) -> NoReturn:
    if os.environ.get(process.DEBUG):
        traceback.print_exception(error)
    click.echo(f"cirbench: {short(message, LONGEST)}", err=True)
    sys.exit(2)


def _readable(arguments: Sequence[str]) -> None:
    """Refuse arguments that no file name, setting or message can hold.

    Raises:
        CirbenchError: a zero character, or bytes that are no text in the encoding of this system.
    """
    for text in arguments:
        if "\0" in text:
            raise CirbenchError(f"the argument {text!r:.200} holds a zero character (NUL). Leave it out.")
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise CirbenchError(
                f"the argument {text!r:.200} is not valid {sys.getfilesystemencoding()}. Rename the file, or set a "
                "locale that its name is written in."
            )

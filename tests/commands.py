"""Running the command line inside a test's own process."""

from __future__ import annotations

from cirbench.cli import main


def exit_code(*arguments: str) -> int:
    """Exit code of a command."""
    try:
        main(list(arguments))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0

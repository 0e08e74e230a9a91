"""A method of somebody else that fails gives one message that names its file, line and function, not a traceback."""

from __future__ import annotations

import ast
import contextlib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from cirbench import numerics
from cirbench.plugins import MethodFile
from cirbench.process import DEBUG, described, is_interrupt, place_in, undisturbed
from cirbench.types import CirbenchError

__all__ = ["DEBUG", "blaming", "failure"]


@contextlib.contextmanager
def blaming(method: MethodFile) -> Iterator[None]:
    """Turn what the code of a method raises into a `CirbenchError`; an error of cirbench itself stays one.

    What the method prints goes to standard error, and the process is left as it was (process.py).

    Args:
        method: whose code runs in the block. Built-in methods are cirbench's own.

    Raises:
        CirbenchError: the method's file, line and function, and the error.
    """
    try:
        with undisturbed():
            yield
    except CirbenchError:
        raise
    except BaseException as error:
        said = "" if is_interrupt(error) or method.module.startswith("cirbench.") else failure(method, error)
        if not said:
            raise
        raise CirbenchError(
            f"the method {method.name} failed {said} `cirbench check {_shown(method)}` examines it; --debug shows the "
            "traceback."
        ) from error


def _shown(method: MethodFile) -> str:
    return method.name if method.module else str(method.path)


def failure(method: MethodFile, error: BaseException) -> str:
    """Where a method failed and with what, `in mine.py, line 3, in build: KeyError: 'x'.`; "" for the machine's faults.

    A full disk or too little memory is no fault of a method, unless its own code was at work.
    """
    files = _files(method)
    place = place_in(error.__traceback__, files)
    if not place and isinstance(error, OSError | MemoryError):
        return ""
    place = place or _signature(error, files)
    if not place:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"outside its own code, in {Path(last.filename).name}, line {last.lineno}"
        return f"{place}: {described(error)}."
    return f"in {place}: {described(error)}."


def _files(method: MethodFile) -> set[Path]:
    """The method's file and its helpers; what it uses of cirbench is not its own."""
    try:
        found = numerics.own_modules(numerics.entry(method.module or method.path)).values()
    except CirbenchError:  # it was changed or removed meanwhile
        return {method.path}
    return {m.path for m in found if not m.name.startswith("cirbench.")}


def _signature(error: BaseException, files: set[Path]) -> str:
    """Place of the function whose arguments do not fit the call: such a call fails before it is inside."""
    found = re.match(r"(?:.*\.)?(\w+)\(\) (?:takes|missing|got)", str(error)) if isinstance(error, TypeError) else None
    for path in sorted(files) if found else ():
        with contextlib.suppress(OSError, SyntaxError, ValueError):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and found and node.name == found[1]:
                    return f"{path.name}, line {node.lineno}, in {node.name}"
    return ""

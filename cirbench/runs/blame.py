"""A method of somebody else that fails gives one message that names its file, line and function, not a traceback."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

from cirbench import numerics
from cirbench.plugins import MethodFile
from cirbench.types import CirbenchError

__all__ = ["DEBUG", "blaming"]

#: With this environment variable the traceback is shown.
DEBUG = "CIRBENCH_DEBUG"


@contextlib.contextmanager
def blaming(method: MethodFile) -> Iterator[None]:
    """Turn what the code of a method raises into a `CirbenchError`; an error of cirbench itself stays one.

    Args:
        method: whose code runs in the block. Built-in methods are cirbench's own.

    Raises:
        CirbenchError: the method's file, line and function, and the error.
    """
    try:
        yield
    except (CirbenchError, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as error:
        if method.module.startswith("cirbench.") or os.environ.get(DEBUG):
            raise
        start = numerics.entry(method.module or method.path)
        files = {m.path for m in numerics.own_modules(start).values()}
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() in files]
        if not frames:
            raise
        last, what = frames[-1], f"{type(error).__name__}: {error}"
        if isinstance(error, SystemExit):
            what = f"it called sys.exit({error.code!r})"
        raise CirbenchError(
            f"the method {method.name} failed in {Path(last.filename).name}, line {last.lineno}, in {last.name}: "
            f"{what}. `cirbench check {method.path}` examines it; {DEBUG}=1 shows the traceback."
        ) from None

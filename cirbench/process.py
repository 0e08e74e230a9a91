"""What a plugin may do to the process it runs in: the state it must leave as it found it, and whose fault an error is.

Only the standard library and types.py: torch and numpy are looked at where they are loaded already.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from cirbench.types import CirbenchError, MethodError

__all__ = [
    "DEBUG", "Terminated", "catch_signals", "changes", "described", "guarded", "is_interrupt", "place_in", "state",
    "unchanged", "undisturbed",
]

#: With this environment variable (`--debug` sets it) the traceback is shown.
DEBUG = "CIRBENCH_DEBUG"
#: Whether Ctrl-C was pressed; a plugin may raise KeyboardInterrupt as well.
_pressed = False


class Terminated(BaseException):
    """SIGTERM, as a scheduler sends it: what is open is closed, workers of a sweep end too."""


def _terminate(_number: int, _frame: object) -> None:
    raise Terminated


def _interrupt(_number: int, _frame: object) -> None:
    global _pressed
    _pressed = True
    raise KeyboardInterrupt


def catch_signals() -> None:
    """Turn SIGTERM into `Terminated`, and tell Ctrl-C from a KeyboardInterrupt that a plugin raises."""
    global _pressed
    _pressed = False
    with contextlib.suppress(ValueError):  # only the main thread may
        signal.signal(signal.SIGTERM, _terminate)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)


def is_interrupt(error: BaseException) -> bool:
    """Whether it stands for a signal: somebody ended the program, so no plugin is to blame."""
    if isinstance(error, KeyboardInterrupt):
        return _pressed or signal.getsignal(signal.SIGINT) is not _interrupt  # unknown whose: taken for a real one
    return isinstance(error, Terminated)


# ------------------------------------------------------------------------------------- whose fault


def described(error: BaseException) -> str:
    """Type and text of an exception on one line, at most a few hundred characters."""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r:.80})"
    try:
        text = " ".join(str(error).split())
    except Exception:  # its own __str__ may fail as well
        text = ""
    text = text if len(text) <= 400 else f"{text[:400]} ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place_in(found: TracebackType | None, files: Collection[Path]) -> str:
    """The innermost place of a traceback in some files, `mine.py, line 3, in build`; "" if it never was in them."""
    frames = [f for f in traceback.extract_tb(found) if Path(f.filename).resolve() in files]
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}, in {frames[-1].name}" if frames else ""


# ------------------------------------------------------------------------- what must stay as it was


def _folder() -> Path | None:
    try:
        return Path.cwd()
    except OSError:
        return None  # it was removed


def _torch(path: str) -> Callable[..., Any]:
    """A function of torch, which need not be loaded yet."""
    def call(*values: Any) -> Any:
        found: Any = sys.modules["torch"]
        for name in path.split("."):
            found = getattr(found, name)
        return found(*values)

    return call


def _default_device() -> str:
    return str(_torch("get_default_device")())


def _set_default_device(value: str) -> None:
    _torch("set_default_device")(None if value == "cpu" else value)


def _deterministic() -> tuple[bool, bool]:
    return _torch("are_deterministic_algorithms_enabled")(), _torch("is_deterministic_algorithms_warn_only_enabled")()


def _set_deterministic(value: tuple[bool, bool]) -> None:
    sys.modules["torch"].use_deterministic_algorithms(value[0], warn_only=value[1])


#: What is the same for everything that runs in this process -> how it is read and set.
PLAIN: Mapping[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the working folder": (_folder, lambda value: os.chdir(value or "/")),
    "the recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
}
TORCH: Mapping[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch's default dtype": (_torch("get_default_dtype"), _torch("set_default_dtype")),
    "torch's default device": (_default_device, _set_default_device),
    "torch's gradient mode": (_torch("is_grad_enabled"), _torch("set_grad_enabled")),
    "torch's number of threads": (_torch("get_num_threads"), _torch("set_num_threads")),
    "torch's deterministic algorithms": (_deterministic, _set_deterministic),
    "torch's matmul precision": (_torch("get_float32_matmul_precision"), _torch("set_float32_matmul_precision")),
}


def _ways() -> Mapping[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    return {**PLAIN, **TORCH} if hasattr(sys.modules.get("torch"), "get_default_dtype") else PLAIN


def state() -> dict[str, Any]:
    """Settings of the process that every plugin shares."""
    return {name: get() for name, (get, _) in _ways().items()}


def changes(before: Mapping[str, Any]) -> str:
    """Put back what differs from an earlier `state`, and say what it was; "" where nothing differs."""
    said = []
    for name, (get, put) in _ways().items():
        if name in before and (now := get()) != before[name]:
            said.append(f"{name} from {before[name]} to {now}")
            put(before[name])
    return " and ".join(said)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Run a plugin's code: afterwards the process is as it was, and what it prints went to standard error.

    A result that a command prints (`--json`) would be broken by a plugin's `print`.
    """
    before, filters, handlers = state(), list(warnings.filters), _handlers()
    randoms = _random_states()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        changes(before)
        warnings.filters[:] = filters  # type: ignore[index]
        for put, value in randoms:
            put(value)
        for number, handler in handlers:
            with contextlib.suppress(ValueError, TypeError):  # only the main thread may, and no handler of C
                if signal.getsignal(number) is not handler:
                    signal.signal(number, handler)


@contextlib.contextmanager
def guarded(failed: Callable[[BaseException], str], changed: Callable[[str], str]) -> Iterator[None]:
    """Run a plugin's code, `undisturbed`: what it raises, or changes in the process, is one message.

    Args:
        failed: the message of an error.
        changed: the message where it changed something, from what that was.

    Raises:
        CirbenchError: with the message.
    """
    before = state()
    try:
        with undisturbed():
            yield
            found = changes(before)
    except CirbenchError:
        raise
    except BaseException as error:
        if is_interrupt(error):
            raise
        raise CirbenchError(failed(error)) from error
    if found:
        raise CirbenchError(changed(found))


@contextlib.contextmanager
def unchanged(function: object, place: str = "") -> Iterator[None]:
    """Call a function of a method; it may not change what the whole process shares.

    Args:
        function: of the method, for the message.
        place: ` at epoch 0, step 3` or the like.

    Raises:
        MethodError: it did; what it changed is put back.
    """
    before = state()
    yield
    if found := changes(before):
        raise MethodError(function, f"it changed {found}{place}, which the whole process shares. Leave it as it is.")


def _handlers() -> list[tuple[signal.Signals, Any]]:
    return [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]


def _random_states() -> list[tuple[Callable[[Any], Any], Any]]:
    """How to put back Python's and numpy's random numbers; torch's are seeded by every run."""
    import random

    numpy: Any = sys.modules.get("numpy")
    found: list[tuple[Callable[[Any], Any], Any]] = [(random.setstate, random.getstate())]
    return [*found, (numpy.random.set_state, numpy.random.get_state())] if hasattr(numpy, "random") else found

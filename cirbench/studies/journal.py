"""The journal file of a study: written so that it cannot tear, and mended where something else tore it.

Each line is one operation of Optuna, and ids of trials follow from their order: with one unreadable line Optuna cannot
read any further. What the lines lead to is also in the records of finished runs, so nothing is computed twice.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState

from cirbench import lease
from cirbench.files import is_full, no_room, replacing
from cirbench.types import CirbenchError

__all__ = ["Journal", "open_journal"]

#: Optuna's numbers of operations, which its files keep from version to version, and the number that each one names.
CREATE_TRIAL, SET_STATE = 4, 6
NAMES = {0: "op_code", 2: "study_id", 3: "study_id", CREATE_TRIAL: "study_id"} | dict.fromkeys(range(5, 10), "trial_id")
NEEDED = "a sweep"
#: What a file that could not be mended in place is kept as.
DAMAGED = "journal.damaged.log"


def open_journal(path: Path) -> JournalStorage:
    """The storage in a journal file, mended; anew where even then Optuna cannot read it.

    Raises:
        CirbenchError: the folder cannot be locked, or its disk is full.
    """
    try:
        return JournalStorage(Journal(path))
    except (CirbenchError, OSError):
        raise
    except Exception:  # a hole in a line that is JSON all the same
        with lease.lock(_mark(path), needed=NEEDED):
            path.replace(path.with_name(DAMAGED))
        return JournalStorage(Journal(path))


class Journal(JournalFileBackend):
    """Optuna's journal file, whose lines are appended whole or not at all.

    Args:
        path: of the file; it is mended first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        mend(path)
        super().__init__(str(path))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations.

        Raises:
            DiskFullError: no room; the file is as it was.
        """
        # Optuna's own lock would outlive a worker that is killed by half a minute.
        with lease.lock(_mark(self.path), needed=NEEDED), self.path.open("rb+", buffering=0) as file:
            end = _whole(file)
            file.seek(end)
            left = b"".join(_line(log) for log in logs)
            try:
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError as error:
                file.truncate(end)
                if is_full(error):
                    raise no_room(self.path) from None
                raise


def _line(log: dict[str, Any]) -> bytes:
    return json.dumps(log, separators=(",", ":")).encode() + b"\n"


def _mark(path: Path) -> Path:
    return path.with_suffix(".lock")


def _whole(file: Any) -> int:
    """Where the last whole line of a file ends; whoever was killed while it wrote left the rest."""
    end = file.seek(0, os.SEEK_END)
    tail = b""
    while end:
        start = max(0, end - 4096)
        file.seek(start)
        tail = file.read(end - start)
        if (line := tail.rfind(b"\n")) >= 0:
            return start + line + 1
        end = start
    return 0


def _operation(line: bytes) -> dict[str, Any] | None:
    """One line of the file, or None if it is no operation."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("op_code"), int):
        return None
    return found if isinstance(found.get(NAMES.get(found["op_code"], "op_code")), int) else None


def mend(path: Path) -> None:
    """Make a journal readable again, as far as it is not.

    Unreadable lines at its end are cut off; whoever wrote them is dead, and its trial is taken up again. With one
    further up it is not known what is lost, so that all finished trials count as running again: workers take them up,
    find the records of their runs, and tell the study once more. The damaged file is kept under another name.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    with lease.lock(_mark(path), needed=NEEDED):
        with path.open("rb") as file:
            lines = file.readlines()
        found = [_operation(line) if line.endswith(b"\n") else None for line in lines]
        while found and found[-1] is None:
            found.pop()
        if None not in found:
            if len(found) < len(lines):
                os.truncate(path, sum(map(len, lines[: len(found)])))
            return
        kept = [log for log in found if log is not None and not _finishes(log)]
        made = [log for log in kept if log["op_code"] == CREATE_TRIAL]
        named = max((log["trial_id"] for log in kept if isinstance(log.get("trial_id"), int)), default=-1)
        if made and (lost := named + 1 - len(made)) > 0:
            # New trials are all alike. Any place will do, since ids count them and nothing else.
            at = kept.index(made[0])
            kept[at:at] = [made[0]] * lost
        path.replace(path.with_name(DAMAGED))
        with replacing(path) as out:
            out.writelines(map(_line, kept))


def _finishes(log: dict[str, Any]) -> bool:
    """Whether an operation ends a trial whose values the records hold."""
    return log["op_code"] == SET_STATE and log.get("state") in (TrialState.COMPLETE.value, TrialState.FAIL.value)

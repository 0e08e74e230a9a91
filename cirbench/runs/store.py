"""Finds finished runs and sweeps below the folders a user names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cirbench import lease
from cirbench.runs.record import Record, is_finished, not_a_run, read_json
from cirbench.runs.study_types import SCHEMA, StudyData, read_study
from cirbench.types import CirbenchError

__all__ = ["Study", "find_records", "find_studies", "finished_run", "settle", "tidy"]

DEPTH = 3
"""How many levels below a given folder `find_records` looks for runs (a sweep keeps its runs two below)."""


class Study:
    """A sweep as it was run: its `sweep.json` (docs/add-a-sweep.md), in the folder `OUT/sweeps/STUDY`.

    Attributes:
        folder: of the sweep.
        sweep: what `sweep.json` holds, as typed values.
        data: the file's own JSON.

    Raises:
        CirbenchError: the file is damaged, or of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "sweep.json"
        data = read_json(path)
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise CirbenchError(f"{path} is not a sweep of schema {SCHEMA}. Repeat `cirbench sweep`; runs are kept.")
        try:
            self.sweep: StudyData = read_study(data)
        except ValueError as error:
            raise CirbenchError(f"{path} is damaged: {error}. Repeat `cirbench sweep`; runs are kept.") from None
        self.data: dict[str, Any] = data

    def runs(self) -> list[Path]:
        """Folders of its finished runs on this machine; another machine may keep its own."""
        out = self.folder.absolute().parent.parent
        return [out / name for name in self.sweep.runs if is_finished(out / name)]


def find_studies(paths: Sequence[Path]) -> list[Study]:
    """The sweeps at or below `paths`, each once (by study), folders sorted by name."""
    out: dict[str, Study] = {}
    for path in map(Path, paths):
        for folder in _below(path.parent if path.name == "sweep.json" else path, DEPTH, "sweep.json"):
            study = Study(folder)
            out.setdefault(study.sweep.study, study)
    return list(out.values())


def find_records(paths: Sequence[Path]) -> list[Record]:
    """The finished runs at or below `paths`: run folders, folders that hold them, or sweeps (their runs).

    Each run is returned once (by id), in the order of `paths`, folders sorted by name. Interrupted runs below a
    given folder are skipped; one that is named itself is an error, since its absence would go unnoticed.

    Raises:
        CirbenchError: a path does not exist, holds no finished run, or holds a damaged one.
    """
    out: dict[str, Record] = {}
    for path in map(Path, paths):
        if not path.exists():
            near = _nearest_sibling(path)
            raise CirbenchError(
                f"no such run folder: {path}.{near} `cirbench runs` lists the runs there are."
            )
        if path.is_file() and path.name in ("record.json", "sweep.json"):
            path = path.parent
        if not path.is_dir():
            raise CirbenchError(f"{path} is a file, not a run folder. Give the folder that holds record.json.")
        folders = _below(path, DEPTH, "record.json")
        if not folders and (path / "sweep.json").is_file():
            folders = Study(path).runs()
            if not folders:
                raise CirbenchError(
                    f"{path} is a sweep without a finished run in {path.absolute().parent.parent}."
                )
        if not folders:
            raise CirbenchError(not_a_run(path))
        for folder in folders:
            record = Record(folder)
            out.setdefault(record.id, record)
    return list(out.values())


def _below(folder: Path, depth: int, mark: str) -> list[Path]:
    """`folder` itself, or those of its folders, that hold a file called `mark`."""
    if (folder / mark).is_file():
        return [folder]
    if depth < 1 or not folder.is_dir():
        return []
    children = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return [found for child in children for found in _below(child, depth - 1, mark)]


def _nearest_sibling(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [child.name for child in path.parent.iterdir() if child.is_dir()]
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f" Did you mean {path.parent / close[0]}?" if close else ""


def finished_run(out: Path, run_id: str) -> Path | None:
    """The finished run of this id in the folder `out`, whatever label it was run under."""
    return next((folder for folder in sorted(out.glob(f"*-{run_id[:10]}")) if is_finished(folder)), None)


def tidy(folder: Path) -> None:
    """Remove what a killed process left in a finished run; whoever calls holds its lease, or knows that nobody does."""
    if is_finished(folder):
        for path in leftovers(folder):
            path.unlink(missing_ok=True)


def settle(folder: Path) -> None:
    """Remove what is left in a finished run that nobody holds: somebody was killed between the record and the end."""
    if (folder / "lease.json").exists() or leftovers(folder):
        with lease.held(folder):
            tidy(folder)


def leftovers(folder: Path) -> list[Path]:
    """What a finished run does not need: half-written files (`.tmp...` is safetensors') and the checkpoint."""
    return [path for pattern in ("*.tmp", ".tmp*", "checkpoint.pt") for path in folder.glob(pattern)]

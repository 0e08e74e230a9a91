"""Using the weights of a finished run again."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cirbench import specs
from cirbench.records import Record, is_finished
from cirbench.seeds import digest
from cirbench.settings import parse_assignments
from cirbench.specs import Plan
from cirbench.types import CirbenchError


@dataclass(frozen=True)
class Converted:
    """Weights that no run here made: a folder of `cirbench convert-dwc`, known by its `converted.json`."""

    folder: Path
    data: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Hash of the files it was made from and of its settings."""
        return str(self.data["id"])

    @property
    def name(self) -> str:
        """Name of the folder when it was made."""
        return str(self.data["name"])


def _weights_of(folder: Path) -> Record | Converted:
    mark = folder / "converted.json"
    if not mark.is_file():
        return Record(folder)
    try:
        return Converted(folder, json.loads(mark.read_text(encoding="utf-8")))
    except ValueError as error:
        raise CirbenchError(f"{mark} is damaged: {error}. Convert the checkpoints again.") from None


def plan_eval(
    folder: Path, dataset: str | None = None, sets: Sequence[str] = (), root: Path | None = None,
    forms: Sequence[str] | None = None,
) -> tuple[Plan, Record | Converted]:
    """The plan of a finished run, or of converted weights, on its own dataset or another.

    Raises:
        CirbenchError: not a finished run, or a dataset that cannot be used.
    """
    if not is_finished(folder) and not (folder / "converted.json").is_file():
        raise CirbenchError(
            f"{folder} is not a finished run: it has no record.json. `cirbench runs` lists the finished ones."
        )
    record = _weights_of(folder)
    inputs = record.data["inputs"]
    if not (folder / "model.safetensors").is_file():
        raise CirbenchError(
            f"{folder} holds no model.safetensors, so there is nothing to evaluate. Run it with --force."
        )
    over = {f"method.{k}": v for k, v in inputs["config"].items()}
    over |= {f"train.{k}": v for k, v in inputs["train"].items()}
    name = dataset or inputs["dataset"]
    if not name:
        raise CirbenchError(f"{folder} holds converted weights of no dataset here: name one with --dataset.")
    if name == inputs["dataset"]:
        over |= {f"data.{k}": v for k, v in inputs["data"].items()}
    for field, value in parse_assignments(sets, ("data",))["data"].items():
        over[f"data.{field}"] = value
    method = record.data.get("method_path") or inputs["method"]
    return specs.plan(method, name, seed=inputs["seed"], root=root, over=over, forms=forms), record


def evaluate_run(
    planned: Plan, record: Record | Converted, out: Path, device: str, quiet: bool, command: str,
    allow_missing: bool = False,
) -> Record:
    """Evaluate on the `report` split; the record's id hashes the run, the weights and the dataset.

    Raises:
        CirbenchError: weights that do not fit, or pictures that are missing.
    """
    from cirbench import missing, runs
    from cirbench.encoders import file_sha256
    from cirbench.training import pick_device

    where = pick_device(device)
    dataset, absent = missing.settle(specs.load(planned), ("report",), allow_missing)
    weights = record.folder / "model.safetensors"
    _, inputs, _ = runs.identify(planned, dataset)
    inputs["evaluated"] = {"run": record.id, "model": file_sha256(weights)}
    run_id = digest(inputs)
    folder = out / f"{specs.run_name(planned, run_id)[: -11]}-eval-{run_id[:10]}"
    if is_finished(folder):
        return Record(folder)
    began, started = time.perf_counter(), datetime.now(UTC)
    method = runs.load_method(planned, dataset, weights, where)
    folder.mkdir(parents=True, exist_ok=True)
    runs.report(
        folder, planned, method, dataset, absent, where, runs.Options(out, device, quiet=quiet, command=command),
        {
            "id": run_id, "inputs": inputs, "variant": record.data.get("variant", ""),
            "overrides": record.data.get("overrides", {}), **runs.method_path(planned),
            "selection": record.data["selection"], "split": "report",
            "started": started.isoformat(timespec="seconds"),
            "notes": [
                *dataset.notes,
                f"Weights of the run {record.name}, trained on {record.data['inputs']['dataset']}."
                if isinstance(record, Record) else f"Released weights, converted: {record.name}.",
            ],
        },
        {"train": 0.0, "epoch": 0.0}, began,
    )
    return Record(folder)

"""Using the weights of a finished run again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cirbench import specs
from cirbench.records import Record, is_finished
from cirbench.seeds import digest
from cirbench.settings import parse_assignments
from cirbench.specs import Plan
from cirbench.types import CirbenchError


def plan_eval(
    folder: Path, dataset: str | None = None, sets: Sequence[str] = (), root: Path | None = None
) -> tuple[Plan, Record]:
    """The plan of a finished run, on its own dataset or another.

    Raises:
        CirbenchError: not a finished run, or a dataset that cannot be used.
    """
    if not is_finished(folder):
        raise CirbenchError(
            f"{folder} is not a finished run: it has no record.json. `cirbench runs` lists the finished ones."
        )
    record = Record(folder)
    inputs = record.data["inputs"]
    if not (folder / "model.safetensors").is_file():
        raise CirbenchError(
            f"{folder} holds no model.safetensors, so there is nothing to evaluate. Run it with --force."
        )
    over = {f"method.{k}": v for k, v in inputs["config"].items()}
    over |= {f"train.{k}": v for k, v in inputs["train"].items()}
    name = dataset or inputs["dataset"]
    if name == inputs["dataset"]:
        over |= {f"data.{k}": v for k, v in inputs["data"].items()}
    for field, value in parse_assignments(sets, ("data",))["data"].items():
        over[f"data.{field}"] = value
    method = record.data.get("method_path") or inputs["method"]
    return specs.plan(method, name, seed=inputs["seed"], root=root, over=over), record


def evaluate_run(planned: Plan, record: Record, out: Path, device: str, quiet: bool, command: str) -> Record:
    """Evaluate on the `report` split; the record's id hashes the run, the weights and the dataset.

    Raises:
        CirbenchError: weights that do not fit.
    """
    from cirbench import runs
    from cirbench.encoders import file_sha256
    from cirbench.training import pick_device

    where = pick_device(device)
    dataset = specs.load(planned)
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
        folder, method, dataset, dataset.splits["report"], dataset.protocols, where,
        runs.Options(out, device, quiet=quiet, command=command),
        {
            "id": run_id, "inputs": inputs, "variant": record.data.get("variant", ""),
            "overrides": record.data.get("overrides", {}), **runs.method_path(planned),
            "selection": record.data["selection"], "split": "report",
            "started": started.isoformat(timespec="seconds"),
            "notes": [
                *dataset.notes, f"Weights of the run {record.name}, trained on {record.data['inputs']['dataset']}."
            ],
        },
        {"train": 0.0, "epoch": 0.0}, began,
    )
    return Record(folder)

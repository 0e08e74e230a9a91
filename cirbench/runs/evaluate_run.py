"""Evaluates the weights of a finished run, or converted ones, on the run's own dataset or another."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cirbench import lease
from cirbench.data.file_hashes import file_sha256
from cirbench.plugins import find_dataset, find_method
from cirbench.runs import planning
from cirbench.runs.blame import blaming
from cirbench.runs.building import load_method
from cirbench.runs.execution import places
from cirbench.runs.identity import id_of, identify, run_name
from cirbench.runs.planning import Plan
from cirbench.runs.record import Record, is_finished
from cirbench.runs.record_lines import parse_json
from cirbench.runs.record_types import CODE, Fields
from cirbench.runs.recording import Answering, check_queries, write_record
from cirbench.runs.store import settle
from cirbench.runs.training import pick_device
from cirbench.scoring import missing_images
from cirbench.seeds import digest
from cirbench.settings import TrainSettings, parse_assignments
from cirbench.types import CirbenchError


@dataclass(frozen=True)
class Converted:
    """Weights from elsewhere: a folder of `cirbench convert-dwc`, recognised by its `converted.json`."""

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
        o = Fields(parse_json(mark.read_text(encoding="utf-8")))
        inputs, selection = o.part("inputs"), o.part("selection")
        for part, names in ((o, ("id", "name", "variant")), (inputs, ("method", "dataset")), (selection, ("rule",))):
            for name in names:
                part.text(name)
        for name in ("config", "train", "data"):
            inputs.mapping(name)
        inputs.whole("seed")
    except (OSError, ValueError) as error:
        raise CirbenchError(f"{mark} is damaged: {error}. Convert the checkpoints again.") from None
    return Converted(folder, o.value)


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
    if inputs.get("fused"):
        raise CirbenchError(
            f"{folder.name} is a fusion, which has no weights of its own: {', '.join(inputs['fused'])}. Name the runs "
            "that it was made of, then fuse what comes of them."
        )
    if not (folder / "model.safetensors").is_file():
        raise CirbenchError(
            f"{folder} holds no model.safetensors, so there is nothing to evaluate. Repeat the run with --force."
        )
    method = record.data.get("method_path") or inputs["method"]
    # A field newer than the record had its neutral value then, whatever its default is now.
    over = {f"method.{k}": v for k, v in {**find_method(method).config.neutral(), **inputs["config"]}.items()}
    name = dataset or record.data.get("dataset_path") or inputs["dataset"]
    if not name:
        raise CirbenchError(f"{folder} holds converted weights, which name no dataset. Name one with --dataset.")
    own = find_dataset(name).SPEC.name == inputs["dataset"]
    # Protocols, text forms and the selection rule belong to the dataset of the run and are dropped on another one.
    bound = () if own else ("protocol", "form", "selection")
    over |= {f"train.{k}": v for k, v in {**TrainSettings.neutral(), **inputs["train"]}.items() if k not in bound}
    if own:
        neutral = find_dataset(name).Knobs.neutral()
        over |= {f"data.{k}": v for k, v in {**neutral, **inputs["data"]}.items()}
    for field, value in parse_assignments(sets, ("data",))["data"].items():
        over[f"data.{field}"] = value
    planned = planning.plan(method, name, seed=inputs["seed"], root=root, over=over, forms=forms)
    return replace(planned, stages=inputs.get("stages", {})), record


def _training_of(record: Record | Converted, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """How the weights were made, for `inputs.evaluated`; equal for every seed (docs/records.md).

    The digest leaves out what the evaluation's own inputs repeat, so that evaluations that differ in one field of the
    method differ only there, as runs do. For weights from elsewhere nothing is known.
    """
    if not isinstance(record, Record):
        return {}
    training = record.data["inputs"]
    rest = {k: v for k, v in training.items() if k not in ("seed", *CODE, "train") and inputs.get(k) != v}
    rest["train"] = {k: v for k, v in training["train"].items() if inputs["train"].get(k) != v}
    out = {"inputs": digest(rest), "source": digest(record.run.inputs.code)}
    if (record.data.get("selection") or {}).get("rule") != "untrained":
        out |= {"dataset": training["dataset"], "data": training["data"]}
    return out


def evaluate_run(
    planned: Plan, record: Record | Converted, out: Path, device: str, quiet: bool, command: str,
    allow_missing: bool = False,
) -> Record:
    """Evaluate on the `report` split; the record's id hashes the run, the weights and the dataset.

    Raises:
        CirbenchError: weights that do not match the method, or missing pictures.
    """
    where = pick_device(device)
    dataset, absent = missing_images.settle(planning.load(planned), ("report",), allow_missing)
    weights = record.folder / "model.safetensors"
    inputs = identify(planned, dataset, record.data["inputs"].get("corpus", {})).inputs
    inputs["evaluated"] = {"run": record.id, "model": file_sha256(weights), **_training_of(record, inputs)}
    run_id = id_of(inputs)
    folder = out / f"{run_name(planned, run_id)[: -11]}-eval-{run_id[:10]}"
    if is_finished(folder):
        settle(folder)
        return Record(folder)
    check_queries(dataset.splits["report"])
    began, started = time.perf_counter(), datetime.now(UTC)
    with blaming(planned.method):
        method = load_method(planned, dataset, weights, where)
    folder.mkdir(parents=True, exist_ok=True)
    with lease.held(folder), blaming(planned.method):
        if is_finished(folder):  # by another process, while this one waited for the lease
            return Record(folder)
        source = f"Released weights, converted: {record.name}."
        if isinstance(record, Record):
            source = f"Weights of the run {record.name}, trained on {record.data['inputs']['dataset']}."
        head = {
            "id": run_id, "inputs": inputs, "variant": record.data.get("variant", ""),
            "overrides": record.data.get("overrides", {}), **places(planned), "selection": record.data["selection"],
            "split": "report", "started": started.isoformat(timespec="seconds"), "notes": [*dataset.notes, source],
        }
        write_record(Answering(
            folder.absolute(), planned, method, dataset, absent, where, quiet, command, head=head,
            seconds={"train": 0.0, "epoch": 0.0}, began=began, home=folder.stat(),
        ))
    return Record(folder)

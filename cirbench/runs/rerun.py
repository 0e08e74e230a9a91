"""Using the weights of a finished run again."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cirbench import lease
from cirbench.files import write_json
from cirbench.plugins import find_dataset, find_method
from cirbench.runs import planning
from cirbench.runs.planning import Plan
from cirbench.runs.record import Record, is_finished
from cirbench.runs.record_types import CODE
from cirbench.seeds import digest
from cirbench.settings import TrainSettings, parse_assignments
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
    method = record.data.get("method_path") or inputs["method"]
    # A field that is younger than the record was at the value that changes nothing, whatever its default is now.
    over = {f"method.{k}": v for k, v in {**find_method(method).config.neutral(), **inputs["config"]}.items()}
    name = dataset or record.data.get("dataset_path") or inputs["dataset"]
    if not name:
        raise CirbenchError(f"{folder} holds converted weights of no dataset here: name one with --dataset.")
    own = find_dataset(name).SPEC.name == inputs["dataset"]
    # Names of a dataset's own protocols and text forms say nothing on another, nor does what once chose the checkpoint.
    bound = () if own else ("protocol", "form", "selection")
    over |= {f"train.{k}": v for k, v in {**TrainSettings.neutral(), **inputs["train"]}.items() if k not in bound}
    if own:
        neutral = find_dataset(name).Knobs.neutral()
        over |= {f"data.{k}": v for k, v in {**neutral, **inputs["data"]}.items()}
    for field, value in parse_assignments(sets, ("data",))["data"].items():
        over[f"data.{field}"] = value
    return planning.plan(method, name, seed=inputs["seed"], root=root, over=over, forms=forms), record


def _training_of(record: Record | Converted, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What `inputs.evaluated` says of how the weights were made, the same for every seed (docs/records.md).

    The digest leaves out what the evaluation's own inputs repeat, so that evaluations that differ in one knob of the
    method differ there alone, as runs do. Of weights that no run here made nothing is known.
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
        CirbenchError: weights that do not fit, or pictures that are missing.
    """
    from cirbench.data.file_hashes import file_sha256
    from cirbench.runs import execution
    from cirbench.runs.training import pick_device
    from cirbench.scoring import missing_images

    where = pick_device(device)
    dataset, absent = missing_images.settle(planning.load(planned), ("report",), allow_missing)
    weights = record.folder / "model.safetensors"
    _, inputs, _ = execution.identify(planned, dataset)
    inputs["evaluated"] = {"run": record.id, "model": file_sha256(weights), **_training_of(record, inputs)}
    run_id = planning.run_id(inputs)
    folder = out / f"{planning.run_name(planned, run_id)[: -11]}-eval-{run_id[:10]}"
    if is_finished(folder):
        return Record(folder)
    began, started = time.perf_counter(), datetime.now(UTC)
    method = execution.load_method(planned, dataset, weights, where)
    folder.mkdir(parents=True, exist_ok=True)
    with lease.held(folder):
        if is_finished(folder):  # by another process, while this one waited for the lease
            return Record(folder)
        execution.report(
            folder, planned, method, dataset, absent, where,
            execution.Options(out, device, quiet=quiet, command=command),
            {
                "id": run_id, "inputs": inputs, "variant": record.data.get("variant", ""),
                "overrides": record.data.get("overrides", {}), **execution.places(planned),
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


# ------------------------------------------------------------------------------------- explain


def sample(group_of: Sequence[str], count: int) -> list[int]:
    """Positions of up to `count` queries, spread evenly over every group, in order; `group_of` has one name a query."""
    groups: dict[str, list[int]] = {}
    for n, group in enumerate(group_of):
        groups.setdefault(group, []).append(n)
    chosen: list[int] = []
    left = min(count, len(group_of))
    for done, members in enumerate(sorted(groups.values(), key=len)):
        share = min(len(members), left // (len(groups) - done))
        chosen += [members[k * len(members) // share] for k in range(share)]
        left -= share
    return sorted(chosen)


def explain_run(
    folder: Path, count: int, device: str = "auto", quiet: bool = True, root: Path | None = None
) -> dict[str, Any]:
    """Evidence of a finished run that needs its model, written to its `explain.json` as a whole or not at all.

    Args:
        folder: of the run.
        count: queries to explain, spread over its groups.
        device: where.
        quiet: no progress bar.
        root: folder of the data, where the dataset needs one.

    Returns:
        What was written.

    Raises:
        CirbenchError: not a finished run, other data than it saw, or a method with nothing to tell.
    """
    import torch
    from tqdm import tqdm

    from cirbench.runs import execution
    from cirbench.runs.training import pick_device
    from cirbench.scoring import evaluation

    planned, record = plan_eval(folder, root=root)
    if not isinstance(record, Record):
        raise CirbenchError(f"{folder} holds converted weights, not a run. `cirbench eval` makes a run of them.")
    where = pick_device(device)
    dataset = planning.load(planned)
    if dataset.fingerprint != record.data["inputs"]["fingerprint"]:
        raise CirbenchError(
            f"{planned.facts.name} is not the data that {record.name} answered (fingerprint "
            f"{dataset.fingerprint[:12]}, the run saw {record.data['inputs']['fingerprint'][:12]}). Use --root."
        )
    # A run that went on without missing pictures has a set of its own.
    if not record.data.get("missing") and execution.identify(planned, dataset)[2] != record.data["inputs"]["images"]:
        raise CirbenchError(
            f"the pictures of {planned.facts.name} are not those that {record.name} saw: they were changed since, or "
            "are other ones. Use --root, or repeat the run."
        )
    method = execution.load_method(planned, dataset, folder / "model.safetensors", where)
    if not hasattr(method, "explain"):
        raise CirbenchError(f"the method {planned.method.name} has no `explain`: there is no evidence to compute.")
    asked = {q["id"] for q in record.queries}  # a run may have gone on without missing pictures
    queries, form = [q for q in dataset.splits["report"].queries if q.id in asked], dataset.protocols[0].form
    chosen = [queries[n] for n in sample([q.group for q in queries], count)]
    texts = [dataset.forms[form](q)[0][0] for q in chosen]
    images = list(dict.fromkeys(q.reference for q in chosen))
    from cirbench.data.batches import Feed

    feed = Feed(dataset, images, list(dict.fromkeys(texts)), method.inputs, where, quiet=quiet)
    told: dict[str, dict[str, Any]] = {}
    with torch.inference_mode():
        for start in tqdm(range(0, len(chosen), evaluation.BATCH), desc="explaining", disable=quiet, leave=False):
            part = slice(start, start + evaluation.BATCH)
            found = method.explain(feed.queries([q.reference for q in chosen[part]], texts[part]))
            maps = {name: region.float().cpu().numpy() for name, region in found.regions.items()}
            for n, query in enumerate(chosen[part]):
                told[query.id] = {
                    "words": [[word, _short(value)] for word, value in found.words[n]] if found.words else [],
                    "regions": {k: [[_short(x) for x in row] for row in m[n]] for k, m in maps.items()},
                }
    if not any(t["words"] or t["regions"] for t in told.values()):
        raise CirbenchError(
            f"{record.name}: this variant of {planned.method.name} has neither words nor regions to show."
        )
    evidence = {"queries": told}
    write_json(folder / "explain.json", evidence, indent=None)
    return evidence


def _short(value: float) -> float:
    """Five digits are more than a picture or a ranking of cells needs."""
    return float(f"{float(value):.5g}")

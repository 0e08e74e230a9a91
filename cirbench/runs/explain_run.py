"""What a method attends to, query by query: computed with the model, kept with the run for its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from cirbench import lease
from cirbench.data.batches import Feed
from cirbench.files import write_json
from cirbench.runs import planning
from cirbench.runs.blame import blaming
from cirbench.runs.building import load_method
from cirbench.runs.evaluate_run import plan_eval
from cirbench.runs.identity import identify
from cirbench.runs.planning import Plan
from cirbench.runs.record import Record
from cirbench.runs.store import tidy
from cirbench.runs.training import pick_device
from cirbench.scoring import evaluation
from cirbench.types import CirbenchError, Dataset

__all__ = ["explain_run", "sample"]


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
    """Compute words and regions with a finished run's model, and write its `explain.json` atomically.

    Args:
        folder: of the run.
        count: queries to explain, spread over its groups.
        device: to compute on.
        quiet: no progress bar.
        root: folder of the data, where the dataset needs one.

    Returns:
        What was written.

    Raises:
        CirbenchError: not a finished run, other data than the run's, or a method without `explain`.
    """
    planned, record = plan_eval(folder, root=root)
    if not isinstance(record, Record):
        raise CirbenchError(f"{folder} holds converted weights, not a run. `cirbench eval` makes a run from them.")
    where = pick_device(device)
    dataset = planning.load(planned)
    if dataset.fingerprint != record.data["inputs"]["fingerprint"]:
        raise CirbenchError(
            f"{planned.facts.name} is not the data of the run {record.name} (fingerprint "
            f"{dataset.fingerprint[:12]}, the run's is {record.data['inputs']['fingerprint'][:12]}). Use --root."
        )
    # A run that continued without missing pictures has an image set of its own.
    if not record.data.get("missing") and identify(planned, dataset, {}).images != record.data["inputs"]["images"]:
        why = "are not those of the run {}: they were changed or replaced. Use --root, or repeat the run."
        if record.data["schema"] == 1 and planned.facts.needs_root:
            why = "cannot be compared with those of {}: its record has only sizes. Repeat the run."
        raise CirbenchError(f"the pictures of {planned.facts.name} {why.format(record.name)}")
    with blaming(planned.method):
        return _explain(planned, dataset, record, count, where, quiet)


def _explain(
    planned: Plan, dataset: Dataset, record: Record, count: int, where: torch.device, quiet: bool
) -> dict[str, Any]:
    folder = record.folder.absolute()
    method = load_method(planned, dataset, folder / "model.safetensors", where)
    if not hasattr(method, "explain"):
        raise CirbenchError(f"the method {planned.method.name} has no `explain`, so nothing can be computed.")
    asked = {q["id"] for q in record.queries}  # a run may have continued without missing pictures
    queries, form = [q for q in dataset.splits["report"].queries if q.id in asked], dataset.protocols[0].form
    chosen = [queries[n] for n in sample([q.group for q in queries], count)]
    texts = [dataset.forms[form](q)[0][0] for q in chosen]
    images = list(dict.fromkeys(q.reference for q in chosen))
    feed = Feed(dataset, images, list(dict.fromkeys(texts)), method.inputs, where, quiet=quiet)
    evidence_of: dict[str, dict[str, Any]] = {}
    with torch.inference_mode():
        for start in tqdm(range(0, len(chosen), evaluation.BATCH), desc="explaining", disable=quiet, leave=False):
            part = slice(start, start + evaluation.BATCH)
            shown = method.explain(feed.queries([q.reference for q in chosen[part]], texts[part]))
            maps = {name: region.float().cpu().numpy() for name, region in shown.regions.items()}
            for n, query in enumerate(chosen[part]):
                evidence_of[query.id] = {
                    "words": [[word, _short(value)] for word, value in shown.words[n]] if shown.words else [],
                    "regions": {k: [[_short(x) for x in row] for row in m[n]] for k, m in maps.items()},
                }
    if not any(t["words"] or t["regions"] for t in evidence_of.values()):
        raise CirbenchError(
            f"{record.name}: `explain` of this variant of {planned.method.name} returned neither words nor regions."
        )
    evidence = {"queries": evidence_of}
    with lease.held(folder):
        write_json(folder / "explain.json", evidence, indent=None)
        tidy(folder)
    return evidence


def _short(value: float) -> float:
    """The value with five digits, more than a picture or a ranking of cells needs."""
    return float(f"{float(value):.5g}")

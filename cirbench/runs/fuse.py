"""Fuses finished runs into one, with shares that `select` chooses; the result is a run like any other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from cirbench import lease
from cirbench.data.file_hashes import file_sha256
from cirbench.files import check_home
from cirbench.runs import planning
from cirbench.runs.blame import blaming
from cirbench.runs.building import load_method
from cirbench.runs.evaluate_run import plan_eval
from cirbench.runs.fusing import Fused, shares_of
from cirbench.runs.identity import id_of, identify
from cirbench.runs.planning import Plan
from cirbench.runs.record import Record, is_finished
from cirbench.runs.recording import Answering, check_queries, write_record
from cirbench.runs.store import settle
from cirbench.runs.training import pick_device
from cirbench.scoring import evaluation, missing_images
from cirbench.seeds import digest
from cirbench.types import CirbenchError, Dataset, Method, Protocol

__all__ = ["STEPS", "Member", "best_of", "fuse", "members"]

#: Shares are tried in steps of one over this, by the number of methods.
STEPS = {2: 20, 3: 10}
HOW = ("scores", "ranks")


@dataclass(frozen=True)
class Member:
    """A run that is fused, and the plan to evaluate it."""

    planned: Plan
    record: Record

    @property
    def label(self) -> str:
        """Method and variant."""
        return "-".join(p for p in (self.record.run.inputs.method, self.record.run.variant) if p)


def members(folders: Sequence[Path], root: Path | None = None) -> list[Member]:
    """The runs to fuse.

    Args:
        folders: two or three finished runs on one dataset.
        root: where the dataset lies.

    Raises:
        CirbenchError: another number of runs, one of them twice, unfinished, of another dataset, or fused already.
    """
    if len(folders) not in STEPS:
        raise CirbenchError(f"fuse takes two or three runs, got {len(folders)}. `cirbench runs` lists them.")
    found: list[Member] = []
    for folder in folders:
        if is_finished(folder) and Record(folder).run.inputs.raw.get("fused"):
            raise CirbenchError(f"{folder.name} is itself a fusion. Name the runs that it was made of.")
        planned, record = plan_eval(folder, root=root)
        if not isinstance(record, Record):
            raise CirbenchError(f"{folder} holds converted weights. `cirbench eval {folder}` makes a run of them.")
        found.append(Member(planned, record))
    first = found[0].record
    for n, member in enumerate(found):
        record = member.record
        if record.id in {other.record.id for other in found[:n]}:
            raise CirbenchError(f"{record.name} is named twice. Give different runs.")
        for name in ("dataset", "fingerprint", "images"):
            mine, other = record.run.inputs.raw[name], first.run.inputs.raw[name]
            if mine != other:
                told = f": {other} and {mine}" if name == "dataset" else f" in their {name}"
                raise CirbenchError(
                    f"{first.name} and {record.name} differ{told}, so their answers cannot be added. Fuse runs on the "
                    "same queries and pictures."
                )
    return found


def fuse(
    given: Sequence[Member], out: Path, how: str = "scores", weights: Sequence[float] | None = None,
    device: str = "auto", quiet: bool = False, command: str = "", allow_missing: bool = False,
) -> Record:
    """Fuse runs and write the record of it.

    Args:
        given: of `members`.
        out: folder for the run.
        how: `scores` or `ranks`.
        weights: the share of each run, adding up to 1; None to choose them on `select` (equal ones without it).
        device: to compute on.
        quiet: no progress bars.
        command: as typed, for the record.
        allow_missing: go on without pictures that are missing.

    Raises:
        CirbenchError: shares that are no shares, or anything wrong with data or weights.
    """
    _check(how, weights, len(given))
    where, first = pick_device(device), given[0].planned
    dataset, absent = missing_images.settle(planning.load(first), ("select", "report"), allow_missing)
    inputs = _inputs(given, dataset, how, weights)
    run_id = id_of(inputs)
    label = "-and-".join(m.label for m in given)
    folder = out / f"{first.facts.name}-fusion-{label}-s{first.seed}-{run_id[:10]}"
    if is_finished(folder):
        settle(folder)
        return Record(folder)
    check_queries(dataset.splits["report"])
    began, started = time.perf_counter(), datetime.now(UTC)
    loaded = []
    for member in given:
        with blaming(member.planned.method):
            loaded.append(load_method(member.planned, dataset, member.record.folder / "model.safetensors", where))
    fused = Fused(loaded, how, weights or [1 / len(given)] * len(given))
    folder.mkdir(parents=True, exist_ok=True)
    with lease.held(folder):
        if is_finished(folder):  # by another process, while this one waited for the lease
            return Record(folder)
        home = folder.stat()
        chosen = _on_select(fused, first, dataset, weights is None, where, quiet)
        note = "Fused: " + ", ".join(
            f"{share:.2f} of {m.record.name}" for share, m in zip(fused.weights, given, strict=True)
        )
        check_home(folder, home)
        head = {
            "id": run_id, "inputs": inputs, "variant": label, "overrides": {}, "selection": chosen, "split": "report",
            "fused": {"shares": fused.weights, "spread": fused.spread},
            "started": started.isoformat(timespec="seconds"), "notes": [*dataset.notes, f"{note}. {_about(chosen)}"],
        }
        write_record(Answering(
            folder.absolute(), first, cast(Method, fused), dataset, absent, where, quiet, command, head=head,
            seconds={"train": 0.0, "epoch": 0.0}, began=began, home=home,
        ))
    return Record(folder)


def _check(how: str, weights: Sequence[float] | None, count: int) -> None:
    if how not in HOW:
        raise CirbenchError(f"unknown way of fusing: {how!r}. Valid: {', '.join(HOW)}.")
    if weights is None:
        return
    if len(weights) != count or any(not 0 <= w <= 1 for w in weights) or abs(sum(weights) - 1) > 1e-6:
        raise CirbenchError(
            f"shares {', '.join(f'{w:g}' for w in weights)} for {count} runs: give one a run, each from 0 to 1, that "
            f"add up to 1, such as {','.join(f'{1 / count:.2g}' for _ in range(count))}."
        )


def _inputs(
    given: Sequence[Member], dataset: Dataset, how: str, weights: Sequence[float] | None
) -> dict[str, Any]:
    first = given[0]
    inputs = identify(first.planned, dataset, first.record.run.inputs.raw.get("corpus", {})).inputs
    runs = [{"run": m.record.id, "model": file_sha256(m.record.folder / "model.safetensors")} for m in given]
    parts = [{k: v for k, v in m.record.run.inputs.raw.items() if k != "seed"} for m in given]
    # Members differ by seed in their weights alone: fusions of them are one thing over its seeds.
    evaluated = {"run": "+".join(r["run"] for r in runs), "model": digest(runs), "inputs": digest(parts), "source": ""}
    inputs.pop("stages", None)
    return {
        **inputs, "method": "fusion", "fused": [m.label for m in given], "evaluated": evaluated, "weights": {},
        "config": {"how": how, "shares": list(weights) if weights else "select"}, "train": {},
    }


def _on_select(
    fused: Fused, planned: Plan, dataset: Dataset, choose: bool, device: Any, quiet: bool
) -> dict[str, Any]:
    """Measure how far scores spread, and take the shares under which the summary metric on `select` is best."""
    out: dict[str, Any] = {"rule": "given", "epoch": 0, "metric": None, "value": None}
    if not choose and fused.how == "ranks":  # ranks have no spread
        return out
    has_select = "select" in dataset.splits and bool(dataset.splits["select"].queries)
    split = dataset.splits["select" if has_select else "report"]
    protocol: Protocol = planning.scored(planned, dataset)[0][0]
    fused.eval()
    method = cast(Method, fused)
    feed = evaluation.feed_of(method, dataset, split, [protocol.form], device, quiet)
    gallery = evaluation.gallery_of(split)
    images = evaluation.encode_gallery(method, feed, gallery, quiet)
    rows = evaluation.encode_rows(method, feed, split, dataset.forms[protocol.form], quiet)
    if fused.how == "scores":
        fused.measure_spread(rows.embeddings, images)
    if not choose:
        return out
    if not has_select:
        return out | {"rule": "equal"}
    best = -1.0
    # Equal shares come first, so that others must be better than they, not as good.
    for shares in shares_of(len(fused.members), STEPS[len(fused.members)]):
        fused.weights = list(shares)
        found = evaluation.score(
            split, [protocol], gallery, images, {protocol.form: rows}, fused.score, adapt=getattr(fused, "adapt", None)
        )
        value = found.protocols[protocol.name]["metrics"][protocol.summary]
        if value > best:
            best, kept = value, list(shares)
    fused.weights = kept
    return out | {"rule": "select", "metric": protocol.summary, "value": best}


def _about(chosen: dict[str, Any]) -> str:
    return {
        "given": "The shares were given.",
        "equal": "The shares are equal: the dataset has no split `select` to choose them on.",
        "select": f"The shares were chosen on select ({chosen['metric']} {chosen['value'] or 0:.2f}).",
    }[chosen["rule"]]


def best_of(records: Sequence[Record]) -> Record:
    """The run with the highest summary metric on `select`, or on the reported split where one has no select."""
    selected = [record.data.get("select") for record in records]

    def value(record: Record) -> float:
        protocol = record.run.default_protocol
        definition = record.definition(protocol)
        part = record.data["select"] if all(selected) else record.data
        return float(part["protocols"][protocol]["metrics"].get(definition.summary if definition else "R@1") or 0.0)

    return max(records, key=value)

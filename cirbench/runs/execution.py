"""One run from a plan: train, choose, report once, record. The same plan again returns the finished record."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cirbench import lease
from cirbench.data.batches import Feed, Triplets
from cirbench.data.cache import renewing
from cirbench.data.images import image_set_fingerprint, webp
from cirbench.files import write_json, write_jsonl, write_npz
from cirbench.models.encoders import Encoders, check_clip, check_cnn, weights_in
from cirbench.runs import cost, planning
from cirbench.runs.mutual_information import bounds
from cirbench.runs.planning import Plan
from cirbench.runs.record import SCHEMA, Record, is_finished, write_pictures
from cirbench.runs.training import Trained, pick_device, train
from cirbench.scoring import evaluation, missing_images
from cirbench.seeds import derive
from cirbench.types import CirbenchError, Dataset, Protocol, Split, TrainView

#: Queries whose pictures are kept with a record, and the side of a picture in pixels.
PICTURES, PICTURE_SIDE = 200, 96


@dataclass(frozen=True)
class Options:
    """Where and how loudly, nothing that changes a number."""

    out: Path = Path("runs")
    device: str = "auto"
    force: bool = False
    quiet: bool = True
    command: str = ""
    export: bool = False
    allow_missing: bool = False


def _deterministic(seed: int) -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(derive(seed, "torch") % 2**63)


def _check_backbones(config: Mapping[str, Any]) -> None:
    if config.get("clip") and config.get("streams") != "cnn":
        check_clip(str(config["clip"]))
    if config.get("cnn") and config.get("streams") != "clip":
        check_cnn(str(config["cnn"]))


def identify(planned: Plan, dataset: Dataset) -> tuple[str, dict[str, Any], str]:
    """(run id, inputs, fingerprint of the image set)."""
    ids = [i for role in ("train", "select", "report") if role in dataset.splits for i in dataset.splits[role].images()]
    images = image_set_fingerprint(dataset.images, list(dict.fromkeys(ids)))
    inputs = planning.inputs(planned, dataset, images, weights_in(planned.spec.config))
    return planning.run_id(inputs), inputs, images


def _view(dataset: Dataset, form: str) -> TrainView:
    if "train" not in dataset.splits:
        # Evaluation-only datasets: whatever a method learnt from texts is in the state of its checkpoint.
        return TrainView([], 0)
    texts = [t for q in dataset.splits["train"].queries for row in dataset.forms[form](q) for t in row]
    return TrainView(texts, len(dataset.splits["train"].queries))


def _feed(method: Any, dataset: Dataset, split: Split, forms: Sequence[str], device: torch.device, quiet: bool) -> Feed:
    return Feed(
        dataset, split.images(), evaluation.texts_of(dataset, split, forms), method.inputs, device, quiet=quiet
    )


def _validator(method: Any, dataset: Dataset, role: str, feed: Feed, protocol: Protocol) -> Callable[[], float]:
    def value() -> float:
        result, _, _ = evaluation.evaluate(method, feed, dataset, dataset.splits[role], [protocol], quiet=True)
        return result.protocols[protocol.name]["metrics"][protocol.summary]

    return value


def _train(
    planned: Plan, method: Any, dataset: Dataset, device: torch.device, folder: Path, options: Options
) -> Trained:
    settings, protocol = planned.train, dataset.protocols[0]
    split = dataset.splits["train"]
    form = planning.training_form(planned, dataset)
    triplets = Triplets(dataset, form, settings.batch_size, settings.flip, planned.spec.seed)
    texts = list(dict.fromkeys(t for ts in triplets.strings for t in ts))
    feed = Feed(
        dataset, split.images(), texts, method.inputs, device, mirrored=settings.flip != "none", quiet=options.quiet
    )
    validate = None
    if settings.selection != "last":
        role = "select" if settings.selection == "select" else "report"
        checking = _feed(method, dataset, dataset.splits[role], [protocol.form], device, options.quiet)
        validate = _validator(method, dataset, role, checking, protocol)
    measure = bounds(method, dataset, protocol.form, device, options.quiet)
    return train(method, triplets, feed, settings, device, folder, validate, options.quiet, measure)


def run(planned: Plan, options: Options = Options()) -> Record:
    """Do a run, resume it, or return its finished record.

    Args:
        planned: what to run.
        options: where.

    Raises:
        CirbenchError: anything wrong with data, weights or device.
    """
    device = pick_device(options.device)
    _check_backbones(planned.spec.config)
    roles = ("train", "select", "report") if planned.train.epochs else ("select", "report")
    dataset, absent = missing_images.settle(planning.load(planned), roles, options.allow_missing)
    run_id, inputs, _ = identify(planned, dataset)
    # An interrupted run goes on where it is, under whatever label it was begun.
    folder = next(iter(sorted(options.out.glob(f"*-{run_id[:10]}"))), options.out / planning.run_name(planned, run_id))
    existing = _finished(options.out, run_id)
    if existing is not None and not options.force:
        if options.export and not (existing / "embeddings.npz").is_file():
            raise CirbenchError(f"{existing} is finished, without embeddings.npz. Repeat it with --force to have them.")
        if (existing / "lease.json").exists():
            with lease.held(existing):
                pass  # whoever held it was killed between the record and the lease's end: now it is gone
        return Record(existing)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with lease.held(folder):
            if options.force:
                _clear(folder)
                if existing is not None and existing != folder:
                    shutil.rmtree(existing, ignore_errors=True)
            elif is_finished(folder):  # by another process, while this one waited for the lease
                return Record(folder)
            with renewing() if options.force else contextlib.nullcontext():
                return _run(planned, dataset, absent, run_id, inputs, folder, device, options)
    except CirbenchError:
        with contextlib.suppress(OSError):  # weights that cannot be had leave no folder; what was begun stays
            folder.rmdir()
        raise


def _clear(folder: Path) -> None:
    """Empty a run's folder whose lease is held; what makes it finished goes first."""
    (folder / "record.json").unlink(missing_ok=True)
    for path in list(folder.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith("lease."):
            path.unlink()


def _run(
    planned: Plan, dataset: Dataset, absent: missing_images.Missing | None, run_id: str, inputs: dict[str, Any],
    folder: Path, device: torch.device, options: Options,
) -> Record:
    started = datetime.now(UTC)
    began = time.perf_counter()
    _deterministic(planned.spec.seed)
    form = planning.training_form(planned, dataset)
    encoders = Encoders(derive(planned.spec.seed, "weights"), declared=inputs["weights"])
    method = planned.method.load().build(planned.config, encoders, _view(dataset, form), None)
    if isinstance(method, torch.nn.Module):
        method.to(device)
    trained = Trained()
    trainable = hasattr(method, "losses") and planned.train.epochs > 0
    if trainable and "train" not in dataset.splits:
        raise CirbenchError(
            f"{dataset.name} is for evaluation only, it has no training triplets for {planned.method.name}. Train on "
            f"another dataset, then `cirbench eval RUN --dataset {dataset.name} --root DIR`."
        )
    if trainable:
        trained = _train(planned, method, dataset, device, folder, options)
    selection = {
        "rule": planned.train.selection if trainable else "untrained", "epoch": trained.epoch,
        "metric": dataset.protocols[0].summary if trained.best is not None else None, "value": trained.best,
    }
    write_jsonl(folder / "training.jsonl", trained.log)
    seconds = {"train": trained.seconds, "epoch": trained.seconds / max(planned.train.epochs, 1) if trainable else 0.0}
    seconds["cpu"] = trained.cpu
    save_weights(folder / "model.safetensors", method)
    tick = time.perf_counter()
    selected = _on_select(folder, planned, method, dataset, device, options)
    seconds["select"] = time.perf_counter() - tick
    report(
        folder, planned, method, dataset, absent, device, options,
        {
            "id": run_id, "inputs": inputs, "variant": planned.spec.variant, "overrides": dict(planned.overrides),
            **places(planned), "loaded": encoders.loaded, "selection": selection, "select": selected,
            "split": "report", "started": started.isoformat(timespec="seconds"),
            "notes": list(dataset.notes) + (
                ["The checkpoint was chosen on the reported split (test-oracle)."]
                if planned.train.selection == "test-oracle" else []
            ),
        },
        seconds, began,
    )
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return Record(folder)


def _on_select(
    folder: Path, planned: Plan, method: Any, dataset: Dataset, device: torch.device, options: Options
) -> dict[str, Any] | None:
    """Score the reported weights on `select` too, for sweeps: they compare points there, and never on `report`."""
    split = dataset.splits.get("select")
    if split is None or not split.queries:
        return None
    protocols, left = planning.scored(planned, dataset)
    forms = list(dict.fromkeys(p.form for p in protocols))
    feed = _feed(method, dataset, split, forms, device, options.quiet)
    result, _, _ = evaluation.evaluate(method, feed, dataset, split, protocols, options.quiet)
    kept = ("row_query/", "rank/", "value/")
    write_npz(folder / "select.npz", {name: a for name, a in result.arrays.items() if name.startswith(kept)})
    return {"protocols": result.protocols, "omitted": {**result.omitted, **left}}


def places(planned: Plan) -> dict[str, str]:
    """Where loose files of a method and a dataset lie, to use the run again; its id has their code alone."""
    out = {} if planned.method.module else {"method_path": str(planned.method.path)}
    if not planned.dataset.__name__.startswith("cirbench.datasets."):
        out["dataset_path"] = str(planned.dataset.__file__)
    return out


def _finished(out: Path, run_id: str) -> Path | None:
    """The finished run of this id, whatever label it was run under."""
    for folder in sorted(out.glob(f"*-{run_id[:10]}")):
        if is_finished(folder):
            return folder
    return None


def report(
    folder: Path, planned: Plan, method: Any, dataset: Dataset, absent: missing_images.Missing | None,
    device: torch.device, options: Options, head: dict[str, Any], seconds: dict[str, float], began: float,
) -> None:
    """Evaluate once on the `report` split and write the record; `record.json` last."""
    split, (protocols, left) = dataset.splits["report"], planning.scored(planned, dataset)
    forms = list(dict.fromkeys(p.form for p in protocols))
    tick = time.perf_counter()
    feed = _feed(method, dataset, split, forms, device, options.quiet)
    seconds["features"] = time.perf_counter() - tick
    tick = time.perf_counter()
    result, images, rows = evaluation.evaluate(method, feed, dataset, split, protocols, options.quiet)
    seconds["evaluate"] = time.perf_counter() - tick
    if absent is not None:
        head = {**head, "missing": absent.counts, "notes": [*head["notes"], absent.note()]}
        for name, beside in absent.beside("report", split, protocols, result.arrays).items():
            result.protocols[name]["missing"] = beside
    write_queries(folder, split)
    write_json(folder / "gallery.json", result.gallery)
    arrays = dict(result.arrays)
    if hasattr(method, "modality_weights"):
        arrays.update(_weights(method, feed, dataset, split, forms[0]))
    write_npz(folder / "rankings.npz", arrays)
    if options.export:
        export(folder, split, result.gallery, images, rows, planned.facts.protocols[0].form)
    write_pictures(folder / "pictures.zip", _pictures(dataset, split, result, forms[0]))
    first = split.queries[0]
    text = dataset.forms[forms[0]](first)[0][0]
    record = {
        "schema": SCHEMA, "name": folder.name, **head, "command": options.command,
        "protocols": result.protocols, "default_protocol": protocols[0].name, "omitted": {**result.omitted, **left},
        "cost": {
            "parameters": cost.parameters(method), "flops": cost.flops(method, feed, first.reference, text),
            "latency_ms": cost.latency(method, feed, first.reference, text, images),
            "seconds": {**seconds, "total": time.perf_counter() - began},
            "peak_memory_mb": cost.peak_memory_mb(device),
        },
        "environment": cost.environment(device),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder / "record.json", record)


def write_queries(folder: Path, split: Split) -> None:
    """`queries.jsonl` of a record."""
    write_jsonl(folder / "queries.jsonl", (
        {
            "id": q.id, "reference": q.reference, "texts": list(q.texts), "targets": list(q.targets[:50]),
            "targets_total": len(q.targets), "group": q.group, "extra": dict(q.extra),
        }
        for q in split.queries
    ))


def _weights(method: Any, feed: Feed, dataset: Dataset, split: Split, form: str) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {}
    with torch.inference_mode():
        for start in range(0, len(split.queries), evaluation.BATCH):
            queries = split.queries[start : start + evaluation.BATCH]
            batch = feed.queries([q.reference for q in queries], [dataset.forms[form](q)[0][0] for q in queries])
            for name, weight in method.modality_weights(batch).items():
                if tuple(weight.shape) != (len(queries),):
                    raise CirbenchError(
                        f"the method's `modality_weights` returned shape {tuple(weight.shape)} for {name!r} and "
                        f"{len(queries)} queries. It must return one share of the image a query, shape (B,)."
                    )
                parts.setdefault(name, []).append(weight.float().cpu().numpy())
    return {f"weight/{name}": np.concatenate(values) for name, values in parts.items()}


def _pictures(dataset: Dataset, split: Split, result: evaluation.Evaluation, form: str) -> dict[str, bytes]:
    """Small pictures of some queries of every group: reference, targets, first ten."""
    groups: dict[str, list[int]] = {}
    for n, query in enumerate(split.queries):
        groups.setdefault(query.group, []).append(n)
    share = max(PICTURES // len(groups), 1)
    chosen = [n for members in groups.values() for n in members[:: max(len(members) // share, 1)][:share]][:PICTURES]
    row_of = {int(q): r for r, q in reversed(list(enumerate(result.arrays[f"row_query/{form}"])))}
    wanted: dict[str, None] = {}
    for n in chosen:
        query = split.queries[n]
        top = result.arrays[f"top/{form}"][row_of[n], :10]
        wanted.update(dict.fromkeys([query.reference, *query.targets[:3], *(result.gallery[t] for t in top if t >= 0)]))
    out = {}
    for image_id in wanted:
        with dataset.images.open(image_id) as image:
            out[image_id] = webp(image, PICTURE_SIDE)
    return out


def export(
    folder: Path, split: Split, gallery: Sequence[str], images: torch.Tensor, rows: Mapping[str, evaluation.Rows],
    unnamed: str,
) -> None:
    """`embeddings.npz`: what `cirbench score` reads; `id#form` is the row of another form, `id#form.1` its second.

    `unnamed` is the form whose rows are the query ids themselves: the dataset's own default, whatever was trained with.
    """
    ids, parts = [], []
    for form, part in rows.items():
        seen: dict[int, int] = {}
        several = len(set(part.query.tolist())) < len(part.query)
        for q in part.query.tolist():
            seen[q] = seen.get(q, -1) + 1
            name = "" if form == unnamed else f"#{form}"
            ids.append(split.queries[q].id + name + (f".{seen[q]}" if several else ""))
        parts.append(part.embeddings.cpu().numpy())
    write_npz(folder / "embeddings.npz", {
        "query_ids": np.array(ids), "queries": np.concatenate(parts), "image_ids": np.array(list(gallery)),
        "gallery": images.cpu().numpy(),
    })


# ------------------------------------------------------------------------------------- weights


def save_weights(path: Path, method: Any) -> None:
    """Weights as safetensors, with the method's extra state in the header."""
    tensors = {}
    if isinstance(method, torch.nn.Module):
        tensors = {k: v.detach().cpu().contiguous() for k, v in method.state_dict().items()}
    state = method.extra_state() if hasattr(method, "extra_state") else {}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, {"extra_state": json.dumps(state)})
    temporary.replace(path)


def load_method(planned: Plan, dataset: Dataset, path: Path, device: torch.device) -> Any:
    """A method with the weights of a record.

    Raises:
        CirbenchError: weights that do not fit the method.
    """
    try:
        with safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {}).get("extra_state", "{}"))
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # not a mapping
    except (OSError, ValueError, RuntimeError) as error:
        raise CirbenchError(f"{path} cannot be read as safetensors: {error}. Run it again with --force.") from None
    except Exception as error:
        raise CirbenchError(f"{path} is damaged: {error}. Run it again with --force.") from None
    form = planning.training_form(planned, dataset)
    method = planned.method.load().build(
        planned.config, Encoders(derive(planned.spec.seed, "weights")), _view(dataset, form), state
    )
    if isinstance(method, torch.nn.Module):
        try:
            method.load_state_dict(tensors)
        except RuntimeError as error:
            raise CirbenchError(
                f"the weights in {path} do not fit the method {planned.method.name}: "
                f"{str(error).splitlines()[-1].strip()} Its source or its config has changed since."
            ) from None
        method.to(device).eval()
    return method

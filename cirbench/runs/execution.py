"""One run from a plan: train, choose, report once, record. The same plan again returns the finished record."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cirbench import lease
from cirbench.data.batches import Feed, Triplets
from cirbench.data.cache import renewing
from cirbench.data.crops import check_crop, crop_note
from cirbench.files import as_numbers, check_home, write_jsonl, write_npz
from cirbench.models.encoders import Encoders
from cirbench.models.weights import vectors_of
from cirbench.runs import planning, stages
from cirbench.runs.blame import blaming
from cirbench.runs.building import build, check_backbones, make_deterministic, preprocessing, save_weights
from cirbench.runs.corpus import check_wanted, corpus_of, note_of, prepare, prepares
from cirbench.runs.identity import Identity, identify, run_name
from cirbench.runs.mutual_information import bounds
from cirbench.runs.planning import Plan
from cirbench.runs.record import Record, is_finished
from cirbench.runs.recording import Answering, check_queries, write_record
from cirbench.runs.rehearsal import rehearse
from cirbench.runs.store import finished_run, settle, tidy
from cirbench.runs.training import Trained, pick_device, train
from cirbench.scoring import evaluation, missing_images
from cirbench.seeds import derive
from cirbench.types import CirbenchError, Dataset, Method, Protocol


@dataclass(frozen=True)
class Options:
    """Options of execution and output; none changes a number."""

    out: Path = Path("runs")
    device: str = "auto"
    force: bool = False
    quiet: bool = True
    command: str = ""
    export: bool = False
    allow_missing: bool = False


def run(planned: Plan, options: Options = Options()) -> Record:
    """Do a run, resume it, or return its finished record; a run that a first stage is wanted of does that first.

    Args:
        planned: what to run.
        options: device, output folder and the like.

    Raises:
        CirbenchError: anything wrong with data, weights or device.
    """
    device = pick_device(options.device)
    planned = stages.settled(planned, lambda first: run(first, replace(options, export=False, command="")).folder)
    check_backbones(planned.config.model_dump())
    vectors_of(planned.config)  # a file that is not there is told before annotations are read
    reads_training = planned.train.epochs or prepares(planned)
    roles = ("train", "select", "report") if reads_training else ("select", "report")
    dataset, absent = missing_images.settle(planning.load(planned), roles, options.allow_missing)
    identity = identify(planned, dataset)
    # An interrupted run resumes in its folder, whatever label it was started under.
    begun = sorted(options.out.glob(f"*-{identity.id[:10]}"))
    folder = begun[0] if begun else options.out / run_name(planned, identity.id)
    existing = finished_run(options.out, identity.id)
    if existing is not None and not options.force:
        if options.export and not (existing / "embeddings.npz").is_file():
            raise CirbenchError(f"{existing} is finished, without embeddings.npz. Repeat it with --force to get them.")
        settle(existing)
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
            with renewing() if options.force else contextlib.nullcontext(), blaming(planned.method):
                # Absolute: a method may change the working folder.
                _run(planned, dataset, absent, identity, folder.absolute(), device, options)
                return Record(folder)
    except CirbenchError:
        with contextlib.suppress(OSError):  # remove the folder if nothing was written to it
            folder.rmdir()
        raise


def _clear(folder: Path) -> None:
    """Empty a run's folder whose lease is held, `record.json` first."""
    (folder / "record.json").unlink(missing_ok=True)
    for path in list(folder.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith("lease."):
            path.unlink()


def _run(
    planned: Plan, dataset: Dataset, absent: missing_images.Missing | None, identity: Identity, folder: Path,
    device: torch.device, options: Options,
) -> None:
    started, began, home = datetime.now(UTC), time.perf_counter(), folder.stat()
    check_queries(dataset.splits["report"])  # before hours of training, not after
    make_deterministic(planned.seed)
    encoders = Encoders(derive(planned.seed, "weights"), declared=identity.inputs["weights"])
    method = build(planned, dataset, device, encoders=encoders)
    form = planning.training_form(planned, dataset)
    check_wanted(planned, method)
    rehearse(method, evaluation.texts_of(dataset, dataset.splits["report"], [form]), device)
    trainable = hasattr(method, "losses") and planned.train.epochs > 0
    if trainable and "train" not in dataset.splits:
        raise CirbenchError(
            f"{dataset.name} is for evaluation only; it has no training triplets for {planned.method.name}. Train on "
            f"another dataset, then `cirbench eval RUN --dataset {dataset.name} --root DIR`."
        )
    seconds = {}
    if hasattr(method, "prepare"):
        tick = time.perf_counter()
        corpus = corpus_of(dataset, method.inputs, device, planned.train.pictures, options.quiet)
        prepare(method, corpus, planned.seed, device)
        seconds["prepare"] = time.perf_counter() - tick
    trained = Trained()
    if trainable:
        trained = _train(planned, method, dataset, device, folder, options)
    check_home(folder, home)
    write_jsonl(folder / "training.jsonl", map(as_numbers, trained.log))
    seconds |= {
        "train": trained.seconds, "epoch": trained.seconds / planned.train.epochs if trainable else 0.0,
        "cpu": trained.cpu, "validate": trained.validation,
    }
    save_weights(folder / "model.safetensors", method)
    tick = time.perf_counter()
    selected = _on_select(folder, planned, method, dataset, device, options)
    seconds["select"] = time.perf_counter() - tick
    notes = [*dataset.notes, *note_of(planned, identity.inputs)]
    if trainable and planned.train.crop != "none" and (told := crop_note(planned.train.crop, method.inputs)):
        notes.append(told)
    if planned.train.selection == "test-oracle":
        notes.append("The checkpoint was chosen on the reported split (test-oracle).")
    head = {
        "id": identity.id, "inputs": identity.inputs, "variant": planned.variant, "overrides": dict(planned.overrides),
        **places(planned), "loaded": encoders.loaded, "preprocessing": preprocessing(method), "select": selected,
        "split": "report",
        "selection": {
            "rule": planned.train.selection if trainable else "untrained", "epoch": trained.epoch,
            "metric": dataset.protocols[0].summary if trained.best is not None else None, "value": trained.best,
        },
        "started": started.isoformat(timespec="seconds"), "notes": notes,
    }
    write_record(Answering(
        folder, planned, method, dataset, absent, device, options.quiet, options.command, options.export, head, seconds,
        began, home=home,
    ))
    tidy(folder)


def _train(
    planned: Plan, method: Method, dataset: Dataset, device: torch.device, folder: Path, options: Options
) -> Trained:
    settings, protocol = planned.train, dataset.protocols[0]
    check_crop(settings.crop, method.inputs)
    form = planning.training_form(planned, dataset)
    triplets = Triplets(
        dataset, form, settings.batch_size, settings.flip, planned.seed, settings.crop, settings.crop_scale
    )
    texts = list(dict.fromkeys(t for ts in triplets.strings for t in ts))
    feed = Feed(
        dataset, triplets.split.images(), texts, method.inputs, device, mirrored=settings.flip != "none",
        quiet=options.quiet,
    )
    validate = None
    if settings.selection != "last":
        role = "select" if settings.selection == "select" else "report"
        split = dataset.splits[role]
        checking = evaluation.feed_of(method, dataset, split, [protocol.form], device, options.quiet)
        validate = _validator(method, dataset, role, checking, protocol)
    measure = bounds(method, dataset, protocol.form, device, options.quiet)
    return train(method, triplets, feed, settings, device, folder, validate, options.quiet, measure)


def _validator(method: Method, dataset: Dataset, role: str, feed: Feed, protocol: Protocol) -> Callable[[], float]:
    def value() -> float:
        result, _, _ = evaluation.evaluate(method, feed, dataset, dataset.splits[role], [protocol], quiet=True)
        return result.protocols[protocol.name]["metrics"][protocol.summary]

    return value


def _on_select(
    folder: Path, planned: Plan, method: Method, dataset: Dataset, device: torch.device, options: Options
) -> dict[str, Any] | None:
    """Score the reported weights on `select` too: sweeps compare points there, never on `report`."""
    split = dataset.splits.get("select")
    if split is None or not split.queries:
        return None
    protocols, left = planning.scored(planned, dataset)
    forms = list(dict.fromkeys(p.form for p in protocols))
    feed = evaluation.feed_of(method, dataset, split, forms, device, options.quiet)
    result, _, _ = evaluation.evaluate(method, feed, dataset, split, protocols, options.quiet)
    kept = ("row_query/", "rank/", "value/")
    write_npz(folder / "select.npz", {name: a for name, a in result.arrays.items() if name.startswith(kept)})
    return {"protocols": result.protocols, "omitted": {**result.omitted, **left}}


def places(planned: Plan) -> dict[str, str]:
    """Paths of a method's or dataset's loose file, to reuse the run later; the run's id depends on their code only."""
    out = {} if planned.method.module else {"method_path": str(planned.method.path)}
    if not planned.dataset.__name__.startswith("cirbench.datasets."):
        out["dataset_path"] = str(planned.dataset.__file__)
    return out

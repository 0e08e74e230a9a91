"""What is finished is not lost: by a log, a field of the data, a folder that moves, a file that cannot be read."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import own_data
import pytest
import tiny
import torch
from commands import exit_code

from cirbench import files, lease
from cirbench.runs import execution, recording, training
from cirbench.runs.checkpoint import KEPT, Checkpoint
from cirbench.runs.record import Record
from cirbench.runs.store import find_records
from cirbench.types import CirbenchError


def test_a_log_never_costs_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = execution._train

    def odd(*given: Any) -> training.Trained:
        trained = real(*given)
        trained.log[0]["losses"] |= {
            "nan": float("nan"), "inf": np.float32("inf"), "tensor": torch.tensor(2.0), "several": torch.ones(3), "text": "x",
        }
        trained.log.append({"epoch": 0, "bound": {"clip": float("nan")}, "pairs": 3})
        return trained

    monkeypatch.setattr(execution, "_train", odd)
    record = tiny.run("dwc", tmp_path, "clip-only")
    first, last = record.training[0]["losses"], record.training[-1]
    assert [first[k] for k in ("nan", "inf", "tensor", "several", "text")] == [None, None, 2.0, None, None]
    assert last["bound"] == {"clip": None} and isinstance(first["clip/contrastive"], float)


def test_training_that_diverges_in_its_last_step_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = training.take_step, []

    def last(method: Any, batch: Any, optimizers: Any, *more: Any) -> Any:
        out = real(method, batch, optimizers, *more)
        seen.append(1)
        if len(seen) == 3:  # of the one epoch
            with torch.no_grad():
                next(p for p in method.parameters() if p.requires_grad).fill_(float("nan"))
        return out

    monkeypatch.setattr(training, "take_step", last)
    for _ in range(2):  # a repeat finds the checkpoint and says the same
        with pytest.raises(CirbenchError, match=r"training diverged in its last step: the weights '.*' are not finite. Lower"):
            tiny.run("dwc", tmp_path, "clip-only")
    assert len(seen) == 3 and not list(tmp_path.rglob("record.json"))


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, {"a": [float("inf")]}])
def test_fields_that_no_record_can_hold_are_refused_before_training(
    value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = execution.planning.load

    def load(planned: Any) -> Any:
        dataset = real(planned)
        split = dataset.splits["report"]
        odd = replace(split.queries[3], extra={"price": value})
        queries = (*split.queries[:3], odd, *split.queries[4:])
        return replace(dataset, splits={**dataset.splits, "report": replace(split, queries=queries)})

    monkeypatch.setattr(execution.planning, "load", load)
    monkeypatch.setattr(execution, "_train", lambda *a: pytest.fail("trained first"))
    with pytest.raises(CirbenchError, match=r"the query 'report-00003' has fields that cannot be written as JSON.*price"):
        tiny.run("dwc", tmp_path, "clip-only")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["a checkpoint", "the weights", "the record"])
@pytest.mark.parametrize("how", ["moved", "deleted", "replaced"])
def test_a_folder_that_is_gone_is_not_finished(
    moment: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, name = {
        "a checkpoint": (Checkpoint, "save"), "the weights": (execution, "_train"),
        "the record": (recording, "_pictures"),
    }[moment]
    real = getattr(place, name)

    def away(*given: Any, **named: Any) -> Any:
        out = real(*given, **named) if moment != "a checkpoint" else None
        (folder,) = (p for p in tmp_path.iterdir() if p.name.startswith("scenes-dwc"))
        folder.rename(tmp_path / "elsewhere")
        if how == "deleted":
            files.shutil.rmtree(tmp_path / "elsewhere")
        if how == "replaced":
            folder.mkdir()
        return out if moment != "a checkpoint" else real(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, away)
        with pytest.raises(CirbenchError, match=r"was moved or deleted while the run was working in it.*repeat the command"):
            tiny.run("dwc", tmp_path, "clip-only")
    left = {p.name for p in tmp_path.iterdir()} - {"elsewhere"}
    assert not list(tmp_path.rglob("record.json")) and (how == "replaced" or not left)
    if how == "moved":
        for folder in left:
            (tmp_path / folder).rmdir()
        (tmp_path / "elsewhere" / "lease.json").unlink()  # of this process, which in earnest has ended
        (tmp_path / "elsewhere").rename(tmp_path / tiny_name(tmp_path))
    assert tiny.run("dwc", tmp_path, "clip-only").training


def tiny_name(out: Path) -> str:
    planned = tiny.plan("dwc", "clip-only")
    dataset = execution.planning.load(planned)
    return execution.run_name(planned, execution.identify(planned, dataset).id)


def denied(path: Path, error: int = errno.EACCES) -> Callable[..., Any]:
    """Opening this path fails; root may read everything, so modes of files would not do."""
    real = open

    def opened(name: Any, *given: Any, **named: Any) -> Any:
        if isinstance(name, str | os.PathLike) and Path(name) == path:
            raise OSError(error, os.strerror(error), str(name))
        return real(name, *given, **named)

    return opened


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("name", ["record.json", "queries.jsonl", "gallery.json", "rankings.npz", "training.jsonl"])
def test_nobody_is_told_to_delete_what_may_be_whole(
    name: str, error: int, made_up: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = find_records([made_up])[0].folder
    monkeypatch.setattr("builtins.open", denied(folder / name, error))
    monkeypatch.setattr("io.open", denied(folder / name, error))
    with pytest.raises(CirbenchError) as told:
        record = Record(folder)
        _ = record.queries, record.gallery, record.training, record.rankings.names
    message = str(told.value)
    assert f"{name} cannot be read: {os.strerror(error)}" in message and "elete" not in message and "damaged" not in message


def test_a_checkpoint_that_cannot_be_read_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt")
    whole: dict[str, object] = {name: kind() for name, kind in KEPT.items()}
    checkpoint.save(whole)
    for error in (PermissionError(errno.EACCES, "Permission denied"), MemoryError()):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "load", lambda *a, e=error, **k: (_ for _ in ()).throw(e))
            with pytest.raises(type(error)):
                checkpoint.load()
    assert checkpoint.load() == whole
    (tmp_path / "checkpoint.pt").write_bytes(b"PK damaged")
    assert checkpoint.load() is None and not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize("foreign", [{"state_dict": {}}, {}, [1, 2], torch.zeros(3), 7, {"method": {}, "epoch": "3"}], ids=str)
def test_a_foreign_checkpoint_counts_as_damaged(tmp_path: Path, foreign: object) -> None:
    torch.save(foreign, tmp_path / "checkpoint.pt")
    assert Checkpoint(tmp_path / "checkpoint.pt").load() is None
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_lease_that_cannot_be_read_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = json.dumps({**lease.identity(), "token": "another's"})
    (tmp_path / "lease.json").write_text(mine)
    with monkeypatch.context() as patch:
        patch.setattr("io.open", denied(tmp_path / "lease.json"))
        with pytest.raises(PermissionError), lease.held(tmp_path):
            pass
    assert (tmp_path / "lease.json").read_text() == mine


def test_nan_in_a_triplet_is_refused_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = own_data.folder(tmp_path / "data")
    file = root / "triplets.test.jsonl"
    file.write_text(file.read_text().replace('"text"', '"price": NaN, "text"', 1))
    code = exit_code("run", "-m", "random", "-d", "custom", "--root", str(root), "-q", "--out", str(tmp_path / "runs"))
    said = capsys.readouterr().err
    assert code == 2 and "NaN" in said and not (tmp_path / "runs").exists()

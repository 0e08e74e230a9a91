"""Methods that misbehave: one message with file, line and function, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from commands import exit_code
from misbehaving import EVERY, LOSS, TEMPLATE, TORCH, Row, building, loss, queries

from cirbench import process
from cirbench.runs import contract
from cirbench.types import CirbenchError

pytestmark = pytest.mark.usefixtures("ctrl_c")
SMALL = [a for k, v in {**tiny.DATA, "train.batch_size": 32, "train.epochs": 1, "method.dim": 8, "method.hidden": 8,
                                  "method.clip": "scenes-small"}.items()
         for a in ("--set", f"{k}={v}")]


def written(folder: Path, edits: list[tuple[str, str]]) -> str:
    """Path of the template with these edits."""
    source = TEMPLATE
    for was, new in edits:
        assert was in source, was
        source = source.replace(was, new, 1)
    (folder / "mine.py").write_text(source, encoding="utf-8")
    return str(folder / "mine.py")


def run(path: str, folder: Path, *more: str) -> int:
    return exit_code("run", "-m", path, "-d", "scenes", "--out", str(folder / "runs"), "--quiet", *SMALL, *more)


def shared() -> dict[str, Any]:
    """What a later run in this process finds."""
    return process.state() | {"filters": list(warnings.filters), "signals": signal.getsignal(signal.SIGTERM)}


@pytest.fixture(autouse=True, scope="module")
def _settled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The state before is that of a process that has run something."""
    folder = tmp_path_factory.mktemp("first")
    assert run(written(folder, []), folder) == 0


@pytest.mark.parametrize("row", EVERY, ids=[row[0] for row in EVERY])
def test_a_method_that_misbehaves_is_one_message(
    row: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, edits, message = row
    path = written(tmp_path, edits)
    monkeypatch.delenv(process.DEBUG, raising=False)
    before = shared()
    code = run(path, tmp_path / "it")
    said = capsys.readouterr().err
    assert code == 2, said
    assert said.startswith("cirbench: ") and "Traceback" not in said and len(said.splitlines()) == 1, said
    assert "mine.py" in said or "method." in said or "train." in said, said
    assert re.search(message, said), said
    assert not list((tmp_path / "it").glob("runs/*/record.json"))
    assert shared() == before


@pytest.mark.parametrize("row", [
    pytest.param(row, id=row[0], marks=[] if n % 4 == 0 else pytest.mark.slow) for n, row in enumerate(EVERY)
])
def test_check_says_the_same(row: Row, tmp_path: Path) -> None:
    _, edits, message = row
    path, before = written(tmp_path, edits), shared()
    said = []
    process.catch_signals()  # as the command does, or any KeyboardInterrupt is taken for Ctrl-C
    try:
        subject = contract.Subject(path, over={"method.dim": 8, "method.hidden": 8})
        subject.found  # noqa: B018
        for check in (contract.embeddings, contract.losses_fall, contract.weights_survive):
            said.append(contract._problem(check, subject))
            if re.search(message, said[-1]):
                break
    except CirbenchError as error:  # not a method at all
        said.append(str(error))
    assert re.search(message, said[-1]), said
    assert shared() == before


def test_the_kinds_are_many() -> None:
    assert len(EVERY) >= 100 and len({row[0] for row in EVERY}) == len(EVERY)


def test_check_is_one_message_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, building("raise KeyboardInterrupt"))
    assert exit_code("check", path) == 1
    said = capsys.readouterr()
    assert "in mine.py, line" in said.out and "KeyboardInterrupt" in said.out and "Traceback" not in said.err
    assert exit_code("check", path, "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["--debug", "CIRBENCH_DEBUG"])
def test_the_traceback_is_there_when_it_is_asked_for(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, queries("raise KeyError('colour')"))
    if how == "CIRBENCH_DEBUG":
        monkeypatch.setenv(how, "1")
    assert run(path, tmp_path, *(["--debug"] if how == "--debug" else [])) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said and "raise KeyError('colour')" in said
    assert "cirbench: the method mine failed in mine.py" in said.splitlines()[-1]
    if how == "--debug":  # for this command alone
        assert process.DEBUG not in os.environ and run(path, tmp_path) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_ctrl_c_is_no_fault_of_the_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        path = written(tmp_path, building("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(5)"))
        assert run(path, tmp_path) == 130
        assert capsys.readouterr().err.strip() == "cirbench: interrupted; repeat the command to resume."
        (tmp_path / "mine.py").unlink()
        path = written(tmp_path, building("raise KeyboardInterrupt"))  # the flag holds for one command
        assert run(path, tmp_path) == 2 and "in build: KeyboardInterrupt" in capsys.readouterr().err
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_a_method_prints_does_not_break_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, [(TORCH, f"{TORCH}print('imported')\n"), *building("print('built')"), *loss(f"print('loss')\n{LOSS}")])
    assert run(path, tmp_path, "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["inputs"]["method"] == "mine"
    assert "built" in said.err and "loss" in said.err
    assert exit_code("check", path, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == len(contract.CHECKS)


#: What is a method's own affair: a run takes it.
FINE = [
    ("embeddings with a gradient", queries(
        "with torch.inference_mode(False), torch.enable_grad():\n"
        "            return l2norm(image + text).clone() * torch.ones(1, requires_grad=True)")),
    ("half precision", queries("return (image + text).to(torch.float32 if self.training else torch.float16)")),
    ("double precision", queries("return (image + text).to(torch.float32 if self.training else torch.float64)")),
    ("a NaN in logs", loss('yield "all", loss, {"x": float("nan"), "y": float("inf")}')),
    ("a tensor of one number in logs", loss('yield "all", loss, {"x": loss, "y": loss.detach()[None]}')),
    ("losses as a list", loss('return [("all", loss, {})]')),
    ("tied weights", [("        self.edit = ", "        self.text_fc.weight = self.image_fc.weight\n        self.edit = ")]),
    ("warnings", building("import warnings; warnings.simplefilter('error'); warnings.simplefilter('ignore')")),
    ("random numbers", building("import random, numpy; random.seed(0); numpy.random.seed(0)")),
    ("no docstring", [(TEMPLATE.split('"""')[1], "")]),
]


@pytest.mark.parametrize("row", FINE, ids=[row[0] for row in FINE])
def test_what_is_a_methods_own_affair(
    row: tuple[str, list[tuple[str, str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, edits = row
    if name == "losses as a list":
        edits = [("        loss = contrastive", "        x = contrastive"), *loss('return [("all", x, {})]')]
    import random

    state, before = random.getstate(), shared()
    assert run(written(tmp_path, edits), tmp_path) == 0, capsys.readouterr().err
    assert shared() == before and random.getstate() == state
    (folder,) = (tmp_path / "runs").iterdir()
    logged = [json.loads(line)["losses"] for line in (folder / "training.jsonl").read_text().splitlines()]
    if name == "a NaN in logs":
        assert logged[0] == {"x": None, "y": None}
    if name == "tied weights":
        assert exit_code("eval", str(folder), "--out", str(tmp_path / "again"), "--quiet") == 0, capsys.readouterr().err
        again = next((tmp_path / "again").glob("*/rankings.npz"))
        assert again.read_bytes() == (folder / "rankings.npz").read_bytes()


@pytest.mark.parametrize("name", ["random", "statistics", "numpy", "mine-2", "ü"])
def test_a_file_may_be_called_as_a_module(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / f"{name}.py").write_text(TEMPLATE, encoding="utf-8")
    assert run(str(tmp_path / f"{name}.py"), tmp_path) == 0, capsys.readouterr().err


def test_a_file_that_hides_what_it_imports_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "torch.py").write_text(TEMPLATE, encoding="utf-8")
    assert run(str(tmp_path / "torch.py"), tmp_path) == 2
    assert "Rename one of the two files" in capsys.readouterr().err


def test_nothing_is_found_out_after_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method whose results cannot be scored or saved is refused before its first step."""
    from cirbench.runs import execution

    def train(*_: Any, **__: Any) -> None:
        raise AssertionError("trained before")

    monkeypatch.setattr(execution, "train", train)
    late = {"weights as numbers", "a score as a list", "a tensor in extra_state", "queries as whole numbers"}
    for number, (_, edits, message) in enumerate(row for row in EVERY if row[0] in late):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(CirbenchError, match=message):
            tiny.run(written(tmp_path / str(number), edits), tmp_path / "runs")
    assert number == len(late) - 1


def test_a_rehearsal_changes_no_random_number(tmp_path: Path) -> None:
    from cirbench.runs import planning, rehearsal
    from cirbench.runs.building import build

    planned = tiny.plan("dwc")
    made = build(planned, planning.load(planned))
    state, weights = torch.get_rng_state(), {k: v.clone() for k, v in made.state_dict().items()}  # type: ignore[attr-defined]
    rehearsal.rehearse(made, ["a word"], torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, weights[k]) for k, v in made.state_dict().items())  # type: ignore[attr-defined]


def test_what_a_killed_run_left_goes_with_the_next_look(tmp_path: Path) -> None:
    record = tiny.run("random", tmp_path)
    for name in (".rankings.npz.abc.tmp", "model.tmp", "checkpoint.pt"):
        (record.folder / name).write_bytes(b"half")
    before = sorted(p.name for p in record.folder.iterdir() if "tmp" not in p.name and p.name != "checkpoint.pt")
    assert tiny.run("random", tmp_path).folder == record.folder
    assert sorted(p.name for p in record.folder.iterdir()) == before

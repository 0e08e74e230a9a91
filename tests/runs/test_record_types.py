"""Any part of a record or of a sweep damaged in any way: each reader answers with one message, never a traceback."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cirbench.reports import build as building
from cirbench.reports import claims, parts, studies
from cirbench.reports.collect import collect
from cirbench.reports.compare import compare, other_seeds
from cirbench.reports.tables import main_table, text_table
from click.testing import CliRunner
from fake_records import write_run

from cirbench.cli.runs import runs as runs_command
from cirbench.cli.show import show
from cirbench.files import write_npz
from cirbench.runs import evaluate_run, reproduce
from cirbench.runs.record import Record
from cirbench.runs.record_lines import parse_json
from cirbench.runs.record_types import read_run
from cirbench.runs.store import find_records, find_studies
from cirbench.runs.study_types import read_study
from cirbench.scoring import statistics
from cirbench.studies import display, objective
from cirbench.types import CirbenchError

QUERIES, GALLERY = 6, 12
VALUES: tuple[Any, ...] = (None, 5, "x", [], {}, float("nan"))
GONE = object()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of two seeds, one of another method, a sweep of the first two, and what a run on select leaves."""
    out = tmp_path_factory.mktemp("good")
    sizes: dict[str, Any] = {"queries": QUERIES, "gallery": GALLERY, "pictures": 2, "weights": True}
    common = {"evaluated": {"run": "r", "model": "m", "inputs": "i", "source": "s", "dataset": "shoes", "data": {"part": 1}}}
    folders = [write_run(out, seed=seed, explain=True, steps=10, **sizes, **common) for seed in (0, 1)]
    write_run(out, method="sum", skill=0.3, **sizes)
    for folder in folders:
        (folder / "model.safetensors").write_bytes(b"")
        data = json.loads((folder / "record.json").read_text())
        data["select"] = {"protocols": data["protocols"], "omitted": {"other": "no labels"}}
        data["missing"] = {"images": 1, "ids": ["a"], "queries_lost": {"report": 1}}
        data["protocols"]["scenes"] |= {
            "missing": {"queries_lost": 1, "gallery_lost": 1, "bounds": {"R@1": [10.0, 50.0]}}}
        (folder / "record.json").write_text(json.dumps(data))
        with np.load(folder / "rankings.npz") as found:
            write_npz(folder / "select.npz", {n: found[n] for n in found.files if n.split("/")[0] in ("row_query", "rank")})
    sweep = out / "sweeps" / "tune-scenes-0"
    sweep.mkdir(parents=True)
    ids = [json.loads((f / "record.json").read_text())["id"] for f in folders]
    axes = {"method.clip_lr": {"low": 1e-4, "high": 1e-2, "log": True, "step": None}, "method.editors": ["both", "none"]}
    (sweep / "sweep.json").write_text(json.dumps({
        "schema": 1, "study": "tune-scenes-0", "question": "Which?", "note": "n", "tuning": True, "name": "tune",
        "dataset": "scenes", "seeds": [0, 1], "sampler": "tpe", "pruner": "none", "variant": "", "total": 10,
        "objective": {"split": "select", "protocol": "scenes", "metric": "R@1", "direction": "maximize"},
        "arms": [{"label": "", "method": "dwc", "variants": [""], "fixed": {}, "points": [{}], "space": axes}],
        "points": [
            {
                "number": n, "label": f"dwc {n}", "arm": "", "method": "dwc", "variant": "", "fixed": {}, "error": None,
                "values": {"method.clip_lr": 1e-3, "method.editors": "none"}, "state": "complete", "value": 10.0 + n,
                "seeds": {str(s): {"run": f.name, "id": i, "objective": 10.0 + n}
                          for s, (f, i) in enumerate(zip(folders, ids, strict=True))},
            } for n in range(10)
        ],
        "runs": [f.name for f in folders],
    }))
    return out


def damaged(value: Any) -> Iterator[tuple[str, Any]]:
    """(place, copy of a JSON value with that place deleted or replaced), at every level; the first three of a list."""
    root = [value]

    def places(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        keys = list(node) if isinstance(node, dict) else range(min(len(node), 3)) if isinstance(node, list) else ()
        for key in keys:
            yield (*path, key)
            yield from places(node[key], (*path, key))

    for path in list(places(value, (0,))):
        for new in (GONE, *VALUES):
            changed = copy.deepcopy(root)
            node = changed
            for key in path[:-1]:
                node = node[key]
            if new is GONE:
                del node[path[-1]]
            elif node[path[-1]] == new:
                continue
            else:
                node[path[-1]] = new
            yield f"{'.'.join(map(str, path[1:]))} = {'(deleted)' if new is GONE else new!r}", changed[0]


def answers(what: str, read: Callable[[], Any]) -> str | None:
    """The message of a refusal, None where the reader coped; anything else fails the test."""
    try:
        read()
    except CirbenchError as error:
        return str(error)
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    return None


def command(function: Any, *words: str) -> None:
    """A subcommand as a function that raises what it raises."""
    done = CliRunner().invoke(function, list(words), catch_exceptions=False, standalone_mode=False)
    if done.exception is not None:
        raise done.exception


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer resamples and no drawing: what is tested is reading."""
    monkeypatch.setattr(parts, "_figures", lambda part: parts.Figures())
    monkeypatch.setattr(building, "environment", functools.cache(building.environment))
    monkeypatch.setattr(studies, "RESAMPLES", 1)
    monkeypatch.setattr(claims, "spearman_interval", lambda *_: (0.1, 0.2))
    for name in ("bootstrap_interval", "paired_permutation"):
        real = getattr(statistics, name)
        monkeypatch.setattr(statistics, name, lambda *a, real=real, **k: real(*a, **{**k, "resamples": 19}))


def readers(out: Path, first: str) -> dict[str, Callable[[], Any]]:
    """Everything that reads a record, by name."""
    folder, query = out / first, "q-00001"
    goal: Any = type("Sweep", (), {"objective": type("Goal", (), {"protocol": "scenes", "metric": "R@1"})})
    expected = reproduce.Expected("dwc", "scenes", "", "scenes", {}, {"R@1": 50.0}, "s", (1.0, 2.0))

    def evaluate() -> None:
        planned, record = evaluate_run.plan_eval(folder)
        evaluate_run._training_of(record, {"train": dict(planned.knobs.model_dump())})

    return {
        "show": lambda: command(show, str(folder), query), "runs": lambda: command(runs_command, str(out)),
        "report": lambda: building.build(find_records([out]), sweeps=find_studies([out])),
        "table": lambda: [text_table(main_table(t, t.protocols()[0]), s) for t in collect(find_records([out]))
                          for s in ("csv", "latex", "markdown")],
        "compare": lambda: compare([other_seeds(Record(folder)), [r for r in find_records([out]) if r.run.inputs.method == "sum"]]),
        "sweep status": lambda: [display.table(s.data, out) for s in find_studies([out / "sweeps"])],
        "objective": lambda: objective.objective(Record(folder), goal),
        "blocks": lambda: objective.blocks(Record(folder), goal),
        "reproduce": lambda: reproduce.compare(expected, Record(folder).run), "eval": evaluate,
    }


def test_the_good_records_are_read_by_all(good: Path, quick: None) -> None:
    first = sorted(f.name for f in good.glob("scenes-dwc-s0-*"))[0]
    for name, read in readers(good, first).items():
        assert answers(name, read) is None, name


#: Of the damage that passes the check of a record (knobs may hold anything), every 12th is shown to all readers; all
#: of it takes minutes.
SHARES = [12, pytest.param(1, marks=pytest.mark.slow)]


@pytest.mark.parametrize("share", SHARES)
def test_every_field_of_a_record(share: int, good: Path, tmp_path: Path, quick: None) -> None:
    out = Path(shutil.copytree(good, tmp_path / "runs"))
    path = next(iter(sorted(out.glob("scenes-dwc-s0-*")))) / "record.json"
    refused, passed = 0, list[tuple[str, Any]]()
    for place, changed in damaged(json.loads(path.read_text())):
        try:
            read_run(parse_json(json.dumps(changed)))
        except ValueError:
            refused += 1
        else:
            passed.append((place, changed))
    assert refused > 700 and len(passed) > 300
    for place, changed in passed[::share]:
        path.write_text(json.dumps(changed))
        for name, reader in readers(out, path.parent.name).items():
            answers(f"{place}, {name}", reader)


@pytest.mark.parametrize("share", SHARES)
def test_every_field_of_a_sweep(share: int, good: Path, tmp_path: Path, quick: None) -> None:
    out = Path(shutil.copytree(good, tmp_path / "runs"))
    path = out / "sweeps" / "tune-scenes-0" / "sweep.json"
    refused, passed = 0, list[tuple[str, Any]]()
    for place, changed in damaged(json.loads(path.read_text())):
        try:
            read_study(parse_json(json.dumps(changed)))
        except ValueError:
            refused += 1
        else:
            passed.append((place, changed))
    assert refused > 300 and len(passed) > 100
    for place, changed in passed[::share]:
        path.write_text(json.dumps(changed))
        for name in ("report", "sweep status"):
            answers(f"{place}, {name}", readers(out, "")[name])


def test_what_is_refused_names_the_file_and_the_field(good: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(good, tmp_path / "runs"))
    (path, *_), study = sorted(out.glob("scenes-dwc-s0-*/record.json")), out / "sweeps" / "tune-scenes-0" / "sweep.json"
    for file, read, place, value, message in (
        (path, find_records, ("cost", "seconds", "cpu"), "x", "cost.seconds.cpu is text, not a number"),
        (path, find_records, ("protocols", "scenes", "definition"), GONE, "it lacks protocols.scenes.definition"),
        (study, find_studies, ("points", 1, "seeds", "0", "objective"), [], "points.1.seeds.0.objective is a list"),
        (study, find_studies, ("arms", 0, "space", "method.clip_lr"), 5, "arms.0.space.method.clip_lr is a number"),
    ):
        good_text = file.read_text()
        data = node = json.loads(good_text)
        for key in place[:-1]:
            node = node[key]
        if value is GONE:
            del node[place[-1]]
        else:
            node[place[-1]] = value
        file.write_text(json.dumps(data))
        with pytest.raises(CirbenchError, match=message) as caught:
            read([out])
        assert str(file) in str(caught.value)
        file.write_text(good_text)


def test_the_objective_by_blocks_needs_its_arrays(good: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(good, tmp_path / "runs"))
    folder = next(iter(sorted(out.glob("scenes-dwc-s0-*"))))
    write_npz(folder / "select.npz", {"row_query/text": np.arange(QUERIES, dtype=np.int32)})
    with pytest.raises(CirbenchError, match=r"select.npz is damaged: it lacks rank/scenes"):
        readers(out, folder.name)["blocks"]()


LINES: dict[str, tuple[str, ...]] = {"queries.jsonl": (), "training.jsonl": (), "explain.json": ("queries", "q-00000")}


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", LINES)
def test_every_field_of_a_line(name: str, share: int, good: Path, tmp_path: Path, quick: None) -> None:
    """One query, one line of training of each kind, one entry of evidence."""
    out = Path(shutil.copytree(good, tmp_path / "runs"))
    folder = next(iter(sorted(out.glob("scenes-dwc-s0-*"))))
    path = folder / name
    lines = [json.loads(line) for line in path.read_text().splitlines()] if name.endswith("l") else [json.loads(path.read_text())]
    kinds = {tuple(line): n for n, line in reversed(list(enumerate(lines)))}
    for n in kinds.values():
        node = lines[n]
        for key in LINES[name]:
            node = node[key]
        for place, changed in list(damaged(node))[::share]:
            text = [json.dumps(line) for line in lines]
            whole = changed
            for key in reversed(LINES[name]):
                whole = {key: whole}
            text[n] = json.dumps(whole)
            path.write_text("".join(line + "\n" for line in text))
            all_readers = readers(out, folder.name)
            for reader in ("show", "report", "table"):
                answers(f"{name} line {n + 1}, {place}, {reader}", all_readers[reader])

"""Missing pictures: a run fails, or goes on and says between what the true numbers lie; `--forms` limits the cost."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import SCORED, build
from small_pictures import NAMES, standins

from cirbench.cli import main
from cirbench.data.splits import load_named
from cirbench.scoring import evaluation, missing_images, protocol_scoring
from cirbench.types import CirbenchError, Dataset, Split


@cache
def whole(name: str) -> tuple[Dataset, Split]:
    return load_named(name, build(name, Path(tempfile.mkdtemp())), SCORED[name])


def evaluate(dataset: Dataset, split: Split, seed: int, spread: int) -> evaluation.Evaluation:
    """Every embedding depends on its id and string alone, so that the same query scores the same in any split."""

    def vector(*key: str) -> list[float]:
        return np.random.default_rng([seed, *("/".join(key)).encode()]).integers(-spread, spread + 1, 4).tolist()

    gallery = evaluation.gallery_of(split)
    rows = {}
    for form, make in dataset.forms.items():
        made = [(n, row) for n, q in enumerate(split.queries) for row in make(q)]
        vectors = [np.mean([vector(split.queries[n].id, s) for s in row], axis=0) for n, row in made]
        rows[form] = evaluation.Rows(np.array([n for n, _ in made]), torch.tensor(np.array(vectors)).float())
    images = torch.tensor([vector(i) for i in gallery]).float()
    return evaluation.score(split, dataset.protocols, gallery, images, rows)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(SCORED)), st.integers(0, 10**6), st.sampled_from([1, 400]), st.integers(1, 3))
def test_the_true_numbers_lie_within_the_bounds(name: str, seed: int, spread: int, most: int) -> None:
    dataset, split = whole(name)
    rng = np.random.default_rng(seed)
    ids = [*split.images(), *(m for q in split.queries for m in protocol_scoring.subset_of(q))]
    gone = set(rng.choice(ids, size=rng.integers(1, most + 1), replace=False).tolist())
    try:
        left = missing_images.without(dataset, [split.name], gone)
    except CirbenchError:
        return  # a group would be empty
    true, measured = (evaluate(dataset, s, seed, spread) for s in (split, left.splits[split.name]))
    for protocol in dataset.protocols:
        found = missing_images.bounds(dataset, split, left.splits[split.name], protocol, gone, measured.arrays)
        numbers = true.protocols[protocol.name]["metrics"]
        recalls = [m for m in numbers if "mAP" not in m]
        assert set(found["bounds"]) == set(recalls)
        for metric, (low, high) in found["bounds"].items():
            assert low - 1e-6 <= numbers[metric] <= high + 1e-6, (protocol.name, metric)
        before = missing_images.beforehand(dataset, split, protocol, gone)
        assert before["lost"] == found["queries_lost"] and before["gone_from_gallery"] == found["gallery_lost"]
        r = next(iter(before["measured_to_true"]))
        at_most = before["measured_to_true"][r]["at_most"].split()
        seen = measured.protocols[protocol.name]["metrics"][r]
        assert numbers[r] <= float(at_most[0]) * seen + float(at_most[4]) + 1e-3


def test_nothing_missing_bounds_nothing() -> None:
    dataset, split = whole("cirr")
    found = evaluate(dataset, split, 1, 3)
    for protocol in dataset.protocols:
        bounds = missing_images.bounds(dataset, split, split, protocol, set(), found.arrays)["bounds"]
        for metric, pair in bounds.items():
            assert pair == pytest.approx([found.protocols[protocol.name]["metrics"][metric]] * 2)


def run(capsys: pytest.CaptureFixture[str], *args: Any) -> dict[str, Any]:
    main([str(a) for a in (*args, "--json")])
    return json.loads(capsys.readouterr().out)


def test_run_and_eval_go_on_without_and_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = standins("cirr", tmp_path / "cirr")
    _, split = load_named("cirr", root, "val")
    query = split.queries[0]
    NAMES["cirr"](root, query.reference).unlink()
    NAMES["cirr"](root, split.queries[3].targets[0]).write_bytes(b"")
    args = ["run", "-m", "random", "-d", "cirr", "--root", root, "--out", tmp_path / "runs"]
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "1 pictures of cirr are missing" in said and "--allow-missing" in said
    record = run(capsys, *args, "--allow-missing")
    assert record["missing"]["images"] == 2 and query.reference in record["missing"]["ids"]
    lost = record["missing"]["queries_lost"]["report"]
    entry = record["protocols"]["cirr-hard"]
    assert lost >= 2 and entry["queries"] == len(split.queries) - lost and entry["gallery"] == 24 - 2
    assert entry["missing"]["queries_lost"] == lost and entry["missing"]["gallery_lost"] == 2
    low, high = entry["missing"]["bounds"]["R@5"]
    assert 0 <= low <= entry["metrics"]["R@5"] * (1 - lost / len(split.queries)) <= high <= 100
    assert any("2 pictures are missing" in note for note in record["notes"])
    # The record is found again, and people are told the same.
    main([str(a) for a in (*args, "--allow-missing")])
    assert "on the complete data: R@1" in capsys.readouterr().out
    again = run(capsys, "eval", record["folder"], "--root", root, "--out", tmp_path / "runs", "--allow-missing")
    assert again["protocols"] == record["protocols"]
    with pytest.raises(SystemExit):
        main(["eval", record["folder"], "--root", str(root), "--out", str(tmp_path / "runs")])
    capsys.readouterr()
    main(["table", record["folder"]])
    assert f"(queries lost: {lost}, images missing from a gallery: 2)" in capsys.readouterr().out
    main(["report", record["folder"], "-o", str(tmp_path / "r.html")])
    page = (tmp_path / "r.html").read_text()
    assert page.count("Range on the complete data") == 2 and "2 pictures are missing" in page


def test_a_group_without_a_query_left_is_an_error() -> None:
    dataset, split = whole("fashioniq")
    gone = {q.reference for q in split.queries if q.group == "shirt"}
    with pytest.raises(CirbenchError, match="no query of shirt is left"):
        missing_images.without(dataset, [split.name], gone)


def test_forms_limit_what_is_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = standins("fashioniq", tmp_path / "fiq")
    args = ["run", "-m", "random", "-d", "fashioniq", "--root", root, "--out", tmp_path / "runs"]
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in (*args, "--forms", "bo")])
    assert stop.value.code == 2 and "Did you mean 'both'" in capsys.readouterr().err
    record = run(capsys, *args, "--forms", "both")
    assert {p["form"] for p in record["protocols"].values()} == {"ab", "both"}
    assert record["default_protocol"] == "fiq-original-keep-ab" and len(record["omitted"]) == 19
    assert record["omitted"]["fiq-val-drop-tokens"] == "its text form 'tokens' is not among --forms"
    full = run(capsys, *args)
    assert full["id"] != record["id"] and len(full["protocols"]) == 27 and full["omitted"] == {}
    for name, entry in record["protocols"].items():
        assert full["protocols"][name]["metrics"] == entry["metrics"]
    # Every form named is every form: the same record.
    assert run(capsys, *args, "--forms", "ba,both,avg,each,tokens,comma,run-on,and-it")["id"] == full["id"]
    alone = run(capsys, "eval", full["folder"], "--root", root, "--out", tmp_path / "runs", "--forms", "ab")
    assert {p["form"] for p in alone["protocols"].values()} == {"ab"}

"""`cirbench fuse`: against slow loops, against the runs that it is made of, and through the command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tiny
import torch
from cirbench.reports.compare import other_seeds
from cirbench.reports.complementarity import complementarity
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cirbench.cli.fuse import fuse as command
from cirbench.runs import fuse
from cirbench.runs.fusing import CONSTANT, Fused, shares_of
from cirbench.runs.record import Record
from cirbench.types import CirbenchError, Frozen, Inputs, Method, Pixels, QueryBatch

PIXELS = Pixels(4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Columns:
    """A method whose embeddings are a column of numbers for each picture, and for each query that of its reference."""

    def __init__(self, name: str, texts: Mapping[str, Frozen] | None = None) -> None:
        self.name, self.inputs = name, Inputs({name: PIXELS}, texts or {})

    def encode_queries(self, batch: QueryBatch) -> Tensor:
        return batch.reference[self.name].double()

    def encode_images(self, images: Mapping[str, Tensor]) -> Tensor:
        return images[self.name]


class Distance(Columns):
    def score(self, queries: Tensor, gallery: Tensor) -> Tensor:
        return -torch.cdist(queries, gallery)


class Centred(Columns):
    def adapt(self, queries: Tensor, gallery: Tensor) -> Tensor:
        return queries - gallery.mean(0)


def fused_of(how: str, weights: list[float], kinds: list[type[Columns]], seed: int = 0) -> tuple[Fused, list[Any], Any]:
    draw = torch.Generator().manual_seed(seed)
    members = [kind("x") for kind in kinds]
    made = Fused(cast(list[Method], members), how, weights)
    x = [torch.randint(-2, 3, (n, 3), generator=draw).float() for n in (7 for _ in kinds)]
    g = [torch.randint(-2, 3, (n, 3), generator=draw).float() for n in (11 for _ in kinds)]
    batch = QueryBatch({f"{n}/x": part for n, part in enumerate(x)}, {}, [""] * 7)
    queries = made.encode_queries(batch)
    gallery = made.encode_images({f"{n}/x": part for n, part in enumerate(g)})
    if hasattr(made, "adapt"):
        queries = made.adapt(queries, gallery)
    own = []
    for member, q, k in zip(members, x, g, strict=True):
        q = member.adapt(q, k) if isinstance(member, Centred) else q
        own.append(member.score(q, k) if isinstance(member, Distance) else q @ k.T)
    return made, own, (queries, gallery)


@pytest.mark.parametrize("kinds", [[Columns, Columns], [Columns, Distance], [Centred, Distance, Columns]])
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_added_by_share_and_spread(kinds: list[type[Columns]], seed: int) -> None:
    weights = [0.25, 0.75] if len(kinds) == 2 else [0.5, 0.2, 0.3]
    made, own, (queries, gallery) = fused_of("scores", weights, kinds, seed)
    made.spread = [2.0, 0.5, 4.0][: len(kinds)]
    wanted = torch.zeros(7, 11)
    for share, spread, scores in zip(weights, made.spread, own, strict=True):
        wanted += share / spread * scores
    torch.testing.assert_close(made.score(queries, gallery), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made.score(queries[2:5], gallery[3:8]), wanted[2:5, 3:8], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kinds", [[Columns, Distance], [Centred, Columns]])
@pytest.mark.parametrize("seed", range(3))
def test_ranks_are_added_by_their_reciprocals(kinds: list[type[Columns]], seed: int) -> None:
    made, own, (queries, gallery) = fused_of("ranks", [0.3, 0.7], kinds, seed)
    wanted = np.zeros((7, 11))
    for share, scores in zip((0.3, 0.7), own, strict=True):
        for q in range(7):
            for g in range(11):  # equal scores share the best of their ranks
                rank = 1 + sum(float(s) > float(scores[q, g]) + 1e-4 for s in scores[q])
                wanted[q, g] += share / (CONSTANT + rank)
    found = made.score(queries, gallery)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)
    torch.testing.assert_close(made.score(queries[2:5], gallery[3:8]), found[2:5, 3:8])


def test_behind_the_depth_nothing_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cirbench.runs.fusing.DEPTH", 2)
    made = Fused(cast(list[Method], [Columns("x"), Columns("x")]), "ranks", [1.0, 0.0])
    one = torch.tensor([[1.0]])
    queries = made.encode_queries(QueryBatch({"0/x": one, "1/x": one}, {}, [""]))
    places = torch.tensor([[5.0], [1.0], [7.0], [2.0]])
    gallery = made.encode_images({"0/x": places, "1/x": places})
    found = made.score(made.adapt(queries, gallery), gallery)[0]
    assert found.tolist() == pytest.approx([1 / 62, 0, 1 / 61, 0])


def test_spread_is_the_standard_deviation_of_scores() -> None:
    made, own, _ = fused_of("scores", [0.5, 0.5], [Columns, Distance])
    draw = torch.Generator().manual_seed(0)
    x, g = (torch.randint(-2, 3, (n, 3), generator=draw).float() for n in (7, 11))
    queries = made.encode_queries(QueryBatch({"0/x": x, "1/x": x}, {}, [""] * 7))
    made.measure_spread(queries, made.encode_images({"0/x": g, "1/x": g}))
    assert made.spread[0] == pytest.approx(float((x @ g.T).std())) and len(own) == 2
    assert made.spread[1] == pytest.approx(float(torch.cdist(x, g).std()), rel=1e-5)


@given(st.integers(2, 3), st.integers(1, 12))
def test_all_shares_are_tried_and_equal_ones_first(members: int, steps: int) -> None:
    found = shares_of(members, steps)
    assert all(sum(shares) == pytest.approx(1) for shares in found) and len(set(found)) == len(found)
    assert len(found) == (steps + 1 if members == 2 else (steps + 1) * (steps + 2) // 2)
    away = [sum((s - 1 / members) ** 2 for s in shares) for shares in found]
    assert away == sorted(away) or np.allclose(away, sorted(away))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    out = tmp_path_factory.mktemp("fuse") / "runs"
    return {
        "sum": tiny.run("sum", out, "zero-shot"), "text": tiny.run("text-only", out, "clip-only"),
        "weicom": tiny.run("weicom", out), "dwc": tiny.run("dwc", out), "dwc1": tiny.run("dwc", out, seed=1),
        "other": tiny.run("sum", out, "zero-shot", data__distractors=11),
    }


def made(runs: Mapping[str, Record], names: str, out: Path, **more: Any) -> Record:
    given = fuse.members([runs[name].folder for name in names.split()])
    return fuse.fuse(given, out, device="cpu", quiet=True, **more)


@pytest.mark.parametrize("names", ["sum text", "weicom sum", "dwc text"])
def test_a_share_of_one_is_that_run(names: str, runs: dict[str, Record], tmp_path: Path) -> None:
    found, alone = made(runs, names, tmp_path, weights=[1.0, 0.0]), runs[names.split()[0]]
    assert list(found.run.protocols) == list(alone.run.protocols)
    for name, scores in alone.run.protocols.items():
        assert found.run.protocols[name].metrics == pytest.approx(scores.metrics), name
        assert np.mean(found.rankings[f"rank/{name}"] == alone.rankings[f"rank/{name}"]) > 0.95, name
    assert found.run.selection.rule == "given"


@pytest.mark.parametrize("how", ["scores", "ranks"])
def test_shares_are_the_best_on_select_and_the_record_is_a_run(
    how: str, runs: dict[str, Record], tmp_path: Path
) -> None:
    found = made(runs, "sum text", tmp_path, how=how)
    shares = found.data["fused"]["shares"]
    assert sum(shares) == pytest.approx(1) and found.run.selection.rule == "select"
    tried = {}
    for first in (0.0, 0.25, 0.5, 0.75, 1.0):
        # On select, which `_on_select` scores; the reported split plays no part.
        one = made(runs, "sum text", tmp_path, how=how, weights=[first, 1 - first])
        assert one.run.selection.value is None
        tried[first] = one.id
    assert len({found.id, *tried.values()}) == 6
    best = max(r.data["select"]["protocols"][r.run.default_protocol]["metrics"]["R@1"] for r in (runs["sum"], runs["text"]))
    assert found.run.selection.value is not None and found.run.selection.value >= best
    assert made(runs, "sum text", tmp_path, how=how).folder == found.folder


def test_fusions_of_other_seeds_are_seeds_of_one_thing(runs: dict[str, Record], tmp_path: Path) -> None:
    found = [made(runs, f"{name} text", tmp_path) for name in ("dwc", "dwc1")]
    assert [r.run.inputs.seed for r in other_seeds(found[0])] == [0, 1] and found[0].id != found[1].id


def test_complementarity_counts_queries(runs: dict[str, Record]) -> None:
    records = [runs["sum"], runs["text"], runs["weicom"]]
    protocol = records[0].run.default_protocol
    for row in complementarity(records, protocol):
        k, hits = int(row["metric"][2:]), []
        for record in records:
            ranks = record.rankings[f"rank/{protocol}"]
            hits.append([0 < r <= k for r in ranks.tolist()])
        queries = list(zip(*hits, strict=True))
        assert row["any"] == pytest.approx(100 * sum(map(any, queries)) / len(queries))
        assert row["all"] == pytest.approx(100 * sum(map(all, queries)) / len(queries))
        for n, only in enumerate(row["only"]):
            alone = sum(q[n] and sum(q) == 1 for q in queries)
            assert only == pytest.approx(100 * alone / len(queries))
    with pytest.raises(CirbenchError, match="answered different queries or ranked different galleries"):
        complementarity([runs["sum"], runs["other"]], protocol)


def test_the_command(runs: dict[str, Record], tmp_path: Path) -> None:
    call = [str(runs["sum"].folder), str(runs["text"].folder), "--device", "cpu", "--out", str(tmp_path)]
    done = CliRunner().invoke(command, call, catch_exceptions=False)
    assert done.exit_code == 0 and "Percent of queries hit by" in done.output and "Fused: " in done.output
    assert f"Against {fuse.best_of([runs['sum'], runs['text']]).name}, the best of them on select" in done.output
    told = json.loads(CliRunner().invoke(command, [*call, "--json"], catch_exceptions=False).output)
    assert told["best_single"] in (runs["sum"].id, runs["text"].id) and told["comparison"] and told["complementarity"]
    quiet = CliRunner().invoke(command, [*call, "--quiet"], catch_exceptions=False)
    assert quiet.exit_code == 0 and quiet.output == ""


@pytest.mark.parametrize(("names", "more", "message"), [
    ("sum", [], "fuse takes two or three runs, got 1"),
    ("sum text weicom dwc", [], "fuse takes two or three runs, got 4"),
    ("sum sum", [], "is named twice"),
    ("sum other", [], "differ in their fingerprint|differ in their images"),
    ("sum text", ["--shares", "0.5"], "shares 0.5 for 2 runs: give one a run"),
    ("sum text", ["--shares", "0.5,0.6"], "that add up to 1, such as 0.5,0.5"),
    ("sum text", ["--shares", "2,-1"], "each from 0 to 1"),
    ("sum text", ["--shares", "nan,1"], "each from 0 to 1"),
    ("sum text", ["--shares", "a,b"], "--shares 'a,b': give one number a run"),
])
def test_bad_input_is_one_message(
    names: str, more: list[str], message: str, runs: dict[str, Record], tmp_path: Path
) -> None:
    folders = [str(runs[name].folder) for name in names.split()]
    done = CliRunner().invoke(command, [*folders, *more, "--device", "cpu", "--out", str(tmp_path)])
    assert isinstance(done.exception, CirbenchError)
    with pytest.raises(CirbenchError, match=message):
        raise done.exception
    assert not list(tmp_path.iterdir())


def test_a_fusion_is_not_fused_again_nor_evaluated(runs: dict[str, Record], tmp_path: Path) -> None:
    found = made(runs, "sum text", tmp_path, weights=[0.5, 0.5])
    with pytest.raises(CirbenchError, match="is itself a fusion"):
        fuse.members([found.folder, runs["sum"].folder])
    with pytest.raises(CirbenchError, match="is a fusion, which has no weights of its own"):
        from cirbench.runs.evaluate_run import plan_eval

        plan_eval(found.folder)

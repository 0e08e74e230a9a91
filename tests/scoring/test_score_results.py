"""`score` against a slow loop written from the definitions, the known answers, and what it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_embeddings import embeddings, write_npz
from small_data import SCORED, build
from tiny import DATA

from cirbench.cli import main
from cirbench.data.splits import load_named
from cirbench.datasets import fashioniq
from cirbench.plugins import dataset_names
from cirbench.scoring import score_results
from cirbench.types import Dataset, Protocol, Query, Split

SHARED = Path(os.environ.get("CIRBENCH_SHARED") or Path(__file__).parents[2].parent / "shared") / "data" / "annotations"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real annotation files are not here (CIRBENCH_SHARED names their folder)")

# ------------------------------------------------------------------------------------- the slow loop


def slow_gallery(split: Split, protocol: Protocol, query: Query) -> list[str]:
    if protocol.gallery == "own":
        return list(query.candidates or ())
    groups = split.galleries[protocol.gallery]
    return list(groups[query.group] if query.group in groups else groups[""])


def slow_worth(protocol: Protocol, query: Query, image: str) -> float:
    if protocol.hit == "graded":
        return max(0.0, query.extra["soft"].get(image, 0.0))
    if protocol.hit == "first":
        return float(image == query.targets[0])
    return float(image in query.targets)


def slow_best_in_first(scores: dict[str, float], worth: dict[str, float], k: int) -> float:
    """Among equal scores the images worth least stand first; then the best of the first k."""
    order = sorted(scores, key=lambda i: (-scores[i], worth[i]))
    return max((worth[i] for i in order[:k]), default=0.0)


def slow_precision(scores: dict[str, float], targets: tuple[str, ...], k: int) -> float:
    order = sorted(scores, key=lambda i: (-scores[i], i in targets))
    found, total = 0, 0.0
    for place, image in enumerate(order[:k], 1):
        if image in targets:
            found += 1
            total += found / place
    return total / min(len(targets), k)


def slow_metric(name: str, protocol: Protocol, query: Query, scores: dict[str, float]) -> float:
    kind, k = name.split("@")
    if kind == "Rs":
        members = [m for m in query.extra["members"] if m != query.reference]
        scores = {m: scores[m] for m in members}
    if kind == "mAP":
        return slow_precision(scores, query.targets, int(k))
    return slow_best_in_first(scores, {i: slow_worth(protocol, query, i) for i in scores}, int(k))


def slow(
    dataset: Dataset, split: Split, protocol: Protocol, text: dict[tuple[str, str], np.ndarray],
    image: dict[str, np.ndarray],
) -> dict[str, float]:
    values: dict[str, list[tuple[str, tuple[str, ...], float]]] = {}
    for query in split.queries:
        for strings in dataset.forms[protocol.form](query):
            vector = np.mean([text[query.id, s] for s in strings], axis=0)
            shown = [i for i in slow_gallery(split, protocol, query)
                     if not (protocol.drop_reference and i == query.reference)]
            scores = {i: float(vector @ image[i]) for i in shown}
            for metric in protocol.metrics:
                parts = metric[5:-1].split(",") if metric.startswith("mean(") else [metric]
                value = float(np.mean([slow_metric(p, protocol, query, scores) for p in parts]))
                aspects = tuple(query.extra.get("aspects", ())) if metric.startswith("mAP") else ()
                values.setdefault(metric, []).append((query.group, aspects, value))
    out = {}
    for metric, rows in values.items():
        groups = dict.fromkeys(g for g, _, _ in rows)
        by_group = {g: 100 * float(np.mean([v for h, _, v in rows if h == g])) for g in groups}
        whole = list(by_group.values()) if protocol.average == "groups" else [100 * v for _, _, v in rows]
        out[metric] = float(np.mean(whole))
        out.update({f"{g}/{metric}": v for g, v in by_group.items() if g})
        for aspect in {a for _, aspects, _ in rows for a in aspects}:
            out[f"{aspect}/{metric}"] = 100 * float(np.mean([v for _, a, v in rows if aspect in a]))
    return out


def loaded(name: str, folder: Path) -> tuple[Dataset, Split]:
    """The scored split of a small version of a dataset."""
    if name == "scenes":
        return load_named(name, None, "report", [f"{k}={v}" for k, v in DATA.items()])
    return load_named(name, build(name, folder), SCORED[name])


def test_every_dataset_is_compared() -> None:
    assert {*SCORED, "scenes"} == set(dataset_names())


@pytest.mark.parametrize("kind", ["random", "tied"])
@pytest.mark.parametrize("name", [*sorted(SCORED), "scenes"])
def test_score_equals_the_slow_loop_for_every_protocol(name: str, kind: str, tmp_path: Path) -> None:
    dataset, split = loaded(name, tmp_path / name)
    text, image = embeddings(dataset, split, kind, 11)
    file = write_npz(tmp_path / "e.npz", dataset, split, text, image)
    result = score_results.score_embeddings(dataset, split, [file])
    assert result["omitted"] == {}
    assert list(result["protocols"]) == [p.name for p in dataset.protocols]
    for protocol in dataset.protocols:
        expected = slow(dataset, split, protocol, text, image)
        found = result["protocols"][protocol.name]
        assert found["metrics"] == pytest.approx(expected, abs=1e-9), protocol.name
        assert found["queries"] == sum(len(dataset.forms[protocol.form](q)) for q in split.queries)
    assert kind == "random" or any(p["ties"] for p in result["protocols"].values())


@pytest.mark.parametrize("name", ["fashioniq", "shoes", "cirr", "circo", "genecis", "custom"])
def test_full_lists_score_like_the_embeddings_they_come_from(name: str, tmp_path: Path) -> None:
    root = build(name, tmp_path / name)
    dataset, split = load_named(name, root, SCORED[name])
    text, image = embeddings(dataset, split, "random", 5)
    lists = {}
    for form in dict.fromkeys(p.form for p in dataset.protocols):
        for query in split.queries:
            protocol = next(p for p in dataset.protocols if p.form == form)
            rows = dataset.forms[form](query)
            for n, row in enumerate(rows):
                vector = np.mean([text[query.id, s] for s in row], axis=0)
                ids = slow_gallery(split, protocol, query)
                lists[f"{query.id}#{form}" + (f".{n}" if len(rows) > 1 else "")] = sorted(
                    ids, key=lambda i, v=vector: -float(v @ image[i])
                )
    (tmp_path / "l.json").write_text(json.dumps(lists))
    by_list = score_results.score_rankings(dataset, split, [tmp_path / "l.json"])
    file = write_npz(tmp_path / "e.npz", dataset, split, text, image)
    by_embedding = score_results.score_embeddings(dataset, split, [file])
    for protocol in dataset.protocols:
        a, b = by_list["protocols"][protocol.name], by_embedding["protocols"][protocol.name]
        assert a["metrics"] == pytest.approx(b["metrics"], abs=1e-9), protocol.name
        assert a["gallery"] == b["gallery"]


def test_models_per_category_are_aggregated_under_one_name(tmp_path: Path) -> None:
    root = build("fashioniq", tmp_path / "fiq")
    dataset, split = load_named("fashioniq", root, "val")
    files, expected = [], {}
    for n, cat in enumerate(("dress", "shirt", "toptee")):
        mine = fashioniq.load_split(fashioniq.Knobs(category=cat), root, "val")
        part = mine.splits["val"]
        text, image = embeddings(mine, part, "random", n)
        image = {f"{cat}/{i}": v for i, v in image.items()}
        files.append(write_npz(tmp_path / f"{cat}.npz", mine, part, text, image))
        plain = {i.partition("/")[2]: v for i, v in image.items()}
        expected[cat] = slow(mine, part, dataset.protocols[0], text, plain)
    every = score_results.score_embeddings(dataset, split, files)
    assert list(every["omitted"]) == ["fiq-pooled-keep-and-it"], "none of these models ranks all pictures"
    result = every["protocols"]["fiq-original-keep-ab"]["metrics"]
    assert result["R@10"] == pytest.approx(np.mean([expected[c]["R@10"] for c in expected]))
    assert result["shirt/R@50"] == pytest.approx(expected["shirt"]["R@50"])
    alone = score_results.score_embeddings(dataset, split, files[:1])
    assert "R@10" not in alone["protocols"]["fiq-original-keep-ab"]["metrics"]
    single = alone["protocols"]["fiq-original-keep-ab"]["metrics"]["dress/R@10"]
    assert single == pytest.approx(expected["dress"]["R@10"])
    assert "shirt, toptee" in alone["omitted"]["fiq-original-keep-ab/average"]


@pytest.mark.parametrize(("queries", "gallery"), [("f2", "f2"), ("f4", "f8"), ("f8", "f2"), ("f8", "f8"), (">f4", "f4")])
def test_any_float_type_and_any_row_order(queries: str, gallery: str, tmp_path: Path) -> None:
    """The grid of `embeddings` is exact in half precision, so that every type must give the same numbers."""
    dataset, split = loaded("cirr", tmp_path / "cirr")
    text, image = embeddings(dataset, split, "tied", 4)
    results = []
    for seed, types in ((0, ("f4", "f4")), (7, (queries, gallery))):
        with np.load(write_npz(tmp_path / "e.npz", dataset, split, text, image, seed)) as file:
            data = dict(file)
        data["queries"], data["gallery"] = (data[k].astype(t) for k, t in zip(("queries", "gallery"), types, strict=True))
        np.savez(tmp_path / "e.npz", **data)
        results.append(score_results.score_embeddings(dataset, split, [tmp_path / "e.npz"]))
    assert results[0] == results[1]


def test_several_files_after_one_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = build("cirr", tmp_path / "cirr")
    _, split = load_named("cirr", root, "val")
    ids = list(split.galleries["all"][""])
    full = {q.id: [i for i in ids if i != q.reference][:50] for q in split.queries}
    subset = {q.id: [m for m in q.extra["members"] if m != q.reference][:3] for q in split.queries}
    for name, lists in (("recall", full), ("recall_subset", subset)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"version": "rc2", "metric": name, **lists}))
    given = ["-d", "cirr", "--root", root, "--split", "val", "--rankings", tmp_path / "recall.json"]
    both = run_json(capsys, *given, tmp_path / "recall_subset.json")
    repeated = run_json(capsys, *given, "--rankings", tmp_path / "recall_subset.json")
    assert both == repeated and both["omitted"] == {}
    # Without the second file the mean lacks a part, and its being left out is said.
    alone = run_json(capsys, "-d", "cirr", "--root", root, "--split", "val", "--rankings", tmp_path / "recall_subset.json")
    assert set(alone["protocols"]["cirr-hard"]["metrics"]) == {"Rs@1", "Rs@2", "Rs@3"}
    assert "R@5" in alone["omitted"]["cirr-hard/mean(R@5,Rs@1)"]


def test_absent_forms_are_omitted_and_both_orders_are_put_together(tmp_path: Path) -> None:
    root = build("fashioniq", tmp_path / "fiq")
    dataset, split = load_named("fashioniq", root, "val")
    text, image = embeddings(dataset, split, "random", 3)
    ids = [q.id for q in split.queries] + [f"{q.id}#ba" for q in split.queries]
    rows = [text[q.id, dataset.forms[f](q)[0][0]] for f in ("ab", "ba") for q in split.queries]
    np.savez(tmp_path / "e.npz", query_ids=ids, queries=rows, image_ids=list(image), gallery=list(image.values()))
    result = score_results.score_embeddings(dataset, split, [tmp_path / "e.npz"])
    forms = {p.name: p.form for p in dataset.protocols}
    assert {forms[n] for n in result["protocols"]} == {"ab", "ba", "both", "avg"}
    assert {forms[n] for n in result["omitted"]} == {"each", "tokens", "comma", "run-on", "and-it"}
    # Asked for by name it is no error either: the answer says why it is not there.
    none = score_results.score_embeddings(dataset, split, [tmp_path / "e.npz"], ["fiq-val-keep-each"])
    assert none["protocols"] == {} and none["omitted"] == {"fiq-val-keep-each": "no row of the text form 'each' is in the file"}
    for name in ("fiq-original-drop-both", "fiq-val-keep-avg"):
        protocol = next(p for p in dataset.protocols if p.name == name)
        expected = slow(dataset, split, protocol, text, image)
        assert result["protocols"][name]["metrics"] == pytest.approx(expected, abs=1e-9)


def test_short_lists_omit_what_they_cannot_support(tmp_path: Path) -> None:
    root = build("cirr", tmp_path / "cirr")
    dataset, split = load_named("cirr", root, "val")
    ids = list(split.galleries["all"][""])
    lists = {q.id: [i for i in ids if i != q.reference][:7] for q in split.queries}
    (tmp_path / "l.json").write_text(json.dumps(lists))
    result = score_results.score_rankings(dataset, split, [tmp_path / "l.json"])
    assert set(result["protocols"]["cirr-hard"]["metrics"]) == {"R@1", "R@5"}
    assert "7 usable images, but 10 are needed" in result["omitted"]["cirr-hard/R@10"]
    assert "subset" in result["omitted"]["cirr-hard/Rs@3"]


# ------------------------------------------------------------------------------------- known answers


def run_json(capsys: pytest.CaptureFixture[str], *args: Any) -> dict[str, Any]:
    main(["score", *map(str, args), "--json"])
    return json.loads(capsys.readouterr().out)


@needs_shared
def test_circo_example_file_gives_the_official_values(capsys: pytest.CaptureFixture[str]) -> None:
    root = SHARED / "circo"
    found = run_json(
        capsys, "--dataset", "circo", "--root", root, "--split", "val", "--rankings",
        root / "submission_examples" / "submission_val.json",
    )["protocols"]["circo-keep"]
    expected = {
        "mAP@5": 0.486111, "mAP@10": 0.517767, "mAP@25": 0.540035, "mAP@50": 0.602039, "R@5": 0.909091,
        "R@10": 0.909091, "R@25": 1.363636, "R@50": 3.636364, "direct_addressing/mAP@10": 0.919701,
        "comparative_statement/mAP@10": 1.05, "statement_with_conjunction/mAP@10": 0.618346,
        "viewpoint/mAP@10": 0.617284, "spatial_relations_background/mAP@10": 0.180754, "addition/mAP@10": 0.087054,
        "compare_change/mAP@10": 0.024225, "cardinality/mAP@10": 0.0, "negation/mAP@10": 0.0,
    }
    assert {k: found["metrics"][k] for k in expected} == pytest.approx(expected, abs=5e-7)
    assert found["queries"] == 220


def circo_edge(kind: str, query: Query, fillers: list[str]) -> list[str]:
    others = [f for f in fillers if f not in query.targets and f != query.reference]
    return {
        "oracle": [*query.targets, *others], "strings": [*query.targets, *others], "reference-first": [query.reference, *query.targets, *others],
        "reversed": [*query.targets[::-1], *others], "three": list(query.targets[:3]),
        "fillers-first": [*others[:4], *query.targets, *others[4:]],
    }[kind][:50]


@needs_shared
@pytest.mark.parametrize(("kind", "values"), [
    ("oracle", (100, 100, 100, 100)), ("strings", (100, 100, 100, 100)),
    ("reference-first", (58.3071, 64.7493, 65.3596, 65.3596)),
    ("reversed", (100, 100, 100, 100)), ("fillers-first", (8.0212, 30.9514, 34.9485, 34.9485)),
])
def test_circo_edge_set(kind: str, values: tuple[float, ...], tmp_path: Path) -> None:
    dataset, split = load_named("circo", SHARED / "circo", "val")
    fillers = [str(n) for n in range(1, 80)]
    # The official evaluator takes texts as well as numbers.
    form: type = str if kind == "strings" else int
    lists = {q.id: [form(i) for i in circo_edge(kind, q, fillers)] for q in split.queries}
    (tmp_path / "l.json").write_text(json.dumps(lists))
    found = score_results.score_rankings(dataset, split, [tmp_path / "l.json"])["protocols"]["circo-keep"]["metrics"]
    assert [found[f"mAP@{k}"] for k in (5, 10, 25, 50)] == pytest.approx(values, abs=5e-5)
    if kind == "reversed":
        assert [found["R@5"], found["R@10"]] == pytest.approx([74.0909, 95.9091], abs=5e-5)
    if kind in ("oracle", "strings", "reference-first"):
        assert [found[f"R@{k}"] for k in (5, 10, 25, 50)] == [100] * 4
    if kind == "reference-first":
        dropped = score_results.score_rankings(dataset, split, [tmp_path / "l.json"], ["circo-drop"])
        assert dropped["protocols"]["circo-drop"]["metrics"]["mAP@25"] == pytest.approx(100)


@needs_shared
def test_circo_lists_of_three_are_scored_by_the_formula_and_omitted_by_score(tmp_path: Path) -> None:
    from cirbench.scoring.metrics import average_precision_at

    dataset, split = load_named("circo", SHARED / "circo", "val")
    for k, value in ((5, 83.7273), (10, 78.2148), (25, 78.0354), (50, 78.0354)):
        precisions = [
            average_precision_at(np.arange(1, min(len(q.targets), 3) + 1), len(q.targets), k) for q in split.queries
        ]
        assert 100 * np.mean(precisions) == pytest.approx(value, abs=5e-5)
    (tmp_path / "l.json").write_text(json.dumps({q.id: list(q.targets[:3]) for q in split.queries}))
    result = score_results.score_rankings(dataset, split, [tmp_path / "l.json"], ["circo-keep"])
    assert "mAP@5" not in result["protocols"]["circo-keep"]["metrics"]
    assert "5 are needed" in result["omitted"]["circo-keep/mAP@5"]


@needs_shared
def test_cirr_oracle_is_perfect_under_hard_and_not_under_graded_labels(tmp_path: Path) -> None:
    dataset, split = load_named("cirr", SHARED / "cirr", "val")
    ids = split.galleries["all"][""]
    lists = {q.id: [q.targets[0], *(i for i in ids if i not in (q.targets[0], q.reference))] for q in split.queries}
    (tmp_path / "l.json").write_text(json.dumps(lists))
    found = score_results.score_rankings(dataset, split, [tmp_path / "l.json"])["protocols"]
    assert found["cirr-hard"]["metrics"]["R@1"] == 100 and found["cirr-hard"]["metrics"]["Rs@1"] == 100
    assert found["cirr-graded"]["metrics"]["R@1"] == pytest.approx(99.0122, abs=5e-5)
    best = {}
    for q in split.queries:
        soft = sorted((i for i in q.extra["soft"] if i != q.reference), key=lambda i: -q.extra["soft"][i])
        best[q.id] = [*soft, *(i for i in ids if i not in soft and i != q.reference)]
    (tmp_path / "l.json").write_text(json.dumps(best))
    found = score_results.score_rankings(dataset, split, [tmp_path / "l.json"])["protocols"]["cirr-graded"]["metrics"]
    assert found["R@1"] == pytest.approx(99.9043, abs=5e-5) and found["Rs@1"] == pytest.approx(99.5456, abs=5e-5)


@needs_shared
def test_shoes_oracle_misses_the_query_whose_target_is_its_reference(tmp_path: Path) -> None:
    dataset, split = load_named("shoes", SHARED / "shoes", "eval")
    names = split.galleries["4658"][""]
    lists = {q.id: [q.targets[0], *names[:60]] for q in split.queries}
    lists = {k: list(dict.fromkeys(v)) for k, v in lists.items()}
    (tmp_path / "l.json").write_text(json.dumps(lists))
    found = score_results.score_rankings(dataset, split, [tmp_path / "l.json"])["protocols"]
    assert found["shoes-4658"]["metrics"]["R@1"] == pytest.approx(100 * 1760 / 1761)
    assert found["shoes-doubled"]["metrics"]["R@1"] == pytest.approx(100 * 3520 / 3521)
    assert found["shoes-doubled"]["queries"] == 3521
    assert found["shoes-4621"]["metrics"]["R@50"] == pytest.approx(100 * (1760 - 11) / 1761)
    assert any("29 queries" in note for note in dataset.notes)


@needs_shared
def test_fashioniq_val_scores_on_the_real_annotation(tmp_path: Path) -> None:
    dataset, split = load_named("fashioniq", SHARED / "fashion_iq", "val", ("data.category=dress",))
    rng = np.random.default_rng(0)
    gallery = split.images()
    vectors = rng.standard_normal((len(gallery), 16)).astype(np.float32)
    place = {i: n for n, i in enumerate(gallery)}
    queries = vectors[[place[q.targets[0]] for q in split.queries]] * 100
    np.savez(tmp_path / "e.npz", query_ids=[q.id for q in split.queries], queries=queries.astype(np.float64),
             image_ids=gallery, gallery=vectors.astype(np.float16))
    found = score_results.score_embeddings(dataset, split, [tmp_path / "e.npz"], ["fiq-original-keep-ab"])
    entry = found["protocols"]["fiq-original-keep-ab"]
    assert entry["queries"] == 2017 and entry["gallery"] == 3817 and entry["metrics"]["R@50"] > 99

"""Properties every protocol must hold, whatever the embeddings; and the list of protocols itself."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import build

from cirbench.cli import main
from cirbench.data.splits import load_named
from cirbench.datasets import circo, fashion200k, fashioniq, shoes
from cirbench.plugins import dataset_names, find_dataset
from cirbench.scoring import evaluation, score_results
from cirbench.scoring.metrics import average_precision_at, parts
from cirbench.scoring.protocol_scoring import grades
from cirbench.types import CirbenchError, Dataset, Protocol, Query, Split

METRICS = ("R@1", "R@2", "R@5", "mAP@5")


def evaluate(split: Split, protocol: Protocol, queries: np.ndarray, images: np.ndarray, gallery: list[str]) -> dict:
    rows = {protocol.form: evaluation.Rows(np.arange(len(split.queries)), torch.from_numpy(queries).float())}
    found = evaluation.score(split, [protocol], gallery, torch.from_numpy(images).float(), rows)
    return found.protocols[protocol.name]


@st.composite
def problems(draw: st.DrawFn, spread: int = 3) -> tuple[Split, np.ndarray, np.ndarray, list[str]]:
    """A few queries over a few images with integer embeddings; small `spread` makes ties."""
    n, b = draw(st.integers(3, 9)), draw(st.integers(1, 5))
    ids = [f"i{k}" for k in range(n)]
    queries = []
    for q in range(b):
        order = draw(st.permutations(ids))
        queries.append(Query(f"q{q}", order[0], ("t",), tuple(order[1 : draw(st.integers(2, n))])))
    seed = draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    split = Split("s", tuple(queries), {"all": {"": tuple(ids)}})
    return split, rng.integers(-spread, spread + 1, (b, 4)), rng.integers(-spread, spread + 1, (n, 4)), ids


@settings(max_examples=60, deadline=None)
@given(problems(spread=1000), st.randoms())
def test_order_of_the_gallery_does_not_matter(problem: tuple, random: object) -> None:
    split, q, g, ids = problem
    order = np.random.default_rng(len(ids)).permutation(len(ids))
    protocol = Protocol("p", METRICS)
    first = evaluate(split, protocol, q, g, ids)
    assert evaluate(split, protocol, q, g[order], [ids[k] for k in order])["metrics"] == first["metrics"]


@settings(max_examples=60, deadline=None)
@given(problems())
def test_one_more_unrelated_image_never_raises_a_number(problem: tuple) -> None:
    split, q, g, ids = problem
    more = Split("s", split.queries, {"all": {"": (*ids, "new")}})
    protocol = Protocol("p", METRICS)
    before = evaluate(split, protocol, q, g, ids)["metrics"]
    after = evaluate(more, protocol, q, np.concatenate([g, [[2, -1, 0, 1]]]), [*ids, "new"])["metrics"]
    assert all(after[m] <= before[m] + 1e-9 for m in before)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_taking_the_reference_out_never_lowers_a_number(problem: tuple) -> None:
    split, q, g, ids = problem
    kept = evaluate(split, Protocol("p", METRICS, drop_reference=False), q, g, ids)["metrics"]
    dropped = evaluate(split, Protocol("p", METRICS), q, g, ids)["metrics"]
    assert all(dropped[m] >= kept[m] - 1e-9 for m in kept)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_hits_by_caption_are_at_least_hits_by_image(problem: tuple) -> None:
    split, q, g, ids = problem
    single = Split("s", tuple(Query(x.id, x.reference, x.texts, x.targets[:1]) for x in split.queries), split.galleries)
    protocol = Protocol("p", ("R@1", "R@2", "R@5"))
    wide, narrow = (evaluate(s, protocol, q, g, ids)["metrics"] for s in (split, single))
    assert all(wide[m] >= narrow[m] for m in wide)


@settings(max_examples=30, deadline=None)
@given(problems())
def test_a_constant_score_reaches_nothing(problem: tuple) -> None:
    split, q, g, ids = problem
    single = Split("s", tuple(Query(x.id, x.reference, x.texts, x.targets[:1]) for x in split.queries), split.galleries)
    found = evaluate(single, Protocol("p", ("R@1",)), q, np.ones_like(g), ids)
    # With one image beside the reference there is nothing to tie with.
    assert found["metrics"]["R@1"] == (0.0 if len(ids) > 2 else 100.0)
    assert found["ties"] == (len(split.queries) if len(ids) > 2 else 0)


@given(st.integers(1, 60), st.integers(1, 60))
def test_average_precision_of_one_target_is_its_reciprocal_rank(rank: int, k: int) -> None:
    assert average_precision_at(np.array([rank]), 1, k) == pytest.approx(1 / rank if rank <= k else 0.0)


@functools.cache
def small_cirr() -> tuple[Dataset, Split]:
    return load_named("cirr", build("cirr", Path(tempfile.mkdtemp())), "val")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 500]))
def test_subset_recall(seed: int, spread: int) -> None:
    _, split = small_cirr()
    rng = np.random.default_rng(seed)
    ids = list(split.galleries["all"][""])
    q = rng.integers(-spread, spread + 1, (len(split.queries), 4))
    g = rng.integers(-spread, spread + 1, (len(ids), 4))
    metrics = ("R@1", "R@2", "R@3", "Rs@1", "Rs@2", "Rs@3", "Rs@5")
    found = evaluate(split, Protocol("p", metrics), q, g, ids)["metrics"]
    assert all(found[f"Rs@{k}"] >= found[f"R@{k}"] for k in (1, 2, 3)) and found["Rs@5"] == 100
    graded = evaluate(split, Protocol("p", metrics, hit="graded"), q, g, ids)["metrics"]
    assert 0 <= graded["R@1"] <= graded["R@3"] <= 100


def test_grades_put_the_worst_first_and_leave_worthless_images_out() -> None:
    query = Query("q", "r", ("t",), ("a",), extra={"soft": {"a": 1.0, "b": -1.0, "c": 0.2, "d": 0}})
    assert grades(query) == [("c", 0.2), ("a", 1.0)]


def test_averages_over_groups_are_unweighted() -> None:
    queries = tuple(Query(f"q{n}", "r", ("t",), ("a",), group="x" if n else "y") for n in range(4))
    split = Split("s", queries, {"all": {"": ("a", "b")}})
    q, g = np.array([[-1.0], [1.0], [1.0], [1.0]]), np.array([[1.0], [0.0]])
    found = evaluate(split, Protocol("p", ("R@1",), average="groups"), q, g, ["a", "b"])["metrics"]
    assert found == {"R@1": 50.0, "y/R@1": 0.0, "x/R@1": 100.0}
    assert evaluate(split, Protocol("p", ("R@1",)), q, g, ["a", "b"])["metrics"]["R@1"] == 75.0


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(1, 4))
def test_averages_over_groups_are_taken_before_any_rounding(problem: tuple, groups: int) -> None:
    split, q, g, ids = problem
    named = tuple(Query(x.id, x.reference, x.texts, x.targets, group=f"g{n % groups}") for n, x in enumerate(split.queries))
    split = Split("s", named, split.galleries)
    found = evaluate(split, Protocol("p", METRICS, average="groups"), q, g, ids)["metrics"]
    alone = {}
    for group in dict.fromkeys(x.group for x in named):
        rows = [n for n, x in enumerate(named) if x.group == group]
        part = Split("s", tuple(named[n] for n in rows), split.galleries)
        alone[group] = evaluate(part, Protocol("p", METRICS), q[rows], g, ids)["metrics"]
    for metric in METRICS:
        assert found[metric] == np.mean([values[metric] for values in alone.values()])
        assert all(found[f"{group}/{metric}"] == values[metric] for group, values in alone.items())


# ------------------------------------------------------------------------------------- the list


NAMES = {
    "fashioniq": ["fiq-original-keep-ab", *(
        f"fiq-{gallery}-{reference}-{form}" for gallery in ("original", "val") for reference in ("keep", "drop")
        for form in ("ab", "ba", "both", "avg", "each", "tokens") if (gallery, reference, form) != ("original", "keep", "ab")
    ), "fiq-original-keep-comma", "fiq-original-drop-run-on", "fiq-pooled-keep-and-it"],
    "shoes": ["shoes-4658", "shoes-4621", "shoes-val", "shoes-doubled"],
    "fashion200k": ["f200k-replace", "f200k-leaky", "f200k-caption"],
    "css3d": ["css3d-label"], "cirr": ["cirr-hard", "cirr-graded"],
    "circo": ["circo-keep", "circo-drop", "circo-keep-magiclens", "circo-keep-megapairs"],
    "genecis": ["genecis"], "custom": ["custom-drop", "custom-keep"], "scenes": ["scenes"],
}


def test_names_are_fixed_and_the_default_comes_first() -> None:
    """Tables, records and other people's scripts hold these names: they never change."""
    assert {name: [p.name for p in find_dataset(name).SPEC.protocols] for name in dataset_names()} == NAMES


def test_every_protocol_can_be_computed_by_its_dataset(tmp_path: Path) -> None:
    for name in dataset_names():
        spec = find_dataset(name).SPEC
        assert spec.protocols and len({p.name for p in spec.protocols}) == len(spec.protocols)
        for p in spec.protocols:
            known = {part for m in p.metrics for part in parts(m)} | set(p.metrics)
            assert p.summary in known and p.note, p.name


def test_fashioniq_has_all_24_combinations_and_the_papers_ones() -> None:
    assert len(fashioniq.SPEC.protocols) == 24 + 3 and fashioniq.SPEC.protocols[0].name == "fiq-original-keep-ab"
    known = {k: p.name for p in fashioniq.SPEC.protocols for k in p.known_as}
    assert known == {
        "clip4cir": "fiq-original-keep-ab", "searle": "fiq-original-keep-avg", "lincir": "fiq-original-keep-avg",
        "pic2word": "fiq-original-keep-ba", "covr": "fiq-original-drop-ab", "artemis": "fiq-original-drop-both",
        "cosmo": "fiq-original-drop-both", "val": "fiq-val-drop-each", "dwc": "fiq-val-drop-tokens",
        "clvc-net": "fiq-val-drop-tokens", "bge-vl": "fiq-original-keep-comma", "mmret": "fiq-original-keep-comma",
        "dcnet": "fiq-original-drop-run-on", "composeae": "fiq-pooled-keep-and-it",
    }


def test_text_forms_of_fashioniq() -> None:
    query = Query("dress/0", "r", (" is Red. ", "is knee-long"), ("t",), group="dress")
    rows = {name: form(query) for name, form in fashioniq.FORMS.items()}
    assert rows == {
        "ab": [["is Red and is knee-long"]], "ba": [["is knee-long and is Red"]],
        "both": [["is Red and is knee-long"], ["is knee-long and is Red"]],
        "avg": [["is Red and is knee-long", "is knee-long and is Red"]],
        "each": [["is Red."], ["is knee-long"]],
        "four-ways": [["is Red and is knee-long"], ["is knee-long and is Red"], ["is Red"], ["is knee-long"]],
        "tokens": [["<BOS>  is Red.  <AND> is knee-long <EOS>"]],
        "comma": [[" is Red. , and is knee-long"]],  # BGE-VL: nothing stripped
        "run-on": [["is red is knee long"]],  # DCNet: hyphens parted, full stops dropped
        "and-it": [["dress  is red.  and it is knee-long"]],  # ComposeAE: f"{category} {a} and it {b}".lower()
    }


def test_empty_captions_of_fashioniq_are_read_as_each_protocols_authors_do() -> None:
    query = Query("shirt/1928", "r", ("", "is grey."), ("t",), group="shirt")
    assert {name: form(query) for name, form in fashioniq.FORMS.items()} == {
        "ab": [[" and is grey"]],  # CLIP4Cir: f"{a.strip('.?, ')} and {b.strip('.?, ')}"
        "ba": [["is grey and "]],
        "both": [[" and is grey"], ["is grey and "]],
        "avg": [[" and is grey", "is grey and "]],  # SEARLE, both orders
        "each": [["is grey."]],  # VAL writes no line for an empty caption
        "tokens": [["<BOS>  <AND> is grey. <EOS>"]],  # DWC, CLVC-Net: "<BOS> {} <AND> {} <EOS>".format(*captions)
        "four-ways": [[" and is grey"], ["is grey and "], [""], ["is grey"]],  # CLIP4Cir in training
        "comma": [[", and is grey."]], "run-on": [["is grey"]], "and-it": [["shirt  and it is grey."]],
    }


def test_texts_of_fashioniq_on_the_real_annotation(shared: Path) -> None:
    _, split = load_named("fashioniq", shared / "data/annotations/fashion_iq", "val")
    empty = [q for q in split.queries if not all(t.strip() for t in q.texts)]
    assert [q.id for q in empty] == ["shirt/1928", "toptee/676", "toptee/1076"]
    assert all(fashioniq.FORMS["ab"](q) == [[f" and {q.texts[1].strip('.?, ')}"]] for q in empty)
    assert sum(len(fashioniq.FORMS["each"](q)) for q in split.queries) == 12_029
    # A picture of several categories stands in the pooled gallery once.
    assert (sum(map(len, split.galleries["original"].values())), len(split.galleries["pooled"][""])) == (15_536, 15_415)
    released = [f"<BOS> {q.texts[0]} <AND> {q.texts[1]} <EOS>" for q in split.queries]
    assert [fashioniq.FORMS["tokens"](q)[0][0] for q in split.queries] == released


def test_pooled_gallery_of_fashioniq_is_left_out_where_one_category_is_loaded(tmp_path: Path) -> None:
    """Three models, one for each category, would otherwise be compared with one that ranks all pictures."""
    root = build("fashioniq", tmp_path)
    every, split = load_named("fashioniq", root, "val")
    (pooled,) = split.galleries["pooled"].values()
    assert len(pooled) == len(set(pooled)) and set(pooled) == {
        image for images in split.galleries["original"].values() for image in images
    }
    knobs = fashioniq.Knobs(category="dress")
    names = [[p.name for p in d.protocols] for d in (fashioniq.load(knobs, root), fashioniq.load_split(knobs, root, "val"))]
    assert names[0] == names[1] == [p.name for p in every.protocols if p.name != "fiq-pooled-keep-and-it"]
    assert "and-it" in fashioniq.load(knobs, root).forms, "it can still be trained with"


def test_a_model_of_one_category_is_scored_without_the_pooled_gallery(tmp_path: Path) -> None:
    root = build("fashioniq", tmp_path / "fiq")
    dataset, split = load_named("fashioniq", root, "val")
    mine, rng = [q for q in split.queries if q.group == "dress"], np.random.default_rng(3)
    images = split.galleries["original"]["dress"]

    def found(form: str, images: tuple[str, ...]) -> dict[str, Any]:
        np.savez(
            tmp_path / "e.npz", query_ids=[f"{q.id}{form}" for q in mine], image_ids=images,
            queries=rng.standard_normal((len(mine), 4)), gallery=rng.standard_normal((len(images), 4)),
        )
        return score_results.score_embeddings(dataset, split, [tmp_path / "e.npz"])

    assert "fiq-original-keep-ab" in found("", images)["protocols"]
    with pytest.raises(CirbenchError, match="gallery images of dress have no embedding"):
        found("#and-it", images)
    whole = found("#and-it", split.galleries["pooled"][""])["protocols"]
    assert list(whole) == ["fiq-pooled-keep-and-it"]
    assert whole["fiq-pooled-keep-and-it"]["gallery"] == len(split.galleries["pooled"][""]) > len(images)


#: circo split, entry -> sha256 of the two texts, 16 digits: the annotation's licence keeps them out of this repository.
CONCEPTS = {
    ("val", 0): ("c1e85b25a3593405", "acfb938a8b3e54f4"),
    ("val", 9): ("bed35d81e5e8ae9c", "041d3c484bb56220"),
    ("val", 219): ("311d0205259deabc", "f701e32bb01253a1"),
    ("test", 0): ("3ab0cb3b86bbb65d", "2681c1c41aa9c6cb"),
    ("test", 799): ("3990e64f0d312788", "df881c00ba3b7c3d"),
}


def pinned(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_texts_of_circo_with_the_shared_concept() -> None:
    query = Query("0", "r", ("is red.",), ("t",), extra={"shared_concept": "a  Cat"})
    assert {name: form(query) for name, form in circo.FORMS.items()} == {
        "text": [["is red."]], "magiclens": [["find a  Cat but is red."]],
        "megapairs": [["Find a picture that also a  Cat, but is red.."]],
    }


def test_known_texts_of_circo(shared: Path) -> None:
    for (name, n), expected in CONCEPTS.items():
        query = load_named("circo", shared / "data/annotations/circo", name)[1].queries[n]
        assert tuple(pinned(circo.FORMS[form](query)[0][0]) for form in ("magiclens", "megapairs")) == expected


def test_texts_of_circo_equal_all_that_megapairs_released(shared: Path) -> None:
    released = shared / "data/annotations/megapairs/circo_query.jsonl"
    if not released.is_file():
        pytest.skip("circo_query.jsonl of the MegaPairs repository is not on this machine")
    _, split = load_named("circo", shared / "data/annotations/circo", "test")
    rows = [json.loads(line) for line in released.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 800 and [(r["id"], int(r["q_img"].removesuffix(".jpg")), r["q_text"]) for r in rows] == [
        (int(q.id), int(q.reference), circo.FORMS["megapairs"](q)[0][0]) for q in split.queries
    ]


def test_equal_captions_of_fashioniq_are_both_read() -> None:
    """As published: `and` joins whatever the two captions are."""
    def said(form: str, *texts: str) -> list[list[str]]:
        return fashioniq.FORMS[form](Query("q", "r", texts, ("t",)))

    assert said("ab", "is red.", "is red") == said("ba", "is red.", "is red") == [["is red and is red"]]
    assert said("both", "is red", "is red") == [["is red and is red"]] * 2
    assert said("avg", "a", "b") == [["a and b", "b and a"]] and said("ba", "a", "b") == [["b and a"]]


def test_shoes_are_doubled_unless_reference_and_target_are_one() -> None:
    assert shoes.FORMS["doubled"](Query("1", "a", ("x",), ("b",))) == [["x"], ["x"]]
    assert shoes.FORMS["doubled"](Query("1", "a", ("x",), ("a",))) == [["x"]]


def test_graded_cirr_is_said_to_be_that_of_artemis_for_recall_over_the_whole_gallery_alone() -> None:
    graded = next(p for p in find_dataset("cirr").SPEC.protocols if p.name == "cirr-graded")
    assert "artemis" not in graded.known_as and "artemis (R@K alone)" in graded.known_as
    assert "lists of the first 50" in graded.note


@pytest.mark.parametrize(("source", "target", "expected"), [
    ("red dress", "blue dress", "replace red with blue"),
    ("red", "red red", "replace red with red"),  # nothing differs: the last words
    ("long red dress", "long dress", "replace red with dress"),
])
def test_replace_text_of_tirg(source: str, target: str, expected: str) -> None:
    assert fashion200k.replace_text(source, target) == expected


def test_a_word_is_removed_as_a_whole_word() -> None:
    # The authors' replace() would turn "red bordered dress" into "bordee dress".
    assert fashion200k.parents("red bordered red") == ["bordered red", "red red", "red bordered"]


def test_protocols_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["protocols"])
    said = capsys.readouterr().out
    for name in ("fiq-val-drop-tokens", "shoes-4621", "f200k-leaky", "css3d-label", "cirr-graded", "circo-drop",
                 "genecis", "custom-keep", "scenes"):
        assert name in said
    with pytest.raises(SystemExit) as stop:
        main(["protocols", "sheos"])
    assert stop.value.code == 2 and "Did you mean 'shoes'" in capsys.readouterr().err

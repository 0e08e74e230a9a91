"""Properties every protocol must hold, whatever the embeddings; and the list of protocols itself."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import build

from cirbench.cli import main
from cirbench.data.splits import load_named
from cirbench.datasets import fashion200k, fashioniq, shoes
from cirbench.plugins import dataset_names, find_dataset
from cirbench.scoring import evaluation
from cirbench.scoring.metrics import average_precision_at, parts
from cirbench.scoring.protocol_scoring import grades
from cirbench.types import Dataset, Protocol, Query, Split

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
    )],
    "shoes": ["shoes-4658", "shoes-4621", "shoes-val", "shoes-doubled"], "fashion200k": ["f200k-replace", "f200k-leaky"],
    "css3d": ["css3d-label"], "cirr": ["cirr-hard", "cirr-graded"], "circo": ["circo-keep", "circo-drop"],
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
    assert len(fashioniq.SPEC.protocols) == 24 and fashioniq.SPEC.protocols[0].name == "fiq-original-keep-ab"
    known = {k: p.name for p in fashioniq.SPEC.protocols for k in p.known_as}
    assert known == {
        "clip4cir": "fiq-original-keep-ab", "searle": "fiq-original-keep-avg", "lincir": "fiq-original-keep-avg",
        "pic2word": "fiq-original-keep-ba", "covr": "fiq-original-drop-ab", "artemis": "fiq-original-drop-both",
        "cosmo": "fiq-original-drop-both", "val": "fiq-val-drop-each", "dwc": "fiq-val-drop-tokens",
        "clvc-net": "fiq-val-drop-tokens",
    }


def test_text_forms_of_fashioniq() -> None:
    query = Query("dress/0", "r", (" is red. ", "is long"), ("t",))
    rows = {name: form(query) for name, form in fashioniq.FORMS.items()}
    assert rows == {
        "ab": [["is red and is long"]], "ba": [["is long and is red"]],
        "both": [["is red and is long"], ["is long and is red"]], "avg": [["is red and is long", "is long and is red"]],
        "each": [["is red."], ["is long"]],
        "four-ways": [["is red and is long"], ["is long and is red"], ["is red"], ["is long"]],
        "tokens": [["<BOS>  is red.  <AND> is long <EOS>"]],
    }


def test_empty_captions_of_fashioniq_are_read_as_each_protocols_authors_do() -> None:
    query = Query("shirt/1928", "r", ("", "is grey."), ("t",))
    assert {name: form(query) for name, form in fashioniq.FORMS.items()} == {
        "ab": [[" and is grey"]],  # CLIP4Cir: f"{a.strip('.?, ')} and {b.strip('.?, ')}"
        "ba": [["is grey and "]],
        "both": [[" and is grey"], ["is grey and "]],
        "avg": [[" and is grey", "is grey and "]],  # SEARLE, both orders
        "each": [["is grey."]],  # VAL writes no line for an empty caption
        "tokens": [["<BOS>  <AND> is grey. <EOS>"]],  # DWC, CLVC-Net: "<BOS> {} <AND> {} <EOS>".format(*captions)
        "four-ways": [[" and is grey"], ["is grey and "], [""], ["is grey"]],  # CLIP4Cir in training
    }


def test_texts_of_fashioniq_on_the_real_annotation(shared: Path) -> None:
    _, split = load_named("fashioniq", shared / "data/annotations/fashion_iq", "val")
    empty = [q for q in split.queries if not all(t.strip() for t in q.texts)]
    assert [q.id for q in empty] == ["shirt/1928", "toptee/676", "toptee/1076"]
    assert all(fashioniq.FORMS["ab"](q) == [[f" and {q.texts[1].strip('.?, ')}"]] for q in empty)
    assert sum(len(fashioniq.FORMS["each"](q)) for q in split.queries) == 12_029
    released = [f"<BOS> {q.texts[0]} <AND> {q.texts[1]} <EOS>" for q in split.queries]
    assert [fashioniq.FORMS["tokens"](q)[0][0] for q in split.queries] == released


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

"""`score` on a handful of images: whose embedding ranks where, what lists support, and the words of each refusal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cirbench.scoring.score_results import score_embeddings, score_rankings
from cirbench.types import CirbenchError, Dataset, Protocol, Query, Split

QUERIES = (
    Query("q0", "a", ("s", "t"), ("b",), "w/x", ("b", "c"), {"members": ["a", "b", "c"]}),
    Query("q1", "b", ("s", "u"), ("c",), "w", ("c", "d"), {"members": ["b", "c", "d"]}),
)
SPLIT = Split("val", QUERIES, {"grouped": {"w/x": ("a", "b", "c"), "w": ("b", "c", "d")}})
GROUPED = Protocol("grouped", ("R@1", "R@2"), gallery="grouped")
OWN = Protocol("own", ("R@1",), gallery="own", form="other")


def dataset_of(*protocols: Protocol, name: str = "tiny") -> Dataset:
    forms = {
        "text": lambda q: [q.texts[:1]], "other": lambda q: [q.texts[1:]], "avg": lambda q: [q.texts],
        "each": lambda q: [(t,) for t in q.texts],
    }
    return Dataset(name, {}, None, protocols or (GROUPED,), "", forms=forms)  # type: ignore[arg-type]


def npz(path: Path, queries: dict[Any, float], images: dict[str, float]) -> Path:
    """Embeddings of one dimension: with positive queries, the images' values are their scores."""
    np.savez(
        path, query_ids=np.array(list(queries)), queries=np.array([[v] for v in queries.values()], dtype=np.float64),
        image_ids=np.array(list(images)), gallery=np.array([[v] for v in images.values()], dtype=np.float64),
    )
    return path


def lists(path: Path, ranked: dict[str, Any], metric: str = "") -> Path:
    head = {"version": "rc2", "metric": metric} if metric else {}
    path.write_text(json.dumps({**head, **{key: list(names) for key, names in ranked.items()}}))
    return path


ONES = {"q0": 1.0, "q1": 1.0}
PLAIN = {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}


def metrics(result: dict[str, Any], name: str = "grouped") -> dict[str, float]:
    return result["protocols"][name]["metrics"]


# ------------------------------------------------------------------------------------- embeddings


def test_one_embedding_for_every_group(tmp_path: Path) -> None:
    found = score_embeddings(dataset_of(), SPLIT, [npz(tmp_path / "e.npz", ONES, PLAIN)])
    # q0 without a: b first. q1 without b: c first.
    assert found == {"dataset": "tiny", "split": "val", "omitted": {}, "protocols": {"grouped": {
        "queries": 2, "gallery": 3, "ties": 0,
        "metrics": {"R@1": 100, "R@2": 100, "w/x/R@1": 100, "w/R@1": 100, "w/x/R@2": 100, "w/R@2": 100},
    }}}
    tied = score_embeddings(dataset_of(), SPLIT, [npz(tmp_path / "e.npz", ONES, {**PLAIN, "b": 2.0, "d": 2.0})])
    assert tied["protocols"]["grouped"]["ties"] == 2 and metrics(tied)["R@1"] == 0 and metrics(tied)["R@2"] == 100


def test_an_embedding_may_belong_to_one_group(tmp_path: Path) -> None:
    """`w/x/c` is image c as the queries of group w/x rank it; c is what all the others rank."""
    file = npz(tmp_path / "e.npz", ONES, {**PLAIN, "w/x/c": 9.0})
    found = metrics(score_embeddings(dataset_of(), SPLIT, [file]))
    assert (found["w/x/R@1"], found["w/R@1"], found["R@1"]) == (0, 100, 50)
    file = npz(tmp_path / "e.npz", ONES, {**PLAIN, "w/d": 9.0})
    found = metrics(score_embeddings(dataset_of(), SPLIT, [file]))
    assert (found["w/x/R@1"], found["w/R@1"]) == (100, 0)
    # Every image in its own group, none without: b and c are in both galleries.
    images = {"w/x/a": 1.0, "w/x/b": 1.0, "w/x/c": 2.0, "w/b": 3.0, "w/c": 2.0, "w/d": 1.0}
    result = score_embeddings(dataset_of(), SPLIT, [npz(tmp_path / "e.npz", ONES, images)])
    assert (metrics(result)["w/x/R@1"], metrics(result)["w/R@1"]) == (0, 100)
    assert result["protocols"]["grouped"]["queries"] == 2 and result["protocols"]["grouped"]["gallery"] == 3


def test_a_group_may_have_a_name_of_one_letter_and_images_a_slash(tmp_path: Path) -> None:
    # The image `w/d` is itself: it is not image d of group w, although both exist.
    gallery = {"grouped": {"w/x": ("a", "b", "c"), "w": ("b", "c", "d", "w/d")}}
    file = npz(tmp_path / "e.npz", ONES, {**PLAIN, "w/d": 9.0, "d": 0.5})
    found = score_embeddings(dataset_of(), Split("val", QUERIES, gallery), [file])
    assert metrics(found)["w/R@1"] == 0 and found["protocols"]["grouped"]["gallery"] == 4
    # And may be given for one group as well.
    file = npz(tmp_path / "e.npz", ONES, {**PLAIN, "w/d": 9.0, "w/w/d": 0.25, "d": 0.5})
    assert metrics(score_embeddings(dataset_of(), Split("val", QUERIES, gallery), [file]))["w/R@1"] == 100


def test_groups_and_images_may_both_hold_slashes(tmp_path: Path) -> None:
    gallery = {"grouped": {"w/x": ("a", "b", "p/q/r"), "w": ("b", "c", "d")}}
    for row, hit in (("p/q/r", 100), ("w/x/p/q/r", 0)):
        file = npz(tmp_path / "e.npz", ONES, {**PLAIN, "p/q/r": 1.0, row: 9.0 if hit == 0 else 1.0})
        assert metrics(score_embeddings(dataset_of(), Split("val", QUERIES, gallery), [file]))["w/x/R@1"] == hit


@pytest.mark.parametrize(("more", "unknown"), [
    ({"z": 1.0}, "1 image ids are not in tiny/val: z. "), ({"w/a/b": 1.0, "y/b": 1.0}, "2 image ids are not in tiny/val: w/a/b, y/b. "),
    ({"/b": 1.0}, "1 image ids are not in tiny/val: /b. "), ({"w/z": 1.0}, "1 image ids are not in tiny/val: w/z. "),
])
def test_images_of_another_set_are_refused(more: dict[str, float], unknown: str, tmp_path: Path) -> None:
    file = npz(tmp_path / "e.npz", ONES, {**PLAIN, **more})
    with pytest.raises(CirbenchError) as refused:
        score_embeddings(dataset_of(), SPLIT, [file])
    assert str(refused.value).startswith(f"{file}: {unknown}Ids look like '") and str(refused.value)[-3] in "abcd"


def test_images_that_lack_an_embedding_are_named(tmp_path: Path) -> None:
    rest = "Leaving images out makes every number too high; encode all of them."
    file = npz(tmp_path / "e.npz", ONES, {"a": 1.0, "b": 1.0, "c": 1.0})
    with pytest.raises(CirbenchError) as refused:
        score_embeddings(dataset_of(), SPLIT, [file])
    assert str(refused.value) == f"{file}: 1 gallery images of w have no embedding: d. {rest}"
    nameless = Split("val", tuple(replace(q, group="") for q in QUERIES), {"grouped": {"": ("a", "b", "c", "d")}})
    npz(file, ONES, {"a": 1.0})
    with pytest.raises(CirbenchError) as refused:
        score_embeddings(dataset_of(), nameless, [file])
    assert str(refused.value) == f"{file}: 3 gallery images have no embedding: b, c, d. {rest}"
    # Only what the file's own queries rank is needed: not d, which no query of w/x ranks.
    npz(file, {"q0": 1.0}, {"a": 1.0, "b": 3.0, "c": 1.0})
    found = score_embeddings(dataset_of(), SPLIT, [file])
    assert metrics(found) == {"w/x/R@1": 100, "w/x/R@2": 100}
    assert found["omitted"] == {"grouped/average": "no query of w, so there is no average over groups"}


def test_a_group_without_a_gallery_of_its_own_ranks_the_common_one(tmp_path: Path) -> None:
    split = Split("val", QUERIES, {"grouped": {"w/x": ("a", "b"), "": ("b", "c", "d")}})
    found = score_embeddings(dataset_of(), split, [npz(tmp_path / "e.npz", {"q1": 1.0}, {"b": 1.0, "c": 1.0, "d": 2.0})])
    assert metrics(found) == {"w/R@1": 0, "w/R@2": 100}
    # None at all is an empty gallery: nothing is found in it.
    split = Split("val", QUERIES, {"grouped": {"w/x": ("a", "b", "c"), "other": ("a",)}})
    assert metrics(score_embeddings(dataset_of(), split, [npz(tmp_path / "e.npz", {"q0": 1.0}, PLAIN)])) == {"w/x/R@1": 100, "w/x/R@2": 100}


def test_galleries_of_queries_need_their_candidates_alone(tmp_path: Path) -> None:
    own = dataset_of(replace(OWN, form="text"))
    file = npz(tmp_path / "e.npz", {"q0": 1.0}, {"b": 1.0, "c": 2.0})
    found = score_embeddings(own, SPLIT, [file])
    assert metrics(found, "own") == {"w/x/R@1": 0} and found["protocols"]["own"]["gallery"] == 2


def test_several_files_are_one_result_and_share_no_query(tmp_path: Path) -> None:
    first = npz(tmp_path / "1.npz", {"q1": 1.0}, PLAIN)
    second = npz(tmp_path / "2.npz", {"q0": 1.0}, {"a": 1.0, "b": 1.0, "c": 2.0})
    found = score_embeddings(dataset_of(), SPLIT, [first, second])
    assert metrics(found) == {"R@1": 50, "R@2": 100, "w/x/R@1": 0, "w/R@1": 100, "w/x/R@2": 100, "w/R@2": 100}
    assert found["omitted"] == {} and found["protocols"]["grouped"]["queries"] == 2
    npz(second, ONES, PLAIN)
    with pytest.raises(CirbenchError) as refused:
        score_embeddings(dataset_of(), SPLIT, [first, second])
    assert str(refused.value) == f"{second}: query 'q1' is also in {first}. Remove one of them."


def test_medians_are_of_all_files_together(tmp_path: Path) -> None:
    protocol = replace(GROUPED, metrics=("MdR", "MR"))
    files = [npz(tmp_path / "1.npz", {"q1": 1.0}, {**PLAIN, "d": 9.0}), npz(tmp_path / "2.npz", {"q0": 1.0}, PLAIN)]
    found = metrics(score_embeddings(dataset_of(protocol), SPLIT, files))
    assert found == {"MdR": 1.5, "MR": 1.5, "w/x/MdR": 1, "w/MdR": 2, "w/x/MR": 1, "w/MR": 2}


def test_forms_may_be_of_different_groups(tmp_path: Path) -> None:
    file = npz(tmp_path / "e.npz", {"q1": 1.0, "q0#other": 1.0}, {**PLAIN, "w/x/b": 1.0})
    found = score_embeddings(dataset_of(GROUPED, OWN), SPLIT, [file])
    assert metrics(found) == {"w/R@1": 100, "w/R@2": 100} and metrics(found, "own") == {"w/x/R@1": 0}
    assert found["omitted"] == {
        "grouped/average": "no query of w/x, so there is no average over groups",
        "own/average": "no query of w, so there is no average over groups",
    }


def test_a_row_of_several_strings_is_the_mean_of_theirs(tmp_path: Path) -> None:
    dataset = dataset_of(GROUPED, Protocol("avg", ("R@1",), gallery="grouped", form="avg"), Protocol("each", ("R@1",), gallery="grouped", form="each"))
    rows = {"q0": 1.0, "q0#each.1": -3.0, "q1": 1.0, "q1#each.1": 1.0, "q0#each.0": 1.0, "q1#each.0": 1.0, "q0#avg": -1.0, "q1#avg": 1.0}
    found = score_embeddings(dataset, SPLIT, [npz(tmp_path / "e.npz", rows, PLAIN)])
    assert metrics(found, "avg")["R@1"] == 50 and metrics(found, "each")["R@1"] == 75
    assert found["protocols"]["each"]["queries"] == 4


def test_what_cannot_be_scored_is_refused(tmp_path: Path) -> None:
    file = npz(tmp_path / "e.npz", ONES, PLAIN)
    unknown = replace(GROUPED, gallery="all")
    with pytest.raises(CirbenchError) as refused:
        score_embeddings(dataset_of(OWN, unknown), SPLIT, [file])
    assert str(refused.value) == (
        "tiny: the gallery needs the list of all its pictures. Add the file that `cirbench data list` names, or --set "
        "data.gallery=annotated."
    )
    hidden = Split("val", (QUERIES[0], replace(QUERIES[1], targets=())), SPLIT.galleries)
    for score in (score_embeddings, score_rankings):
        with pytest.raises(CirbenchError, match=r"^the labels of tiny/val are not public \(1 of 2 queries have no target\)"):
            score(dataset_of(), hidden, [file])
        with pytest.raises(CirbenchError, match="Did you mean 'grouped'"):
            score(dataset_of(), SPLIT, [file], ["grouqed"])
    npz(file, {"q0": 1.0, "q9": 1.0}, PLAIN)
    with pytest.raises(CirbenchError) as refused:
        score_embeddings(dataset_of(), SPLIT, [file])
    assert str(refused.value).startswith(f"{file}: 1 query ids are not in tiny/val: q9. ")
    nameless = Split("val", tuple(replace(q, group="") for q in QUERIES), {"grouped": {"": ("a", "b", "c", "d")}})
    npz(file, {"q0": 1.0}, PLAIN)
    with pytest.raises(CirbenchError) as refused:
        score_embeddings(dataset_of(), nameless, [file])
    assert str(refused.value).startswith(f"{file}: 1 queries of tiny/val have no row: q1. ")


# ------------------------------------------------------------------------------------- lists


def test_lists_by_hand(tmp_path: Path) -> None:
    dataset = dataset_of(replace(GROUPED, metrics=("R@1", "R@2", "mAP@2", "MdR")))
    file = lists(tmp_path / "l.json", {"q0": "acb", "q1": "cdb"})
    found = score_rankings(dataset, SPLIT, [file])
    # The reference is taken out of each list: b is second for q0, c first for q1.
    assert metrics(found) == {
        "R@1": 50, "R@2": 100, "mAP@2": 75, "MdR": 1.5, "w/x/R@1": 0, "w/R@1": 100, "w/x/R@2": 100, "w/R@2": 100,
        "w/x/mAP@2": 50, "w/mAP@2": 100, "w/x/MdR": 2, "w/MdR": 1,
    }
    entry = found["protocols"]["grouped"]
    assert (entry["queries"], entry["gallery"], entry["ties"]) == (2, 3, 0) and found["omitted"] == {}
    kept = score_rankings(dataset_of(replace(GROUPED, drop_reference=False)), SPLIT, [file])
    assert metrics(kept) == {"R@1": 50, "R@2": 50, "w/x/R@1": 0, "w/R@1": 100, "w/x/R@2": 0, "w/R@2": 100}


def test_a_list_of_the_whole_gallery_is_deep_enough(tmp_path: Path) -> None:
    deep = dataset_of(replace(GROUPED, metrics=("R@1", "R@100")))
    complete = score_rankings(deep, SPLIT, [lists(tmp_path / "l.json", {"q0": "cb", "q1": "bdc"})])
    assert complete["omitted"] == {} and metrics(complete)["R@100"] == 100
    short = score_rankings(deep, SPLIT, [lists(tmp_path / "l.json", {"q0": "cb", "q1": "d"})])
    assert short["omitted"] == {"grouped/R@100": "the shortest list has 1 usable images, but 100 are needed"}
    assert metrics(short) == {"R@1": 0, "w/x/R@1": 0, "w/R@1": 0}
    # The reference is no image of the gallery that was ranked.
    short = score_rankings(deep, SPLIT, [lists(tmp_path / "l.json", {"q0": "cab", "q1": "db"})])
    assert short["omitted"] == {"grouped/R@100": "the shortest list has 1 usable images, but 100 are needed"}
    kept = dataset_of(replace(GROUPED, metrics=("R@1", "R@3"), drop_reference=False))
    assert "R@3" not in metrics(score_rankings(kept, SPLIT, [lists(tmp_path / "l.json", {"q0": "cb", "q1": "bdc"})]))
    # Lists that are exactly as long as the cut-off suffice.
    assert set(metrics(score_rankings(dataset_of(), SPLIT, [lists(tmp_path / "l.json", {"q0": "b", "q1": "d"})]))) == {"R@1", "w/x/R@1", "w/R@1"}


def test_lists_over_other_galleries_at_once(tmp_path: Path) -> None:
    """A list of the whole set serves narrower galleries too: images of others are passed over."""
    split = Split("val", QUERIES, {"grouped": SPLIT.galleries["grouped"], "all": {"": ("a", "b", "c", "d")}})
    dataset = dataset_of(Protocol("all", ("R@1", "R@2")), GROUPED)
    split = replace(split, queries=tuple(replace(q, candidates=None) for q in QUERIES))
    found = score_rankings(dataset, split, [lists(tmp_path / "l.json", {"q0": "dacb", "q1": "adcb"})])
    # Among all: b is third for q0, c third for q1. Among w/x: c, b; among w: d, c.
    assert (metrics(found, "all")["R@2"], metrics(found)["R@1"], metrics(found)["R@2"]) == (0, 0, 100)
    assert [found["protocols"][p]["gallery"] for p in ("all", "grouped")] == [4, 3]


def test_lists_of_each_querys_own_images(tmp_path: Path) -> None:
    own = dataset_of(replace(OWN, form="text"))
    found = score_rankings(own, SPLIT, [lists(tmp_path / "l.json", {"q0": "acb", "q1": "cd"})])
    assert metrics(found, "own") == {"R@1": 50, "w/x/R@1": 0, "w/R@1": 100} and found["protocols"]["own"]["gallery"] == 2


def test_a_median_needs_every_rank(tmp_path: Path) -> None:
    """A target beyond the end of a list has no rank; leaving it out would make the median better than it is."""
    dataset = dataset_of(replace(GROUPED, metrics=("R@1", "MdR", "mean(MdR,MR)", "MR")))
    whole = score_rankings(dataset, SPLIT, [lists(tmp_path / "l.json", {"q0": "cb", "q1": "cd"})])
    assert whole["omitted"] == {} and {k: v for k, v in metrics(whole).items() if "/" not in k} == {
        "R@1": 50, "MdR": 1.5, "mean(MdR,MR)": 1.5, "MR": 1.5,
    }
    cut = score_rankings(dataset, SPLIT, [lists(tmp_path / "l.json", {"q0": "c", "q1": "cd"})])
    assert metrics(cut) == {"R@1": 50, "w/x/R@1": 0, "w/R@1": 100}
    assert cut["omitted"] == {
        **{f"grouped/{n}": "the shortest list has 1 usable images, but all are needed" for n in ("MdR", "MR")},
        "grouped/mean(MdR,MR)": "MdR, MR cannot be computed from the file",
    }


def test_lists_without_a_known_gallery(tmp_path: Path) -> None:
    split = Split("val", tuple(replace(q, candidates=None) for q in QUERIES))
    found = score_rankings(dataset_of(), split, [lists(tmp_path / "l.json", {"q0": ["z", "b", "y"], "q1": ["b", "c"]})])
    assert found["protocols"]["grouped"]["gallery"] is None
    assert metrics(found) == {"R@1": 50, "w/x/R@1": 0, "w/R@1": 100}
    assert found["omitted"] == {"grouped/R@2": "the shortest list has 1 usable images, but 2 are needed"}
    full = score_rankings(dataset_of(), split, [lists(tmp_path / "l.json", {"q0": ["z", "b"], "q1": ["b", "c", "d"]})])
    assert full["omitted"] == {} and metrics(full)["R@2"] == 100


def test_images_outside_a_gallery_are_refused(tmp_path: Path) -> None:
    rest = "A ranking of other images is not comparable."

    def refused(split: Split, ranked: dict[str, Any]) -> str:
        with pytest.raises(CirbenchError) as found:
            score_rankings(dataset_of(), split, [lists(tmp_path / "l.json", ranked)])
        return str(found.value).removeprefix(f"{tmp_path / 'l.json'}: the ranking of query ")

    # q0's is right; a list may hold the reference; w's gallery has no a.
    own = Split("val", tuple(replace(q, candidates=None) for q in QUERIES), SPLIT.galleries)
    assert refused(own, {"q0": "abc", "q1": ["c", "a", "z"]}) == f"'q1' names 2 images that are not in its gallery: a, z. {rest}"
    assert refused(own, {"q0": "ad", "q1": "c"}) == f"'q0' names 1 images that are not in its gallery: d. {rest}"
    # Where each query ranks its own, those alone.
    assert refused(SPLIT, {"q0": "abc", "q1": ["c", "a"]}) == f"'q1' names 1 images that are not in its gallery: a. {rest}"
    bare = Split("val", QUERIES)
    assert refused(bare, {"q0": "bd", "q1": "c"}) == f"'q0' names 1 images that are not in its gallery: d. {rest}"
    # Groups without a gallery of their own rank the common one, or nothing.
    common = Split("val", own.queries, {"grouped": {"w/x": ("a", "b"), "": ("b", "c")}})
    assert refused(common, {"q0": "b", "q1": "cd"}) == f"'q1' names 1 images that are not in its gallery: d. {rest}"
    nothing = Split("val", own.queries, {"grouped": {"w/x": ("a", "b")}})
    assert refused(nothing, {"q0": "b", "q1": "bc"}) == f"'q1' names 1 images that are not in its gallery: c. {rest}"


def test_lists_of_one_form_serve_no_row_of_several_strings(tmp_path: Path) -> None:
    avg, other = (Protocol(form, ("R@1",), gallery="grouped", form=form) for form in ("avg", "other"))
    dataset = dataset_of(GROUPED, avg, other, replace(OWN, form="each"))
    found = score_rankings(dataset, SPLIT, [lists(tmp_path / "l.json", {"q0": "bc", "q1": "cd", "q0#other": "cb", "q1#other": "cd"})])
    assert metrics(found, "other")["R@1"] == 50
    # Two rows of one string each are there under other names; one row of two strings is not.
    assert found["omitted"] == {"avg": "no row of the text form 'avg' is in the file"} and metrics(found, "own")["R@1"] == 75


def test_server_files_are_put_together(tmp_path: Path) -> None:
    hard = Protocol("hard", ("R@1", "R@2", "mean(R@1,Rs@1)", "Rs@1", "Rs@2"), gallery="grouped")
    plain = Protocol("plain", ("R@1",), gallery="grouped")
    cirr = dataset_of(plain, hard, name="cirr")
    full = lists(tmp_path / "full.json", {"q0": "cb", "q1": "cd"}, "recall")
    subset = lists(tmp_path / "subset.json", {"q0": "bc", "q1": "dc"}, "recall_subset")
    both = score_rankings(cirr, SPLIT, [full, subset])
    assert both["omitted"] == {} and both["protocols"]["hard"]["gallery"] == 3
    assert metrics(both, "hard") == {
        "R@1": 50, "R@2": 100, "mean(R@1,Rs@1)": 50, "Rs@1": 50, "Rs@2": 100, "w/x/R@1": 0, "w/R@1": 100, "w/x/R@2": 100,
        "w/R@2": 100, "w/x/mean(R@1,Rs@1)": 50, "w/mean(R@1,Rs@1)": 50, "w/x/Rs@1": 100, "w/Rs@1": 0, "w/x/Rs@2": 100, "w/Rs@2": 100,
    }
    assert score_rankings(cirr, SPLIT, [subset, full]) == both
    alone = score_rankings(cirr, SPLIT, [subset])
    assert set(alone["protocols"]) == {"hard"} and alone["protocols"]["hard"]["gallery"] is None
    assert metrics(alone, "hard")["Rs@1"] == 50
    assert alone["omitted"] == {
        "plain": "the file ranks only subsets", "hard/R@1": "no file has the ranking it needs",
        "hard/R@2": "no file has the ranking it needs", "hard/mean(R@1,Rs@1)": "R@1 cannot be computed from the file",
    }
    # One file of the whole gallery ranks the subsets too, where it is deep enough.
    one = score_rankings(cirr, SPLIT, [full])
    assert one["omitted"] == {} and metrics(one, "hard")["w/x/Rs@1"] == 0
    short = score_rankings(cirr, SPLIT, [lists(full, {"q0": "b", "q1": "c"}, "recall")])
    assert short["omitted"] == {
        "hard/R@2": "the shortest list has 1 usable images, but 2 are needed",
        "hard/Rs@2": "the shortest list has 1 usable images, but 2 are needed of the query's subset",
    }
    # The first file may be of another form: the second is read all the same.
    other = score_rankings(dataset_of(plain, hard, OWN, name="cirr"), SPLIT, [lists(full, {"q0#other": "b", "q1#other": "c"}, "recall"), subset], ["hard"])
    assert metrics(other, "hard") == metrics(alone, "hard")
    with pytest.raises(CirbenchError) as refused:
        score_rankings(cirr, SPLIT, [subset, lists(full, {"q1": "dc"}, "recall_subset")])
    assert str(refused.value) == f"{full}: query 'q1' is also in another file. Remove one of them."


def test_a_mean_names_every_part_it_lacks(tmp_path: Path) -> None:
    dataset = dataset_of(Protocol("m", ("mean(R@1,R@2,R@100)", "mean(R@1,R@2)"), gallery="grouped"))
    found = score_rankings(dataset, SPLIT, [lists(tmp_path / "l.json", {"q0": "b", "q1": "c"})])
    assert found["omitted"]["m/mean(R@1,R@2,R@100)"] == "R@2, R@100 cannot be computed from the file"
    assert found["omitted"]["m/mean(R@1,R@2)"] == "R@2 cannot be computed from the file" and metrics(found, "m") == {}


def test_queries_and_rows_of_lists_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "l.json"
    with pytest.raises(CirbenchError) as refused:
        score_rankings(dataset_of(), SPLIT, [lists(file, {"q0": "b", "q9": "c"})])
    assert str(refused.value).startswith(f"{file}: 1 query ids are not in tiny/val: q9. ")
    nameless = Split("val", tuple(replace(q, group="") for q in QUERIES), {"grouped": {"": ("a", "b", "c", "d")}})
    with pytest.raises(CirbenchError) as refused:
        score_rankings(dataset_of(), nameless, [lists(file, {"q0": "b"})])
    assert str(refused.value).startswith(f"{file}: 1 queries of tiny/val have no row: q1. ")

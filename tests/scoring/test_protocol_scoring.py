"""What protocols mean, on examples small enough to be worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cirbench.scoring import protocol_scoring as scoring
from cirbench.scoring.protocol_scoring import BEST, EVERY, SUBSET
from cirbench.scoring.ranking import Ranks
from cirbench.types import Protocol, Query, Split

IMAGES = ("a", "b", "c", "d", "e", "f")
POSITION = {name: n for n, name in enumerate(IMAGES)}

FIRST = Query(
    "q0", "a", ("t",), ("c", "b"), "x", ("a", "c", "f"),
    {"soft": {"c": 1.0, "f": 0.5, "b": 0.5, "d": 0.0, "e": -1.0}, "members": ["d", "a", "c", "b"], "aspects": ["two", "one"]},
)
SECOND = Query("q1", "z", ("t",), ("d", "y"), "y", None, {"members": ["e", "f"], "aspects": ["one"], "soft": {"d": 0.25}})
THIRD = Query("q2", "b", ("t",), ("b",), "x", ("b", "d"))
SPLIT = Split("val", (FIRST, SECOND, THIRD), {
    "all": {"": IMAGES}, "grouped": {"x": ("a", "b", "c"), "": ("d", "e")}, "five": {"": IMAGES[:5]},
})


def protocol(*names: str, **rest: Any) -> Protocol:
    return Protocol("p", names or ("R@1",), **rest)


def ranks(*rows: list[int]) -> Ranks:
    """Ranks whose best is the least that is not 0."""
    best = [min((r for r in row if r), default=0) for row in rows]
    return Ranks(np.array(best), np.zeros(len(rows), int), [np.array(row) for row in rows])


def test_grades_come_lowest_first_and_worthless_ones_not_at_all() -> None:
    assert scoring.grades(FIRST) == [("b", 0.5), ("f", 0.5), ("c", 1.0)]
    assert scoring.grades(THIRD) == []


def test_a_subset_is_ranked_without_its_reference() -> None:
    assert scoring.subset_of(FIRST) == ("d", "c", "b")
    assert scoring.subset_of(SECOND) == ("e", "f") and scoring.subset_of(THIRD) == ()


@pytest.mark.parametrize(("names", "hit", "wanted"), [
    (("R@1", "R@5", "MdR", "MR"), "targets", (BEST,)),
    (("R@1", "mAP@5"), "first", (BEST, EVERY)),
    (("mean(R@5,Rs@1)",), "targets", (BEST, SUBSET)),
    (("Rs@1", "mean(R@5,mAP@5)"), "targets", (BEST, EVERY, SUBSET)),
    (("R@1",), "graded", (BEST, EVERY)),
])
def test_which_rankings_are_needed(names: tuple[str, ...], hit: str, wanted: tuple[str, ...]) -> None:
    assert scoring.needed(protocol(*names, hit=hit)) == wanted


@pytest.mark.parametrize(("hit", "wanted"), [
    ("targets", {BEST: ("c", "b"), EVERY: ("c", "b"), SUBSET: ("c", "b")}),
    ("first", {BEST: ("c",), EVERY: ("c", "b"), SUBSET: ("c", "b")}),
    ("graded", {BEST: ("b", "f", "c"), EVERY: ("b", "f", "c"), SUBSET: ("b", "f", "c")}),
])
def test_whose_ranks_are_wanted(hit: str, wanted: dict[str, tuple[str, ...]]) -> None:
    assert {kind: scoring.targets_of(protocol(hit=hit), kind)(FIRST) for kind in wanted} == wanted


def test_what_each_row_ranks() -> None:
    def ids(kind: str = BEST, **rest: Any) -> list[tuple[str, ...]]:
        named = scoring.galleries_of(SPLIT, protocol(**rest), kind, [0, 1, 2, 0])
        assert {name: images for name, images in named} == dict(named) and len(named) == 4
        for name, images in named:  # rows of one name rank the same images
            assert [i for n, i in named if n == name] == [images] * [n for n, _ in named].count(name)
        return [images for _, images in named]

    assert ids() == [IMAGES] * 4
    assert ids(gallery="grouped") == [("a", "b", "c"), ("d", "e"), ("a", "b", "c"), ("a", "b", "c")]
    assert ids(gallery="own") == [("a", "c", "f"), (), ("b", "d"), ("a", "c", "f")]
    assert ids(SUBSET, gallery="own") == [("d", "c", "b"), ("e", "f"), (), ("d", "c", "b")]


def view(kind: str = BEST, rows: tuple[int, ...] = (0, 1, 2, 0), **rest: Any) -> Any:
    return scoring.view_of(SPLIT, protocol(**rest), POSITION, np.array(rows), kind)


def members(found: Any) -> list[str]:
    """Per row the images ranked, as a word."""
    return ["".join(np.array(IMAGES)[found.members[m]]) for m in found.member_of]


def test_views_name_targets_and_the_reference_by_position() -> None:
    found = view()
    # y and z are in no gallery: y is not looked for, and z need not be taken out.
    assert [t.tolist() for t in found.targets] == [[2, 1], [3], [1], [2, 1]]
    assert found.dropped.tolist() == [0, -1, 1, 0]
    assert found.members is None and found.member_of is None and found.every_target is False
    assert view(drop_reference=False).dropped.tolist() == [-1] * 4
    assert [t.tolist() for t in view(hit="first").targets] == [[2], [3], [1], [2]]
    assert [t.tolist() for t in view(EVERY, hit="graded").targets] == [[1, 5, 2], [3], [], [1, 5, 2]]
    assert scoring.view_of(SPLIT, protocol(), POSITION, np.array([2])).targets[0].tolist() == [1]


def test_views_of_no_rows_and_of_no_target() -> None:
    for gallery in ("all", "grouped"):
        found = view(rows=(), gallery=gallery)
        assert found.targets == [] and found.dropped.tolist() == found.member_of.tolist() == []
        assert found.dropped.dtype == found.member_of.dtype == np.int64 and found.members.shape == (0, 6)
    assert view(EVERY, rows=(2,), hit="graded").targets[0].dtype == np.int64


def test_views_say_which_images_each_row_ranks() -> None:
    assert members(view(gallery="grouped")) == ["abc", "de", "abc", "abc"]
    assert len(view(gallery="grouped").members) == 2
    assert members(view(gallery="own")) == ["acf", "", "bd", "acf"]
    assert members(view(SUBSET)) == ["bcd", "ef", "", "bcd"]
    # One gallery for all rows is named as well, unless it is everything that was encoded.
    assert members(view(gallery="five")) == ["abcde"] * 4 and len(view(gallery="five").members) == 1
    assert members(view(gallery="grouped", rows=(0, 2))) == ["abc", "abc"]
    assert members(view(gallery="own", rows=(2,))) == ["bd"]


@pytest.mark.parametrize(("kind", "hit", "wanted"), [
    (BEST, "targets", False), (EVERY, "targets", True), (SUBSET, "targets", False), (SUBSET, "graded", True),
    (BEST, "graded", False), (EVERY, "graded", True),
])
def test_ranks_of_every_target_are_asked_for_only_where_needed(kind: str, hit: str, wanted: bool) -> None:
    assert view(kind, hit=hit).every_target is wanted
    assert view(kind, hit=hit, gallery="grouped").every_target is wanted


ROWS = np.array([0, 1, 2, 0])


def values(found: dict[str, Ranks], *names: str, known: Any = IMAGES, **rest: Any) -> dict[str, list[float]]:
    out = scoring.values(SPLIT, protocol(*names, **rest), ROWS, found, known)
    assert all(v.dtype == np.float64 for v in out.values())
    return {name: v.tolist() for name, v in out.items()}


def test_values_of_each_metric_read_their_own_ranking() -> None:
    found = {
        BEST: ranks([2], [1], [0], [6]), EVERY: ranks([3, 2], [1, 0], [0], [6, 7]), SUBSET: ranks([1], [3], [0], [2]),
    }
    assert values(found, "R@1", "R@2", "mean(R@1,Rs@2)", "MdR", "mean(R@2,MR)") == {
        "R@1": [0, 1, 0, 0], "R@2": [1, 1, 0, 0], "Rs@2": [1, 0, 0, 1],
    }
    # Two targets at 3 and 2; one of two at 1; none; the second of two at 6, beyond the fifth place.
    assert values(found, "mAP@5", hit="first")["mAP@5"] == pytest.approx([(1 / 2 + 2 / 3) / 2, 1 / 2, 0, 0])
    assert values({BEST: found[BEST]}, "R@1", "Rs@1", "mAP@5") == {"R@1": [0, 1, 0, 0]}
    assert values({SUBSET: found[SUBSET]}, "mean(R@1,Rs@1)") == {"Rs@1": [1, 0, 0, 0]}
    assert values({}, "R@1", "MdR") == {}
    assert list(values(found, "MdR", "mAP@5", "MR", "R@1")) == ["mAP@5", "R@1"]
    with pytest.raises(ValueError, match="zip"):  # ranks of fewer rows
        values({EVERY: ranks([1], [1], [0])}, "mAP@5")


def test_graded_values_are_those_of_the_best_image_seen() -> None:
    # FIRST grades b and f one half, c one; SECOND grades d a quarter; THIRD grades nothing.
    found = {
        BEST: ranks([1], [1], [0], [1]), EVERY: ranks([2, 1, 4], [2], [], [0, 5, 0]),
        SUBSET: ranks([1, 0, 2], [0], [], [3, 0, 1]),
    }
    assert values(found, "R@1", "R@3", "R@4", "Rs@1", "Rs@2", hit="graded") == {
        "R@1": [0.5, 0, 0, 0], "R@3": [0.5, 0.25, 0, 0], "R@4": [1, 0.25, 0, 0],
        "Rs@1": [0.5, 0, 0, 1], "Rs@2": [1, 0, 0, 1],
    }
    # Images that were not ranked have no rank in the list.
    assert values({EVERY: ranks([1, 2], [], [], [0, 1])}, "R@1", "R@2", hit="graded", known=("b", "c")) == {
        "R@1": [0.5, 0, 0, 1], "R@2": [1, 0, 0, 1],
    }
    with pytest.raises(ValueError, match="zip"):
        values({EVERY: ranks([1, 2, 3], [1], [])}, "R@1", hit="graded")
    for other in (ranks([1, 2], [1], [], [1, 2, 3]), ranks([1, 2, 3, 4], [1], [], [1, 2, 3])):
        with pytest.raises(ValueError, match="zip"):  # one rank too few, one too many
            values({EVERY: other}, "R@1", hit="graded")


def test_records_keep_what_ranks_do_not_tell() -> None:
    found = {name: np.zeros(1) for name in ("R@1", "Rs@1", "mAP@5")}
    assert list(scoring.kept_values(protocol(), found)) == ["Rs@1", "mAP@5"]
    assert list(scoring.kept_values(protocol(hit="graded"), found)) == ["R@1", "Rs@1", "mAP@5"]


def summary(*names: str, rows: np.ndarray = ROWS, absent: tuple[str, ...] = (), split: Split = SPLIT, **rest: Any) -> dict[str, float]:
    best = np.array([2, 1, 0, 6])[: len(rows)]
    found = {
        "R@1": np.array([0.0, 1, 0, 0]), "R@2": np.array([1.0, 1, 0, 0]), "Rs@1": np.array([1.0, 0, 0, 0.5]),
        "mAP@5": np.array([0.5, 0.25, 1, 0]),
    }
    wanted = {n: v[: len(rows)] for n, v in found.items() if any(n in name for name in names)}
    return scoring.summarise(split, protocol(*names, **rest), rows, best, wanted, absent)


def test_averages_over_queries_and_over_groups() -> None:
    # Rows 0, 2 and 3 are of group x, row 1 is of group y.
    over_queries = summary("R@1", "R@2")
    assert over_queries == pytest.approx({
        "R@1": 25, "R@2": 50, "x/R@1": 0, "y/R@1": 100, "x/R@2": 100 / 3, "y/R@2": 100,
    })
    assert list(over_queries) == ["R@1", "R@2", "x/R@1", "y/R@1", "x/R@2", "y/R@2"]
    assert summary("R@2", average="groups")["R@2"] == pytest.approx((100 / 3 + 100) / 2)
    assert summary("mean(R@2,Rs@1)") == pytest.approx({
        "mean(R@2,Rs@1)": (50 + 37.5) / 2, "x/mean(R@2,Rs@1)": (100 / 3 + 50) / 2, "y/mean(R@2,Rs@1)": 50,
    })
    assert summary("mean(R@2,Rs@1)", average="groups")["mean(R@2,Rs@1)"] == pytest.approx(((100 / 3 + 50) / 2 + 50) / 2)


def test_ranks_are_averaged_over_what_was_found() -> None:
    assert summary("MdR", "MR") == pytest.approx({
        "MdR": 2, "MR": 3, "x/MdR": 4, "y/MdR": 1, "x/MR": 4, "y/MR": 1,
    })
    assert summary("MR", average="groups")["MR"] == 2.5
    assert summary("mean(MdR,MR)")["mean(MdR,MR)"] == 2.5


def test_without_a_group_only_single_groups_are_left() -> None:
    assert set(summary("R@1", "MdR", absent=("z",))) == {"x/R@1", "y/R@1", "x/MdR", "y/MdR"}


def test_what_was_not_computed_is_left_out() -> None:
    assert set(scoring.summarise(SPLIT, protocol("Rs@1", "mean(R@1,Rs@1)", "R@1"), ROWS, ROWS, {"R@1": ROWS > 0})) == {
        "R@1", "x/R@1", "y/R@1",
    }


def test_one_group_without_a_name_is_not_listed() -> None:
    split = Split("val", (Query("q", "a", ("t",), ("b",)),), {"all": {"": IMAGES}})
    assert summary("R@1", rows=np.array([0, 0]), split=split) == {"R@1": 50.0}
    assert summary("R@2", rows=np.array([0, 0]), split=split, average="groups") == {"R@2": 100.0}
    # Beside a named one it is.
    mixed = Split("val", (*split.queries, SECOND))
    assert summary("R@1", rows=np.array([0, 1]), split=mixed)["y/R@1"] == 100


@pytest.mark.filterwarnings("error")
def test_no_rows_have_no_average() -> None:
    none = np.zeros(0)
    found = scoring.summarise(SPLIT, protocol("R@1", "MdR"), none, none, {"R@1": none})
    assert set(found) == {"R@1", "MdR"} and all(map(math.isnan, found.values()))


def test_aspects_average_the_precision_of_their_queries() -> None:
    found = summary("mAP@5", "R@1")
    # Rows 0 and 3 are of both aspects, row 1 of one, row 2 of none; recall is not taken apart.
    assert {n: v for n, v in found.items() if n[:3] in ("one", "two")} == pytest.approx({
        "one/mAP@5": 100 * (0.5 + 0.25 + 0) / 3, "two/mAP@5": 100 * (0.5 + 0) / 2,
    })
    assert list(found)[-2:] == ["one/mAP@5", "two/mAP@5"]

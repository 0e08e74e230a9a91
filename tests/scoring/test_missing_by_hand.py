"""What missing pictures cost, worked out by hand on four queries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_data import encoded, noise

from cirbench.data.image_files import FolderImages
from cirbench.scoring import missing_images
from cirbench.scoring.missing_images import Loss
from cirbench.types import CirbenchError, Dataset, Protocol, Query, Split

QUERIES = (
    Query("q0", "a", ("s", "t"), ("b",), "x", ("b", "c", "e"), {"members": ["a", "b", "c"], "kind": 1}),
    Query("q1", "b", ("s", "t"), ("c", "d"), "x", ("c", "d"), {"members": ["b", "c", "e", "d"]}),
    Query("q2", "e", ("s", "t"), ("f",), "y", ("f",), {"members": ["e", "f"]}),
    Query("q3", "f", ("s", "t"), ("d", "c"), "y", ("c", "d"), {"members": ["f", "c", "d"]}),
)
WHOLE = Split("val", QUERIES, {"all": {"": tuple("abcdef")}, "grouped": {"x": tuple("abcd"), "y": tuple("cdef")}})
ALL = Protocol("all", ("R@3", "mean(R@1,R@3)", "mAP@5", "MdR"))
GROUPED = Protocol("grouped", ("R@3",), gallery="grouped", average="groups")
#: Without c and e: q2 is lost (its reference), q1 and q3 may have been hits by c.
GONE = frozenset("ce")


def dataset_of(*protocols: Protocol, images: Any = None, whole: Split = WHOLE) -> Dataset:
    forms = {"text": lambda q: [q.texts], "each": lambda q: [(t,) for t in q.texts]}
    return Dataset("tiny", {"report": whole, "train": Split("train", QUERIES[:1])}, images, protocols or (ALL,), "", forms=forms)


def left_of(dataset: Dataset, gone: Any = GONE) -> Split:
    return missing_images.without(dataset, ["report"], gone).splits["report"]


@pytest.mark.parametrize(("gone", "any_target", "first_target"), [
    ("a", False, False), ("b", True, True), ("c", False, True), ("cd", True, True), ("d", False, False), ("", False, False),
])
def test_a_query_is_lost_with_its_reference_or_all_it_could_find(gone: str, any_target: bool, first_target: bool) -> None:
    assert missing_images.is_lost(QUERIES[1], gone, first=False) is any_target
    assert missing_images.is_lost(QUERIES[1], gone, first=True) is first_target


def test_a_query_without_labels_is_lost_with_its_reference_alone() -> None:
    hidden = replace(QUERIES[1], targets=())
    assert not missing_images.is_lost(hidden, "cdef", first=False) and missing_images.is_lost(hidden, "b", first=False)


def test_what_is_left() -> None:
    dataset = dataset_of()
    small = missing_images.without(dataset, ["report"], GONE)
    assert small.splits["train"] is dataset.splits["train"] and small.name == "tiny" and small.protocols == (ALL,)
    left = small.splits["report"]
    assert left.name == "val"
    assert left.galleries == {"all": {"": tuple("abdf")}, "grouped": {"x": tuple("abd"), "y": tuple("df")}}
    assert left.queries == (
        replace(QUERIES[0], candidates=("b",), extra={"members": ["a", "b"], "kind": 1}),
        replace(QUERIES[1], targets=("d",), candidates=("d",), extra={"members": ["b", "d"]}),
        replace(QUERIES[3], targets=("d",), candidates=("d",), extra={"members": ["f", "d"]}),
    )
    plain = replace(QUERIES[0], candidates=None, extra={})
    assert missing_images.without(dataset_of(whole=Split("val", (plain,))), ["report"], "c").splits["report"].queries == (plain,)
    # Where a hit is the first target, a query without it is lost.
    first = dataset_of(Protocol("f", ("R@1",), hit="first"), ALL)
    assert [q.id for q in left_of(first, "d").queries] == ["q0", "q1", "q2"]


def test_nothing_left_is_an_error() -> None:
    for gone, of in (("a", ""), ("f", " of y"), ("abf", " of x, y")):
        whole = WHOLE if of else Split("val", (replace(QUERIES[0], group=""),), WHOLE.galleries)
        with pytest.raises(CirbenchError) as refused:
            left_of(dataset_of(whole=whole), gone)
        assert str(refused.value) == (
            f"tiny: with {len(gone)} pictures missing no query{of} is left in the split 'report', so there is nothing to "
            "measure. Fetch the pictures, or choose other groups with --set data.FIELD=VALUE."
        )


@pytest.mark.parametrize(("protocol", "wanted"), [
    (ALL, {"x": Loss(2, 0, 1, 2, 2), "y": Loss(2, 1, 1, 2, 1)}),
    (GROUPED, {"x": Loss(2, 0, 1, 1, 2), "y": Loss(2, 1, 1, 2, 1)}),
    (replace(ALL, gallery="own"), {"x": Loss(2, 0, 1, 2, 2), "y": Loss(2, 1, 1, 1, 1)}),
    (replace(ALL, form="each"), {"x": Loss(4, 0, 2, 2, 2), "y": Loss(4, 2, 2, 2, 1)}),
    (replace(ALL, gallery="unknown"), {"x": Loss(2, 0, 1, 0, 2), "y": Loss(2, 1, 1, 0, 1)}),
])
def test_what_each_group_lacks(protocol: Protocol, wanted: dict[str, Loss]) -> None:
    assert missing_images.losses(dataset_of(), WHOLE, protocol, GONE) == wanted


def test_a_group_without_a_query_left_lacks_all_of_them() -> None:
    assert missing_images.losses(dataset_of(), WHOLE, ALL, "f")["y"] == Loss(2, 2, 0, 1, 0)


def test_only_a_missing_first_target_is_doubtful_where_only_that_counts() -> None:
    protocol = Protocol("f", ("R@1",), hit="first")
    found = missing_images.losses(dataset_of(protocol), WHOLE, protocol, "c")
    assert {g: (x.lost, x.doubtful) for g, x in found.items()} == {"x": (1, 0), "y": (0, 0)}


def test_bounds_where_only_the_first_target_counts() -> None:
    protocol = Protocol("f", ("R@1",), hit="first")
    dataset = dataset_of(protocol)
    arrays = {"row_query/text": np.arange(3), "rank/f": np.array([1, 9, 9])}
    # Without c q1 is lost; q3, whose first target is d, is a miss as measured.
    found = missing_images.bounds(dataset, WHOLE, left_of(dataset, "c"), protocol, "c", arrays)
    assert found["bounds"]["R@1"] == [0, 50] and found["bounds"]["y/R@1"] == [0, 0]


def bounds(protocol: Protocol, ranks: list[int], queries: tuple[int, ...] = (0, 1, 2), **values: list[float]) -> dict[str, Any]:
    """Bounds where the rows left, of q0, q1 and q3, have these ranks."""
    dataset = dataset_of(protocol)
    arrays = {f"row_query/{protocol.form}": np.array(queries), f"rank/{protocol.name}": np.array(ranks)}
    arrays |= {f"value/{protocol.name}/{name.replace('_', '@')}": np.array(v) for name, v in values.items()}
    # Another protocol's values are not read.
    arrays |= {"value/other/R@1": np.full(9, 7.0), "value/other/Rs@1": np.full(9, 7.0)}
    return missing_images.bounds(dataset, WHOLE, left_of(dataset), protocol, GONE, arrays)


def test_bounds_over_queries_by_hand() -> None:
    found = bounds(ALL, [3, 1, 4])
    assert found["queries_lost"] == 1 and found["gallery_lost"] == 2
    # Two images fewer: R@3 is at least R@1 of the rows left. It is at most R@3, and hits for q1, q3 and the lost q2.
    assert found["bounds"] == {
        "R@3": [25, 100], "x/R@3": [50, 100], "y/R@3": [0, 100],
        "mean(R@1,R@3)": [12.5, 87.5], "x/mean(R@1,R@3)": [25, 75], "y/mean(R@1,R@3)": [0, 100],
    }
    assert list(found["bounds"]) == ["R@3", "x/R@3", "y/R@3", "mean(R@1,R@3)", "x/mean(R@1,R@3)", "y/mean(R@1,R@3)"]
    # A row that nothing missing could turn into a hit counts as measured.
    assert bounds(ALL, [4, 5, 5])["bounds"]["R@3"] == [0, 75]
    assert bounds(ALL, [0, 0, 0])["bounds"]["R@3"] == [0, 75]


def test_bounds_over_groups_by_hand() -> None:
    found = bounds(GROUPED, [3, 1, 4])
    # One image fewer among x, two among y.
    assert found["bounds"] == {"R@3": [25, 100], "x/R@3": [50, 100], "y/R@3": [0, 100]}
    assert bounds(GROUPED, [2, 5, 1])["bounds"] == {"R@3": [50, 100], "x/R@3": [50, 100], "y/R@3": [50, 100]}
    assert bounds(GROUPED, [4, 5, 5])["bounds"] == {"R@3": [0, 75], "x/R@3": [0, 50], "y/R@3": [0, 100]}
    assert found["gallery_lost"] == 2


@pytest.mark.parametrize(("average", "wanted"), [("groups", [100 / 6, 250 / 3]), ("queries", [25, 75])])
def test_bounds_of_groups_of_other_sizes(average: str, wanted: list[float]) -> None:
    """Three queries of x and one of y: each query counts, or each group."""
    whole = Split("val", tuple(replace(q, group="y" if q.id == "q3" else "x") for q in QUERIES), WHOLE.galleries)
    protocol = Protocol("p", ("R@3",), average=average)
    dataset = dataset_of(protocol, whole=whole)
    arrays = {"row_query/text": np.arange(3), "rank/p": np.array([9, 1, 9])}
    # x: q1 is a hit, q2 is lost. y: q3 may have been one.
    found = missing_images.bounds(dataset, whole, left_of(dataset), protocol, GONE, arrays)["bounds"]
    assert found["x/R@3"] == pytest.approx([100 / 3, 200 / 3]) and found["y/R@3"] == [0, 100]
    assert found["R@3"] == pytest.approx(wanted)


def test_bounds_of_rows_of_several_texts() -> None:
    protocol = Protocol("each", ("R@3",), form="each")
    found = bounds(protocol, [1, 3, 1, 1, 9, 9], (0, 0, 1, 1, 2, 2))
    # 8 rows, 2 of them lost: three of rank 1; at most those three, one of rank 3, two doubtful ones and two lost ones.
    assert found["bounds"]["R@3"] == [100 * 3 / 8, 100.0] and found["queries_lost"] == 2


def test_bounds_of_subsets_read_kept_values() -> None:
    protocol = Protocol("s", ("Rs@1", "Rs@2", "Rs@3", "Rs@4"))
    found = bounds(protocol, [1, 1, 1], Rs_1=[1, 0, 0], Rs_2=[1, 1, 0], Rs_3=[1, 1, 1], Rs_4=[1, 1, 1])["bounds"]
    # Two of q1's subset are missing (c and e), one of q3's (c): K - 2 among x, K - 1 among y.
    assert {n: v for n, v in found.items() if n[0] == "x"} == {
        "x/Rs@1": [0, 100], "x/Rs@2": [0, 100], "x/Rs@3": [50, 100], "x/Rs@4": [100, 100],
    }
    assert {n: v for n, v in found.items() if n[0] == "y"} == {
        "y/Rs@1": [0, 100], "y/Rs@2": [0, 100], "y/Rs@3": [0, 100], "y/Rs@4": [50, 100],
    }
    assert found["Rs@3"] == [25, 100]


def test_bounds_of_graded_recall_read_the_next_smaller_value_kept() -> None:
    protocol = Protocol("g@1", ("R@5", "R@3"), hit="graded")
    found = bounds(protocol, [1, 1, 1], R_1=[0.5, 0.25, 0.5], R_2=[0.5, 0.5, 0.5], R_5=[1, 0.5, 0.5], R_10=[1, 1, 1], Rs_3=[9, 9, 9], R_3=[0.75, 0.5, 0.5])["bounds"]
    # R@(5 - 2) is R@3 and R@(3 - 2) is R@1; nothing is graded here, so nothing is doubtful.
    assert found["R@5"] == [100 * 1.75 / 4, 100 * 3 / 4] and found["R@3"] == [100 * 1.25 / 4, 100 * 2.75 / 4]
    # Without R@3 it is R@2, and without any smaller one it is 0.
    fewer = bounds(replace(protocol, metrics=("R@5",)), [1, 1, 1], R_2=[0.5, 0.5, 0.5], R_1=[0.5, 0.25, 0.5], R_5=[1, 0.5, 0.5])
    assert fewer["bounds"]["R@5"] == [100 * 1.5 / 4, 100 * 3 / 4]
    assert bounds(replace(protocol, metrics=("R@5",)), [1, 1, 1], R_5=[1, 1, 0])["bounds"]["R@5"] == [0, 75]


def test_one_group_without_a_name_is_not_listed() -> None:
    whole = Split("val", tuple(replace(q, group="") for q in QUERIES), WHOLE.galleries)
    dataset = dataset_of(whole=whole)
    arrays = {"row_query/text": np.arange(3), "rank/all": np.array([3, 1, 4])}
    found = missing_images.bounds(dataset, whole, left_of(dataset), ALL, GONE, arrays)["bounds"]
    assert found == {"R@3": [25, 100], "mean(R@1,R@3)": [12.5, 87.5]}
    beside = missing_images.Missing(dataset, GONE, {}).beside("report", left_of(dataset), [ALL], arrays)
    assert beside["all"]["bounds"] == found and list(beside) == ["all"]


def test_what_can_be_said_beforehand() -> None:
    assert missing_images.beforehand(dataset_of(), WHOLE, replace(ALL, metrics=("R@3", "mean(R@2,Rs@4)", "mAP@5", "MdR", "MR")), GONE) == {
        "queries": 4, "lost": 1, "doubtful": 2, "gone_from_gallery": 2, "highest": 75.0,
        "measured_to_true": {
            "R@3": {"at_least": "0.750000 * R@1", "at_most": "0.750000 * R@3 + 75.0000"},
            "R@2": {"at_least": "0.750000 * R@0", "at_most": "0.750000 * R@2 + 75.0000"},
            "Rs@4": {"at_least": "0.750000 * Rs@2", "at_most": "0.750000 * Rs@4 + 75.0000"},
        },
    }
    # Over groups: x loses nothing and may miss a half, y loses a half and may miss the other.
    assert missing_images.beforehand(dataset_of(), WHOLE, replace(GROUPED, metrics=("R@1",)), GONE) == {
        "queries": 4, "lost": 1, "doubtful": 2, "gone_from_gallery": 2, "highest": 75.0,
        "measured_to_true": {"R@1": {"at_least": "0.500000 * R@0", "at_most": "1.000000 * R@1 + 100.0000"}},
    }
    # What is missing from the subsets counts for them, what is missing from the gallery for all else.
    unknown = missing_images.beforehand(dataset_of(), WHOLE, Protocol("u", ("R@3", "Rs@3"), gallery="unknown"), GONE)
    assert [m["at_least"] for m in unknown["measured_to_true"].values()] == ["0.750000 * R@3", "0.750000 * Rs@1"]
    every = missing_images.beforehand_all(dataset_of(ALL, GROUPED, replace(ALL, name="lacks", gallery="none"), replace(ALL, name="own", gallery="own")), GONE)
    assert list(every) == ["all", "grouped", "own"] and every["grouped"]["highest"] == 75.0


# ------------------------------------------------------------------------------------- pictures on disk


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for n, name in enumerate("abdf"):
        (tmp_path / f"{name}.jpg").write_bytes(encoded(noise(n), "JPEG"))
    return tmp_path


def test_what_has_no_file_and_what_cannot_be_decoded(pictures: Path) -> None:
    images = FolderImages(pictures, ["{id}"], dataset="tiny")
    dataset = dataset_of(images=images)
    assert missing_images.find(dataset, ["report"]) == ["c", "e"]
    assert missing_images.find(dataset, ["select"]) == []  # no such split
    assert missing_images.find(dataset, ["select", "train", "report"]) == ["c", "e"]
    (pictures / "d.jpg").write_bytes((pictures / "d.jpg").read_bytes()[:200])
    assert missing_images.find(dataset_of(images=images), ["report"]) == ["c", "e"]
    assert missing_images.find(dataset_of(images=images), ["report"], closely=True) == ["c", "d", "e"]
    # Pictures that are drawn cannot be missing.
    assert missing_images.find(dataset_of(images=object()), ["report"], closely=True) == []


def test_pictures_of_subsets_are_opened_where_they_are_ranked(pictures: Path) -> None:
    query = replace(QUERIES[0], candidates=None, extra={"members": ["a", "z", "b"]})
    images = FolderImages(pictures, ["{id}"], dataset="tiny")
    ranked = dataset_of(images=images, whole=Split("val", (query,), {"all": {"": ("b", "y")}}))
    assert missing_images.find(ranked, ["report"]) == ["y", "z"]
    assert missing_images.find(dataset_of(images=images, whole=Split("val", (query,))), ["report"]) == []


def test_a_run_stops_or_goes_on_as_it_is_told(pictures: Path) -> None:
    dataset = dataset_of(images=FolderImages(pictures, ["{id}"], dataset="tiny"))
    with pytest.raises(CirbenchError) as refused:
        missing_images.settle(dataset, ["report"], allowed=False)
    said = str(refused.value)
    assert said.startswith(f"2 pictures of tiny are missing under {pictures}: 'c', 'e'. `cirbench data check tiny --root {pictures}` lists")
    assert said.endswith("lists them and what they imply. Fetch them, or go on without with --allow-missing; the record then says what is left out.")
    (pictures / "other").mkdir()
    (pictures / "other/c.jpg").write_bytes(encoded(noise(9), "JPEG"))
    with pytest.raises(CirbenchError, match=r"'c', 'e'\. A file of that name is other/c.jpg\. `cirbench data check"):
        missing_images.settle(dataset, ["report"], allowed=False)
    left, missing = missing_images.settle(dataset, ["report", "select"], allowed=True)
    assert missing is not None and missing.whole is dataset and missing.gone == {"c", "e"}
    assert missing.counts == {"images": 2, "ids": ["c", "e"], "queries_lost": {"report": 1}}
    assert left.splits["report"] == left_of(dataset)
    assert missing.note() == "2 pictures are missing (--allow-missing); queries lost by that: 1 of report."
    two = replace(missing, counts={"queries_lost": {"train": 3, "report": 1}})
    assert two.note().endswith("lost by that: 3 of train, 1 of report.")
    for name in "ce":
        (pictures / f"{name}.jpg").write_bytes(encoded(noise(9), "JPEG"))
    complete = dataset_of(images=FolderImages(pictures, ["{id}"], dataset="tiny"))
    for allowed in (False, True):
        assert missing_images.settle(complete, ["report"], allowed) == (complete, None)


def test_many_missing_pictures_are_counted(pictures: Path) -> None:
    def dataset(count: int) -> Dataset:
        gallery = ("a", "b", *(f"n{n:02d}" for n in range(count)))
        query = replace(QUERIES[0], candidates=None, extra={})
        return dataset_of(images=FolderImages(pictures, ["{id}"], dataset="tiny"), whole=Split("val", (query,), {"all": {"": gallery}}))

    for count, more in ((5, ""), (6, " and 1 more"), (8, " and 3 more")):
        with pytest.raises(CirbenchError) as refused:
            missing_images.settle(dataset(count), ["report"], allowed=False)
        assert f"{count} pictures of tiny are missing" in str(refused.value)
        assert f": 'n00', 'n01', 'n02', 'n03', 'n04'{more}. " in str(refused.value)
    _, missing = missing_images.settle(dataset(30), ["report"], allowed=True)
    assert missing is not None and missing.counts["images"] == 30 and len(missing.gone) == 30
    assert missing.counts["ids"] == [f"n{n:02d}" for n in range(20)]

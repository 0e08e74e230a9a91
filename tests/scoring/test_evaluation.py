"""From a method to a record's numbers: what is encoded, in which batches, and what is kept of it."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from cirbench.scoring import evaluation
from cirbench.scoring.evaluation import BATCH, Rows
from cirbench.types import CirbenchError, MethodError, Protocol, Query, Split


class Feed:
    """Hands ids and strings through, and remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def images(self, ids: list[str]) -> list[str]:
        self.asked.append(list(ids))
        return list(ids)

    def queries(self, references: list[str], words: list[str]) -> list[tuple[str, str]]:
        self.asked.append(list(zip(references, words, strict=True)))
        return self.asked[-1]


def number(text: str) -> float:
    return float(int("".join(filter(str.isdigit, text)) or 0))


class Method:
    """Image n -> (n, 1); reference n with the string m -> (n, m), in half precision."""

    training = True

    def encode_images(self, images: list[str]) -> Tensor:
        assert torch.is_inference_mode_enabled()
        return torch.tensor([[number(i), 1.0] for i in images]).half()

    def encode_queries(self, batch: list[tuple[str, str]]) -> Tensor:
        assert torch.is_inference_mode_enabled()
        return torch.tensor([[number(r), number(w)] for r, w in batch])


def split_of(texts: list[tuple[str, ...]]) -> Split:
    return Split("val", tuple(Query(f"q{n}", f"i{n}", t, ("i0",)) for n, t in enumerate(texts)))


@pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH + 40])
def test_every_batch_is_full_and_padding_is_dropped(count: int) -> None:
    feed, ids = Feed(), [f"i{n}" for n in range(5, 5 + count)]
    found = evaluation.encode_gallery(Method(), feed, ids)  # type: ignore[arg-type]
    assert found.dtype == torch.float32 and found.tolist() == [[n, 1.0] for n in range(5, 5 + count)]
    assert [len(asked) for asked in feed.asked] == [BATCH] * -(-count // BATCH)
    for start, asked in zip(range(0, count, BATCH), feed.asked, strict=True):
        rows = ids[start : start + BATCH]
        assert asked == rows + [rows[0]] * (BATCH - len(rows))


def test_nothing_encodes_to_nothing() -> None:
    assert evaluation.encode_gallery(Method(), Feed(), []).shape == (0, 1)  # type: ignore[arg-type]


def test_rows_are_single_strings_or_means_of_several() -> None:
    split = split_of([("1", "2"), ("3", "5"), ("7",)])
    single = evaluation.encode_rows(Method(), Feed(), split, lambda q: [(q.texts[0],)])  # type: ignore[arg-type]
    assert single.query.tolist() == [0, 1, 2] and single.embeddings.tolist() == [[0, 1], [1, 3], [2, 7]]
    each = evaluation.encode_rows(Method(), Feed(), split, lambda q: [(t,) for t in q.texts])  # type: ignore[arg-type]
    assert each.query.tolist() == [0, 0, 1, 1, 2]
    assert each.embeddings.tolist() == [[0, 1], [0, 2], [1, 3], [1, 5], [2, 7]]
    feed = Feed()
    means = evaluation.encode_rows(Method(), feed, split, lambda q: [q.texts, q.texts[:1]])  # type: ignore[arg-type]
    assert means.query.tolist() == [0, 0, 1, 1, 2, 2] and means.query.dtype == np.int64
    assert means.embeddings.tolist() == [[0, 1.5], [0, 1], [1, 4], [1, 3], [2, 7], [2, 7]]
    both = evaluation.encode_rows(Method(), Feed(), split_of([("1", "2"), ("3", "5")]), lambda q: [q.texts])  # type: ignore[arg-type]
    assert both.query.tolist() == [0, 1] and both.embeddings.tolist() == [[0, 1.5], [1, 4]]
    none = evaluation.encode_rows(Method(), Feed(), split_of([]), lambda q: [q.texts])  # type: ignore[arg-type]
    assert none.query.dtype == np.int64 and none.embeddings.shape == (0, 1)
    # Each pair of a query and a string is encoded once, with the query's own reference.
    assert feed.asked[0][:5] == [("i0", "1"), ("i0", "2"), ("i1", "3"), ("i1", "5"), ("i2", "7")]
    assert feed.asked[0][5:] == [("i0", "1")] * (BATCH - 5)


@pytest.mark.parametrize(("wrong", "received"), [
    (lambda n: torch.zeros(n), r"torch.float32 of shape \(128,\)"),
    (lambda n: torch.zeros(n - 1, 2), r"torch.float32 of shape \(127, 2\)"),
    (lambda n: torch.zeros(n, 0), r"torch.float32 of shape \(128, 0\)"),
    (lambda n: torch.zeros(n, 2, dtype=torch.int64), r"torch.int64 of shape \(128, 2\)"),
    (lambda n: torch.zeros(n, 2, device="meta"), r"torch.float32 of shape \(128, 2\) on the device meta"),
    (lambda n: torch.zeros(n, 2).to_sparse(), "a tensor of layout torch.sparse_coo"),
    (lambda n: torch.nested.nested_tensor([torch.zeros(2)] * n), "a nested tensor"),
    (lambda n: np.zeros((n, 2)), "ndarray"), (lambda n: None, "NoneType"),
])
def test_embeddings_of_another_kind_are_refused(wrong: Any, received: str) -> None:
    class Wrong:
        def encode_images(self, images: list[str]) -> Any:
            return wrong(len(images))

        def encode_queries(self, batch: list[tuple[str, str]]) -> Any:
            return wrong(len(batch))

    rule = r" for 128 items\. It must return a dense floating-point tensor of shape \(B, D\), one row an item\.$"
    with pytest.raises(MethodError, match=f"in encode_images: `encode_images` returned {received}{rule}"):
        evaluation.encode_gallery(Wrong(), Feed(), ["i1"])  # type: ignore[arg-type]
    with pytest.raises(MethodError, match=f"in encode_queries: `encode_queries` returned {received}{rule}"):
        evaluation.encode_rows(Wrong(), Feed(), split_of([("1",)]), lambda q: [q.texts])  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="`it` returned NoneType for 3 items"):
        evaluation.encoded(type("Call", (), {"__call__": lambda self, items: None})(), None, 3)


def test_embeddings_that_change_their_width_or_are_not_finite_are_refused() -> None:
    class Wrong:
        def encode_images(self, images: list[str]) -> Tensor:
            return torch.zeros(len(images), 2 + (images[0] == f"i{BATCH}"))

        def encode_queries(self, batch: list[tuple[str, str]]) -> Tensor:
            return torch.tensor([[float(w), 1.0] for _, w in batch])

    with pytest.raises(MethodError, match=(
        r"in encode_images: the embeddings of one batch have D = 2, those of another D = 3\. All must have the same\.$"
    )):
        evaluation.encode_gallery(Wrong(), Feed(), [f"i{n}" for n in range(BATCH + 1)])  # type: ignore[arg-type]
    split = split_of([("1",), ("nan",), ("inf",), ("-inf",)])
    with pytest.raises(MethodError, match=(
        r"in encode_queries: 3 of 4 embeddings hold NaN or infinite values, so they cannot be ranked\. Does it divide by "
        r"zero, or did training diverge\?$"
    )):
        evaluation.encode_rows(Wrong(), Feed(), split, lambda q: [q.texts])  # type: ignore[arg-type]


def test_a_method_that_changes_the_process_is_refused() -> None:
    def wrong(items: Any) -> Tensor:
        torch.set_default_dtype(torch.float64)
        return torch.zeros(3, 2)

    with pytest.raises(MethodError, match=r"in wrong: it changed .*, which the whole process shares\. Leave it as it is\.$"):
        evaluation.encoded(wrong, None, 3)
    assert torch.get_default_dtype() == torch.float32


def test_embeddings_keep_no_gradient() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    method: Any = Method()
    method.encode_images = lambda images: torch.ones(len(images), 2) * weight
    assert not evaluation.encode_gallery(method, Feed(), ["i1"]).requires_grad  # type: ignore[arg-type]


def test_the_gallery_holds_every_ranked_image_once() -> None:
    queries = (Query("q0", "z", (), ("y",), candidates=("e", "a")), Query("q1", "z", (), ("y",)))
    split = Split("val", queries, {"all": {"": ("b", "a")}, "more": {"x": ("c", "a"), "y": ("d", "c")}})
    assert evaluation.gallery_of(split) == ["b", "a", "c", "d", "e"]
    assert split.images() == ["b", "a", "c", "d", "z", "y", "e"]


# ------------------------------------------------------------------------------------- scores of a split

IDS = ("a", "b", "c", "d")
SPLIT = Split("val", (
    Query("q0", "a", ("t",), ("b",), "x", ("a", "b"), {"members": ["a", "b", "c"]}),
    Query("q1", "b", ("t",), ("c", "d"), "y", ("c",), {"members": ["b", "c", "d"]}),
), {"all": {"": IDS}, "grouped": {"x": ("a", "b"), "y": ("b", "c", "d")}})
#: Image scores of a query are its embedding: a, b, c, d.
IMAGES = torch.eye(4)
SCORES = torch.tensor([[4.0, 2.0, 2.0, 1.0], [1.0, 2.0, 0.5, 3.0]])
PROTOCOLS = (
    Protocol("keep", ("R@1", "R@3", "mean(R@1,Rs@1)"), drop_reference=False),
    Protocol("drop", ("R@1", "mAP@2")), Protocol("grouped", ("R@1",), gallery="grouped", average="groups"),
    Protocol("own", ("R@1", "MdR"), gallery="own"), Protocol("other", ("R@1",), form="long"),
)


def score(**rest: Any) -> evaluation.Evaluation:
    rows = {"text": Rows(np.array([0, 1]), SCORES)}
    return evaluation.score(SPLIT, PROTOCOLS, IDS, IMAGES, rows, **rest)


def test_a_split_by_hand() -> None:
    found = score()
    assert found.gallery == list(IDS)
    assert found.omitted == {"other": "the text form 'long' was not encoded"}
    # q0: a 4, b and c 2 (the tie counts against b), d 1. q1: d 3, b 2, a 1, c 1/2.
    assert list(found.protocols) == ["keep", "drop", "grouped", "own"]
    arrays = {name: found.arrays[f"rank/{name}"].tolist() for name in found.protocols}
    assert arrays == {"keep": [3, 1], "drop": [2, 1], "grouped": [1, 1], "own": [1, 1]}
    assert {name: found.arrays[f"ties/{name}"].tolist() for name in found.protocols} == {
        "keep": [1, 0], "drop": [1, 0], "grouped": [0, 0], "own": [0, 0],
    }
    assert {name: entry["metrics"] for name, entry in found.protocols.items()} == {
        "keep": pytest.approx({
            "R@1": 50, "R@3": 100, "mean(R@1,Rs@1)": 50, "x/R@1": 0, "y/R@1": 100, "x/R@3": 100, "y/R@3": 100,
            "x/mean(R@1,Rs@1)": 0, "y/mean(R@1,Rs@1)": 100,
        }),
        # q1 without b: d first, c third of a, c: one of two targets among the first two.
        "drop": pytest.approx({"R@1": 50, "mAP@2": 50, "x/R@1": 0, "y/R@1": 100, "x/mAP@2": 50, "y/mAP@2": 50}),
        "grouped": pytest.approx({"R@1": 100, "x/R@1": 100, "y/R@1": 100}),
        "own": pytest.approx({"R@1": 100, "MdR": 1, "x/R@1": 100, "y/R@1": 100, "x/MdR": 1, "y/MdR": 1}),
    }
    shapes = {name: (e["queries"], e["gallery"], e["ties"], e["form"]) for name, e in found.protocols.items()}
    assert shapes == {"keep": (2, 4, 1, "text"), "drop": (2, 4, 1, "text"), "grouped": (2, 3, 0, "text"), "own": (2, 2, 0, "text")}
    definition = found.protocols["grouped"]["definition"]
    assert (definition["name"], definition["gallery"], definition["average"]) == ("grouped", "grouped", "groups")
    assert definition == {**definition, "metrics": ("R@1",), "drop_reference": True, "hit": "targets"}


def test_what_is_kept_of_every_row() -> None:
    arrays = score().arrays
    assert set(arrays) == {
        "row_query/text", "top/text", "top_score/text", "value/keep/Rs@1", "value/drop/mAP@2",
        *(f"{kind}/{name}" for kind in ("rank", "ties") for name in ("keep", "drop", "grouped", "own")),
    }
    assert arrays["row_query/text"].tolist() == [0, 1] and arrays["row_query/text"].dtype == np.int32
    # The first images are those of the first protocol, references kept.
    assert arrays["top/text"].shape == (2, 50) and arrays["top/text"].dtype == np.int32
    assert arrays["top/text"][:, :5].tolist() == [[0, 1, 2, 3, -1], [3, 1, 0, 2, -1]]
    assert arrays["top_score/text"][0, :4].tolist() == [4, 2, 2, 1]
    assert arrays["value/keep/Rs@1"].tolist() == [0, 1] and arrays["value/keep/Rs@1"].dtype == np.float32
    assert arrays["value/drop/mAP@2"].tolist() == [0.5, 0.5]
    assert {arrays[f"{kind}/keep"].dtype for kind in ("rank", "ties")} == {np.dtype(np.int32)}


def test_each_form_has_its_own_rows() -> None:
    rows = {"text": Rows(np.array([0, 1]), SCORES), "long": Rows(np.array([1, 1, 0]), -SCORES[[1, 1, 0]])}
    found = evaluation.score(SPLIT, PROTOCOLS, IDS, IMAGES, rows)
    assert found.omitted == {} and found.arrays["row_query/long"].tolist() == [1, 1, 0]
    # q1 turned round: c first. q0 turned round without a: d, then b tied with c.
    assert found.arrays["rank/other"].tolist() == [1, 1, 3] and found.arrays["rank/drop"].tolist() == [2, 1]
    assert found.protocols["other"]["metrics"]["R@1"] == pytest.approx(200 / 3)
    later = evaluation.score(SPLIT, PROTOCOLS[::-1], IDS, IMAGES, {"text": rows["text"]})
    assert later.omitted.keys() == {"other"} and later.protocols.keys() == {"own", "grouped", "drop", "keep"}


def test_a_score_of_the_methods_own_and_absent_groups() -> None:
    turned = score(scoring=lambda q, g: -(q @ g.T))
    assert turned.arrays["rank/drop"].tolist() == [3, 1]
    assert set(score(absent=("z",)).protocols["drop"]["metrics"]) == {"x/R@1", "y/R@1", "x/mAP@2", "y/mAP@2"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_embeddings_that_are_not_finite_are_refused(bad: float) -> None:
    spoilt = SCORES.clone()
    spoilt[1, 2] = bad
    with pytest.raises(CirbenchError, match=r"^the query embeddings of 'text' hold NaN or infinite values and cannot be ranked.$"):
        evaluation.score(SPLIT, PROTOCOLS, IDS, IMAGES, {"text": Rows(np.array([0, 1]), spoilt)})
    with pytest.raises(CirbenchError, match=r"^the gallery embeddings hold NaN or infinite values, so they cannot be ranked.$"):
        evaluation.score(SPLIT, PROTOCOLS, IDS, IMAGES * bad, {"text": Rows(np.array([0, 1]), SCORES)})


class Networks(torch.nn.Module):
    """A method of layers; must be evaluated, not trained, while it is scored."""

    def encode_images(self, images: list[str]) -> Tensor:
        assert not self.training
        return torch.stack([IMAGES[IDS.index(i)] for i in images])

    def encode_queries(self, batch: list[tuple[str, str]]) -> Tensor:
        assert not self.training
        return torch.stack([SCORES["ab".index(r)] for r, _ in batch])


def test_a_method_is_evaluated_under_every_form() -> None:
    class Data:
        forms: ClassVar = {"text": lambda q: [q.texts], "long": lambda q: [("long",), ("longer",)]}

    method: Any = Networks()
    found, images, rows = evaluation.evaluate(method, Feed(), Data(), SPLIT, PROTOCOLS)  # type: ignore[arg-type]
    assert torch.equal(images, IMAGES) and list(rows) == ["text", "long"]
    assert torch.equal(rows["text"].embeddings, SCORES) and rows["long"].query.tolist() == [0, 0, 1, 1]
    assert found.protocols["keep"] == score().protocols["keep"] and found.omitted == {}
    assert found.arrays["rank/other"].tolist() == [2, 2, 1, 1]
    method.score = lambda q, g: -(q @ g.T)
    assert evaluation.evaluate(method, Feed(), Data(), SPLIT, PROTOCOLS)[0].arrays["rank/drop"].tolist() == [3, 1]  # type: ignore[arg-type]
    assert evaluation.texts_of(Data(), SPLIT, ["long", "text"]) == ["long", "longer", "t"]  # type: ignore[arg-type]


def test_bars_show_what_is_encoded_and_go_away(capsys: pytest.CaptureFixture[str]) -> None:
    class Data:
        forms: ClassVar = {"text": lambda q: [q.texts], "long": lambda q: [("long",)]}

    def said(*quiet: bool) -> list[str]:
        evaluation.evaluate(Networks(), Feed(), Data(), SPLIT, PROTOCOLS, *quiet)  # type: ignore[arg-type]
        evaluation.encode_gallery(Networks().eval(), Feed(), IDS, *quiet)  # type: ignore[arg-type]
        evaluation.encode_rows(Networks().eval(), Feed(), SPLIT, Data.forms["text"], *quiet)  # type: ignore[arg-type]
        err = capsys.readouterr().err
        assert not err.endswith("\n")
        return [part.partition(":")[0] for part in err.split("\r") if ": " in part and "   0%" in part]

    assert said() == said(True) == []
    shown = said(False)
    assert set(shown) == {"gallery", "queries"} and shown.count("queries") == 3 and shown.count("gallery") == 2


def test_a_feed_holds_the_pictures_and_texts_of_a_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "Feed", lambda *args, **named: (args, named))

    class Data:
        forms: ClassVar = {"text": lambda q: [q.texts], "long": lambda q: [("long",), (q.group,)]}

    method, data, device = Networks(), Data(), torch.device("cpu")
    method.inputs = "inputs"  # type: ignore[assignment]
    feed: Any = evaluation.feed_of(method, data, SPLIT, ["long", "text"], device, False)  # type: ignore[arg-type]
    assert feed == ((data, ["a", "b", "c", "d"], ["long", "x", "y", "t"], "inputs", device), {"quiet": False})
    assert evaluation.feed_of(method, data, SPLIT, ["text"], device)[1] == {"quiet": True}  # type: ignore[arg-type, index]


def test_queries_and_images_must_fit_one_another() -> None:
    class Scored(Networks):
        def score(self, queries: Tensor, gallery: Tensor) -> Tensor:
            return queries[:, :1] * gallery[:, 0]

    near, far = torch.zeros(2, 3), torch.zeros(2, 3, device="meta")
    evaluation.fit(Networks(), near, near)  # type: ignore[arg-type]
    evaluation.fit(Scored(), near, torch.zeros(2, 4))  # type: ignore[arg-type]
    for method in (Networks(), Scored()):
        with pytest.raises(MethodError, match=(
            r"in encode_queries: the embeddings of queries are on the device meta, those of images on cpu\. Both must be where "
            r"the inputs are\.$"
        )):
            evaluation.fit(method, far, near)  # type: ignore[arg-type]
    with pytest.raises(MethodError, match=(
        r"in encode_queries: the embeddings of queries have D = 3, those of images D = 4; a dot product needs equal D\.$"
    )):
        evaluation.fit(Networks(), near, torch.zeros(2, 4))  # type: ignore[arg-type]

    class Data:
        forms: ClassVar = {"text": lambda q: [q.texts], "long": lambda q: [q.texts]}

    narrow: Any = Networks()
    narrow.encode_queries = lambda batch: torch.zeros(len(batch), 3)
    with pytest.raises(MethodError, match="a dot product needs equal D"):
        evaluation.evaluate(narrow, Feed(), Data(), SPLIT, PROTOCOLS)  # type: ignore[arg-type]

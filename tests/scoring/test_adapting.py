"""Methods that look at the whole gallery: each gallery is given whole, once, and nothing else is."""

import numpy as np
import pytest
import torch

from cirbench.runs import contract
from cirbench.scoring import evaluation
from cirbench.scoring.adapting import adapted, checked_adapt, note_of
from cirbench.scoring.ranking import View
from cirbench.types import MethodError, Protocol, Query, Split

PROTOCOL = Protocol("p", ("R@1",), gallery="all")


def zscored(queries: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    """Mean and spread of the similarities, as a query's further columns."""
    scores = queries @ gallery.T
    return torch.cat([queries, scores.mean(1, keepdim=True), scores.std(1, keepdim=True)], 1)


def test_every_gallery_is_given_whole_and_once() -> None:
    queries, images = torch.randn(5, 4), torch.randn(9, 4)
    members = np.zeros((2, 9), bool)
    members[0, :4] = members[1, 3:] = True
    view = View([np.array([0])] * 5, np.full(5, 2), members, np.array([0, 1, 1, 0, 1]))
    sizes: list[tuple[int, int]] = []

    def adapt(q: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        sizes.append((len(q), len(g)))
        return zscored(q, g)

    found = adapted(adapt, queries, images, view, PROTOCOL)
    assert sizes == [(2, 4), (3, 6)], "the dropped image stays in the gallery"
    for row, which in enumerate(view.member_of):
        expected = zscored(queries[row : row + 1], images[torch.from_numpy(members[which])])[0]
        assert torch.allclose(found[row], expected, atol=1e-6)


def test_own_galleries_get_all_images_and_the_record_says_so() -> None:
    queries, images = torch.randn(2, 4), torch.randn(6, 4)
    members = np.zeros((2, 6), bool)
    members[0, :3] = members[1, 3:] = True
    own = Protocol("genecis", ("R@1",), gallery="own")
    view = View([np.array([0])] * 2, np.full(2, -1), members, np.array([0, 1]))
    assert torch.equal(adapted(zscored, queries, images, view, own), zscored(queries, images))

    class Adapting:
        def adapt(self) -> None: ...

    assert "genecis" in note_of(Adapting(), [own, PROTOCOL])[0]
    assert note_of(Adapting(), [PROTOCOL]) == note_of(object(), [own]) == []


def split_of(ids: list[str]) -> Split:
    queries = tuple(Query(f"q{n}", i, ("t",), (ids[(n + 1) % len(ids)],), group="ab"[n % 2]) for n, i in enumerate(ids))
    half = len(ids) // 2
    return Split("val", queries, {"all": {"": tuple(ids)}, "halves": {"a": tuple(ids[:half]), "b": tuple(ids[half:])}})


def test_protocols_of_one_form_with_other_galleries_are_adapted_apart() -> None:
    """What z-scoring adds is one number a query, so every rank stays that of the plain product."""
    torch.manual_seed(0)
    ids = [f"i{n}" for n in range(8)]
    split, images = split_of(ids), torch.randn(8, 4)
    rows = {"text": evaluation.Rows(np.arange(8), torch.randn(8, 4))}
    protocols = [Protocol("whole", ("R@1", "R@5")), Protocol("halves", ("R@1", "R@5"), gallery="halves")]
    sizes: list[int] = []

    def adapt(q: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        sizes.append(len(g))
        return zscored(q, g)

    def scoring(q: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return (q[:, :4] @ g.T - q[:, 4:5]) / q[:, 5:6]

    plain = evaluation.score(split, protocols, ids, images, rows)
    found = evaluation.score(split, protocols, ids, images, rows, scoring, adapt=adapt)
    assert sizes == [8, 4, 4]
    for name in ("rank/whole", "rank/halves", "top/text", "row_query/text"):
        assert np.array_equal(found.arrays[name], plain.arrays[name]), name


@pytest.mark.parametrize("made, told", [
    (lambda q, g: (q @ g.T).T, r"of shape \(5, 3\)"), (lambda q, g: q[:, 0], r"of shape \(3,\)"),
    (lambda q, g: None, "NoneType"), (lambda q, g: q / 0, "NaN or infinite"), (lambda q, g: q.long(), "int64"),
])
def test_wrong_results_are_one_message(made, told: str) -> None:
    with pytest.raises(MethodError, match=told):
        checked_adapt(made, torch.randn(3, 4), torch.randn(5, 4))


class Company:
    """Broken: a query is centred by the other queries, or looks at the first image of the gallery."""

    def __init__(self, by: str) -> None:
        self.by = by

    def adapt(self, queries: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
        return queries - (queries.mean(0) if self.by == "queries" else gallery[0])


@pytest.mark.parametrize("by, told", [("queries", "the other queries of the call"), ("order", "the order of the gallery")])
def test_check_catches_what_depends_on_company(by: str, told: str) -> None:
    with pytest.raises(contract.Broken, match=told):
        contract._adapt(Company(by), torch.randn(contract.QUERIES, 4), torch.randn(9, 4))

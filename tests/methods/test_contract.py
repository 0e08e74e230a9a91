"""The contract of every method and variant, on the built-in dataset; `cirbench check` runs the same checks."""

from __future__ import annotations

from functools import lru_cache

import pytest

from cirbench import plugins
from cirbench.runs import contract

#: The checks of one variant follow each other, and share its plan and its data.
subject = lru_cache(maxsize=2)(contract.Subject)
PAIRS = [(m.name, v) for m in plugins.methods() for v in ["", *m.variants]]
IDS = [f"{m}-{v}" if v else m for m, v in PAIRS]
#: Every method as it comes and as released; the other variants, most of the time, are left to `make test-all`.
FAST = ("", "as-released")
CASES = [
    pytest.param(m, v, id=i, marks=[] if v in FAST else [pytest.mark.slow]) for (m, v), i in zip(PAIRS, IDS, strict=True)
]


@pytest.mark.parametrize("check", [n for n in contract.CHECKS if n not in contract.ONCE])
@pytest.mark.parametrize(("method", "variant"), CASES)
def test_every_method_keeps_the_contract(method: str, variant: str, check: str) -> None:
    problem = contract._problem(contract.CHECKS[check], subject(method, variant))
    assert not problem, problem


@pytest.mark.parametrize("check", contract.ONCE)
@pytest.mark.parametrize("method", plugins.method_names())
def test_every_method_declares_what_it_uses(method: str, check: str) -> None:
    problem = contract._problem(contract.CHECKS[check], contract.Subject(method))
    assert not problem, problem


def test_what_learns_is_trained() -> None:
    """`losses fall` passes over methods that learn nothing; here is which."""
    still = {i for (m, v), i in zip(PAIRS, IDS, strict=True) if not (s := contract.Subject(m, v)).trains(s.build())}
    named = {"random", "sum-sum-raw", "sum-bge-vl", "slerp", "slerp-as-released", "pic2word-untrained"}
    named |= {"weicom", "weicom-average", "weicom-product"}
    named |= {"lincir-untrained", "searle-oti", "basic", "basic-as-released", "basic-no-expansion", "basic-no-projection"}
    assert still == {*named, *(i for i in IDS if i.endswith("zero-shot"))}

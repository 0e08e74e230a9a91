"""LinCIR, SEARLE and BASIC against slow transcriptions of their formulas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from cirbench.methods import basic, lincir, searle

from cirbench.models.clip import load_clip
from cirbench.models.encoders import Encoders
from cirbench.runs import planning
from cirbench.types import Corpus, TrainView

CAPTIONS = [
    "a small red cross at the left", "put a small red cross at the right", "a large ring at the top and a moon at the left",
    "turn all objects blue", "a moon", "the large ring and a square",
]
D = 128


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(unit(a) @ unit(b))


def numbers(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy()


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Formulas are compared in double precision, where only another formula differs."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def doubled(made: Any) -> Any:
    made.clip[0].double()
    return made.double().eval()


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def slow_phi(phi: torch.nn.Sequential, x: np.ndarray) -> np.ndarray:
    layers = [(numbers(m.weight), numbers(m.bias)) for m in phi if isinstance(m, torch.nn.Linear)]
    assert len(layers) == 3
    for weight, bias in layers[:2]:
        x = np.array([gelu(float(row @ x + b)) for row, b in zip(weight, bias, strict=True)])
    return layers[2][0] @ x + layers[2][1]


def read(made: object, text: str, word: np.ndarray) -> np.ndarray:
    pseudo = torch.tensor(word)[None]
    return numbers(made.clip[0].encode_pseudo([text], pseudo))[0]  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------- lincir


@pytest.fixture
def linear() -> lincir.LinCir:
    torch.manual_seed(0)
    config = lincir.Config(clip="scenes-small", hidden=16, template="a picture of $ , {}", captions=5)
    return doubled(lincir.build(config, Encoders(0), TrainView([], 0, CAPTIONS)))


def test_lincir_query_is_the_text_with_the_pictures_word(linear: lincir.LinCir) -> None:
    pictures, texts = 3 * torch.randn(2, D), ["is red", "$ $5"]
    found = linear.encode_queries(SimpleNamespace(reference={"clip": pictures}, words=texts))
    for n, text in enumerate(["a picture of $ , is red", "a picture of $ ,    5"]):
        expected = unit(read(linear, text, slow_phi(linear.phi, numbers(pictures[n]))))
        assert np.abs(numbers(found[n]) - expected).max() < 1e-9


def test_lincir_loss_is_the_mean_square(linear: lincir.LinCir) -> None:
    plain, noisy = torch.randn(3, D), torch.randn(3, D)
    texts = ["$ at $", "put $", "a picture of $"]
    total = 0.0
    for n, text in enumerate(texts):
        made = read(linear, text, slow_phi(linear.phi, numbers(noisy[n])))
        total += sum((a - b) ** 2 for a, b in zip(made, numbers(plain[n]), strict=True))
    assert linear.reconstruction(plain, noisy, texts).item() == pytest.approx(total / (3 * D), rel=1e-9)


def test_lincir_draws_captions_and_noise_from_torchs_generator(linear: lincir.LinCir, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    monkeypatch.setattr(linear, "reconstruction", lambda *parts: seen.update(parts=parts) or parts[0].sum())
    torch.manual_seed(5)
    next(iter(linear.losses(SimpleNamespace())))
    torch.manual_seed(5)
    drawn = [linear.captions[int(n)] for n in torch.randint(len(CAPTIONS), (5,))]
    share, noise = torch.rand(5, 1), torch.randn(5, D)
    plain, noisy, texts = seen["parts"]
    assert torch.equal(plain, linear.clip[0].encode_texts(drawn))
    assert torch.equal(noisy, plain + share * noise) and bool((share < 1).all())
    assert texts == [lincir.with_slots(caption, "$") for caption in drawn]


@pytest.mark.parametrize(("caption", "as_a_run", "released"), [
    ("an art at the party", "$ at $", "$ at the p$y"), ("a cat and a cat flap", "$ and $", "$ and $ flap"),
])
def test_lincir_replaces_phrases_or_letters(linear: lincir.LinCir, caption: str, as_a_run: str, released: str) -> None:
    assert lincir.with_slots(caption, "$") == as_a_run
    if caption.startswith("an art"):
        caption = "art at the party"
    assert lincir.released(caption) == released


def test_lincir_caption_without_phrase_loses_a_word(linear: lincir.LinCir) -> None:
    found = {linear.slotted("put it at it") for _ in range(60)}
    assert found == {"$ it at it", "put $ at it", "put it $ it", "put it at $"}
    assert linear.slotted("in it " * 40 + "a moon") == linear.config.empty_template, "the slot is beyond the context"


# ------------------------------------------------------------------------------------------------------- searle


def make_searle(**over: object) -> searle.Searle:
    torch.manual_seed(0)
    given = {"clip": "scenes-small", "hidden": 16, "oti_steps": 4, "oti_batch": 4, "near": 2, "near_phi": 3, "batch": 4}
    return doubled(searle.build(searle.Config(**{**given, **over}), Encoders(0), TrainView([], 0, CAPTIONS)))


def test_searle_inverts_by_the_formula() -> None:
    """Loss, AdamW and the moving average by hand; gradients by double differences through the tower's own function."""
    made = make_searle(oti_steps=3)
    pictures, clip = 3 * torch.randn(2, D), made.clip[0]
    found = made.inverted(pictures)
    draws = torch.Generator().manual_seed(0)
    near = [sorted(range(len(made.concepts.named)), key=lambda c: -cosine(numbers(p), concept(made, c)))[:2] for p in pictures]
    words, first, second, mean = (np.zeros((2, clip.token_width)) for _ in range(4))
    for step in range(1, 4):
        template, which, phrase = torch.rand(3, generator=draws).tolist()
        for row in range(2):
            said = made.concepts.named[near[row][int(which * 2)]][1]
            text, slotted = said[int(phrase * len(said))]
            word = torch.tensor(words[row], requires_grad=True)
            a = clip.encode_pseudo([searle.TEMPLATES[int(template * 24)]], word[None])[0]
            b = clip.encode_pseudo([slotted], word[None])[0]
            plain = clip.encode_texts([text])[0]
            loss = (1 - a @ pictures[row] / (a.norm() * pictures[row].norm()) + 0.5 * (1 - b @ plain / (b.norm() * plain.norm()))) / 1.5
            gradient = numbers(torch.autograd.grad(loss, word)[0])
            words[row] *= 1 - 0.02 * 0.01
            first[row] = 0.9 * first[row] + 0.1 * gradient
            second[row] = 0.999 * second[row] + 0.001 * gradient**2
            words[row] -= 0.02 * (first[row] / (1 - 0.9**step)) / (np.sqrt(second[row] / (1 - 0.999**step)) + 1e-8)
        mean = 0.99 * mean + 0.01 * words
    assert np.abs(numbers(found) - mean / (1 - 0.99**3)).max() < 1e-9
    assert len(searle.TEMPLATES) == 24


def concept(made: searle.Searle, number: int) -> np.ndarray:
    name = made.concepts.named[number][0]
    said = numbers(made.clip[0].encode_texts([t.replace("$", name) for t in searle.TEMPLATES]))
    return np.mean([unit(row) for row in said], 0)


def test_a_pictures_word_does_not_depend_on_its_company() -> None:
    made = make_searle()
    pictures = 3 * torch.randn(6, D)
    together = made.inverted(pictures)
    alone = torch.cat([made.inverted(p[None]) for p in pictures])
    assert torch.equal(together, alone) and torch.equal(made.inverted(pictures.flip(0)).flip(0), together)


def test_searle_loss() -> None:
    made = make_searle()
    guessed, words = torch.randn(3, 64), torch.randn(3, 64)
    both = [unit(numbers(v)) for v in (*guessed, *words)]
    total = 0.0
    for i in range(6):
        others = [math.exp(float(both[i] @ both[j]) / 0.25) for j in range(6) if j != i]
        total -= math.log(math.exp(float(both[i] @ both[(i + 3) % 6]) / 0.25) / sum(others))
    assert searle.nt_xent(guessed, words, 0.25).item() == pytest.approx(total / 6, rel=1e-9)
    pictures = 3 * torch.randn(5, D)
    torch.manual_seed(1)
    made.prepare(Corpus({"clip": pictures}, [()] * 5))
    assert sorted(made.pictures[:, 0].tolist()) == sorted(pictures[:, 0].tolist()) and made.words.shape == (5, 64)
    torch.manual_seed(2)
    (name, loss, logs), = made.losses(SimpleNamespace())
    torch.manual_seed(2)
    rows = torch.randint(5, (4,)).unique()
    which, phrase = torch.rand(2, len(rows)).tolist()
    phi = torch.stack([torch.tensor(slow_phi(made.phi, numbers(p))) for p in made.pictures[rows]])
    phrases = 0.0
    for n, row in enumerate(rows.tolist()):
        near = sorted(range(len(made.concepts.named)), key=lambda c: -cosine(numbers(made.pictures[row]), concept(made, c)))[:3]
        said = made.concepts.named[near[int(which[n] * 3)]][1]
        text, slotted = said[int(phrase[n] * len(said))]
        plain = numbers(made.clip[0].encode_texts([text]))[0]
        phrases += (1 - cosine(read(made, slotted, numbers(phi[n])), plain)) / len(rows)
    contrast = searle.nt_xent(phi, made.words[rows], 0.25).item()
    assert (name, logs["contrast"], logs["phrases"]) == ("phi", pytest.approx(contrast, rel=1e-9), pytest.approx(phrases, rel=1e-9))
    assert loss.item() == pytest.approx(contrast + 0.75 * phrases, rel=1e-9)


def test_oti_keeps_its_phrases_with_its_weights() -> None:
    made = make_searle(invert=True)
    again = searle.build(made.config, Encoders(0), TrainView([], 0), made.extra_state())
    batch = SimpleNamespace(reference={"clip": 3 * torch.randn(3, D)}, words=["red", "left", "red"])
    with torch.inference_mode():
        assert torch.equal(made.encode_queries(batch), again.encode_queries(batch))
    assert make_searle(invert=True, oti_phrase_weight=0.0).extra_state() == {} == make_searle().extra_state()


# -------------------------------------------------------------------------------------------------------- basic


@pytest.fixture
def plain() -> basic.Basic:
    config = basic.Config(clip="scenes-small", subjects=5, styles=4, context=2, neighbours=2)
    texts = ["turn the cross red", "put a moon at the left", "turn the ring blue"]
    return doubled(basic.build(config, Encoders(0), TrainView(texts, 3, CAPTIONS)))


def test_basic_by_the_formula(plain: basic.Basic) -> None:
    torch.manual_seed(0)
    corpus, clip = torch.randn(30, D) + 0.5, plain.clip[0]
    captions = [[CAPTIONS[n % 6]] if n % 3 else [] for n in range(30)]
    plain.prepare(Corpus({"clip": corpus}, captions))
    pictures, queries, gallery, words = unit(numbers(corpus)), torch.randn(3, D), torch.randn(7, D), ["red", "left", "blue ring"]

    def text(*strings: str) -> np.ndarray:
        return np.stack([unit(numbers(clip.encode_texts([s]))[0]) for s in strings])

    assert len(plain.names["subjects"]) == 5 and plain.names["styles"] == ["turn", "at", "put"]
    subjects, styles = text(*plain.names["subjects"]), text(*plain.names["styles"])
    mean, text_mean = pictures.mean(0), subjects.mean(0)
    contrast = np.full((D, D), 1e-5)
    for share, names in ((0.8, subjects), (-0.2, styles)):
        for row in names:
            contrast += share * np.outer(row - text_mean, row - text_mean) / len(names)
    values, vectors = np.linalg.eigh(contrast)
    kept = vectors[:, values > 1e-9][:, ::-1][:, :250]
    assert 0 < kept.shape[1] < 6, "five subjects and a constant"
    project = kept @ kept.T
    centred = pictures - mean
    a = min(float(x @ project @ g) for x in centred for g in centred)
    said = [c for n in range(30) for c in captions[n]]
    b = min(float(t @ g) for t in text(*said) - text_mean for g in centred)
    assert numbers(plain.floors) == pytest.approx([a, b], abs=1e-9)

    shown = unit(numbers(gallery)) - mean
    expected = np.zeros((3, 7))
    for n in range(3):
        own = unit(numbers(queries[n])) - mean
        image = project @ own
        near = sorted(range(7), key=lambda j: -float(image @ shown[j]))[:2]
        rows = [(1.0, own), *((float(image @ shown[j]), shown[j]) for j in near)]
        total = sum(math.exp(0.1 * s) for s, _ in rows)
        image = project @ sum(math.exp(0.1 * s) * v for s, v in rows) / total
        beside = plain.names["subjects"][:2]
        spoken = unit(text(*(f"{s} {words[n]}" for s in beside), *(f"{words[n]} {s}" for s in beside)).mean(0)) - text_mean
        for j in range(7):
            s_i = max(0.0, (float(image @ shown[j]) - a) / abs(a))
            s_t = max(0.0, (float(spoken @ shown[j]) - b) / abs(b))
            expected[n, j] = s_i * s_t - 0.1 * (s_i + s_t) ** 2
    # The buffer P is single precision.
    images = plain.encode_images({"clip": gallery})
    made = plain.encode_queries(SimpleNamespace(reference={"clip": queries}, words=words))
    assert np.abs(numbers(plain.score(plain.adapt(made, images), images)) - expected).max() < 1e-7 * np.abs(expected).max()


def test_basic_variants(plain: basic.Basic) -> None:
    queries, images = torch.randn(2, 2 * D), torch.randn(5, D)
    plain.floors.copy_(torch.tensor([-2.0, -0.5]))
    released = basic.Basic(plain.config.model_copy(update={"text_scale": "image", "penalty": 0.0}), plain.clip[0], plain.names)
    ours = basic.Basic(plain.config.model_copy(update={"penalty": 0.0}), plain.clip[0], plain.names)
    for one in (released, ours):
        one.floors.copy_(plain.floors)
    assert torch.allclose(ours.score(queries, images), 4 * released.score(queries, images))
    alone = basic.Basic(plain.config.model_copy(update={"neighbours": 0}), plain.clip[0], plain.names)
    alone.projection.copy_(torch.diag(torch.arange(float(D))))
    assert torch.allclose(alone.adapt(queries, images), torch.cat([queries[:, :D] * torch.arange(D), queries[:, D:]], 1))


def test_a_gallery_smaller_than_the_neighbours(plain: basic.Basic) -> None:
    queries, images = torch.randn(2, 2 * D), torch.randn(1, D)
    assert plain.adapt(queries, images).shape == (2, 2 * D)


@pytest.mark.parametrize("name", ["lincir", "searle", "basic"])
def test_their_texts_are_words_of_the_packaged_clip(name: str) -> None:
    """A template of unknown words would be noise."""
    config = tiny.plan(name).config
    clip = load_clip("scenes-small")
    for field in ("template", "empty_template"):
        words = getattr(config, field, "").replace("{}", " ").replace("$", " ").replace(",", " ").split()
        assert all(word in clip.tokenize.ids for word in words), (field, words)
    assert planning.load(tiny.plan(name)).captions

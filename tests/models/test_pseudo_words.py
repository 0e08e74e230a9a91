"""Pseudo-words against words: a word's own embedding in a slot is that word."""

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cirbench.models.clip import Clip, load_clip
from cirbench.models.pseudo_words import tower_of
from cirbench.types import CirbenchError, Pixels

WORDS = ("red", "circle", "large", "square", "of", "the", "left")


@pytest.fixture(scope="module")
def small() -> Clip:
    return load_clip("scenes-small")


@pytest.fixture(scope="module")
def pairs() -> Clip:
    """A CLIP of open_clip's own with byte pairs, narrow, with random weights."""
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=16, vision_cfg={"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
        text_cfg={"context_length": 20, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
    )
    tokenizer = open_clip.SimpleTokenizer(context_length=20)
    clip = Clip(model, tokenizer, 16, Pixels(32, (0.5,) * 3, (0.5,) * 3), "pairs")
    return clip.requires_grad_(False).eval()


def embedding(clip: Clip, word: str) -> torch.Tensor:
    (token,) = clip.tokenize.encode(word)
    return tower_of(clip.model, clip.tokenize).token_embedding.weight[token].detach()


@pytest.mark.parametrize("which", ["small", "pairs"])
@given(before=st.lists(st.sampled_from(WORDS), max_size=5), after=st.lists(st.sampled_from(WORDS), max_size=30),
       word=st.sampled_from(WORDS), twice=st.booleans())
@settings(max_examples=25, deadline=None)
def test_words_own_embedding_is_the_word(which, request, before, after, word, twice):
    clip = request.getfixturevalue(which)
    text = " ".join([*before, "$", *after, *(["$"] if twice else [])])
    found = clip.encode_pseudo([text], embedding(clip, word)[None])
    assert torch.allclose(found, clip.encode_texts([text.replace("$", word)]), atol=1e-5)


@pytest.mark.parametrize("which", ["small", "pairs"])
def test_several_words_in_one_slot(which, request):
    clip = request.getfixturevalue(which)
    words = torch.stack([embedding(clip, "large"), embedding(clip, "red")])
    found = clip.encode_pseudo(["the * on the left", "*"], words[None].expand(2, 2, -1), slot="*")
    assert torch.allclose(found, clip.encode_texts(["the large red on the left", "large red"]), atol=1e-5)


def test_a_rows_text_does_not_depend_on_the_others(small):
    texts, words = ["the $ on the left", "$", "a large $ and a $ in red"], torch.randn(3, small.token_width)
    together = small.encode_pseudo(texts, words)
    alone = torch.cat([small.encode_pseudo([t], w[None]) for t, w in zip(texts, words, strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_gradient_reaches_the_pseudo_words_of_a_frozen_tower(small):
    words = torch.randn(2, small.token_width, requires_grad=True)
    small.encode_pseudo(["the $", "$ and a red $"], words).square().sum().backward()
    assert (words.grad.abs().sum(1) > 0).all()
    assert all(p.grad is None for p in small.parameters())


def test_later_texts_are_read_as_before(small):
    before = small.encode_texts(["the red circle"])
    small.encode_pseudo(["the $"], torch.randn(1, small.token_width))
    with pytest.raises(CirbenchError):
        small.encode_pseudo(["no place"], torch.randn(1, small.token_width))
    assert torch.equal(small.encode_texts(["the red circle"]), before)


def test_texts_without_a_slot_and_other_shapes_are_refused(small):
    words = torch.randn(1, small.token_width)
    with pytest.raises(CirbenchError, match=r"'the circle' has no slot '\$'"):
        small.encode_pseudo(["the circle"], words)
    with pytest.raises(CirbenchError, match=r"shape \(1, 65\) for 1 texts"):
        small.encode_pseudo(["the $"], torch.randn(1, small.token_width + 1))
    with pytest.raises(CirbenchError, match="for 2 texts"):
        small.encode_pseudo(["the $", "$"], words)


def test_towers_that_take_no_pseudo_words_are_refused(pairs):
    siglip = Clip(pairs.model, lambda texts: torch.zeros(len(texts), 20, dtype=torch.long), 16, pairs.pixels, "siglip")
    with pytest.raises(CirbenchError, match="siglip takes no pseudo-words"):
        siglip.encode_pseudo(["$"], torch.randn(1, 24))
    with pytest.raises(CirbenchError, match="scenes-small"):
        siglip.token_width  # noqa: B018


def test_logit_scale_is_the_trained_factor(small):
    assert small.logit_scale == pytest.approx(float(small.model.logit_scale.exp()))

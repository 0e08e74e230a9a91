"""Words as states: the LSTM as it was, a GRU in both directions, and word vectors from a file."""

from __future__ import annotations

import gzip
import hashlib
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

from cirbench.models import word_vectors
from cirbench.models.encoders import Encoders
from cirbench.models.lstm_text import GruText, LstmText, build_vocabulary
from cirbench.models.weights import vectors_of, weights_of
from cirbench.models.word_vectors import read_vectors
from cirbench.runs import planning
from cirbench.runs.identity import id_of, identify
from cirbench.settings import Field, Settings
from cirbench.types import CirbenchError

VOCABULARY = build_vocabulary(["a red shoe with a blue heel"])
TEXTS = ["a red shoe", "heel", "", "a blue heel with a red red shoe", "never seen"]


def made(kind: str, **options: Any) -> Any:
    torch.manual_seed(5)
    return Encoders().words(VOCABULARY, 4, 6, kind, **options)  # type: ignore[arg-type]


def test_the_lstm_is_the_one_it_was() -> None:
    """Bit by bit: weights, names, states, and what is drawn from torch's generator."""
    torch.manual_seed(5)
    embedding, lstm = nn.Embedding(len(VOCABULARY), 4), nn.LSTM(4, 6, batch_first=True)
    after = torch.rand(1)
    words = made("lstm")
    assert isinstance(words, LstmText) and torch.equal(torch.rand(1), after)
    expected = {"embedding_layer.weight": embedding.weight, **{f"lstm.{k}": v for k, v in lstm.state_dict().items()}}
    assert list(words.state_dict()) == list(expected)
    assert all(torch.equal(words.state_dict()[k], v) for k, v in expected.items())
    states, mask = words(["a red shoe", "heel"])
    ids = torch.tensor([VOCABULARY.index(w) for w in ("a", "red", "shoe")])
    assert torch.allclose(states[0], lstm(embedding(ids)[None])[0][0], atol=1e-6) and mask.tolist() == [[True] * 3, [True, False, False]]
    assert torch.equal(words.last(states, mask), torch.stack([states[0, 2], states[1, 0]]))
    torch.manual_seed(5)
    assert all(torch.equal(v, expected[k]) for k, v in Encoders().lstm(VOCABULARY, 4, 6).state_dict().items())
    padded, everywhere = words(["a red shoe", "heel"], padded_as_words=True)
    assert everywhere.all() and not torch.equal(padded[1, 1], states[1, 1])


# ------------------------------------------------------------------------------------------ both directions


def slow_gru(x: Tensor, w_in: Tensor, w_state: Tensor, b_in: Tensor, b_state: Tensor) -> list[Tensor]:
    """Cho et al. 2014 as torch writes it, word by word: x (L, word_dim) -> L states."""
    n = w_state.shape[1]
    h, out = torch.zeros(n, dtype=x.dtype), list[Tensor]()
    for word in x:
        given, held = w_in @ word + b_in, w_state @ h + b_state
        reset, update = (given[:n] + held[:n]).sigmoid(), (given[n : 2 * n] + held[n : 2 * n]).sigmoid()
        new = (given[2 * n :] + reset * held[2 * n :]).tanh()
        h = (1 - update) * new + update * h
        out.append(h)
    return out


def test_the_gru_reads_in_both_directions() -> None:
    words = made("bigru").double()
    assert isinstance(words, GruText)
    states, mask = words(TEXTS)
    pooled = words.last(states, mask)
    assert states.shape == (5, 8, 6) and mask.sum(1).tolist() == [3, 1, 1, 8, 2] and pooled.shape == (5, 6)
    for row, text in enumerate(TEXTS):
        ids = torch.tensor([words.ids.get(w, 0) for w in text.split()] or [0])
        x = words.embedding_layer.weight[ids]
        ahead, back = (
            [words.gru.get_parameter(f"{name}_l0{way}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            for way in ("", "_reverse")
        )
        forward, backward = slow_gru(x, *ahead), slow_gru(x.flip(0), *back)[::-1]
        for place, halves in enumerate(zip(forward, backward, strict=True)):
            assert torch.allclose(states[row, place], torch.cat(halves), atol=1e-12)
        assert torch.allclose(pooled[row], torch.cat([forward[-1], backward[0]]), atol=1e-12)
        assert not states[row, len(ids) :].any()


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from([*VOCABULARY[4:], "other"]), max_size=6).map(" ".join), min_size=1, max_size=5))
def test_company_changes_no_text(texts: list[str]) -> None:
    words = made("bigru").double()
    states, mask = words(texts)
    for row, text in enumerate(texts):
        alone, one = words([text])
        length = int(one.sum())
        assert torch.allclose(states[row, :length], alone[0], atol=1e-12) and int(mask[row].sum()) == length
        assert torch.allclose(words.last(states, mask)[row], words.last(alone, one)[0], atol=1e-12)


def test_kinds_and_widths_that_do_not_exist() -> None:
    with pytest.raises(CirbenchError, match=r"hidden=7: .* must be even\. Take 8\."):
        Encoders().words(VOCABULARY, 4, 7, "bigru")
    with pytest.raises(CirbenchError, match=r"unknown kind of words 'gru'\. Did you mean 'bigru'\? Valid: lstm, bigru\."):
        Encoders().words(VOCABULARY, 4, 6, "gru")  # type: ignore[arg-type]
    with pytest.raises(CirbenchError, match="fixed=True without `vectors`"):
        Encoders().words(VOCABULARY, 4, 6, fixed=True)


# ------------------------------------------------------------------------------------------ word vectors


GLOVE = {
    "the": [9, 9, 9, 9], ". . .": [1, 1, 1, 1], "red": [0.5, -1.25, 3e-2, 4], "Shoe": [8, 8, 8, 8], "heel": [1, 2, 3, 4],
    "at name@domain.com": [7, 7, 7, 7], "caf\u00e9": [6, 6, 6, 6], "a b": [5, 5, 5, 5],
}


def written(path: Path, rows: dict[str, list[float]] = GLOVE, header: str = "", end: str = "\n") -> str:
    text = header + "".join(f"{word} {' '.join(map(str, row))}{end}" for word, row in rows.items())
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


@pytest.mark.parametrize(("file", "header", "end"), [
    ("glove.txt", "", "\n"), ("crawl.vec", "8 4\n", " \n"), ("glove.txt.gz", "", "\n"), ("windows.txt", "\ufeff", "\r\n"),
    ("crawl.vec.gz", "8 4\n", "\n"),
])
@pytest.mark.parametrize("kind", ["lstm", "bigru"])
def test_words_start_from_the_vectors_of_a_file(kind: str, file: str, header: str, end: str, tmp_path: Path) -> None:
    plain, encoders = made(kind), Encoders()
    name = written(tmp_path / file, header=header, end=end)
    torch.manual_seed(5)
    words = encoders.words(VOCABULARY, 4, 6, kind, vectors=name)  # type: ignore[arg-type]
    assert list(words.state_dict()) == list(plain.state_dict())
    for key, value in plain.state_dict().items():
        expected = value.clone()
        if key == "embedding_layer.weight":
            for word in ("red", "heel"):
                expected[VOCABULARY.index(word)] = torch.tensor(GLOVE[word])
        assert torch.equal(words.state_dict()[key], expected), key
    assert all(p.requires_grad for p in words.parameters())
    used = b"red\nheel" + np.array([GLOVE["red"], GLOVE["heel"]], np.float32).tobytes()
    assert encoders.loaded == {name: f"sha256:{hashlib.sha256(used).hexdigest()[:32]} (2 of {len(VOCABULARY)} words)"}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.sampled_from(["red", "blue", "heel", "x", "y"]), st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3)), max_size=8),
    wanted=st.lists(st.sampled_from(["red", "blue", "heel", "shoe"]), unique=True, min_size=1),
)
def test_what_is_read_is_what_was_written(rows: list[tuple[str, list[float]]], wanted: list[str], tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("".join(f"{w} {' '.join(map(repr, row))}\n" for w, row in rows))
    first: dict[str, list[float]] = {}
    for word, row in rows:
        first.setdefault(word, row)
    known = [word for word in wanted if word in first]
    if not known:
        with pytest.raises(CirbenchError, match=rf"none of the {len(wanted)} words"):
            read_vectors(str(tmp_path / "v.txt"), wanted, 3)
        return
    ids, found = read_vectors(str(tmp_path / "v.txt"), wanted, 3)
    assert [wanted[i] for i in ids] == known and found.tolist() == [first[word] for word in known]


def test_fixed_vectors_stay_and_other_words_are_dropped(tmp_path: Path) -> None:
    name = written(tmp_path / "glove.txt")
    words = made("bigru", vectors=name, fixed=True)
    assert words.words("a red, shiny SHOE heel") == ["red", "heel"] and words.words("a shoe") == ["<UNK>"]
    states, mask = words(["a red shoe heel", "red heel", "a shoe"])
    assert mask.tolist() == [[True, True], [True, True], [True, False]] and torch.equal(states[0], states[1])
    assert not words.embedding_layer.weight[0].any(), "what is nothing is a zero vector, not a random one"
    assert [n for n, p in words.named_parameters() if not p.requires_grad] == ["embedding_layer.weight"]
    states.sum().backward()
    assert words.embedding_layer.weight.grad is None and words.gru.weight_ih_l0.grad is not None
    # A state brings the words that are known with it.
    other = made("bigru", vectors=written(tmp_path / "other.txt", {"shoe": [1, 1, 1, 1]}), fixed=True)
    assert other.words("red shoe") == ["shoe"]
    other.load_state_dict(words.state_dict())
    assert other.words("red shoe") == ["red"] and torch.equal(other(["red heel"])[0], words(["red heel"])[0])
    assert "known" not in made("bigru", vectors=name).state_dict()


def long_line(path: Path) -> None:
    path.write_bytes(b"1" * (word_vectors.LONGEST + 5))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "wider": (lambda p: written(p, {"red": [1, 2, 3, 4, 5]}), "line 1 holds 5 values behind its word, but words are 4 wide"),
    "narrower": (lambda p: written(p, {"the": [1, 2, 3, 4], "red": [1, 2]}), "line 2 holds 2 values"),
    "header": (lambda p: written(p, header="400000 300\n"), "line 1 says that its vectors have 300 numbers, but words are 4 wide"),
    "nan": (lambda p: p.write_text("the 1 2 3 4\nred 1 nan 3 4\n"), "line 2 holds a number that is not finite"),
    "infinite": (lambda p: p.write_text("red 1 1e300 3 4\n"), "line 1 holds a number that is not finite"),
    "word": (lambda p: p.write_text("red 1 2 x 4\n"), "line 1 holds 'x' where a number should be"),
    "unknown": (lambda p: written(p, {"the": [1, 2, 3, 4]}), rf"none of the {len(VOCABULARY)} words of the vocabulary"),
    "empty": (lambda p: p.write_text(""), "none of the"),
    "binary": (lambda p: p.write_bytes(b"3 4\xff\xfe\0\n" * 4), "line 1 is not UTF-8 text"),
    "latin": (lambda p: p.write_bytes(b"the 1 2 3 4\nred 1 2 3 \xe9\n"), "line 2 is not UTF-8 text"),
    "endless": (long_line, "line 1 is longer than 1048576 bytes"),
    "cut": (lambda p: p.write_bytes(gzip.compress(b"the 1 2 3 4\n" * 9999)[:-20]), r"after line \d+: "),
    "not gzip": (lambda p: p.write_bytes(b"\x1f\x8b" + b"red 1 2 3 4\n" * 9), "after line 0: "),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    write, said = BROKEN[name]
    write(tmp_path / "v.txt")
    with pytest.raises(CirbenchError, match=rf"^the word vectors .*v\.txt cannot be used: {said}") as error:
        made("lstm", vectors=str(tmp_path / "v.txt"))
    assert str(error.value).endswith("Give a text file of GloVe's or fastText's, unpacked or .gz, with a word and 4 numbers on a line.")


@pytest.mark.parametrize("name", ["gone.txt", "~nobody-of-this-name/x.txt", "\0", "."])
def test_no_file_of_word_vectors(name: str) -> None:
    with pytest.raises(CirbenchError, match=r"there is no file of word vectors .*\. Check the path\."):
        made("lstm", vectors=name)


@pytest.mark.parametrize("ending", [".txt", ".txt.gz"])
def test_a_large_file_is_never_held_whole(ending: str, tmp_path: Path) -> None:
    line = "word" + " 0.125" * 300 + "\n"
    text = (line * 10_000 + "red" + " 1" * 300 + "\n").encode()
    path = tmp_path / f"large{ending}"
    path.write_bytes(gzip.compress(text, 1) if ending.endswith("gz") else text)
    read_vectors(str(path), ["red"], 300)  # what is imported once
    tracemalloc.start()
    ids, rows = read_vectors(str(path), ["red", "blue"], 300)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ids == [0] and rows.eq(1).all() and len(text) > 15e6 and peak < 1e6


# ------------------------------------------------------------------------------------------ identity


class Config(Settings):
    """Of a method with a file of vectors, and a text that happens to be a file name."""

    vectors: str = Field("", description="GloVe", json_schema_extra={"vectors": True, "neutral": ""})
    note: str = Field("", description="anything", json_schema_extra={"neutral": ""})


def test_a_file_is_declared_by_its_field(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a.txt"), written(tmp_path / "b.txt")
    assert vectors_of(Config()) == weights_of(Config()) == {}
    assert weights_of(Config(note=a)) == {}, "a text that happens to be a file name"
    assert vectors_of(Config(vectors=a, note=b)) == {a: tmp_path / "a.txt"}
    (hashed,) = weights_of(Config(vectors=a)).values()
    assert hashed.startswith("sha256:") and weights_of(Config(vectors=b)) == {b: hashed}, "content, not the path"
    written(tmp_path / "b.txt", {"red": [1, 1, 1, 1]})
    assert weights_of(Config(vectors=b)) != {b: hashed}
    with pytest.raises(CirbenchError, match="there is no file of word vectors 'gone'"):
        weights_of(Config(vectors="gone"))
    encoders = Encoders(declared=weights_of(Config(vectors=a)))
    encoders.words(VOCABULARY, 4, 6, vectors=a)
    with pytest.raises(CirbenchError, match=r"reads the word vectors .*, which no field of its Config declares.*'vectors': True"):
        encoders.words(VOCABULARY, 4, 6, vectors=b)


METHOD = '''"""Reads words alone."""
from torch import nn
from cirbench.models.layers import adam, contrastive, hard_labels, l2norm
from cirbench.models.lstm_text import build_vocabulary
from cirbench.settings import Field, Settings
from cirbench.types import Frozen, Inputs


class Config(Settings):
    clip: str = Field("scenes-small", description="CLIP")
    vectors: str = Field("", description="GloVe", json_schema_extra={"vectors": True, "neutral": ""})


class Mine(nn.Module):
    def __init__(self, clip, words):
        super().__init__()
        self.words, self.fc = words, nn.Linear(clip.dim, 6)
        self.inputs = Inputs(images={"clip": Frozen(clip)})

    def encode_queries(self, batch):
        return l2norm(self.words.last(*self.words(batch.words)))

    def encode_images(self, images):
        return l2norm(self.fc(images["clip"]))

    def losses(self, batch):
        labels = hard_labels(batch.positives)
        yield "all", contrastive(self.encode_queries(batch), self.encode_images(batch.target), labels, 0.1), {}

    def optimizers(self):
        return {"all": adam(self.parameters(), 1e-3, 0.0)}

    def extra_state(self):
        return {"vocabulary": self.words.vocabulary}


def build(config, encoders, train, state=None):
    vocabulary = state["vocabulary"] if state else build_vocabulary(train.texts)
    words = encoders.words(vocabulary, 4, 6, kind="bigru", vectors=config.vectors)
    return Mine(encoders.clip(config.clip), words)
'''


def test_a_run_is_identified_by_the_content_of_its_vectors(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(METHOD)
    mine = str(tmp_path / "mine.py")
    a, b = written(tmp_path / "a.txt"), written(tmp_path / "b.txt")

    def found(**over: Any) -> Any:
        planned = tiny.plan(mine, **over)
        return identify(planned, planning.load(planned))

    plain, one, same = found(), found(method__vectors=a), found(method__vectors=b)
    assert "vectors" not in plain.inputs["config"] and plain.id == id_of({**plain.inputs}) != one.id == same.id
    written(tmp_path / "b.txt", {"red": [1, 1, 1, 1]})
    assert found(method__vectors=b).id != one.id
    with pytest.raises(CirbenchError, match="there is no file of word vectors"):
        tiny.run(mine, tmp_path / "runs", method__vectors="gone.txt")
    assert not (tmp_path / "runs").exists()
    record = tiny.run(mine, tmp_path / "runs", method__vectors=a)
    assert record.data["loaded"][a].startswith("sha256:") and " of " in record.data["loaded"][a]
    assert record.data["inputs"]["weights"][a].startswith("sha256:")

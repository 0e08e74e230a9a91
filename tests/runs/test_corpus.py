"""Captions and pictures that a method sees beforehand: whose they are, what they change, and what is refused."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import own_data
import pytest
import tiny
import torch
from commands import exit_code

from cirbench.data.outside import caption_lines, content, picture_folder
from cirbench.runs import contract, execution, planning
from cirbench.runs.building import build, load_method
from cirbench.runs.corpus import corpus_of, prepare, train_view, training_pictures
from cirbench.runs.evaluate_run import evaluate_run, plan_eval
from cirbench.runs.identity import identify
from cirbench.types import CirbenchError, Corpus, Frozen, MethodError, Query, Split

ROOT = next(p for p in Path(__file__).parents if (p / "pyproject.toml").is_file())

#: A method that learns nothing and centres its pictures; `{}` is the body of `prepare`.
CENTRED = """'''Centred.'''
import random
import torch
from torch import nn
from cirbench.settings import Field, Settings
from cirbench.types import Frozen, Inputs

class Config(Settings):
    clip: str = Field("scenes-small", description="CLIP")

DATASETS = {{"scenes": {{"clip": "scenes-small"}}}}
TRAIN = {{"epochs": 0}}

class Mine(nn.Module):
    def __init__(self, clip):
        super().__init__()
        self.inputs = Inputs(images={{"clip": Frozen(clip)}})
        self.register_buffer("mean", torch.zeros(clip.dim))
        self.shift = 0.0
    def prepare(self, corpus):
        {}
    def encode_queries(self, batch):
        return batch.reference["clip"] - self.mean + self.shift
    def encode_images(self, images):
        return images["clip"] - self.mean

def build(config, encoders, train, state=None):
    return Mine(encoders.clip(config.clip))
"""


def method(tmp_path: Path, body: str) -> str:
    path = tmp_path / "mine.py"
    path.write_text(CENTRED.format(body))
    return str(path)


def over(name: str, tmp_path: Path) -> planning.Plan:
    return planning.plan(name, "scenes", over={**tiny.DATA})


# ------------------------------------------------------------------------------------------------- whose pictures


def test_no_picture_of_another_split_is_a_training_picture_unless_it_is_trained_on() -> None:
    planned = tiny.plan("sum")
    dataset = planning.load(planned)
    query = Query("q", "r", ("x",), ("t",))
    train = Split("train", (query, Query("p", "t", ("y",), ("shared",))), {"all": {"": ("a", "shared", "seen", "r")}})
    report = Split("report", (replace(query, reference="seen", targets=("shared",)),), {"all": {"": ("seen", "shared")}})
    captions = {"a": ("of a",), "seen": ("of seen",), "shared": ("of shared",), "r": ("of r", "again")}
    mixed = replace(dataset, splits={"train": train, "report": report}, captions=captions)
    assert training_pictures(mixed) == ["r", "t", "shared", "a"]
    assert list(train_view(planned, mixed).captions) == ["of r", "again", "of shared", "of a"]
    assert training_pictures(replace(mixed, splits={"report": report})) == []


def test_the_corpus_holds_the_features_of_exactly_these_pictures(tmp_path: Path) -> None:
    planned = tiny.plan("pic2word")
    dataset, device = planning.load(planned), torch.device("cpu")
    inputs = build(planned, dataset).inputs
    own_data.folder(tmp_path)
    (tmp_path / "images/a.txt").write_text("no picture")
    found = corpus_of(dataset, inputs, device, str(tmp_path / "images"))
    own = training_pictures(dataset)
    assert len(found.images["clip"]) == len(found.captions) == len(own) + 14
    assert list(found.captions[:3]) == [dataset.captions[i] for i in own[:3]] and not any(found.captions[-14:])
    wanted = inputs.images["clip"]
    assert isinstance(wanted, Frozen)
    from cirbench.data.images import PixelStore

    source, ids = picture_folder(str(tmp_path / "images"))
    assert ids[0] == "a0.jpg"
    pixels = torch.cat([PixelStore(dataset.images, own, wanted.encoder.pixels)(own), PixelStore(source, ids, wanted.encoder.pixels)(ids)])
    with torch.inference_mode():
        assert torch.allclose(wanted.encoder.encode_images(pixels), found.images["clip"], atol=1e-4)


# --------------------------------------------------------------------------------------------------- identity


def test_outside_captions_count_by_content_and_not_where_weights_are_loaded(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("a red shoe\n\n  a blue shoe \n")
    second.write_text(first.read_text())
    ids = {}
    for path in (first, second):
        planned = tiny.plan("lincir", train__captions=str(path))
        ids[path] = identify(planned, planning.load(planned)).id
    plain = tiny.plan("lincir")
    assert ids[first] == ids[second] != identify(plain, planning.load(plain)).id
    second.write_text("a green shoe\n")
    assert identify(planned, planning.load(planned)).id != ids[first]
    assert list(train_view(planned, planning.load(planned)).captions)[-1:] == ["a green shoe"]
    second.unlink()
    assert train_view(planned, planning.load(planned), learning=False).captions == []


def test_a_run_with_outside_captions_is_evaluated_without_them(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("a red cross at the left\na small ring\n" * 20)
    record = tiny.run("lincir", tmp_path / "runs", train__captions=str(path), method__captions=8)
    assert any("40 further captions (captions.txt)" in note for note in record.data["notes"])
    assert record.data["inputs"]["corpus"]["captions"].startswith("sha256:")
    path.unlink()
    planned, run = plan_eval(record.folder, sets=["data.report_scenes=8"])
    again = evaluate_run(planned, run, tmp_path / "evals", "cpu", True, "")
    assert again.data["inputs"]["corpus"] == record.data["inputs"]["corpus"]
    assert again.data["notes"] and not any("further" in note for note in again.data["notes"])


def test_outside_pictures_count_by_content(tmp_path: Path) -> None:
    own_data.folder(tmp_path / "one")
    shutil.copytree(tmp_path / "one/images", tmp_path / "two")
    before = content("", str(tmp_path / "one/images"))
    assert before == content("", str(tmp_path / "two")) and set(before) == {"pictures"}
    (tmp_path / "two/t0.jpg").write_bytes(own_data.encoded(own_data.noise(99), "JPEG"))
    assert before != content("", str(tmp_path / "two"))


# ---------------------------------------------------------------------------------------------------- the hook


def test_a_method_is_prepared_once_and_its_buffers_are_saved(tmp_path: Path) -> None:
    name = method(tmp_path, "self.mean.copy_(corpus.images['clip'].mean(0))")
    record = tiny.run(name, tmp_path / "runs")
    planned, _ = plan_eval(record.folder)
    dataset = planning.load(planned)
    made = load_method(planned, dataset, record.folder / "model.safetensors", torch.device("cpu"))
    mean = corpus_of(dataset, made.inputs, torch.device("cpu")).images["clip"].mean(0)
    assert torch.equal(made.mean, mean) and float(mean.abs().sum()) > 0  # type: ignore[attr-defined]
    assert record.data["cost"]["seconds"]["prepare"] > 0


def test_preparing_draws_the_same_again_and_leaves_the_generator_alone(tmp_path: Path) -> None:
    name = method(tmp_path, "self.mean.copy_(torch.randn(len(self.mean)))")
    planned = over(name, tmp_path)
    dataset, device = planning.load(planned), torch.device("cpu")
    made = build(planned, dataset)
    corpus = Corpus({"clip": torch.zeros(2, 128)}, [(), ()])
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    prepare(made, corpus, 7, device)
    first = made.mean.clone()  # type: ignore[attr-defined]
    assert torch.equal(torch.rand(2), expected)
    prepare(made, corpus, 7, device)
    assert torch.equal(made.mean, first)  # type: ignore[attr-defined]
    prepare(made, corpus, 8, device)
    assert not torch.equal(made.mean, first)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("body", "message"), [
    ("corpus.images['clip'].sub_(1)", r"mine.py, line \d+, in prepare: .*changed the features of the input 'clip'"),
    ("torch.set_default_dtype(torch.float64)", "in prepare: it changed .*dtype"),
    ("corpus.labels", "mine.py, line .*labels"),
])
def test_a_broken_prepare_is_one_message(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(CirbenchError, match=message):
        execution.run(over(method(tmp_path, body), tmp_path), execution.Options(tmp_path / "runs", "cpu"))
    with pytest.raises(MethodError, match="prepare"):
        (tmp_path / "mine.py").write_text(CENTRED.format("pass").replace("def prepare(self, corpus):\n        pass", "prepare = 3"))
        execution.run(over(str(tmp_path / "mine.py"), tmp_path), execution.Options(tmp_path / "runs", "cpu"))


@pytest.mark.parametrize(("body", "check", "message"), [
    ("self.shift = float(corpus.images['clip'].mean())", "weights survive saving", "other embeddings"),
    ("self.mean.fill_(random.random())", "same seed, same ranking", "different rankings"),
    ("self.mean = torch.zeros(3, len(self.mean))", "weights survive saving", "do not match"),
    ("self.mean.copy_(corpus.images['clip'].mean(0))", "weights survive saving", ""),
])
def test_the_contract_finds_a_broken_prepare(tmp_path: Path, body: str, check: str, message: str) -> None:
    subject = contract.Subject(method(tmp_path, body))
    problem = contract._problem(contract.CHECKS[check], subject)
    assert message in problem and bool(problem) == bool(message)


def test_the_printed_prepare_keeps_the_contract(tmp_path: Path) -> None:
    """docs/add-a-method.md, with the parts that are printed elsewhere around it."""
    page = (ROOT / "docs/add-a-method.md").read_text(encoding="utf-8")
    printed = next(text for text in re.findall(r"```python\n(.*?)```", page, re.S) if "def prepare" in text)
    head, _, tail = CENTRED.format("pass").partition("class Mine(nn.Module):\n")
    queries = '    def encode_queries(self, batch):\n        return batch.reference["clip"] - self.mean\n'
    build = tail[tail.index("\ndef build") :].replace("clip(config.clip)", "clip(config.clip), train.captions")
    (tmp_path / "printed.py").write_text(f"{head}class Mine(nn.Module):\n{printed}\n{queries}{build}")
    assert exit_code("check", str(tmp_path / "printed.py")) == 0


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(("written", "message"), [
    (None, "train.captions: .*no such file.*one caption a line"),
    (b"\n \n", "is empty"),
    (b"\xff\x00\xfe", "UTF-8"),
    (b"", "empty"),
])
def test_a_file_that_holds_no_captions(tmp_path: Path, written: bytes | None, message: str) -> None:
    path = tmp_path / "captions.txt"
    if written is not None:
        path.write_bytes(written)
    with pytest.raises(CirbenchError, match=message) as told:
        caption_lines(str(path))
    assert "Fetch it again" not in str(told.value)


def test_a_folder_that_holds_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(CirbenchError, match="holds no picture"):
        picture_folder(str(tmp_path))
    with pytest.raises(CirbenchError, match=f"no such folder; the nearest that exists is {tmp_path}"):
        picture_folder(str(tmp_path / "pictures"))


@pytest.mark.parametrize(("name", "field", "message"), [
    ("sum", "captions", "the method sum reads no captions"), ("lincir", "pictures", "lincir never looks at pictures"),
])
def test_what_no_method_would_read_is_refused(tmp_path: Path, name: str, field: str, message: str) -> None:
    (tmp_path / "captions").write_text("a shoe\n")
    own_data.folder(tmp_path / "data")
    value = tmp_path / ("captions" if field == "captions" else "data/images")
    with pytest.raises(CirbenchError, match=message):
        tiny.run(name, tmp_path / "runs", **{f"train__{field}": str(value)})
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("name", ["lincir", "searle", "basic"])
def test_a_corpus_without_captions_is_one_message(tmp_path: Path, name: str) -> None:
    planned = tiny.plan(name)
    bare = replace(planning.load(planned), captions={})
    with pytest.raises(CirbenchError, match=f"{name} .*captions, and this dataset has none.*train.captions="):
        build(planned, bare)


@pytest.mark.parametrize("name", ["searle", "basic"])
def test_a_corpus_without_pictures_is_one_message(name: str) -> None:
    planned = tiny.plan(name)
    made = build(planned, planning.load(planned))
    with pytest.raises(CirbenchError, match=r"fewer than two.*train\.pictures=DIR"):
        prepare(made, Corpus({"clip": torch.zeros(0, 128)}, []), 0, torch.device("cpu"))


def test_a_missing_training_picture_is_settled_where_a_method_prepares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without training, too."""
    root, name = own_data.folder(tmp_path / "data"), method(tmp_path, "self.mean.copy_(corpus.images['clip'].mean(0))")
    (root / "images/t3.jpg").write_bytes((root / "images/t3.jpg").read_bytes()[:300])  # missing, once it is decoded

    def run(*rest: str) -> tuple[int, str]:
        args = ("-d", "custom", "--root", str(root), "--out", str(tmp_path / "runs"), "--quiet", "--set")
        code = exit_code("run", "-m", *rest, *args, "method.clip=scenes-small")
        return code, capsys.readouterr().err

    code, said = run(name)
    assert code == 2 and "t3.jpg" in said
    assert run(name, "--allow-missing") == (0, "")

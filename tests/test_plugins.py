"""Loose files and other people's packages work wherever a built-in method does; the contract finds what is broken."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import exit_code

from cirbench import plugins
from cirbench.runs import contract
from cirbench.types import CirbenchError

TINY = ["--set", "data.train_scenes=48", "--set", "data.select_scenes=8", "--set", "data.report_scenes=12",
        "--set", "data.distractors=12", "--set", "method.clip=scenes-small", "--set", "train.epochs=1",
        "--set", "train.batch_size=32", "--set", "method.dim=16", "--quiet", "--device", "cpu"]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A method file as `new-method` writes it, in the current folder."""
    monkeypatch.chdir(tmp_path)
    assert exit_code("new-method", "my-idea") == 0
    return tmp_path / "my_idea.py"


def test_new_method_works_as_written(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("check", "./my_idea.py", "--all-variants") == 0
    out = capsys.readouterr().out
    assert "14 of 14 checks pass" in out and "broken" not in out
    text = mine.read_text()
    assert "class MyIdea(nn.Module)" in text and "NAME" not in text and "Template" not in text


def test_printed_files_keep_the_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/add-a-method.md: the composition as printed; and the printed parts of a CNN with words, put together."""
    page = (Path(__file__).parents[1] / "docs" / "add-a-method.md").read_text(encoding="utf-8")
    printed = re.findall(r"```python\n(.*?)```", page, re.S)
    parts, whole = (next(text for text in printed if part in text) for part in ("encoders.lstm(", "class Config("))
    (tmp_path / "product.py").write_text(whole)
    assert exit_code("check", str(tmp_path / "product.py")) == 0, capsys.readouterr().out
    build, _, module = parts.partition("class Mine")
    (tmp_path / "words.py").write_text(
        "from cirbench.settings import Field, Settings\n\n"
        "class Config(Settings):\n"
        "    cnn: str = Field('scenes-cnn', description='CNN')\n"
        "    cnn_size: int = Field(48, description='side')\n"
        "    word_dim: int = Field(8, description='of a word')\n"
        "    dim: int = Field(16, description='D')\n\n"
        "VARIANTS, TRAIN, DATASETS = {}, {'epochs': 1}, {}\n\n"
        "import torch\nfrom torch import nn\nfrom cirbench.models.lstm_text import build_vocabulary\n"
        "from cirbench.models.layers import adam, contrastive, hard_labels, l2norm\nfrom cirbench.types import Inputs\n\n"
        + build + "class Mine" + module.replace("        self.inputs", "        self.fc = nn.Linear(cnn.info.channels, 16)\n"
                                               "        self.inputs") +
        "\n    def encode_images(self, images):\n        return l2norm(self.fc(self.cnn(images['cnn']).mean((2, 3))))\n"
        "\n    def encode_queries(self, batch):\n        states, mask = self.words(batch.words)\n"
        "        text = (states * mask[:, :, None]).sum(1)\n"
        "        return l2norm(self.encode_images(batch.reference) + text)\n"
        "\n    def losses(self, batch):\n        labels = hard_labels(batch.positives)\n"
        "        loss = contrastive(self.encode_queries(batch), self.encode_images(batch.target), labels, 0.1)\n"
        "        yield 'all', loss, {}\n"
        "\n    def optimizers(self):\n        return {'all': adam(self.parameters(), 1e-3, 0.0)}\n"
    )
    assert exit_code("check", str(tmp_path / "words.py")) == 0, capsys.readouterr().out


def test_printed_training_keeps_the_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/add-a-method.md: `start_epoch`, and the settings with an average and cuts, around a CNN."""
    page = (Path(__file__).parents[1] / "docs" / "add-a-method.md").read_text(encoding="utf-8")
    printed = re.findall(r"```python\n(.*?)```", page, re.S)
    hook, settings = (next(text for text in printed if part in text) for part in ("def start_epoch(", '"ema": 0.9999'))
    (tmp_path / "staged.py").write_text(
        "import dataclasses\nimport torch\nfrom torch import nn\n\n"
        "from cirbench.models.layers import adam, contrastive, hard_labels, l2norm\n"
        "from cirbench.settings import Field, Settings\nfrom cirbench.types import Inputs\n\n"
        "class Config(Settings):\n"
        "    cnn: str = Field('scenes-cnn', description='CNN')\n"
        "    lr: float = Field(1e-3, description='rate')\n"
        "    weight_decay: float = Field(0.0, description='decay')\n\n"
        "VARIANTS, DATASETS = {}, {}\n\n" + settings + "\n"
        "def build(config, encoders, train, state=None):\n    return Mine(encoders.cnn(config.cnn, 48), config)\n\n"
        "class Mine(nn.Module):\n    def __init__(self, cnn, config):\n        super().__init__()\n"
        "        self.config, self.cnn, self.fc = config, cnn, nn.Linear(cnn.info.channels, 16)\n"
        "        pixels = dataclasses.replace(cnn.info.pixels, stored=56, resize='pad', pad='white')\n"
        "        self.inputs = Inputs(images={'cnn': pixels})\n"
        "\n    def encode_images(self, images):\n        return l2norm(self.fc(self.cnn(images['cnn']).mean((2, 3))))\n"
        "\n    def encode_queries(self, batch):\n        return self.encode_images(batch.reference)\n"
        "\n    def losses(self, batch):\n        labels = hard_labels(batch.positives)\n"
        "        loss = contrastive(self.encode_queries(batch), self.encode_images(batch.target), labels, 0.1)\n"
        "        yield 'all', loss, {}\n\n" + hook
    )
    assert exit_code("check", str(tmp_path / "staged.py")) == 0, capsys.readouterr().out
    run = ("run", "-m", str(tmp_path / "staged.py"), "-d", "scenes", "--out", str(tmp_path / "runs"), "--quiet",
           "--set", "train.epochs=3", "--set", "data.train_scenes=48", "--set", "data.report_scenes=12")
    assert exit_code(*run) == 0, capsys.readouterr().err


def test_printed_levels_and_words_keep_the_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/add-a-method.md: maps at several depths, and words that start from a file of vectors."""
    page = (Path(__file__).parents[1] / "docs" / "add-a-method.md").read_text(encoding="utf-8")
    printed = next(t for t in re.findall(r"```python\n(.*?)```", page, re.S) if "encoders.cnn_levels(" in t)
    field, build, rest = printed.partition("def build")
    (tmp_path / "glove.txt").write_text("red 1 2 3 4 5 6 7 8\nblue 8 7 6 5 4 3 2 1\n")
    field = field.replace('""', repr(str(tmp_path / "glove.txt")))
    (tmp_path / "levels.py").write_text(
        "import torch\nfrom torch import nn\n"
        "from cirbench.models.layers import adam, contrastive, hard_labels, l2norm\n"
        "from cirbench.models.lstm_text import build_vocabulary\nfrom cirbench.settings import Field, Settings\n"
        "from cirbench.types import Inputs\n\n"
        "class Config(Settings):\n"
        "    cnn: str = Field('scenes-cnn', description='CNN')\n"
        "    cnn_size: int = Field(48, description='side')\n"
        "    word_dim: int = Field(8, description='of a word')\n"
        "    dim: int = Field(48, description='D')\n"
        f"{field}\nVARIANTS, TRAIN, DATASETS = {{}}, {{'epochs': 1}}, {{}}\n\n{build}{rest}"
        "\n    def encode_queries(self, batch):\n"
        "        return l2norm(self.encode_images(batch.reference) + self.text(batch))\n"
        "\n    def losses(self, batch):\n        labels = hard_labels(batch.positives)\n"
        "        loss = contrastive(self.encode_queries(batch), self.encode_images(batch.target), labels, 0.1)\n"
        "        yield 'all', loss, {}\n"
        "\n    def optimizers(self):\n        return {'all': adam(self.parameters(), 1e-3, 0.0)}\n"
        "\n    def extra_state(self):\n        return {'vocabulary': self.words.vocabulary}\n"
    )
    assert exit_code("check", str(tmp_path / "levels.py")) == 0, capsys.readouterr().out


@pytest.mark.parametrize(("name", "said"), [
    ("dwc", "already"), ("9lives", "9lives"), ("class", "class"), ("my idea", "my-idea"), ("my-idea", "exists"),
])
def test_new_method_refuses(name: str, said: str, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = mine.read_text()
    assert exit_code("new-method", name) == 2
    assert said in capsys.readouterr().err and mine.read_text() == before


def test_loose_file_runs_and_is_found_again(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("run", "-m", "./my_idea.py", "-d", "scenes", "--out", "runs", *TINY) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    record = json.loads((folder / "record.json").read_text())
    assert record["method_path"] == str(mine) and "method_path" not in record["inputs"]
    assert record["inputs"]["method"] == "my-idea"
    # From another folder: the file is found by the record, and gives the same figures.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert exit_code("eval", str(folder), "--out", "evals", "--quiet", "--device", "cpu") == 0
    (again,) = (tmp_path / "elsewhere" / "evals").iterdir()
    evaluated = json.loads((again / "record.json").read_text())
    assert evaluated["protocols"] == record["protocols"] and evaluated["method_path"] == str(mine)
    # Where the file lies is no part of the run.
    moved = tmp_path / "elsewhere" / "my_idea.py"
    shutil.move(mine, moved)
    capsys.readouterr()
    assert exit_code("run", "-m", str(moved), "-d", "scenes", "--out", str(tmp_path / "runs"), *TINY) == 0
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [folder.name]
    assert exit_code("eval", str(folder), "--out", "evals2", "--quiet") == 2
    assert "my_idea.py" in capsys.readouterr().err


def test_sweep_list_and_report_take_a_loose_file_and_a_package(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "width.toml").write_text("""
question = "Mine or theirs?"
dataset = "scenes"
seeds = [0]
[objective]
protocol = "scenes"
metric = "R@1"
[fixed]
"data.train_scenes" = 48
"data.select_scenes" = 8
"data.report_scenes" = 12
"data.distractors" = 12
"method.clip" = "scenes-small"
"method.dim" = 16
"train.epochs" = 1
"train.batch_size" = 32
[[arms]]
label = "a loose file"
method = "./my_idea.py"
points = [{ "method.hidden" = 16 }]
[[arms]]
label = "a package"
method = "their-idea"
points = [{ "method.hidden" = 16 }]
""")
    assert exit_code("sweep", "./width.toml", "--quiet", "--device", "cpu") == 0
    names = {json.loads(p.read_text())["inputs"]["method"] for p in (tmp_path / "runs").glob("*/record.json")}
    assert names == {"my-idea", "their-idea"}
    assert exit_code("list", "variants", "-m", "./my_idea.py") == 0
    assert "narrow" in capsys.readouterr().out
    assert exit_code("report", "runs", "-o", "report.html") == 0
    page = (tmp_path / "report.html").read_text()
    assert "my-idea" in page and "their-idea" in page


@pytest.fixture
def package(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package `their_package` with an entry point of the group `cirbench.methods`."""
    site = tmp_path / "site"
    (site / "their_package").mkdir(parents=True)
    (site / "their_package" / "__init__.py").touch()
    shutil.copy(mine, site / "their_package" / "idea.py")
    info = site / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cirbench.methods]\ntheir-idea = their_package.idea\n")
    monkeypatch.syspath_prepend(str(site))
    return site


def test_method_of_another_package(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("list", "methods") == 0
    assert "their-idea" in capsys.readouterr().out
    assert exit_code("list", "variants", "-m", "their-idea") == 0
    assert "narrow" in capsys.readouterr().out
    assert exit_code("check", "their-idea", "--variant", "narrow") == 0
    assert exit_code("run", "-m", "their-idea", "--variant", "narrow", "-d", "scenes", "--out", "runs", *TINY) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    record = json.loads((folder / "record.json").read_text())
    assert record["inputs"]["method"] == "their-idea" and "method_path" not in record
    assert exit_code("eval", str(folder), "--out", "evals", "--quiet", "--device", "cpu") == 0
    (again,) = (tmp_path / "evals").iterdir()
    assert json.loads((again / "record.json").read_text())["protocols"] == record["protocols"]
    capsys.readouterr()
    assert exit_code("run", "-m", "their-idee", "-d", "scenes") == 2
    assert "Did you mean 'their-idea'?" in capsys.readouterr().err


#: What is wrong with the module of an entry point, its value, and what `list` says of it.
ENTRIES = [
    ("a module that is not there", "their_package.nothing", "", "their_package.nothing, which is not installed"),
    ("a package that is not there", "no_package.idea", "", "no_package.idea, which fails when imported: ModuleNotFoundError"),
    ("a package that fails", "bad_package.idea", "raise RuntimeError('broken')", "RuntimeError: broken"),
    ("a package that exits", "bad_package.idea", "raise SystemExit(0)", "it called sys.exit(0)"),
    ("a module that is no method", "bad_package", "x = 1", "no class Config(Settings)"),
    ("a module with a syntax error", "bad_package", "def", "not valid Python"),
    ("a module of C", "math", "", "not installed as a .py file"),
    ("a package that moves", "bad_package.idea", "import os; os.chdir('/')", "bad_package.idea, which is not installed"),
]


@pytest.mark.parametrize(("value", "source", "said"), [e[1:] for e in ENTRIES], ids=[e[0] for e in ENTRIES])
def test_a_broken_package_does_not_hide_the_others(
    value: str, source: str, said: str, package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for loaded in ("bad_package", "bad_package.idea"):
        monkeypatch.delitem(sys.modules, loaded, raising=False)
    (package / "bad_package").mkdir()
    (package / "bad_package" / "__init__.py").write_text(source)
    entries = next(package.glob("*.dist-info")) / "entry_points.txt"
    entries.write_text(f"{entries.read_text()}poor-idea = {value}\n")
    for what in ("methods", "variants"):
        assert exit_code("list", what) == 0
        out = capsys.readouterr().out
        assert "dwc" in out and "their-idea" in out
        (line,) = [line for line in out.splitlines() if line.startswith("poor-idea")]
        assert "broken: " in line and said in line, line
    assert exit_code("list", "methods", "--json") == 0
    assert any(row["name"] == "poor-idea" and said in row["summary"] for row in json.loads(capsys.readouterr().out))
    for words in (["list", "datasets"], ["list", "sweeps"], ["check", "./my_idea.py", "--variant", "short"]):
        assert exit_code(*words) == 0, capsys.readouterr().out
        capsys.readouterr()
    for words in (["run", "-m", "poor-idea", "-d", "scenes"], ["check", "poor-idea"]):
        assert exit_code(*words) == 2
        assert said in (told := capsys.readouterr().err) and "Traceback" not in told


def test_two_methods_of_one_name(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(package / "their_package" / "idea.py", package / "other_idea.py")
    other = package / "other-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[cirbench.methods]\ntheir-idea = other_idea\ndwc = other_idea\n")
    assert exit_code("list", "methods") == 0
    out = capsys.readouterr().out
    assert re.search(r"their-idea +broken: .*several installed packages: .*other_idea", out)
    assert re.search(r"dwc +broken: other_idea, of an installed package, has a built-in method's name", out)
    assert exit_code("run", "-m", "their-idea", "-d", "scenes") == 2
    assert "several installed packages" in capsys.readouterr().err
    assert exit_code("run", "-m", "other_idea.py", "-d", "scenes") == 2
    assert "no method file at other_idea.py" in capsys.readouterr().err


def test_a_method_has_one_spelling(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under another spelling a run would be another run: its name is part of the id."""
    entries = next(package.glob("*.dist-info")) / "entry_points.txt"
    entries.write_text(f"{entries.read_text()}text_only = their_package.idea\n")
    for given, meant in (
        ("image_only", "image-only"), ("text_only", "text-only"), ("their_idea", "their-idea"), ("DWC", "dwc"),
    ):
        for words in (["run", "-m", given, "-d", "scenes"], ["check", given], ["list", "variants", "-m", given],
                      ["sweep", "noise", "-m", given]):
            assert exit_code(*words) == 2, words
            assert f"Did you mean {meant!r}?" in capsys.readouterr().err, words
    assert exit_code("list", "methods") == 0
    assert re.search("text_only +broken: their_package.idea, of an installed package", capsys.readouterr().out)
    for words, meant in (
        (["run", "-m", "sum", "-d", "Scenes"], "scenes"), (["run", "-m", "sum", "-d", "fashion-iq"], "fashioniq"),
        (["sweep", "batch_size"], "batch-size"), (["sweep", "zero_shot"], "zero-shot"), (["new_method", "x"], "new-method"),
        (["run", "-m", "dwc", "-d", "scenes", "--variant", "no_emd"], "no-emd"),
        (["run", "-m", "dwc", "-d", "scenes", "--backbone", "scenes_small"], "scenes-small"),
        (["run", "-m", "dwc", "-d", "scenes", "--backbone", "ViT-B-32:laion2b-s34b-b79k"], "laion2b_s34b_b79k"),
    ):
        assert exit_code(*words) == 2, words
        assert f"Did you mean {meant!r}?" in capsys.readouterr().err, words


def test_the_path_of_a_built_in_file_is_the_built_in_one(tmp_path: Path) -> None:
    for name in ("image-only", "dwc"):
        found = plugins.find_method(name)
        assert plugins.find_method(str(found.path)) is found and found.module
        copy = shutil.copy(found.path, tmp_path)
        assert not plugins.find_method(str(copy)).module
    module = plugins.find_dataset("scenes")
    assert plugins.find_dataset(str(module.__file__)) is module


def _break(before: str, after: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert before in text
        return text.replace(before, after)

    return change


BROKEN = [
    ("an idle field named like an attribute", _break("    lr: float =", "    weight: float = Field(1.0, description=\"of "
     "nothing\")\n    lr: float ="), "every field", "weight"),
    ("batch size", _break("return l2norm(image +", "return len(batch.words) * l2norm(image +"), "embeddings",
     "a query's embedding depends on the other queries of its batch"),
    ("place in the gallery", _break("        image = self.encode_images(batch.reference)\n",
     "        image = l2norm(self.image_fc(l2norm(batch.reference[\"clip\"])))\n"), "embeddings",
     "an image's embedding depends on the other images of its batch"),
    ("a secret network", _break("    return MyIdea(", "    try:\n        import socket\n"
     "        socket.create_connection((\"192.0.2.1\", 80), 1)\n    except OSError:\n        pass\n    return MyIdea("),
     "losses fall", "192.0.2.1"),
    ("an idle field", _break("nn.Dropout(config.dropout)", "nn.Dropout(0.1)"), "every field", "dropout"),
    ("an impossible variant", _break('{"hidden": 64}', '{"hiden": 64}'), "variants", "hiden"),
    ("two widths", _break("return l2norm(image + self.edit", "return torch.cat([image, image], 1)\n        (image + "
                          "self.edit"), "embeddings", "needs equal D"),
    ("company", _break("l2norm(self.image_fc(l2norm(images[\"clip\"])))",
                       "l2norm(self.image_fc(images[\"clip\"]) - self.image_fc(images[\"clip\"]).mean(0))"),
     "embeddings", "of its batch"),
    ("not finite", _break("return l2norm(image +", "return l2norm(image / 0 +"), "embeddings", "NaN"),
    ("chance", _break("return l2norm(image +", "chance = torch.Generator().manual_seed(__import__('time').time_ns())\n"
                      "        return l2norm(9 * torch.randn(image.shape, generator=chance) +"),
     "same seed", "different rankings"),
    ("rising loss", _break("adam(self.parameters(), self.config.lr, self.config.weight_decay)",
                           "torch.optim.SGD(self.parameters(), 0.1, maximize=True)"), "losses fall", "does not fall"),
    ("no optimizer", _break("yield \"all\", loss, ", "yield \"al\", loss, "), "losses fall", "'al'"),
    ("a network", _break("    return MyIdea(", "    __import__('urllib.request').request.urlopen('http://192.0.2.1/')\n"
                         "    return MyIdea("), "embeddings", "network"),
    ("half a contrast", _break("    def optimizers(self)", "    def contrasts(self, batch):\n        q = self.encode_queries("
     "batch)[:2]\n        return {'all': (q, self.encode_images(batch.target), 0.07)}\n\n    def optimizers(self)"),
     "embeddings", "contrasts returned shapes (2, 256)"),
    ("a score of another shape", _break("    def optimizers(self)", "    def score(self, queries, gallery):\n        "
     "return gallery @ queries.T\n\n    def optimizers(self)"), "embeddings", "one row per query"),
    ("a score that sees the gallery", _break("    def optimizers(self)", "    def score(self, queries, gallery):\n        "
     "s = queries @ gallery.T\n        return (s - s.mean(1, keepdim=True)) / s.std(1, keepdim=True)\n\n    "
     "def optimizers(self)"), "embeddings", "other gallery images"),
    ("what is not saved", _break("        self.edit = nn.Sequential(",
                                 "        self.secret = [torch.randn(config.dim) * __import__('time').time_ns() % 7]\n"
                                 "        self.edit = nn.Sequential("), "weights survive", "other"),
]


@pytest.mark.parametrize(("what", "change", "check", "said"), BROKEN, ids=[b[0] for b in BROKEN])
def test_the_contract_finds(what: str, change: Callable[[str], str], check: str, said: str, mine: Path) -> None:
    text = change(mine.read_text())
    if what == "what is not saved":
        text = text.replace("self.image_fc(l2norm(images[\"clip\"])))", "self.image_fc(l2norm(images[\"clip\"])) + "
                            "self.secret[0])")
    if what == "place in the gallery":
        text = text.replace("return l2norm(self.image_fc(l2norm(images[\"clip\"])))", "return l2norm(self.image_fc("
                            "l2norm(images[\"clip\"])) + torch.arange(len(images[\"clip\"]))[:, None])")
    mine.write_text(text)
    (name,) = [n for n in contract.CHECKS if n.startswith(check)]
    problem = contract._problem(contract.CHECKS[name], contract.Subject(str(mine)))
    assert said in problem, problem
    assert exit_code("check", str(mine)) == 1


def test_a_file_that_imports_a_moved_module_is_told_where_it_is(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine.write_text(mine.read_text().replace("from cirbench.models.layers import", "from cirbench.layers import"))
    assert exit_code("check", str(mine)) in (1, 2)
    captured = capsys.readouterr()
    assert "It is cirbench.models.layers now." in captured.out + captured.err


def test_two_helpers_of_one_name_are_refused(mine: Path, tmp_path: Path) -> None:
    """One of them would silently stand for the other."""
    paths = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same_helper.py").write_text("SHIFT = 1\n")
        future = "from __future__ import annotations\n"
        (tmp_path / folder / "idea.py").write_text(mine.read_text().replace(future, f"{future}import same_helper\n", 1))
        paths.append(tmp_path / folder / "idea.py")
    plugins.import_path(paths[0])
    with pytest.raises(CirbenchError, match="already imported under that name"):
        plugins.import_path(paths[1])

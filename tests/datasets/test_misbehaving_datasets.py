"""Dataset files of somebody else that misbehave: one message that names the file and the first thing that is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch  # noqa: F401  its state is looked at as well
from commands import exit_code

from cirbench import process

pytestmark = pytest.mark.usefixtures("ctrl_c")

FILE = '''"""Colours."""

import PIL.Image

from cirbench.settings import Settings
from cirbench.types import Dataset, DatasetSpec, Protocol, Query, Split

SPEC = DatasetSpec("colours", "Colours", (Protocol("colours", ("R@1", "R@5")),), needs_root=False)
IDS = tuple(f"i{n}" for n in range(12))


class Knobs(Settings):
    """None."""


class Images:
    def open(self, image_id):
        return PIL.Image.new("RGB", (40, 30), (20 * IDS.index(image_id), 90, 200))

    def fingerprint(self, image_ids):
        return "colours"


def forms(query):
    return [list(query.texts)]


def queries(role):
    return tuple(Query(f"{role}{n}", IDS[n], (f"more {n}",), (IDS[n + 1],)) for n in range(8))


def load(knobs, root=None):
    splits = {role: Split(role, queries(role), {"all": {"": IDS}}) for role in ("train", "select", "report")}
    protocols = SPEC.protocols
    return Dataset("colours", splits, Images(), protocols, "abc", forms={"text": forms})
'''
QUERY = 'Query(f"{role}{n}", IDS[n], (f"more {n}",), (IDS[n + 1],))'
QUERIES = f"    return tuple({QUERY} for n in range(8))\n"
GALLERY = '{"all": {"": IDS}}'
RETURN = '    return Dataset("colours", splits, Images(), protocols, "abc", forms={"text": forms})\n'
OPEN = '        return PIL.Image.new("RGB", (40, 30), (20 * IDS.index(image_id), 90, 200))\n'
FIRST = r"query 0 of the split 'train'"


def query(new: str) -> tuple[str, str]:
    return QUERY, new


def before(line: str) -> tuple[str, str]:
    return RETURN, f"    {line}\n{RETURN}"


def protocol(fields: str) -> tuple[str, str]:
    return "protocols = SPEC.protocols", f"protocols = ({fields},)"


#: What is wrong, the text, what replaces it, what the message says.
BAD = [
    ("an id that is null", *query('Query(None, IDS[n], ("x",), (IDS[1],))'), f"id of {FIRST} is NoneType None"),
    ("an id that is a list", *query('Query([n], IDS[n], ("x",), (IDS[1],))'), f"id of {FIRST} is list"),
    ("an id that is NaN", *query('Query(float("nan"), IDS[n], ("x",), (IDS[1],))'), f"id of {FIRST} is float nan"),
    ("an empty id", *query('Query("", IDS[n], ("x",), (IDS[1],))'), f"id of {FIRST} is str ''"),
    ("an id twice", *query('Query("a", IDS[n], ("x",), (IDS[1],))'), "id of query 1 of the split 'train' is str 'a'.*query 0 has it"),
    ("a reference that is a number", *query('Query(str(n), n, ("x",), (IDS[1],))'), f"reference of {FIRST} is int 0"),
    ("a caption that is a number", *query('Query(str(n), IDS[n], (1.5,), (IDS[1],))'), f"an entry of texts of {FIRST}.* is float 1.5"),
    ("a caption that is no tuple", *query('Query(str(n), IDS[n], "x", (IDS[1],))'), f"texts of {FIRST}.* is str 'x'"),
    ("a target that is null", *query('Query(str(n), IDS[n], ("x",), (None,))'), f"an entry of targets of {FIRST}.* is NoneType"),
    ("targets that are a text", *query('Query(str(n), IDS[n], ("x",), IDS[1])'), f"targets of {FIRST}.* is str 'i1'"),
    ("targets in no gallery", *query('Query(str(n), IDS[n], ("x",), ("elsewhere",))'),
     r"targets of query 0 of the split 'select'.* is tuple \('elsewhere',\); it must be in the gallery 'all'"),
    ("a group without a gallery", *query('Query(str(n), IDS[n], ("x",), (IDS[1],), 3)'), f"group of {FIRST}.* is int 3"),
    ("extra that is a list", *query('Query(str(n), IDS[n], ("x",), (IDS[1],), extra=[1])'), f"extra of {FIRST}.* is list"),
    ("a query that is a dict", *query('{"id": n}'), f"{FIRST} is dict .*must be a Query"),
    ("queries as a generator", QUERIES, f"    return ({QUERY} for n in range(8))\n", "queries of the split 'train' is generator"),
    ("no queries", QUERIES, "    return ()\n", "train split of colours is empty"),
    ("an empty gallery", GALLERY, '{"all": {"": ()}}', r"gallery 'all', group '' of the split 'train' is tuple \(\); .*at least one"),
    ("an image twice", GALLERY, '{"all": {"": IDS + IDS[:1]}}', "an image id of gallery 'all', group '' .* is str 'i0'.*only once"),
    ("a gallery that is an iterator", GALLERY, '{"all": {"": iter(IDS)}}', "gallery 'all', group '' .* is tuple_iterator"),
    ("a gallery without groups", GALLERY, '{"all": IDS}', "gallery 'all' of the split 'train' is tuple"),
    ("no gallery of the protocol", GALLERY, '{"other": {"": IDS}}', "the gallery of the protocol colours is str 'all'.*other"),
    ("galleries of other groups", GALLERY, '{"all": {"red": IDS}}', "group of query 0 of the split 'select'.*a gallery for colours"),
    ("a split that is a list", *before('splits["report"] = []'), "the split 'report' is list"),
    ("splits as a list", *before("splits = list(splits.values())"), "Dataset.splits is list"),
    ("no report split", *before('del splits["report"]'), "colours has no split 'report'.*train, select"),
    ("nothing loaded", RETURN, "    return None\n", "what `load` returned is NoneType None; it must be a Dataset"),
    ("a loader that yields", RETURN, "    yield 1\n", "what `load` returned is generator"),
    ("a loader that fails", *before("raise KeyError('x')"), r"fails in colours.py, line \d+, in load: KeyError: 'x'"),
    ("a loader that exits", *before("raise SystemExit(0)"), r"fails in colours.py, line \d+, in load: it called sys.exit\(0\)"),
    ("a loader that interrupts", *before("raise KeyboardInterrupt"), "in load: KeyboardInterrupt"),
    ("a loader of other arguments", "def load(knobs, root=None)", "def load()", "fails in colours.py, in load: TypeError"),
    ("a loader that moves", *before("import os; os.chdir('/')"), "in load: it changed the working folder"),
    ("a fingerprint that is null", RETURN, RETURN.replace('"abc"', "None"), "Dataset.fingerprint is NoneType"),
    ("notes that are a text", RETURN, RETURN.replace("forms=", "notes='x', forms="), "Dataset.notes is str"),
    ("no protocols", "protocols = SPEC.protocols", "protocols = ()", r"Dataset.protocols is tuple \(\)"),
    ("protocols as names", "protocols = SPEC.protocols", "protocols = ('colours',)", "an entry of Dataset.protocols is str"),
    ("an unknown metric", *protocol('Protocol("p", ("R@1", "P@5"))'), "protocol p of colours: 'P@5' is not a metric"),
    ("a metric that is a number", *protocol('Protocol("p", (1,))'), "protocol p of colours"),
    ("no metrics", *protocol('Protocol("p", ())'), "protocol p of colours has no metrics"),
    ("a summary that is no metric", *protocol('Protocol("p", ("R@1",), summary="R@5")'), "unknown summary of the protocol p"),
    ("an unknown hit rule", *protocol('Protocol("p", ("R@1",), hit="any")'), "unknown hit rule of the protocol p"),
    ("an unknown average", *protocol('Protocol("p", ("R@1",), average="mean")'), "unknown average of the protocol p"),
    ("an unknown text form", *protocol('Protocol("p", ("R@1",), form="ab")'), "text form of the protocol p is str 'ab'.*one of text"),
    ("a form that is no function", 'forms={"text": forms}', 'forms={"text": 3}', r"Dataset.forms\['text'\] is int 3"),
    ("a form that fails", "    return [list(query.texts)]\n", "    return [query.words]\n", r"forms\['text'\] of query 0 .* fails: AttributeError"),
    ("a form that gives a text", "    return [list(query.texts)]\n", "    return query.texts[0]\n", r"forms\['text'\] of query 0 .* is str"),
    ("a form that gives nothing", "    return [list(query.texts)]\n", "    return [[]]\n", "at least one text"),
    ("a form that gives numbers", "    return [list(query.texts)]\n", "    return [[1]]\n", "an entry of a row of .* is int 1"),
    ("an image that is missing", OPEN, '        return {}[image_id]\n', r"fails in colours.py, line \d+, in open: KeyError: 'i\d+'"),
    ("a picture that is none", OPEN, "        return None\n", r"colours.py: images.open\('i\d+'\) returned NoneType"),
    ("a grey picture", OPEN, '        return PIL.Image.new("L", (40, 30))\n', r"images.open\('i\d+'\) returned a picture of mode L"),
    ("pictures that are none", RETURN, RETURN.replace("Images()", "None"), "Dataset.images.open is NoneType"),
    ("pictures without a fingerprint", 'return "colours"', "return None", "images.fingerprint returned NoneType"),
    ("no knobs", "class Knobs(Settings):", "class Others(Settings):", r"no class Knobs\(Settings\)"),
    ("knobs of another kind", "class Knobs(Settings):", "class Knobs:", r"no class Knobs\(Settings\)"),
    ("no facts", "SPEC = DatasetSpec(", "FACTS = DatasetSpec(", "no SPEC"),
    ("facts with names as protocols", '(Protocol("colours", ("R@1", "R@5")),)', '("colours",)', "SPEC.protocols"),
    ("a loader that is no function", "def load(", "load = 3\ndef _load(", "no SPEC = .* and load"),
    ("a syntax error", "def load(", "def load((", "SyntaxError"),
    ("an exit when imported", "IDS = ", "raise SystemExit(0)\nIDS = ", r"it called sys.exit\(0\)"),
]


def run(file: Path, folder: Path) -> int:
    """On weights that no picture is cached for, so that every picture is opened."""
    return exit_code("run", "-m", "sum", "-d", str(file), "--out", str(folder / "runs"), "--quiet", "--variant", "clip-only",
                     "--set", "method.clip=scenes-small", "--set", "train.epochs=1", "--set", "train.batch_size=4")


@pytest.mark.parametrize(("name", "was", "new", "message"), BAD, ids=[row[0] for row in BAD])
def test_a_dataset_that_misbehaves_is_one_message(
    name: str, was: str, new: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CIRBENCH_CACHE", str(tmp_path / "cache"))
    assert was in FILE
    file = tmp_path / "colours.py"
    file.write_text(FILE.replace(was, new), encoding="utf-8")
    state = process.state()
    assert run(file, tmp_path) == 2
    said = capsys.readouterr().err
    assert said.startswith("cirbench: ") and "Traceback" not in said and len(said.splitlines()) == 1, said
    assert re.search(message, said) and "colours" in said, said
    assert not list(tmp_path.rglob("record.json")) and process.state() == state


def test_a_dataset_that_behaves_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "colours.py").write_text(FILE + "\nprint('read')\n", encoding="utf-8")
    assert run(tmp_path / "colours.py", tmp_path) == 0, capsys.readouterr().err
    assert exit_code("data", "check", str(tmp_path / "colours.py")) == 0


@pytest.mark.parametrize("words", [["data", "check"], ["data", "ids"], ["protocols"], ["score", "--rankings", "x.json", "-d"]], ids=" ".join)
def test_other_commands_say_it_as_well(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = FILE.replace("IDS = ", "raise ValueError('no')\nIDS = ") if words == ["protocols"] else \
        FILE.replace(*before("raise ValueError('no')"))
    (tmp_path / "colours.py").write_text(source, encoding="utf-8")
    assert exit_code(*words, str(tmp_path / "colours.py")) == 2
    said = capsys.readouterr().err
    assert re.search(r"colours.py.*ValueError: no", said) and "Traceback" not in said, said

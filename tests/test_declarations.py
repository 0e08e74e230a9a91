"""What a method declares is read without importing what it computes with, wherever in its file it stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cirbench.plugins import MethodFile, find_method
from cirbench.types import CirbenchError

#: A module that tells when it is imported, for those that declarations do not need.
HEAVY = "heavy_module_of_this_test"
BUILD = "\n\ndef build(config, encoders, train, state=None):\n    return heavy.nn.Linear(config.dim, 1)\n"

ON_TOP = f'''"""Mine: on top."""

from __future__ import annotations

from typing import Any, Literal

import {HEAVY} as heavy

from cirbench.settings import Field, Settings


class Config(Settings):
    dim: int | None = Field(8, description="D")
    kind: Literal["a", "b"] = Field("a", description="of nothing")


VARIANTS: dict[str, dict[str, Any]] = {{"wide": {{"dim": 16}}}}
TRAIN = {{"epochs": 3}}
''' + BUILD


def read(folder: Path, source: str) -> MethodFile:
    (folder / "mine.py").write_text(source)
    return find_method(str(folder / "mine.py"))


@pytest.fixture
def heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that can be imported, and of which `sys.modules` tells whether it was."""
    (tmp_path / f"{HEAVY}.py").write_text("def rate():\n    return 0.5\n\n\nclass Tensor:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, HEAVY, raising=False)
    return HEAVY


def test_imports_stand_on_top(heavy: str, tmp_path: Path) -> None:
    found = read(tmp_path, ON_TOP)
    assert heavy not in sys.modules
    assert found.summary == "Mine: on top." and found.config(kind="b").model_dump() == {"dim": 8, "kind": "b"}
    assert found.variants == {"wide": {"dim": 16}} and found.train == {"epochs": 3} and found.datasets == {}


def test_torch_first_then_the_declarations_without_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(ON_TOP.replace(f"import {HEAVY} as heavy", "import torch as heavy"))
    code = (
        "import sys\nfrom cirbench.plugins import find_method\nfound = find_method(sys.argv[1])\n"
        "print(found.train, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "mine.py")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'epochs': 3} False"


@pytest.mark.parametrize("source", [
    # A helper function, and what it uses in turn, above and below.
    f"import math\nimport {HEAVY} as heavy\nfrom cirbench.settings import Field, Settings\n\nBASE = 2\n\n"
    "def widths(*powers):\n    return {f'w{p}': {'dim': int(math.pow(BASE, p + MORE))} for p in powers}\n\nMORE = 1\n\n"
    "class Config(Settings):\n    dim: int = Field(8, description='D')\n\nVARIANTS = widths(3)\n" + BUILD,
    # Aliases, and several names in one import.
    f"import {HEAVY} as heavy, math as m\nfrom cirbench.settings import Field as F, Settings as S\n"
    "from collections.abc import Mapping as Map\n\nclass Config(S):\n    dim: int = F(8, description='D')\n\n"
    "VARIANTS: Map[str, Map[str, int]] = {'w3': {'dim': int(m.pow(2, 4))}}\n" + BUILD,
    # Declarations below the functions, imports between.
    f"import {HEAVY} as heavy\n" + BUILD + "\nfrom cirbench.settings import Field, Settings\n\n"
    "class Config(Settings):\n    dim: int = Field(8, description='D')\n\nVARIANTS = {'w3': {'dim': 16}}\n",
    # Quoted annotations, a name that a heavy import and a field share, several declarations in one statement.
    f"from typing import Literal\nimport {HEAVY} as heavy\nfrom {HEAVY} import rate\n"
    "from cirbench.settings import Field, Settings\n\nclass Config(Settings):\n    dim: int = Field(8, description='D')\n"
    "    rate: 'Literal[1, 2]' = Field(1, description='a field')\n\nVARIANTS, TRAIN = {'w3': {'dim': 16}}, {}\n" + BUILD,
    # What is added to a declaration later.
    f"import {HEAVY} as heavy\nfrom cirbench.settings import Field, Settings\n\nclass Config(Settings):\n"
    "    dim: int = Field(8, description='D')\n\nVARIANTS = {}\nfor power in (3,):\n"
    "    VARIANTS[f'w{power}'] = {}\nVARIANTS['w3']['dim'] = 8\nVARIANTS['w3'].update(dim=16)\n" + BUILD,
], ids=["helper", "alias", "below", "quoted", "filled later"])
def test_what_declarations_use_comes_along(source: str, heavy: str, tmp_path: Path) -> None:
    found = read(tmp_path, source)
    assert heavy not in sys.modules
    assert found.variants == {"w3": {"dim": 16}} and found.config(**found.variants["w3"]).model_dump()["dim"] == 16


def test_config_alone_is_enough(heavy: str, tmp_path: Path) -> None:
    found = read(tmp_path, f"import {HEAVY} as heavy\nfrom cirbench.settings import Settings\n\nclass Config(Settings):\n    dim: int = 8\n" + BUILD)
    assert heavy not in sys.modules
    assert (found.variants, found.train, found.datasets, found.tune, found.summary) == ({}, {}, {}, {}, "")


@pytest.mark.parametrize("use", [
    "TRAIN = {'epochs': int(heavy.rate() * 4)}", "from heavy_module_of_this_test import *\nTRAIN = {'epochs': int(rate() * 4)}",
    "import os.path, json, email.utils\nif True:\n    TRAIN = {'epochs': int(heavy.rate() * 4)}",
], ids=["name", "star", "block"])
def test_a_heavier_import_is_made_where_declarations_need_it(use: str, heavy: str, tmp_path: Path) -> None:
    source = ON_TOP.replace("TRAIN = {\"epochs\": 3}", "").replace("\n\nclass Config", f"\n\n{use}\n\n\nclass Config")
    assert read(tmp_path, source).train == {"epochs": 2} and heavy in sys.modules


def test_what_is_broken_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(CirbenchError, match="line 3: not valid Python"):
        read(tmp_path, "import math\n\ndef (\n")
    with pytest.raises(CirbenchError, match=r"mine\.py fails when imported: ZeroDivisionError"):
        read(tmp_path, ON_TOP.replace("3}", "1 // 0}").replace(f"import {HEAVY} as heavy", ""))

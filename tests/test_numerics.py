"""What identifies code: every module that a run reaches counts, and nothing counts that computes nothing."""

from __future__ import annotations

import ast
import json
import shutil
import site
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tiny

from cirbench import numerics
from cirbench.numerics import Module, closure, digest, entry
from cirbench.runs import identity, planning
from cirbench.settings import Field, Settings
from cirbench.types import CirbenchError

ROOT = Path(__file__).parent.parent


def write(folder: Path, **files: str) -> Path:
    """Python files in a folder; the first one's path."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text), encoding="utf-8")
    return folder / f"{next(iter(files))}.py"


def of(path: Path) -> str:
    return digest(closure(entry(path)))


MAIN = """
    import math
    import torch.nn.functional as F
    import helper
    from helper import half as smaller

    LIMIT = 3

    class Thing:
        def value(self, x: float) -> float:
            if x < 0:
                raise ValueError("below zero")
            return smaller(x) + helper.SHIFT + math.sqrt(LIMIT)

    def build(x):
        return F.relu(Thing().value(x))
"""
HELPER = """
    SHIFT = 1

    def half(x):
        return x / 2
"""


@pytest.fixture
def base(tmp_path: Path) -> str:
    return of(write(tmp_path / "base", main=MAIN, helper=HELPER))


@pytest.mark.parametrize(("main", "helper"), [
    ((("LIMIT = 3", "LIMIT = 4"),), ()),
    ((("x < 0", "x <= 0"),), ()),
    ((("F.relu", "F.gelu"),), ()),
    ((("math.sqrt", "math.exp"),), ()),
    ((("torch.nn.functional as F", "torch as F"),), ()),
    ((("import half as smaller", "import half as smaller, twice"), ("smaller(x)", "twice(x)")), ()),
    ((("+ helper.SHIFT", "- helper.SHIFT"),), ()),
    ((), (("SHIFT = 1", "SHIFT = 2"),)),
    ((), (("x / 2", "x / 3"),)),
], ids=str)
def test_what_computes_something_counts(
    main: tuple[tuple[str, str], ...], helper: tuple[tuple[str, str], ...], base: str, tmp_path: Path
) -> None:
    a, b = MAIN, HELPER + "\n\n    def twice(x):\n        return x * 2\n" if "twice" in str(main) else HELPER
    for was, new in main:
        assert was in a
        a = a.replace(was, new)
    for was, new in helper:
        assert was in b
        b = b.replace(was, new)
    assert of(write(tmp_path / "other", main=a, helper=b)) != base


@pytest.mark.parametrize(("place", "counts"), [
    ("other/lib/python3.11/site-packages", False), ("other/dist-packages", False), ("target", False), ("project/src", True),
    ("linked", False),
])
def test_packages_that_a_pth_file_joins_are_installed_ones(
    place: str, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of torch in another environment each of its thousands of files would be read and digested."""
    folder, name = tmp_path / place, f"joined_{place.replace('/', '_').replace('.', '_').replace('-', '_')}"
    store = tmp_path / "store/archive"
    for home in (folder, store):
        home.mkdir(parents=True)
    if place == "target":  # of `pip install --target`
        (folder / "anything-1.0.dist-info").mkdir()
    if place == "linked":  # every file of the package links to a store that holds its metadata as well
        (store / "anything-1.0.dist-info").mkdir()
    write((store if place == "linked" else folder) / name, __init__="from . import deep\n", deep="HALF = 2\n")
    write(store if place == "linked" else folder, **{f"{name}_alone": "HALF = 2\n"})
    if place == "linked":
        (folder / name).symlink_to(store / name)
        (folder / f"{name}_alone.py").symlink_to(store / f"{name}_alone.py")
    environment = tmp_path / "environment"
    environment.mkdir()
    (environment / "joins.pth").write_text(f"{folder}\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    site.addsitedir(str(environment))
    assert str(folder) in sys.path
    main = write(tmp_path / "mine", main=f"import helper\nfrom {name} import deep\nimport {name}_alone as alone\n", helper="A = 1\n")
    named = {name, f"{name}.deep", f"{name}_alone"} if counts else set()
    assert set(closure(entry(main))) == {"", "helper", *named}


def test_exchanged_helpers_count(tmp_path: Path) -> None:
    """The same definitions, another one of them called."""
    two = "def half(x):\n    return x / 2\n\n\ndef third(x):\n    return x / 3\n"
    one = "from helper import half, third\n\ndef build(x):\n    return {}(x)\n"
    first = of(write(tmp_path / "a", main=one.format("half"), helper=two))
    assert of(write(tmp_path / "b", main=one.format("third"), helper=two)) != first
    through = "from helper import third as half, half as third\n\ndef build(x):\n    return half(x)\n"
    assert of(write(tmp_path / "c", main=through, helper=two)) != first


@pytest.mark.parametrize("change", [
    lambda a, b: (a.replace("LIMIT = 3", "LIMIT = 3  # three"), b),
    lambda a, b: (a.replace("class Thing:", 'class Thing:\n        """A docstring."""\n'), b),
    lambda a, b: ('"""Of the module."""\n' + textwrap.dedent(a), textwrap.dedent(b)),
    lambda a, b: (a.replace("x: float) -> float", "x)"), b),
    lambda a, b: (a.replace("below zero", "must be >= 0"), b),
    lambda a, b: (a.replace("Thing", "Other").replace("LIMIT", "MOST"), b),
    lambda a, b: (a.replace("half as smaller", "half").replace("smaller(", "half("), b),
    lambda a, b: (a.replace("import half as smaller", "import less as smaller"), b.replace("half", "less")),
    lambda a, b: (a.replace("import torch.nn.functional as F", "from torch.nn.functional import relu").replace(
        "F.relu", "relu"), b),
    lambda a, b: (a.replace("import math\n", "import math\n    import json\n"), b),
    lambda a, b: (a.replace("    from helper import half as smaller\n", "").replace(
        "            return smaller", "            from helper import half as smaller\n            return smaller"), b),
], ids=range(11))
def test_what_computes_nothing_does_not_count(change, base: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    a, b = change(MAIN, HELPER)
    assert (a, b) != (MAIN, HELPER)
    assert of(write(tmp_path / "other", main=a, helper=b)) == base


def test_moved_code_does_not_count(base: str, tmp_path: Path) -> None:
    """A renamed file, a function moved to another file, another order of definitions."""
    renamed = write(tmp_path / "renamed", better=MAIN.replace("helper", "tools"), tools=HELPER)
    assert of(renamed) == base
    moved = MAIN.replace("    from helper import half as smaller\n", "    from more import half as smaller\n")
    one, two = "SHIFT = 1\n", "def half(x):\n    return x / 2\n"
    assert of(write(tmp_path / "moved", main=moved, helper=one, more=two)) == base
    joined = "import math\nimport torch.nn.functional as F\n\n" + two + one + textwrap.dedent(MAIN).split("smaller\n\n")[1]
    joined = joined.replace("helper.SHIFT", "SHIFT").replace("smaller(", "half(")
    assert of(write(tmp_path / "joined", main=joined)) == base


def test_what_only_type_checkers_read_does_not_count(base: str, tmp_path: Path) -> None:
    more = MAIN + "\n    from typing import TYPE_CHECKING\n    if TYPE_CHECKING:\n        import other\n"
    assert of(write(tmp_path / "typed", main=more, helper=HELPER, other="X = 1")) == base


def test_helpers_of_helpers_and_packages_beside_a_file_count(tmp_path: Path) -> None:
    main = "import parts.inner\nfrom parts import outer\n\ndef build(x):\n    return parts.inner.f(outer.g(x))\n"
    path = write(tmp_path, main=main)
    write(tmp_path / "parts", __init__="", inner="from .deep import f\n", outer="def g(x):\n    return x\n",
          deep="def f(x):\n    return x\n")
    names = set(closure(entry(path)))
    assert names == {"", "parts", "parts.inner", "parts.outer", "parts.deep"}
    before = of(path)
    (tmp_path / "parts" / "deep.py").write_text("def f(x):\n    return -x\n")
    assert of(path) != before


def test_text_is_the_same_on_every_python(base: str) -> None:
    """Pinned, so that an interpreter whose trees differ is noticed: ids must not change with it."""
    assert base == "201a3aaa9b2298eb3a40fb595b287e58"


def test_a_broken_helper_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, main="import helper\n", helper="def (:\n")
    with pytest.raises(CirbenchError, match=r"helper\.py cannot be read as Python"):
        of(path)


# ------------------------------------------------------------------------------- the product's own code


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is installed, to be changed."""
    folder = tmp_path_factory.mktemp("copy") / "cirbench"
    ignore = shutil.ignore_patterns("__pycache__", "assets")
    shutil.copytree(ROOT / "cirbench", folder, ignore=ignore)
    for name in numerics.MAPPED:
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    return folder


def in_copy(copy: Path, module: Module) -> Path:
    for base, below in ((ROOT / "cirbench", copy), *((ROOT / n, copy / n) for n in numerics.MAPPED)):
        if module.path.is_relative_to(base):
            return below / module.path.relative_to(base)
    raise AssertionError(module)


def moved(copy: Path, modules: dict[str, Module]) -> dict[str, Module]:
    return {name: Module(name, in_copy(copy, m), m.is_package) for name, m in modules.items()}


def mutated(source: str) -> str | None:
    """The source with the value of the first function that has a body changed, or None where it has no function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            lines = source.split("\n")
            last = node.body[-1]
            indent = " " * last.col_offset
            lines.insert(last.lineno - 1, f"{indent}mutated = 1")
            return "\n".join(lines)
    return None


@pytest.mark.parametrize("name", [
    "harness", "pictures", "encoders", "cirbench.methods.dwc", "cirbench.methods.tirg", "cirbench.datasets.scenes",
    "cirbench.datasets.fashioniq",
])
def test_a_changed_function_in_any_module_of_a_run_changes_its_identity(name: str, copy: Path) -> None:
    starts = numerics.PARTS.get(name, (name,))
    modules = moved(copy, {k: v for start in starts for k, v in closure(entry(start)).items()})
    before, untouched = digest(modules), []
    assert before == digest({k: v for start in starts for k, v in closure(entry(start)).items()})
    for module in modules.values():
        source = module.path.read_text(encoding="utf-8")
        changed = mutated(source)
        if changed is None:
            untouched.append(module.name)
            continue
        module.path.write_text(changed, encoding="utf-8")
        assert digest(modules) != before, module.name
        module.path.write_text(source + "\n# a comment\n", encoding="utf-8")
        assert digest(modules) == before, module.name
        module.path.write_text(source, encoding="utf-8")
    assert digest(modules) == before
    assert all(modules[n].is_package or n == "cirbench.datasets._checksums" for n in untouched), "no function in it"


def test_a_run_imports_nothing_that_its_identity_does_not_hold(tmp_path: Path) -> None:
    """What a real run has loaded, beside the command line, is in its closure: nothing is imported behind its back."""
    code = f"""
import sys, json
sys.path.insert(0, {str(ROOT / 'tests')!r})
import tiny
from pathlib import Path
tiny.run("dwc", Path({str(tmp_path)!r}))
print(json.dumps(sorted(n for n in sys.modules if n.split(".")[0] == "cirbench")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    starts = [entry(s) for s in ("cirbench.runs.execution", "cirbench.methods.dwc", "cirbench.datasets.scenes")]
    held = {name for start in starts for name in closure(start)}
    assert loaded <= held, loaded - held
    assert not any(name.startswith(("cirbench.cli", "cirbench.reports")) for name in held)


def test_new_methods_and_datasets_change_no_identity() -> None:
    names = set(numerics._part("harness")[0])
    assert not any(n.startswith(("cirbench.methods.", "cirbench.reports")) for n in names)
    assert not any(n.startswith("cirbench.datasets.") for n in names)


def test_released_code_is_known() -> None:
    """Every part of this checkout computes a released number; `make numerics` shows it of a change, or raises it."""
    from numerics_check import parts

    unknown = sorted(name for name, found in parts().items() if not isinstance(numerics.vouched(name, found), int))
    assert not unknown, f"run `make numerics` (CONTRIBUTING.md): {unknown}"


# ------------------------------------------------------------------------------- identity of runs


class Before(Settings):
    a: int = Field(1, description="old")


class After(Settings):
    a: int = Field(1, description="old")
    b: float = Field(0.5, description="new", json_schema_extra={"neutral": 0.0})
    c: float = Field(0.5, description="no number", json_schema_extra={"identity": False})


def test_a_new_field_at_its_neutral_value_changes_no_identity() -> None:
    assert After(b=0.0, c=3.0).identity() == Before().identity() == {"a": 1}
    assert After().identity() == {"a": 1, "b": 0.5}
    assert After.neutral() == {"b": 0.0}


def test_a_helper_of_a_loose_method_is_part_of_the_identity(tmp_path: Path) -> None:
    source = (ROOT / "methods" / "_template.py").read_text(encoding="utf-8")
    future = "from __future__ import annotations\n"
    source = source.replace(future, f"{future}from extra_part import scale\n", 1)
    source = source.replace("l2norm(image + self", "l2norm(scale * image + self")
    assert "scale *" in source and "import scale" in source
    path = write(tmp_path, mine=source, extra_part="scale = 1.0\n")

    def ident() -> str:
        planned = planning.plan(str(path), "scenes", over=tiny.DATA)
        return identity.identify(planned, planning.load(planned)).id

    before = ident()
    (tmp_path / "extra_part.py").write_text("scale = 1.00  # a comment\n")
    assert ident() == before
    (tmp_path / "extra_part.py").write_text("scale = 1.01\n")
    assert ident() != before


def test_what_is_left_in_addition_moves_no_number() -> None:
    """A new protocol of a dataset is no other number of the old ones; one that is gone or differs is told."""
    from numerics_check import moved

    old = {"weights": "a", "metrics/one": "b", "metrics/two": "c"}
    assert moved(old, {**old, "metrics/new": "d"}) == []
    assert moved(old, {"weights": "a", "metrics/one": "x"}) == ["metrics/one", "metrics/two"]
    assert moved("exit 2: refused", "exit 2: refused") == [] and moved(old, "exit 2: no") and moved("exit 2: no", old)

"""Who may import whom, and what must stay cheap. docs/architecture.md draws the same picture."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "cirbench"
HEAVY = {"torch", "optuna", "pandas", "matplotlib", "seaborn", "open_clip", "timm", "scipy", "torchvision"}

#: Modules at the root of the package, from the bottom up: each imports only what stands before it.
WORDS = ("types", "process", "seeds", "json_text", "files", "settings", "numerics", "lease", "plugins")

#: Room -> the rooms it may import from, beside itself; `words` are the modules at the root of the package.
ROOMS: dict[str, set[str]] = {
    "data": {"words"},
    "datasets": {"words", "data"},
    "models": {"words", "data"},
    "scoring": {"words", "data"},
    "methods": {"words", "data", "models"},
    "runs": {"words", "data", "models", "scoring"},
    "reports": {"words", "scoring", "runs"},
    "studies": {"words", "data", "models", "scoring", "runs", "reports"},
    "sweeps": set(),
    "cli": {"words", "data", "models", "scoring", "runs", "reports", "studies"},
}
#: Where a room may see only a part of another.
ONLY = {
    ("methods", "words"): {"types", "settings"},
    ("methods", "data"): {"images"},
    ("reports", "runs"): {"record", "record_lines", "record_types", "store", "study_types"},
    ("reports", "scoring"): {"inference", "metrics", "statistics"},
    ("reports", "words"): {"types", "settings", "plugins", "files"},
    ("datasets", "words"): {"types", "settings", "seeds", "numerics", "json_text"},
}


def modules() -> dict[tuple[str, str], Path]:
    """(room, dotted name inside it) -> file, of every Python file of the product."""
    out = {}
    for room, folder in (("", CORE), ("methods", ROOT / "methods"), ("reports", ROOT / "reports"), ("sweeps", ROOT / "sweeps")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            inside = room or (parts[0] if len(parts) > 1 else "words")
            out[inside, ".".join(parts if room or len(parts) == 1 else parts[1:])] = path
    return out


MODULES = modules()


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Absolute modules a file imports; with `everywhere` also those inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else tree.body
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def of_cirbench(found: set[str]) -> set[tuple[str, str]]:
    """(room, module) of what is imported of cirbench."""
    out = set()
    for parts in (name.split(".") for name in found):
        if parts[0] != "cirbench" or len(parts) < 2:
            continue
        if ("words", parts[1]) in MODULES:
            out.add(("words", parts[1]))
        elif parts[1] in ROOMS and len(parts) > 2 and (parts[1], parts[2]) in MODULES:
            out.add((parts[1], parts[2]))
    return out


@pytest.mark.parametrize("room", sorted({room for room, _ in MODULES}))
def test_every_room_has_a_rule(room: str) -> None:
    assert room == "words" or room in ROOMS, f"cirbench/{room} is in no rule of this test: say what it may import"


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_every_rule_is_about_a_room(room: str) -> None:
    assert any(r == room for r, _ in MODULES), f"{room} is no folder of the product"
    for other in ROOMS[room] - {"words"}:
        assert other in ROOMS
    for (of, at), names in ONLY.items():
        assert of in ROOMS and all((at, name) in MODULES for name in names), (of, at, names)


@pytest.mark.parametrize(("room", "name"), sorted(MODULES), ids=lambda text: str(text))
def test_imports_keep_to_the_rules(room: str, name: str) -> None:
    found = of_cirbench(imports(MODULES[room, name]))
    for other, module in found - {(room, name)}:
        if room == "words":
            assert name == "__init__" or (other == "words" and WORDS.index(module) < WORDS.index(name)), \
                f"cirbench/{name}.py may not import {other}.{module}"
        elif other == room:
            assert room not in ("methods", "datasets") or module.startswith("_"), f"{name} imports its sibling {module}"
        else:
            assert other in ROOMS[room], f"{room}/{name}.py may not import from {other} ({module})"
            allowed = ONLY.get((room, other))
            assert allowed is None or module in allowed, f"{room}/{name}.py may not import {other}.{module}"


def test_no_circle_between_rooms() -> None:
    arrows: dict[str, set[str]] = {}
    for (room, _), path in MODULES.items():
        arrows.setdefault(room, set()).update(other for other, _ in of_cirbench(imports(path)) if other != room)
    while arrows:
        ground = [room for room, others in arrows.items() if not others & arrows.keys()]
        assert ground, f"these rooms import each other: {arrows}"
        for room in ground:
            del arrows[room]


def test_no_circle_between_modules() -> None:
    arrows = {key: of_cirbench(imports(path)) - {key} for key, path in MODULES.items()}
    while arrows:
        ground = [key for key, others in arrows.items() if not others & arrows.keys()]
        assert ground, f"these modules import each other: {sorted(arrows)}"
        for key in ground:
            del arrows[key]


def test_the_house_has_few_rooms() -> None:
    folders = [p.name for p in CORE.iterdir() if p.is_dir() and not p.name.startswith("_")]
    files = [p.stem for p in CORE.glob("*.py") if p.stem[:2] != "__"]
    assert len(folders) <= 10 and len(files) <= 10, (folders, files)
    assert set(files) == set(WORDS)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_every_room_says_what_lives_there(room: str) -> None:
    doc = ast.get_docstring(ast.parse(MODULES[room, "__init__"].read_text(encoding="utf-8"))) or ""
    assert len(doc.splitlines()) >= 3 and "mport" in doc, f"{room}/__init__.py: what lives there, and what it may import"


@pytest.mark.parametrize("room", ["reports", "datasets"])
def test_rooms_without_torch(room: str) -> None:
    heavy = HEAVY if room == "datasets" else {"torch", "open_clip", "timm", "torchvision"}
    for (where, name), path in MODULES.items():
        if where == room:
            assert not {n.split(".")[0] for n in imports(path)} & heavy, name


def test_the_harness_knows_no_method_by_name() -> None:
    names = {name for room, name in MODULES if room == "methods"} - {"__init__"}
    for (room, name), path in MODULES.items():
        if room not in ("methods", "reports"):
            assert not {f"cirbench.methods.{n}" for n in names} & imports(path), (room, name)


@pytest.mark.parametrize("name", sorted(name for room, name in MODULES if room == "cli"))
def test_subcommands_import_heavy_things_inside(name: str) -> None:
    top = imports(MODULES["cli", name], everywhere=False)
    assert not {n.split(".")[0] for n in top} & HEAVY
    assert {key for key in of_cirbench(top) if key[0] not in ("cli", "words")} <= {("runs", "record"), ("runs", "store")}


@pytest.mark.parametrize("arguments", [
    ["--help"], ["--version"], ["list", "methods"], ["list", "datasets"], ["list", "variants"], ["list", "backbones"], ["list", "sweeps"],
    ["run", "--help"], ["runs", "--help"],
], ids=" ".join)
def test_help_and_list_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom cirbench.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"heavy = sorted(set(sys.modules) & {HEAVY!r})\nprint('HEAVY', heavy, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stderr, done.stderr
    assert done.stdout.strip()


def test_the_command_itself_starts_without_pydantic() -> None:
    """It takes longer to import than everything else that `cirbench --version` needs."""
    code = "import sys\nimport cirbench.cli\nprint(sorted(set(sys.modules) & {'pydantic', 'numpy'}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_bad_names_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom cirbench.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as e:\n"
        "    print('CODE', e.code, 'torch' in sys.modules)"
    )
    for arguments in (
        ["run", "-m", "dcw", "-d", "scenes"], ["run", "-m", "dwc", "-d", "scens"],
        ["run", "-m", "dwc", "-d", "scenes", "--set", "method.temprature=1"],
        ["run", "-m", "dwc", "-d", "scenes", "--variant", "no-edm"],
        ["run", "-m", "dwc", "-d", "fashion200k", "--root", str(tmp_path / "nowhere")],
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert "CODE 2 False" in done.stdout, (arguments, done.stdout, done.stderr)


def test_files_stay_readable() -> None:
    long = {p.relative_to(ROOT): n for p in MODULES.values() if (n := len(p.read_text().splitlines())) > 460}
    assert not long, f"split these: {long}"

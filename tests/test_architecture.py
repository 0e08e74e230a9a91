"""Who may import whom, and what must stay cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "cirbench"
HEAVY = {"torch", "optuna", "pandas", "matplotlib", "seaborn", "open_clip", "timm", "scipy", "torchvision"}

#: Layers from the bottom up; a module may import from its own layer's allowances only.
MAY = {
    "types": set(),
    "settings": {"types"},
    "seeds": set(),
    "recordtypes": {"types"},
    "recordlines": {"recordtypes"},
    "studytypes": {"recordtypes"},
    "records": {"types", "recordtypes", "recordlines", "plugins"},  # plugins: what a packaged dataset declares of a protocol
    "folders": {"types", "records", "studytypes"},
    "metrics": {"types"},
    "statistics": {"types", "metrics"},
    "plugins": {"types", "settings"},
    "lease": {"records"},
    "images": {"types", "seeds", "lease"},
    "words": set(),
    "encoders": {"types", "seeds", "settings", "images", "smallclip", "smallcnn", "words"},
    "layers": set(),
    "streams": {"types", "settings", "encoders", "layers", "words"},
    "ranking": {"types"},
    "features": {"types", "encoders", "images", "seeds"},
    "feed": {"types", "features", "images", "seeds"},
    "information": {"types", "feed", "seeds"},
    "training": {"types", "settings", "feed", "information"},
    "judging": {"types", "metrics", "ranking"},
    "evaluation": {"types", "feed", "judging", "metrics", "ranking"},
    "specs": {"types", "settings", "plugins", "seeds"},
}
#: What a method may use.
METHODS = {"types", "settings", "encoders", "layers", "streams", "images", "words"}
REPORTS = {"types", "folders", "records", "recordtypes", "studytypes", "metrics", "statistics", "settings", "reports"}


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


def of_cirbench(found: set[str]) -> set[str]:
    names = [name.split(".") for name in found]
    kinds = ("datasets", "methods", "reports", "cli", "sweeps")
    return {n[1] for n in names if n[0] == "cirbench" and len(n) > 1
            and ((CORE / f"{n[1]}.py").is_file() or n[1] in kinds)}

@pytest.mark.parametrize("name", sorted(n for n in MAY if (CORE / f"{n}.py").is_file()))
def test_core_imports_point_down(name: str) -> None:
    found = of_cirbench(imports(CORE / f"{name}.py")) - {name}
    assert found <= MAY[name], f"cirbench/{name}.py may not import {sorted(found - MAY[name])}"


@pytest.mark.parametrize("path", sorted((ROOT / "methods").glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_methods_know_encoders_and_layers_only(path: Path) -> None:
    found = of_cirbench(imports(path))
    assert found <= METHODS, f"{path.name} may not import {sorted(found - METHODS)}"


@pytest.mark.parametrize("path", sorted((ROOT / "reports").glob("*.py")), ids=lambda p: p.stem)
def test_reports_know_records_only(path: Path) -> None:
    found = imports(path)
    assert not {n.split(".")[0] for n in found} & {"torch", "open_clip", "timm", "torchvision"}
    assert of_cirbench(found) <= REPORTS


@pytest.mark.parametrize("path", sorted((CORE / "datasets").glob("*.py")), ids=lambda p: p.stem)
def test_datasets_import_no_torch_and_no_method(path: Path) -> None:
    found = imports(path)
    assert not {n.split(".")[0] for n in found} & HEAVY
    assert not of_cirbench(found) & {"methods", "training", "runs", "evaluation", "reports"}


def test_the_harness_knows_no_method_by_name() -> None:
    names = {p.stem for p in (ROOT / "methods").glob("[a-z]*.py")} - {"sum", "random"}
    for path in [*CORE.glob("*.py")]:
        assert not {f"cirbench.methods.{n}" for n in names} & imports(path), path.name


@pytest.mark.parametrize("path", sorted((CORE / "cli").glob("*.py")), ids=lambda p: p.stem)
def test_subcommands_import_heavy_things_inside(path: Path) -> None:
    top = imports(path, everywhere=False)
    assert not {n.split(".")[0] for n in top} & HEAVY
    assert of_cirbench(top) <= {"cli", "types", "settings", "plugins", "records"}


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
    files = ROOT.glob("[cmrst]*/**/*.py")
    long = {p.relative_to(ROOT): n for p in files if (n := len(p.read_text().splitlines())) > 480}
    assert not long, f"split these: {long}"

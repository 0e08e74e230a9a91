"""Finds methods, datasets and sweeps: built-in folders, entry points, and a path the user gives.

Listing must not import torch, so a method file is *read*, not imported: its docstring and its declarations
(`Config`, `VARIANTS`, `TRAIN`, `DATASETS`, `TUNE`) are executed alone, with whatever imports they need.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from cirbench.settings import TUNE, Settings, unknown
from cirbench.types import CirbenchError, DatasetSpec

#: Top-level names of a method file that are read without importing it.
DECLARED = ("Config", "VARIANTS", "TRAIN", "DATASETS", "TUNE")
#: Modules that declarations may import; all of them are cheap.
CHEAP = ("__future__", "typing", "collections", "dataclasses", "enum", "math", "pydantic", "cirbench.settings")


@dataclass(frozen=True)
class MethodFile:
    """A method as it can be known without importing it.

    Attributes:
        name: as on the command line, with hyphens.
        path: of the file.
        summary: first line of its docstring.
        config: its `Config` class.
        variants: name -> field overrides.
        train: training settings of its paper.
        datasets: dataset name -> {"method.x": value, "train.y": value} it needs there.
        tune: field -> range that tuning draws from, `{"low", "high", "log", "when"}`.
        module: dotted name to import it by, or "" for a loose file.
    """

    name: str
    path: Path
    summary: str
    config: type[Settings]
    variants: Mapping[str, Mapping[str, Any]]
    train: Mapping[str, Any]
    datasets: Mapping[str, Mapping[str, Any]]
    tune: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    module: str = ""
    source: str = field(default="", repr=False)

    def load(self) -> ModuleType:
        """Import the file, torch and all."""
        if self.module:
            return importlib.import_module(self.module)
        return import_path(self.path)


def import_path(path: Path) -> ModuleType:
    """Import a loose Python file under a name of its own; files beside it can be imported by it.

    Raises:
        CirbenchError: it fails, or another file of the name of one of its helpers was imported before.
    """
    name = f"cirbench_plugin_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CirbenchError(f"{path} cannot be imported as Python. A method file ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _beside(path):
            spec.loader.exec_module(module)
    except CirbenchError:
        raise
    except Exception as error:
        sys.modules.pop(name, None)
        raise CirbenchError(f"{path} fails when imported: {type(error).__name__}: {error}.") from error
    return module


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Let a loose file import its neighbours, and refuse a neighbour in whose place another file was imported."""
    folder = path.resolve().parent
    for helper in folder.glob("*.py"):
        known = sys.modules.get(helper.stem)
        file = getattr(known, "__file__", None)
        if known is not None and file is not None and Path(file).resolve() != helper.resolve():
            if f"import {helper.stem}" in (text := path.read_text(encoding="utf-8")) or f"from {helper.stem} " in text:
                raise CirbenchError(
                    f"{path} imports {helper.stem}, but {file} was already imported under that name. Rename one of the "
                    "two files."
                )
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def _targets(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Assign):
        return {t.id for t in node.targets if isinstance(t, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {node.name}
    return set()


def _declarations(path: Path, source: str) -> dict[str, Any]:
    """Execute only the declarations of a method file, and the constants they are made of."""
    try:
        tree = ast.parse(source, filename=str(path))
    except SyntaxError as error:
        raise CirbenchError(f"{path}, line {error.lineno}: not valid Python: {error.msg}.") from None
    wanted, kept = set(DECLARED), list[ast.stmt]()
    # Backwards, so that a constant a declaration mentions is kept too.
    for node in reversed(tree.body):
        if isinstance(node, ast.ImportFrom):
            if (node.module or "") in CHEAP and not node.level:
                kept.append(node)
        elif isinstance(node, ast.Import):
            if all(alias.name.split(".")[0] in CHEAP for alias in node.names):
                kept.append(node)
        elif _targets(node) & wanted:
            kept.append(node)
            wanted |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    namespace: dict[str, Any] = {"__name__": f"cirbench_declarations_{path.stem}", "__file__": str(path)}
    module = ModuleType(namespace["__name__"])
    module.__dict__.update(namespace)
    # pydantic looks annotations up in the module that defines the class.
    sys.modules[module.__name__] = module
    try:
        body = ast.Module(body=kept[::-1], type_ignores=[])
        exec(compile(body, str(path), "exec", dont_inherit=True), module.__dict__)
    except CirbenchError:
        raise
    except Exception:
        # Something in the declarations needs a heavier import: then the whole file is imported after all.
        module = import_path(path)
    return {"__doc__": ast.get_docstring(tree), **{k: v for k, v in vars(module).items() if k in DECLARED}}


def _read(name: str, path: Path, module: str = "") -> MethodFile:
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CirbenchError(f"cannot read the method file {path}: {error}.") from None
    found = _declarations(path, source)
    config = found.get("Config")
    if not (isinstance(config, type) and issubclass(config, Settings)):
        raise CirbenchError(
            f"{path} is not a method: it has no class Config(Settings). "
            "`cirbench new-method NAME` writes a working template."
        )
    if "def build(" not in source:
        raise CirbenchError(f"{path} is not a method: it has no function build(config, encoders, train, state).")
    doc = (found["__doc__"] or "").strip()
    return MethodFile(
        name=name, path=path, summary=doc.split("\n")[0], config=config, variants=found.get("VARIANTS", {}),
        train=found.get("TRAIN", {}), datasets=found.get("DATASETS", {}),
        tune=found.get("TUNE", {k: v for k, v in TUNE.items() if k in config.model_fields}), module=module,
        source=source,
    )


def _folder(package: str) -> Path:
    """Folder of a package without importing anything heavy (its `__init__` is empty)."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise CirbenchError(f"the package {package} is not installed. Run `pip install -e .` again.")
    return Path(next(iter(spec.submodule_search_locations)))


def _entry_points() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group="cirbench.methods")}


def method_names() -> list[str]:
    """Built-in methods and those of installed packages, sorted."""
    builtin = [p.stem.replace("_", "-") for p in _folder("cirbench.methods").glob("*.py") if p.stem[0] != "_"]
    return sorted({*builtin, *_entry_points()})


@lru_cache(maxsize=256)
def _cached(name: str, path: Path, module: str, _mtime: int) -> MethodFile:
    return _read(name, path, module)


def find_method(name: str) -> MethodFile:
    """A built-in method, one of an installed package, or a loose file (`./mine.py`).

    Raises:
        CirbenchError: no such name (with the nearest), or a path that is no method file.
    """
    if name.endswith(".py") or "/" in name or "\\" in name:
        path = Path(name)
        if not path.is_file():
            raise CirbenchError(
                f"no method file at {name}. `cirbench new-method NAME` writes a template; "
                "`cirbench list methods` shows what is built in."
            )
        path = path.resolve()
        return _cached(path.stem.replace("_", "-"), path, "", path.stat().st_mtime_ns)
    path = _folder("cirbench.methods") / f"{name.replace('-', '_')}.py"
    if path.is_file() and not path.stem.startswith("_"):
        return _cached(name, path, f"cirbench.methods.{path.stem}", path.stat().st_mtime_ns)
    points = _entry_points()
    if name in points:
        module = points[name].split(":")[0]
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise CirbenchError(f"the method {name!r} points to the module {module}, which is not installed.")
        origin = Path(spec.origin)
        return _cached(name, origin, module, origin.stat().st_mtime_ns)
    raise unknown("method", name, method_names(), "A path to a .py file works as well.")


def methods() -> list[MethodFile]:
    """All of them, by name."""
    return [find_method(name) for name in method_names()]


def dataset_names() -> list[str]:
    """Datasets that have a loader, sorted."""
    return sorted(p.stem for p in _folder("cirbench.datasets").glob("*.py") if not p.stem.startswith("_"))


def find_dataset(name: str) -> ModuleType:
    """The module of a dataset: `SPEC`, `Knobs` and `load(knobs, root) -> Dataset`; or a loose file of that form.

    Raises:
        CirbenchError: no such dataset (with the nearest).
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise CirbenchError(f"no dataset file at {name}. `cirbench list datasets` shows what is built in.")
        module = import_path(path.resolve())
        if not isinstance(getattr(module, "SPEC", None), DatasetSpec) or not hasattr(module, "load"):
            raise CirbenchError(f"{name} is not a dataset: it has no SPEC = DatasetSpec(...) and load(knobs, root).")
        return module
    if name not in dataset_names():
        raise unknown("dataset", name, dataset_names())
    return importlib.import_module(f"cirbench.datasets.{name}")

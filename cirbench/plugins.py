"""Finds methods, datasets and sweeps: built-in folders, entry points, and a path the user gives.

Listing must not import torch, so a method file is *read*, not imported: its docstring and its declarations
(`Config`, `VARIANTS`, `TRAIN`, `DATASETS`, `TUNE`) are extracted from its syntax tree, at any position, and executed
alone with the constants, functions and imports that they use. An import of torch that they do not use is left out.
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

from cirbench import process
from cirbench.settings import TUNE, Settings, unknown
from cirbench.types import CirbenchError, DatasetSpec, Protocol

#: Modules that loose method and dataset files imported before they moved into folders -> where they are.
MOVED = {
    "encoders": "models.encoders", "layers": "models.layers", "streams": "models.two_stream",
    "words": "models.lstm_text", "images": "data.images", "datasets._folder": "data.image_files",
}
#: Top-level names of a method file that are read without importing it.
DECLARED = ("Config", "VARIANTS", "TRAIN", "DATASETS", "TUNE")
#: Modules that declarations may import, with their submodules; all of them are cheap.
CHEAP = frozenset({*sys.stdlib_module_names, "pydantic", "cirbench.settings", "cirbench.types"})


@dataclass(frozen=True)
class MethodFile:
    """What is known of a method without importing it.

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
        return _import(self.path, self.module)


def import_path(path: Path) -> ModuleType:
    """Import a loose Python file under a name of its own; files beside it can be imported by it.

    Raises:
        CirbenchError: importing fails, or another file with the name of one of its helpers was imported before.
    """
    name = f"cirbench_plugin_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CirbenchError(f"{path} cannot be imported as Python. A method file ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _beside(path), _guarded(path):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _guarded(path: Path) -> contextlib.AbstractContextManager[None]:
    """Import a plugin: whatever it raises is one message, and it may not change what other code shares with it."""

    def failed(error: BaseException) -> str:
        hint = ""
        if isinstance(error, ModuleNotFoundError) and (error.name or "").removeprefix("cirbench.") in MOVED:
            hint = f" It is cirbench.{MOVED[str(error.name).removeprefix('cirbench.')]} now."
        place = process.place_in(error.__traceback__, {path.resolve()})
        where = f" ({place})" if place else ""
        return f"{path} fails when imported: {process.described(error)}{where}.{hint}"

    return process.guarded(failed, lambda what: (
        f"{path} changes {what} when imported, which everything else in the process shares. Leave it as it is."
    ))


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Let a loose file import its neighbours, and refuse a neighbour whose name another imported file has."""
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


def _import(path: Path, module: str) -> ModuleType:
    """The whole file, torch and all; by its dotted name where it is part of a package."""
    if not module:
        return import_path(path)
    with contextlib.nullcontext() if module.startswith("cirbench.") else _guarded(path):
        return importlib.import_module(module)


def _cheap(module: str) -> bool:
    return module in CHEAP or any(module.startswith(f"{name}.") for name in CHEAP)


def _imports(tree: ast.Module) -> list[tuple[ast.stmt, str, bool]]:
    """Imports of a file's top level one name at a time: (statement, name it binds, whether it is cheap)."""
    out = list[tuple[ast.stmt, str, bool]]()
    for node in tree.body:
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
            one: ast.stmt
            if isinstance(node, ast.ImportFrom):
                one, bound = ast.ImportFrom(node.module, [alias], node.level), alias.name
                cheap = not node.level and _cheap(node.module or "")
            else:
                # `import a.b` binds a.
                one, bound, cheap = ast.Import([alias]), alias.name.split(".")[0], _cheap(alias.name)
            out.append((ast.copy_location(one, node), alias.asname or bound, cheap))
    return out


def _names(node: ast.AST) -> set[str]:
    """Names that a statement reads, those in quoted annotations too."""
    found = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    for quoted in ast.walk(node):
        annotation = getattr(quoted, "annotation", None)
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            with contextlib.suppress(SyntaxError):
                found |= _names(ast.parse(annotation.value, mode="eval"))
    return found


def _binds(node: ast.stmt) -> set[str]:
    """Names that a top-level statement defines or changes; for a loop, a call or the like, only declarations."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return set()
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & set(DECLARED)


def _select(tree: ast.Module) -> list[ast.stmt] | None:
    """Statements that make the declarations, in file order; None where they need a name from a heavier import."""
    wanted, kept = set(DECLARED), set[ast.stmt]()
    # Until nothing is added: what a declaration reads may itself read something, above or below it.
    while found := {node for node in tree.body if node not in kept and _binds(node) & wanted}:
        kept |= found
        wanted = wanted.union(*map(_names, found))
    imports = _imports(tree)
    if any(name in wanted for _, name, cheap in imports if not cheap):
        return None
    # `from __future__ import annotations` is used by every annotation; what `*` binds is not known.
    needed = [node for node, name, cheap in imports if cheap and name in {*wanted, "annotations", "*"}]
    return [*needed, *(node for node in tree.body if node in kept)]


def _declarations(path: Path, source: str, module: str = "") -> dict[str, Any]:
    """Execute only the declarations of a method file; all of it where they need a heavier import.

    Args:
        path: of the file.
        source: its text.
        module: dotted name to import it by, or "" for a loose file.

    Returns:
        The names of `DECLARED` that the file has, and its docstring as `__doc__`.

    Raises:
        CirbenchError: the file is not valid Python, or fails when it is imported.
    """
    try:
        tree = ast.parse(source, filename=str(path))
    except SyntaxError as error:
        raise CirbenchError(f"{path}, line {error.lineno}: not valid Python: {error.msg}.") from None
    except (ValueError, RecursionError, MemoryError) as error:  # a zero byte, or nested too deeply
        raise CirbenchError(f"{path}: not valid Python: {process.described(error)}.") from None
    found, selected = ModuleType(f"cirbench_declarations_{path.stem}"), _select(tree)
    found.__file__ = str(path)
    # pydantic looks annotations up in the module that defines the class.
    sys.modules[found.__name__] = found
    try:
        if selected is None:
            found = _import(path, module)
        else:
            body = ast.Module(body=selected, type_ignores=[])
            with process.undisturbed():
                exec(compile(body, str(path), "exec", dont_inherit=True), found.__dict__)
    except CirbenchError:
        raise
    except BaseException as error:
        if process.is_interrupt(error):
            raise
        # They need something that was left out, so the whole file is imported after all.
        found = _import(path, module)
    return {"__doc__": ast.get_docstring(tree), **{k: v for k, v in vars(found).items() if k in DECLARED}}


def _read(name: str, path: Path, module: str = "") -> MethodFile:
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CirbenchError(f"cannot read the method file {path}: {error}.") from None
    found = _declarations(path, source, module)
    config = found.get("Config")
    if not (isinstance(config, type) and issubclass(config, Settings)):
        raise CirbenchError(
            f"{path} is not a method: it has no class Config(Settings). "
            "`cirbench new-method NAME` writes a working template."
        )
    if "def build(" not in source:
        raise CirbenchError(f"{path} is not a method: it has no function build(config, encoders, train, state).")
    _check_declared(path, source, found)
    doc = (found["__doc__"] or "").strip()
    return MethodFile(
        name=name, path=path, summary=doc.split("\n")[0], config=config, variants=found.get("VARIANTS", {}),
        train=found.get("TRAIN", {}), datasets=found.get("DATASETS", {}),
        tune=found.get("TUNE", {k: v for k, v in TUNE.items() if k in config.model_fields}), module=module,
        source=source,
    )


#: Declaration -> an example; and whether its values are tables as well.
_TABLES: Mapping[str, tuple[str, bool]] = {
    "VARIANTS": ('{"narrow": {"dim": 64}}', True), "TRAIN": ('{"epochs": 10}', False),
    "DATASETS": ('{"scenes": {"dim": 64}}', True), "TUNE": ('{"lr": {"low": 1e-4, "high": 1e-2}}', True),
}


def _check_declared(path: Path, source: str, found: Mapping[str, Any]) -> None:
    """Refuse declarations that are no tables of names.

    Raises:
        CirbenchError: the line, what is expected and what is there.
    """
    lines = {name: node.lineno for node in ast.parse(source).body for name in _binds(node)}
    for name, (example, nested) in _TABLES.items():
        value = found.get(name, {})
        wrong = [] if isinstance(value, Mapping) and all(isinstance(k, str) for k in value) else [(name, value)]
        if not wrong and nested:
            tables = [(f"{name}[{k!r}]", v) for k, v in value.items()]
            wrong = [(k, v) for k, v in tables if not (isinstance(v, Mapping) and all(isinstance(n, str) for n in v))]
        if wrong:
            key, received = wrong[0]
            raise CirbenchError(
                f"{path}, line {lines.get(name, 1)}: {key} is {type(received).__name__} {str(received)[:80]}; {name} "
                f"must be a dict with names as keys, such as {name} = {example}."
            )


def _folder(package: str) -> Path:
    """Folder of a package without importing anything heavy (its `__init__` is empty)."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise CirbenchError(f"the package {package} is not installed. Run `pip install -e .` again.")
    return Path(next(iter(spec.submodule_search_locations)))


def _entry_points() -> dict[str, list[str]]:
    """Name -> the modules that installed packages give under it; more than one is a clash."""
    found: dict[str, list[str]] = {}
    for point in entry_points(group="cirbench.methods"):
        module = point.value.split(":")[0].strip()
        if module not in found.setdefault(point.name, []):
            found[point.name].append(module)
    return found


def _is_built_in(path: Path, package: str) -> bool:
    """Whether a path leads to a file that has a name of its own, so that both are one method or dataset."""
    return path.parent == _folder(package).resolve() and not path.stem.startswith("_")


def _builtin_names() -> list[str]:
    return [p.stem.replace("_", "-") for p in _folder("cirbench.methods").glob("*.py") if p.stem[0] != "_"]


def method_names() -> list[str]:
    """Built-in methods and those of installed packages, sorted."""
    return sorted({*_builtin_names(), *_entry_points()})


@lru_cache(maxsize=256)
def _cached(name: str, path: Path, module: str, _mtime: int) -> MethodFile:
    return _read(name, path, module)


def find_method(name: str) -> MethodFile:
    """A built-in method, one of an installed package, or a loose file (`./mine.py`).

    Raises:
        CirbenchError: no such name (with the nearest), or a path that is not a method file.
    """
    if name.endswith(".py") or "/" in name or "\\" in name:
        path = Path(name)
        if not path.is_file() or path.suffix != ".py":
            raise CirbenchError(
                f"no method file at {name}. `cirbench new-method NAME` writes a template; "
                "`cirbench list methods` shows what is built in."
            )
        path = path.resolve()
        if not _is_built_in(path, "cirbench.methods"):
            return _cached(path.stem.replace("_", "-"), path, "", path.stat().st_mtime_ns)
        name = path.stem.replace("_", "-")
    if name in _builtin_names():  # as it is spelled there: another spelling would be another run
        path = _folder("cirbench.methods") / f"{name.replace('-', '_')}.py"
        return _cached(name, path, f"cirbench.methods.{path.stem}", path.stat().st_mtime_ns)
    points = _entry_points()
    if name in points:
        origin = _origin(name, points[name])
        return _cached(name, origin, points[name][0], origin.stat().st_mtime_ns)
    raise unknown("method", name, method_names(), "A path to a .py file works as well.")


def _origin(name: str, modules: list[str]) -> Path:
    """File of a method of an installed package.

    Raises:
        CirbenchError: two packages give a method of this name, the one that does cannot be imported, or a built-in
            method has the name in another spelling.
    """
    if (spelled := name.replace("_", "-")) in _builtin_names():
        raise CirbenchError(
            f"{modules[0]}, of an installed package, is called {name!r}, like the built-in method. Did you mean "
            f"{spelled!r}? Name the package's by the path of its file."
        )
    if len(modules) > 1:
        raise CirbenchError(
            f"the name {name!r} is given to methods by several installed packages: {', '.join(modules)}. Uninstall all "
            "but one, or use a path."
        )
    try:
        with process.undisturbed():
            spec = importlib.util.find_spec(modules[0])  # this imports the package that holds the module
    except BaseException as error:
        if process.is_interrupt(error):
            raise
        raise CirbenchError(
            f"the method {name!r} points to the module {modules[0]}, which fails when imported: "
            f"{process.described(error)}. Repair or uninstall the package."
        ) from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise CirbenchError(
            f"the method {name!r} points to the module {modules[0]}, which is not installed as a .py file."
        )
    return Path(spec.origin)


def methods() -> list[MethodFile]:
    """All that can be read, by name."""
    return [method for _, method, _ in listed() if method is not None]


def listed() -> list[tuple[str, MethodFile | None, str]]:
    """(name, method, problem) of every method: one of an installed package that is broken has a problem instead."""
    rows: list[tuple[str, MethodFile | None, str]] = []
    for name in method_names():
        try:
            rows.append((name, find_method(name), ""))
        except CirbenchError as error:
            rows.append((name, None, str(error)))
    for name, modules in _entry_points().items():
        if name in _builtin_names():
            rows.append((name, None, f"{', '.join(modules)}, of an installed package, has a built-in method's name."))
    return rows


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
        if _is_built_in(path.resolve(), "cirbench.datasets"):
            return find_dataset(path.stem)
        module = import_path(path.resolve())
        if not isinstance(getattr(module, "SPEC", None), DatasetSpec) or not callable(getattr(module, "load", None)):
            raise CirbenchError(f"{name} is not a dataset: it has no SPEC = DatasetSpec(...) and load(knobs, root).")
        named: object = module.SPEC.protocols
        if not isinstance(named, tuple | list) or not named or not all(isinstance(p, Protocol) for p in named):
            raise CirbenchError(f"{name}: SPEC.protocols is {named!r:.80}; it must be a tuple of Protocol values.")
        knobs = getattr(module, "Knobs", None)
        if not (isinstance(knobs, type) and issubclass(knobs, Settings)):
            raise CirbenchError(f"{name} is not a dataset: it has no class Knobs(Settings). An empty one will do.")
        return module
    if name not in dataset_names():
        raise unknown("dataset", name, dataset_names())
    return importlib.import_module(f"cirbench.datasets.{name}")

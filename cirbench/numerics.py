"""Which code computes a number, and the released number that stands for it.

What can change a number is what a run imports: the modules that its entry reaches, those that the method file reaches,
those that the dataset file reaches. No list of files is kept by hand.

`digest` hashes such a set of modules so that only the computation counts: comments, docstrings, type
annotations of functions, the names of files, of functions, classes and constants at a module's top level, their
order, and how they are imported are all left out.

`numerics.json` ships with the package. For each part it names the digests that are known to compute the same numbers,
and the number N that stands for them in the identity of a run. So a refactoring that was proved harmless
(`make numerics`) changes no identity; a change that moves a number raises N; unreleased code (an
edited checkout, a loose method file) is identified by its digest.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from cirbench.types import CirbenchError

__all__ = ["PARTS", "closure", "digest", "released", "vouched"]

#: Part -> the modules from which everything it computes with is reached.
PARTS: Mapping[str, tuple[str, ...]] = {
    "harness": ("cirbench.runs.execution",),
    # Code that the keys of the caches contain besides their inputs.
    "pictures": ("cirbench.data.images", "cirbench.data.image_files"),
    "encoders": ("cirbench.models.encoders",),
}
RELEASED = Path(__file__).with_name("numerics.json")
#: Packages whose folders lie beside cirbench/ in a checkout (pyproject.toml).
MAPPED = ("methods", "reports", "sweeps")
#: How many calls away a changed definition is noticed: a function, what it calls, what that calls.
ROUNDS = 3


# -------------------------------------------------------------------------------------- the modules


@dataclass(frozen=True)
class Module:
    """A Python file under the name by which it is imported; a loose file has no dotted name."""

    name: str
    path: Path
    is_package: bool = False

    @property
    def package(self) -> str:
        """What relative imports start from."""
        return self.name if self.is_package else self.name.rpartition(".")[0]


@lru_cache(maxsize=1)
def _installed() -> tuple[Path, ...]:
    """Folders of installed packages: code there belongs to another project, identified by its version."""
    named = [sysconfig.get_path(kind) for kind in ("purelib", "platlib")]
    with_user = [*named, *site.getsitepackages(), site.getusersitepackages()]
    return tuple({Path(folder).resolve() for folder in with_user if folder})


def _is_installed(file: Path, is_package: bool) -> bool:
    """Whether a file belongs to an installed package; .pth files and PYTHONPATH add folders that `_installed` lacks.

    Such a folder is that of another environment, or one that `pip install --target` filled. A link is followed, too:
    some installers link files of a store.
    """
    for path in (file, file.resolve()):
        holds = path.parents[1] if is_package else path.parent
        named = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
        if named or any(path.is_relative_to(f) for f in _installed()) or next(holds.glob("*.dist-info"), None):
            return True
    return False


@lru_cache(maxsize=256)
def _folder_of(top: str, own: str) -> Path | None:
    """Folder of a top-level package, or its one file, where it is part of the digested code; else None."""
    if top in sys.stdlib_module_names:
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    path, is_package = Path(spec.origin), spec.submodule_search_locations is not None
    if top not in (own, "cirbench") and _is_installed(path, is_package):
        return None
    return path.resolve().parent if is_package else path.resolve()


def _below(folder: Path, names: list[str]) -> tuple[Path, bool] | None:
    """(file, whether it is a package) of a dotted name below a folder, found without importing anything."""
    place = folder.joinpath(*names)
    if names and place.with_suffix(".py").is_file():
        return place.with_suffix(".py").resolve(), False
    return ((place / "__init__.py").resolve(), True) if (place / "__init__.py").is_file() else None


@lru_cache(maxsize=4096)
def _find(name: str, own: str, folder: Path | None) -> Module | None:
    """The module of that name where it is part of the digested code, else None.

    Args:
        name: dotted, absolute.
        own: top-level package of the code, "" for a loose file.
        folder: of a loose file; its neighbours are its helpers.
    """
    top, *rest = name.split(".")
    if folder is not None and top != "cirbench" and top not in sys.stdlib_module_names \
            and (found := _below(folder, [top, *rest])):
        return Module(name, *found)
    start = _folder_of(top, own)
    if start is None:
        return None
    if start.is_file():
        return None if rest else Module(name, start)
    if top == "cirbench" and rest and rest[0] in MAPPED:
        # Another folder in a checkout; finding it imports `cirbench` alone.
        spec = importlib.util.find_spec(f"cirbench.{rest[0]}")
        if spec is None or spec.origin is None:
            return None
        start, rest = Path(spec.origin).parent, rest[1:]
    found = _below(start, rest)
    return Module(name, *found) if found else None


@lru_cache(maxsize=1024)
def _tree(path: Path, _content: str) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except (SyntaxError, UnicodeDecodeError, OSError, ValueError) as error:
        raise CirbenchError(f"{path} cannot be read as Python: {error}.") from None


def _stamp(module: Module) -> str:
    """What the file holds now: two writes within one tick of the clock have the same time."""
    try:
        return hashlib.sha256(module.path.read_bytes()).hexdigest()
    except OSError as error:
        raise CirbenchError(f"{module.path} cannot be read: {error}.") from None


def _parse(module: Module) -> ast.Module:
    return _tree(module.path, _stamp(module))


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it, without what only type checkers read."""
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _executed(child)


def _imports(module: Module) -> tuple[tuple[str, str, str | None], ...]:
    """(local name, dotted module, name taken from it or None) of every import, those inside functions too."""
    return _imports_of(module, _stamp(module))


@lru_cache(maxsize=1024)
def _imports_of(module: Module, _content: str) -> tuple[tuple[str, str, str | None], ...]:
    return tuple(_read_imports(module))


def _read_imports(module: Module) -> Iterator[tuple[str, str, str | None]]:
    for node in _executed(_parse(module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0], alias.name, None
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.package.split(".") if module.package else []
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, *filter(None, [base])])
            for alias in node.names:
                yield alias.asname or alias.name, base, alias.name


def entry(name_or_path: str | Path) -> Module:
    """A module by its dotted name, or a loose file."""
    if isinstance(name_or_path, Path):
        return Module("", name_or_path.resolve())
    found = _find(name_or_path, name_or_path.split(".")[0], None)
    if found is None:
        raise CirbenchError(f"the module {name_or_path} is not installed. Run `pip install -e .` again.")
    return found


def closure(start: Module) -> dict[str, Module]:
    """Every module that `start` reaches by imports, itself included, installed packages left out: name -> module."""
    own, folder = start.name.split(".")[0], None if start.name else start.path.parent
    out = {start.name: start}
    todo = [start]
    while todo:
        module = todo.pop()
        above = module.name.split(".")[:-1]
        wanted = dict.fromkeys(".".join(above[:n]) for n in range(1, len(above) + 1))
        for _, base, taken in _imports(module):
            parts = base.split(".")
            # Importing a.b.c runs a and a.b as well; what is taken from a module may be a module itself.
            wanted.update(dict.fromkeys(".".join(parts[:n]) for n in range(1, len(parts) + 1) if base))
            if taken not in (None, "*"):
                wanted[f"{base}.{taken}" if base else str(taken)] = None
        for name in wanted:
            if name not in out and (found := _find(name, own, folder)) is not None:
                out[name] = found
                todo.append(found)
    return out


# -------------------------------------------------------------------------------------- their digest


@dataclass
class _Definition:
    """One top-level statement: its text with gaps where it names other definitions, and which it names, in order."""

    text: str = ""
    names: list[tuple[str, str]] = field(default_factory=list)


class _Normaliser:
    """Writes syntax trees as text that holds what is computed and nothing else, the same on every Python version."""

    def __init__(self, module: Module, modules: frozenset[str], own: set[str]) -> None:
        self.module, self.modules, self.own = module, modules, own
        self.bound: dict[str, tuple[str, str | None]] = {}
        for local, base, taken in _imports(module):
            if taken is None:
                # `import a.b` binds a; `import a.b as c` binds a.b.
                self.bound[local] = (base if local != base.split(".")[0] else local, None)
            elif f"{base}.{taken}" in modules or (not base and taken in modules):
                self.bound[local] = (f"{base}.{taken}" if base else taken, None)
            else:
                self.bound[local] = (base, taken)

    def definition(self, node: ast.stmt) -> _Definition:
        """One top-level statement."""
        self.out = _Definition()
        self.parts: list[str] = []
        self._write(node, top=True)
        self.out.text = "".join(self.parts)
        return self.out

    def _refer(self, module: str, name: str) -> None:
        self.parts.append("\0")
        self.out.names.append((module, name))

    def _dotted(self, node: ast.expr) -> list[str] | None:
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        return [node.id, *names[::-1]] if isinstance(node, ast.Name) else None

    def _name(self, node: ast.expr) -> bool:
        """Write a name or dotted name as the definition it refers to; False for an ordinary name."""
        names = self._dotted(node)
        if names is None:
            return False
        first, rest = names[0], names[1:]
        if first in self.bound:
            base, taken = self.bound[first]
            while taken is None and rest and f"{base}.{rest[0]}" in self.modules:
                base, rest = f"{base}.{rest[0]}", rest[1:]
            if taken is None and rest:
                taken, rest = rest[0], rest[1:]
            if base in self.modules and taken is not None:
                self._refer(base, taken)
            else:
                self.parts.append("/".join([base, *filter(None, [taken])]).replace(".", "/"))
            self.parts.extend(f"/{name}" for name in rest)
            return True
        if first in self.own:
            self._refer(self.module.name, first)
            self.parts.extend(f"/{name}" for name in rest)
            return True
        return False

    def _write(self, node: object, top: bool = False) -> None:
        if isinstance(node, list):
            self.parts.append("[")
            for item in node:
                self._write(item)
            self.parts.append("]")
        elif not isinstance(node, ast.AST):
            self.parts.append(repr(node))
        elif isinstance(node, ast.Import | ast.ImportFrom) or _is_docstring(node):
            return
        elif isinstance(node, ast.Name | ast.Attribute) and self._name(node):
            return
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            # The message of an error changes no number.
            self.parts.append("(Raise ")
            self._write(node.exc.func)
            self.parts.append(")")
        else:
            self.parts.append(f"({type(node).__name__}")
            for name, value in ast.iter_fields(node):
                # Empty fields differ between versions of Python; contexts and annotations of functions compute nothing.
                unread = name in ("ctx", "kind", "type_comment", "returns") or (
                    name == "annotation" and isinstance(node, ast.arg)
                )
                if unread or value is None or value == [] or (top and name == "name"):
                    continue
                if name == "keywords" and isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Field"):
                    value = [keyword for keyword in node.keywords if keyword.arg != "description"]
                if name == "body" and isinstance(value, list):
                    value = [item for item in value if not isinstance(item, ast.AST) or not _is_silent(item)]
                self.parts.append(f" {name}=")
                self._write(value)
            self.parts.append(")")


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_silent(node: ast.AST) -> bool:
    """A statement that computes nothing: an import, a docstring, `pass`."""
    return isinstance(node, ast.Import | ast.ImportFrom | ast.Pass) or _is_docstring(node)


def _targets(node: ast.stmt) -> list[str]:
    """Names that a top-level statement defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    if isinstance(node, ast.AnnAssign | ast.AugAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


#: Names that say nothing of what is computed.
UNREAD = {"__all__", "__version__"}


@lru_cache(maxsize=4096)
def _definitions(
    module: Module, modules: frozenset[str], _content: str
) -> list[tuple[tuple[str, str] | None, _Definition]]:
    """((module, name) or None, definition) of every top-level statement; several of one name are one."""
    out: list[tuple[tuple[str, str] | None, _Definition]] = []
    body = [n for n in _parse(module).body if not _is_silent(n) and next(_executed(n), None) is not None]
    own = {name for node in body for name in _targets(node)}
    normaliser = _Normaliser(module, modules, own)
    for node in body:
        names = [name for name in _targets(node) if name not in UNREAD]
        if names or not _targets(node):
            made = normaliser.definition(node)
            out += [((module.name, name), made) for name in names] or [(None, made)]
    return out


def digest(modules: Mapping[str, Module]) -> str:
    """sha256 over what the modules compute, as 32 hexadecimal digits."""
    names = frozenset(modules)
    found = [made for module in modules.values() for made in _definitions(module, names, _stamp(module))]
    texts: dict[tuple[str, str], list[str]] = {}
    for key, made in found:
        if key is not None:
            texts.setdefault(key, []).append(made.text)
    colours = {key: _sha("".join(parts)) for key, parts in texts.items()}
    # Definitions are distinguished by what they and those they refer to compute, not by their own names.
    for _ in range(ROUNDS):
        told: dict[tuple[str, str], list[str]] = {}
        for key, made in found:
            if key is not None:
                told.setdefault(key, []).append(made.text + " ".join(colours.get(n, n[1]) for n in made.names))
        colours = {key: _sha("".join(parts)) for key, parts in told.items()}
    loose = [_sha(m.text + " ".join(colours.get(n, n[1]) for n in m.names)) for key, m in found if key is None]
    return _sha("\n".join(sorted([*colours.values(), *loose])))


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


# -------------------------------------------------------------------------------------- what is vouched for


@lru_cache(maxsize=1)
def released() -> dict[str, dict[str, object]]:
    """Part -> {"numerics": N, "accepted": [digests]} of `numerics.json`."""
    return json.loads(RELEASED.read_text(encoding="utf-8"))["parts"] if RELEASED.is_file() else {}


def vouched(part: str, found: str) -> int | str:
    """The released number of a part where its digest is known to compute the same, else the digest."""
    known = released().get(part, {})
    return int(str(known["numerics"])) if found in known.get("accepted", ()) else found  # type: ignore[operator]


@lru_cache(maxsize=8)
def _part(name: str) -> tuple[dict[str, Module], str]:
    modules = {k: v for start in PARTS[name] for k, v in closure(entry(start)).items()}
    return modules, digest(modules)


def of_part(name: str) -> int | str:
    """The number or the digest of one of `PARTS`."""
    return vouched(name, _part(name)[1])


def of_class(kind: type) -> int | str:
    """What identifies the code of a class that fills a cache: a part that holds it, else the digest of its modules."""
    return _of_module(kind.__module__) or kind.__qualname__


@lru_cache(maxsize=256)
def _of_module(name: str) -> int | str:
    file = getattr(sys.modules.get(name), "__file__", None)
    if not file:
        return ""
    path = Path(file).resolve()
    for part in ("pictures", "encoders"):
        if path in {m.path for m in _part(part)[0].values()}:
            return of_part(part)
    return digest(closure(entry(name) if name.startswith("cirbench.") else entry(path)))


def own_modules(start: Module) -> dict[str, Module]:
    """What a method or dataset file reaches beyond the harness, which counts by itself."""
    harness = {m.path for m in _part("harness")[0].values()}
    return {name: m for name, m in closure(start).items() if m.path not in harness}


def of_plugin(kind: str, name: str, start: Module) -> int | str:
    """The number or the digest of a method (`methods/dwc`) or a dataset (`datasets/scenes`)."""
    found = digest(own_modules(start))
    return vouched(f"{kind}/{name}", found) if start.name.startswith("cirbench.") else found

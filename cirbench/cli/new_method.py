"""Write a working, commented method file to start from."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

import click

from cirbench.files import replacing
from cirbench.types import CirbenchError


@click.command("new-method")
@click.argument("name")
@click.option("--out", "-o", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Folder. [current]")
def command(name: str, out: Path) -> None:
    """Write NAME.py, a small method that works, with a comment on everything a method can declare.

    \b
    cirbench new-method my-idea
    cirbench check ./my_idea.py
    cirbench run --method ./my_idea.py --dataset scenes
    """
    from cirbench.plugins import method_names

    stem = name.removesuffix(".py").replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", stem) or keyword.iskeyword(stem):
        raise CirbenchError(
            f"{name!r} cannot be the name of a method: lower-case letters, digits and hyphens, beginning with a "
            "letter, and no Python keyword. Try my-idea."
        )
    shown = stem.replace("_", "-")
    if shown in method_names():
        raise CirbenchError(f"there is a method {shown!r} already (`cirbench list methods`). Choose another name.")
    path = out / f"{stem}.py"
    if path.exists():
        raise CirbenchError(f"{path} exists and was not changed. Choose another name, or another folder with --out.")
    from importlib.resources import files

    source = files("cirbench.methods").joinpath("_template.py").read_text(encoding="utf-8")
    title = "".join(part.capitalize() for part in stem.split("_"))
    source = source.replace("NAME: one sentence", f"{title}: one sentence").replace("./NAME.py", f"./{path.name}")
    with replacing(path) as file:
        file.write(re.sub(r"\bTemplate\b", title, source).encode())
    where = path if path.is_absolute() else f"./{path}"
    click.echo(f"{path}: a method that works. Next:\n  cirbench check {where}\n"
               f"  cirbench run --method {where} --dataset scenes")

"""The wheel works outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout: the files of the project cannot be told from others")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder),
         str(source)], capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return next(folder.glob("*.whl"))


def test_wheel_holds_what_the_package_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for needed in (
        "cirbench/methods/dwc.py", "cirbench/assets/scenes-small/model.safetensors",
        "cirbench/assets/scenes-small/vocab.txt",
        "cirbench/assets/scenes-cnn/model.safetensors", "cirbench/sweeps/lambda.toml", "cirbench/py.typed",
    ):
        assert needed in names, needed
    assert any(n.startswith("cirbench/reports/templates/") for n in names)
    assert not any(n.startswith(("tests/", "methods/", "reports/")) for n in names)
    assert wheel.stat().st_size < 6e6


def test_wheel_runs_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        # The editable install is taken out of the way, so that only the wheel can answer.
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        f"sys.path.insert(0, {str(site)!r})\n"
        "import cirbench; assert cirbench.__file__.startswith(sys.path[0]), cirbench.__file__\n"
        "from cirbench.cli import main; main(sys.argv[1:])"
    )
    environment = {**os.environ, "PYTHONPATH": ""}

    def cirbench(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "dwc" in cirbench("list", "methods")
    small = [x for s in ("data.train_scenes=48", "data.report_scenes=12", "data.select_scenes=8", "data.distractors=12",
                         "train.epochs=1", "method.streams=clip") for x in ("--set", s)]
    assert "R@1" in cirbench("run", "-m", "dwc", "-d", "scenes", "--device", "cpu", *small)
    cirbench("report", "runs", "-o", "report.html")
    assert (tmp_path / "report.html").stat().st_size > 10_000

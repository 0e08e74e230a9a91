"""Shows that a change of the code moves no number, and says so in `cirbench/numerics.json` (`make numerics`).

Small runs of every method (seeds 0 to 2) and of every dataset are made twice on this machine: by the sources of the last
commit whose numbers are released, and by the sources as they are now. Everything that a run left then is compared to the
last bit: weights, losses, rankings, metrics; what it leaves in addition now, such as a new protocol, moves nothing. Where
all is equal, the digests of the sources as they are now are added to the file. Where something moved, nothing is
written, unless the part that moved is raised:

    make numerics                                        # prove a change harmless
    make numerics RAISE=methods/tirg WHY="dropout before the text layer, as in the release"

Raising gives the part the next number and adds the reason to CHANGELOG.md; its runs then get other ids.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "cirbench" / "numerics.json"
SEEDS = (0, 1, 2)
TINY = [
    "data.train_scenes=48", "data.select_scenes=8", "data.report_scenes=12", "data.distractors=12", "train.epochs=2",
    "train.batch_size=32", "train.selection=select",
]
NARROW = {"clip": "scenes-small", "cnn": "scenes-cnn", "clip_dim": 32, "cnn_dim": 16, "word_dim": 8}
#: Variants that reach other code than their method as it comes.
VARIANTS = {
    "dwc": ("no-emd", "no-ssg", "fixed-lambda", "as-released", "ssg-euclidean", "fusion-tirg", "fusion-combiner", "symmetric"),
    "tirg": ("like-dwc", "last-conv", "soft-triplet"), "combiner": ("like-dwc",), "concat": ("one-layer",),
}
#: Datasets that are read from disk, and how one is trained on: evaluation-only ones are not.
DISK = {
    "custom": 2, "fashioniq": 2, "shoes": 2, "fashion200k": 2, "css3d": 2, "cirr": 2, "circo": 0, "genecis": 0,
}


# ------------------------------------------------------------------------------------------- parts


def parts() -> dict[str, str]:
    """Part -> digest of its sources as they are: the harness, what caches are keyed by, methods, datasets."""
    from cirbench import numerics, plugins

    out = {name: numerics._part(name)[1] for name in numerics.PARTS}
    for kind, names in (
        ("methods", [p.stem for p in sorted(plugins._folder("cirbench.methods").glob("[a-z]*.py"))]),
        ("datasets", plugins.dataset_names()),
    ):
        for name in names:
            modules = numerics.own_modules(numerics.entry(f"cirbench.{kind}.{name}"))
            out[f"{kind}/{name.replace('_', '-') if kind == 'methods' else name}"] = numerics.digest(modules)
    return out


def unknown() -> list[str]:
    """Parts whose sources compute no released number."""
    from cirbench import numerics

    return [name for name, found in parts().items() if not isinstance(numerics.vouched(name, found), int)]


# ------------------------------------------------------------------------------------------- runs


def prepare(folder: Path) -> None:
    """Small data on disk for every dataset, with pictures of many shapes; by the sources as they are now."""
    import numpy as np
    import PIL.Image
    from small_data import build

    from cirbench import plugins

    for name in DISK:
        root = folder / name
        build(name, root)
        module = plugins.find_dataset(name)
        loaded = module.load(module.Knobs(), root)
        rng = np.random.default_rng(len(name))
        for image_id in sorted({i for s in loaded.splits.values() for i in s.images()} | {
            m for s in loaded.splits.values() for q in s.queries for m in q.extra.get("members", ())
        }):
            parent, file = loaded.images._candidates(image_id)[0]
            path = root / parent.replace("*", "0") / (file if Path(file).suffix else f"{file}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            width, height = rng.integers(20, 90, 2)
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(path, "PNG")


def cases(data: Path) -> list[tuple[str, str, str, list[str]]]:
    """(label, method, dataset, arguments of `cirbench run`)."""
    from cirbench import plugins

    out = []
    for method in plugins.methods():
        if method.module != f"cirbench.methods.{method.name.replace('-', '_')}":
            continue
        fields = [f"method.{k}={v}" for k, v in NARROW.items() if k in method.config.model_fields]
        for variant in ("", *VARIANTS.get(method.name, ())):
            for seed in SEEDS if not variant else SEEDS[:1]:
                sets = [a for text in (*TINY, *fields) for a in ("--set", text)]
                given = ["--variant", variant] if variant else []
                out.append((
                    f"{method.name} {variant} seed {seed}", method.name, "scenes",
                    ["-m", method.name, "-d", "scenes", "--seed", str(seed), *given, *sets],
                ))
    for name, epochs in DISK.items():
        for method in ("sum", "dwc"):
            sets = [f"train.epochs={epochs}", "train.batch_size=4", "method.streams=clip", "method.clip_dim=32"]
            out.append((
                f"{method} on {name}", method, name,
                ["-m", method, "-d", name, "--root", str(data / name), "--backbone", "scenes-small", "--recipe", "scenes",
                 *(a for text in sets for a in ("--set", text))],
            ))
    return out


def fingerprint(folder: Path) -> dict[str, str]:
    """What a run left -> sha256, times and places left out."""
    import numpy as np
    from safetensors.numpy import load_file

    def sha(*values: Any) -> str:
        return hashlib.sha256(repr(values).encode()).hexdigest()[:16]

    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    out = {"default protocol": record["default_protocol"]}
    for name, p in record["protocols"].items():
        out[f"metrics/{name}"] = sha({k: p[k] for k in ("queries", "gallery", "ties", "metrics")})
    steps = [json.loads(line) for line in (folder / "training.jsonl").read_text(encoding="utf-8").splitlines()]
    out["losses"] = sha([{k: v for k, v in s.items() if k != "seconds"} for s in steps])
    weights = load_file(folder / "model.safetensors")
    out["weights"] = sha([(k, v.shape, v.tobytes()) for k, v in sorted(weights.items())])
    for name in ("rankings", "select"):
        path = folder / f"{name}.npz"
        if path.is_file():
            with np.load(path) as arrays:
                out |= {f"{name}/{k}": sha(arrays[k].shape, arrays[k].tobytes()) for k in arrays.files}
    return out


def run_all(wanted: list[tuple[str, str, str, list[str]]]) -> dict[str, Any]:
    """Label -> fingerprint of the run, or the message with which it was refused."""
    from cirbench.cli import main

    out: dict[str, Any] = {}
    for label, _, _, arguments in wanted:
        with tempfile.TemporaryDirectory() as folder:
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                try:
                    main(["run", *arguments, "--out", folder, "--quiet", "--device", "cpu"])
                except SystemExit as stop:
                    code = stop.code
            made = list(Path(folder).glob("*/record.json"))
            out[label] = fingerprint(made[0].parent) if made else f"exit {code}: {said.getvalue().strip()[-300:]}"
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return out


# ------------------------------------------------------------------------------------------- two trees


def package(tree: Path, out: Path) -> Path:
    """The importable package of a checkout: its folders as pyproject.toml maps them."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(tree / "cirbench", out / "cirbench", ignore=ignore)
    for name in ("methods", "reports", "sweeps"):
        shutil.copytree(tree / name, out / "cirbench" / name, ignore=ignore)
    return out


def checkout(revision: str, out: Path) -> Path:
    """The files of a commit."""
    out.mkdir(parents=True)
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", revision], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(out)], input=archive, check=True)
    return out


def ask(tree: Path, scratch: Path, tests: Path, *arguments: str, given: Any = None) -> Any:
    """Run this file with the package of a tree; returns the JSON it prints."""
    threads = {"OMP_NUM_THREADS": "1", "CIRBENCH_CACHE": str(scratch / "cache")}
    environment = {**os.environ, **threads, "PYTHONPATH": os.pathsep.join([str(tree), str(tests)])}
    done = subprocess.run(
        [sys.executable, str(tests / "numerics_check.py"), *arguments], env=environment, text=True,
        input=json.dumps(given), stdout=subprocess.PIPE, check=True, cwd=scratch,
    )
    return json.loads(done.stdout.splitlines()[-1])


def last_released(scratch: Path, most: int = 60) -> str | None:
    """The last commit all of whose parts compute released numbers."""
    log = ["git", "-C", str(ROOT), "log", "--first-parent", f"-{most}", "--format=%H", "--", "cirbench", "methods"]
    for number, revision in enumerate(subprocess.run(log, capture_output=True, text=True, check=True).stdout.split()):
        tree = checkout(revision, scratch / f"commit{number}")
        if not (tree / "cirbench" / "numerics.json").is_file():
            continue
        here = scratch / f"package{number}"
        here.mkdir()
        if not ask(package(tree, here), here, tree / "tests", "--unknown"):
            return revision
    return None


def compare(base: str, scratch: Path, snapshot: Path, tests: Path) -> list[tuple[str, str, str, str]]:
    """(label, method, dataset, what differs) of every small run that another result came of."""
    data = scratch / "data"
    prepare(data)
    wanted, found = cases(data), []
    (scratch / "base").mkdir()
    before = package(checkout(base, scratch / "base-tree"), scratch / "base")
    for name, tree in ((f"the commit {base[:10]}", before), ("the sources as they are now", snapshot)):
        print(f"{len(wanted)} small runs of {name} ", file=sys.stderr)
        found.append(ask(tree, tree, tests, "--runs", given=wanted))
    old, new = found
    out = []
    for label, method, dataset, _ in wanted:
        if keys := moved(old[label], new[label]):
            out.append((label, method, dataset, ", ".join(keys)))
    return out


def moved(old: dict[str, str] | str, new: dict[str, str] | str) -> list[str]:
    """What a run of the old sources left that one of the new does not leave alike; or both messages."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [name for name, left in old.items() if new.get(name) != left]
    return [] if old == new else [f"{old} | {new}"]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raise", dest="raised", default="", help="parts that move on purpose, comma-separated, or `all`")
    parser.add_argument("--why", default="", help="the reason, for CHANGELOG.md")
    parser.add_argument("--base", default="", help="commit to compare with; the last released one by default")
    parser.add_argument("--unknown", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--parts", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--runs", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.unknown:
        print(json.dumps(unknown()))
        return 0
    if given.parts:
        print(json.dumps(parts()))
        return 0
    if given.runs:
        print(json.dumps(run_all(json.load(sys.stdin))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return vouch(Path(folder), parser, given)


def vouch(scratch: Path, parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    """Compare, and write what was found equal or is raised; returns the exit code."""
    # A copy: what is edited meanwhile is neither compared nor vouched for.
    (scratch / "now").mkdir()
    snapshot, tests = package(ROOT, scratch / "now"), scratch / "tests"
    shutil.copytree(ROOT / "tests", tests, ignore=shutil.ignore_patterns("__pycache__"))
    known = json.loads(FILE.read_text(encoding="utf-8"))["parts"] if FILE.is_file() else {}
    now: dict[str, str] = ask(snapshot, scratch, tests, "--parts")
    raised = sorted(now) if given.raised == "all" else [p for p in given.raised.split(",") if p]
    if bad := [p for p in raised if p not in now]:
        parser.error(f"no such part: {', '.join(bad)}. Parts: {', '.join(now)}")
    if raised and not given.why:
        parser.error("--raise needs --why: what moves, and why.")
    changed = [p for p, digest in now.items() if digest not in known.get(p, {}).get("accepted", ())]
    if not changed and not raised:
        print("every part computes a released number; nothing to do")
        return 0
    print(f"changed: {', '.join(changed)}")
    if given.raised != "all":
        base = given.base or last_released(scratch / "log")
        if base is None:
            parser.error("no commit with released numbers was found. Name one with --base, or use --raise all.")
        found = compare(base, scratch, snapshot, tests)
        free = {p.partition("/")[2] for p in raised}
        wrong = [m for m in found if "harness" not in raised and not {m[1], m[2]} & free]
        for label, _, _, what in found:
            print(f"  moved: {label}: {what}")
        if wrong:
            print(f"{len(wrong)} runs moved. Mend the change, or raise what moves on purpose (--raise PART --why REASON).")
            return 1
        print(f"{len(found)} small runs moved, as raised; all others are equal to the last bit")
    for part in sorted({*changed, *raised, *known}):
        if part not in now:  # a method or dataset that is gone
            known.pop(part)
            continue
        entry = known.setdefault(part, {"numerics": 1, "accepted": []})
        if part in raised:
            entry.update(numerics=entry["numerics"] + bool(entry["accepted"]), accepted=[now[part]])
        elif now[part] not in entry["accepted"]:
            entry["accepted"].append(now[part])
    FILE.write_text(json.dumps({"parts": dict(sorted(known.items()))}, indent=1) + "\n", encoding="utf-8")
    if raised:
        _note([f"{p} {known[p]['numerics']}" for p in raised] if given.raised != "all" else ["all parts"], given.why)
    return 0


def _note(raised: list[str], why: str) -> None:
    """Say in CHANGELOG.md what moved."""
    path = ROOT / "CHANGELOG.md"
    head = "# Changelog\n\n## Numbers that moved\n\n"
    text = path.read_text(encoding="utf-8") if path.is_file() else head
    line = f"- numerics of {', '.join(raised)}: {why}\n"
    path.write_text(text.replace("## Numbers that moved\n\n", f"## Numbers that moved\n\n{line}", 1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

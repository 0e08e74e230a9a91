"""Every reader of files, each with a small valid file, and what commands do with what it returns."""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from mutations import torched, zipped
from small_data import build

from cirbench import files, lease
from cirbench.data import cache as caches
from cirbench.data import check, download, image_files
from cirbench.data.splits import load_named
from cirbench.plugins import find_dataset
from cirbench.runs.record import Record, read_json
from cirbench.runs.record_types import read_run
from cirbench.runs.store import Study
from cirbench.runs.study_types import read_study
from cirbench.types import CirbenchError, Dataset

#: Memory that an input may take: one that asks for more is a defect, and must not cost others theirs.
MEMORY = 6 << 30


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Inside the block this process gets `MEMORY` beyond what it has (on Linux)."""
    status = Path("/proc/self/status")
    if not status.is_file():
        yield
        return
    import resource

    was = resource.getrlimit(resource.RLIMIT_AS)
    used = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (used * 1024 + MEMORY, was[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, was)


@dataclass(frozen=True)
class Reader:
    """One file of a folder.

    Attributes:
        name: of its folder in the corpus.
        file: the one that is damaged, relative to the folder.
        kind: its format, a key of `mutations.MUTATORS`.
        make: writes the valid folder.
        read: reads the folder, and uses what was read as commands do.
    """

    name: str
    file: str
    kind: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]


# ------------------------------------------------------------------------------------------ datasets


def use(dataset: Dataset) -> None:
    """What every run does with a dataset, apart from pictures and models: nothing of it may fail later."""
    assert dataset.splits
    check.text_notes(dataset)
    for split in dataset.splits.values():
        assert split.queries and len({q.id for q in split.queries}) == len(split.queries)
        ids = split.images()
        dataset.images.fingerprint(ids)
        if isinstance(dataset.images, image_files.FolderImages):
            assert len(dataset.images.missing(ids)) <= len(ids)
        for query in split.queries:
            json.dumps(files.dumps({**asdict(query), "extra": dict(query.extra)})).encode()
            for form in dict.fromkeys(p.form for p in dataset.protocols):
                for row in dataset.forms[form](query):
                    assert row and all(isinstance(text, str) for text in row)
                    "".join(row).encode()
            "".join([query.id, query.group, query.reference, *query.targets, *(query.candidates or ())]).encode()
        for groups in split.galleries.values():
            assert all(groups.get(query.group, groups.get("")) for query in split.queries), "an empty gallery"
            assert all(isinstance(i, str) for gallery in groups.values() for i in gallery)


def dataset(name: str, split: str) -> Callable[[Path], None]:
    """Load a dataset for a run, or one split of it for scoring, and count it."""

    def read(root: Path) -> None:
        module = find_dataset(name)
        problems = []
        for load in (lambda: module.load(module.Knobs(), root), lambda: load_named(name, root, split)[0]):
            try:
                use(load())
            except CirbenchError as error:
                problems.append(error)
        module.counts(module.Knobs(), root) if hasattr(module, "counts") else None
        if problems:
            raise problems[0]

    return read


def of_dataset(name: str, file: str, kind: str, split: str, label: str = "") -> Reader:
    return Reader(label or name, file, kind, lambda root: build(name, root), dataset(name, split))


# ------------------------------------------------------------------------------------------ results


def results(root: Path) -> None:
    """A small custom dataset and its rankings and embeddings."""
    build("custom", root)
    _, split = load_named("custom", root, "test")
    ids = [i for i in split.images() if i.startswith("test")]
    lists = {q.id: [i for i in ids if i != q.reference] for q in split.queries}
    files.write_json(root / "rankings.json", lists)
    files.write_jsonl(root / "rankings.jsonl", [{k: v} for k, v in lists.items()])
    rng = np.random.default_rng(0)
    np.savez(
        root / "embeddings.npz", query_ids=np.array([q.id for q in split.queries]), queries=rng.normal(size=(len(split.queries), 4)).astype(np.float32),
        image_ids=np.array(ids), gallery=rng.normal(size=(len(ids), 4)).astype(np.float32),
    )


def again(value: Any, write: Callable[[Path, Any], None], read: Callable[[Path], Any]) -> None:
    """What was read is the same after it was written and read once more."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "again.json"), value)
        assert read(Path(folder, "again.json")) == value


def score(file: str) -> Callable[[Path], None]:
    def read(root: Path) -> None:
        from cirbench.scoring import result_files, score_results

        data, split = _scored(root)
        one = score_results.score_embeddings if file.endswith("npz") else score_results.score_rankings
        result = one(data, split, [root / file])
        if not file.endswith("npz"):
            again(result_files.read_rankings(root / file).lists, lambda path, lists: files.write_json(path, lists), lambda path: result_files.read_rankings(path).lists)
        for entry in result["protocols"].values():
            assert all(0 <= v <= 100 for k, v in entry["metrics"].items() if k.partition("/")[2][:1] != "M"), entry

    return read


@cache
def _scored(root: Path) -> Any:
    return load_named("custom", root, "test")


def server(root: Path) -> None:
    build("cirr", root)
    _, split = load_named("cirr", root, "test1")
    names = split.galleries["all"][""]
    body = {q.id: [n for n in q.extra["members"] if n != q.reference][:3] for q in split.queries}
    assert names
    files.write_json(root / "server.json", {"version": "rc2", "metric": "recall_subset", **body})


def validate(root: Path) -> None:
    from cirbench.scoring import server_files

    server_files.validate(root / "server.json", _test1(root))


@cache
def _test1(root: Path) -> Any:
    return load_named("cirr", root, "test1")[1]


# ------------------------------------------------------------------------------------------ records and sweeps


@cache
def _made(_: str = "") -> Path:
    from fake_records import write_run

    out = Path(tempfile.mkdtemp())
    return write_run(out, queries=6, gallery=12, pictures=2, explain=True, weights=True, steps=20)


def record(root: Path) -> None:
    shutil.copytree(_made(), root, dirs_exist_ok=True)


def show(root: Path) -> None:
    """What `show`, `runs`, `compare` and reports read of a run."""
    from cirbench.reports.checks import check_runs
    from cirbench.reports.collect import rows_of

    found = Record(root)
    check_runs([found])
    for protocol in found.run.protocols:
        assert len(rows_of(found, protocol)) == len(found.rankings[f"rank/{protocol}"])
        found.definition(protocol)
    for name in found.rankings:
        if name.startswith(("top/", "weight/", "value/", "top_score/")):
            np.asarray(found.rankings[name])
    for query in found.queries:
        found.explain.get(query["id"])
    for name, data in found.pictures.many([q["reference"] for q in found.queries]).items():
        assert isinstance(name, str) and isinstance(data, bytes)
    again(read_run(found.data), lambda path, _: files.write_json(path, found.data), lambda path: read_run(read_json(path)))
    again([found.training, found.gallery, found.queries, found.explain], files.write_json, read_json)


def sweep(root: Path) -> None:
    files.write_json(root / "sweeps/s/sweep.json", {
        "schema": 1, "study": "s-scenes", "name": "s", "question": "?", "note": "", "tuning": True, "dataset": "scenes", "seeds": [0, 1], "sampler": "grid",
        "objective": {"split": "select", "protocol": "scenes", "metric": "R@1", "direction": "maximize"},
        "arms": [{"label": "a", "method": "dwc", "space": {"method.temperature": [0.1, 0.2], "method.dropout": {"low": 0.1, "high": 0.5, "log": True, "step": None}}}],
        "total": 2, "points": [
            {"number": n, "label": f"p{n}", "method": "dwc", "variant": "", "values": {"method.temperature": 0.1}, "fixed": {}, "state": "complete", "value": 1.0 + n,
             "seeds": {"0": {"run": "gone", "id": "x", "objective": 1.5}, "1": {"run": "gone", "id": "y", "objective": 2.5}}, "error": None} for n in range(2)
        ], "runs": ["gone"],
    })


def status(root: Path) -> None:
    from cirbench.studies import display

    study = Study(root / "sweeps/s")
    study.runs()
    again(study.sweep, lambda path, _: files.write_json(path, study.data), lambda path: read_study(read_json(path)))
    display.table(study.data, root)


def selected(root: Path) -> None:
    record(root)
    design(root)
    files.write_npz(root / "select.npz", {"rank/scenes": np.arange(1, 41, dtype=np.int32), "value/scenes/mAP@5": np.ones(40)})


def blocks(root: Path) -> None:
    """What a sweep with a pruner compares."""
    from cirbench.studies import design_file, objective

    found = objective.blocks(Record(root), design_file.read(str(root / "mine.toml")))
    assert found and all(0 <= value <= 100 for value in found)


DESIGN = """name = "mine"
question = "?"
dataset = "scenes"
seeds = [0, 1]
sampler = "grid"
timeout = 60
retries = 1
trials = 4
note = "x"
[objective]
protocol = "scenes"
metric = "R@5"
[fixed]
"method.streams" = "clip"
[[arms]]
label = "a"
method = "dwc"
variants = [""]
[arms.space]
"method.temperature" = [0.05, 0.1]
"method.soft_label_weight" = { low = 0.0, high = 1.0, step = 0.5 }
[variants.short]
note = "y"
[variants.short.fixed]
"train.epochs" = 2
"""


def design(root: Path) -> None:
    (root / "mine.toml").write_text(DESIGN)


def read_design(root: Path) -> None:
    from cirbench.studies import design_file, display

    found = design_file.read(str(root / "mine.toml"))
    assert found.timeout is None or found.timeout > 0
    display.plan_text(found)
    design_file.read(str(root / "mine.toml"), variant="short")


# ------------------------------------------------------------------------------------------ weights


def clip(root: Path) -> None:
    import torch
    from open_clip.model import CLIP

    from cirbench.models import small_clip

    tokenizer = small_clip.WordTokenizer(["a", "red", "ring"])
    config = small_clip.config_of("small", len(tokenizer), 16)
    config["embed_dim"], config["text_cfg"] = 8, {**config["text_cfg"], "width": 8, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    small_clip.save(root, CLIP(**config), tokenizer, config)


def load_clip(root: Path) -> None:
    import torch

    from cirbench.models import small_clip
    from cirbench.models.clip import load_clip

    found = load_clip(str(root))
    with tempfile.TemporaryDirectory() as copied:
        model, words, info = small_clip.load(root)
        small_clip.save(copied, model, words, small_clip._described(root / "clip.json").model.model_dump(), info["mean"], info["std"])
        assert load_clip(copied).pixels == found.pixels
    side = found.pixels.size
    with torch.inference_mode():
        assert found.encode_images(torch.zeros(1, 3, side, side)).shape == (1, found.dim)
        assert found.encode_texts(["a red ring"]).shape == (1, found.dim)


def tiny_clip_checkpoint() -> dict[str, Any]:
    """A CLIP stream of the released DWC with 8 dimensions instead of 1024."""
    import torch

    d, width = 8, 16
    state = {"loss_weight": torch.ones(1)}
    for name, out, into in (
        ("img_fc.0", d, width), ("txt_fc.0", d, width), ("atten_I.0", d, 2 * d), ("atten_I.3", d, d), ("atten_T.0", d, 2 * d), ("atten_T.3", d, d),
        ("dynamic_scalar.0", d, 2 * d), ("dynamic_scalar.3", 1, d),
    ):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.zeros(out, into), torch.zeros(out)
    return {"model_state_dict": state}


def dwc(root: Path) -> None:
    (root / "clip.pth").write_bytes(torched(tiny_clip_checkpoint()))
    (root / "texts.json").write_text(json.dumps(["a red ring", "a blue ring"]))


def convert(root: Path) -> None:
    from cirbench.models import convert_dwc

    with tempfile.TemporaryDirectory() as out:
        convert_dwc.convert(root / "clip.pth", None, None, Path(out) / "new", "RN50-quickgelu:openai")
        convert_dwc.load(Path(out) / "new")


def cnn_rename(root: Path) -> None:
    """The CNN stream: the file is read and its tensors are renamed (building the network takes seconds)."""
    from cirbench.models import convert_dwc

    convert_dwc._config({"cnn": convert_dwc.rename("cnn", convert_dwc.read_checkpoint(root / "cnn.pth"))[0]}, "")


def tiny_cnn_checkpoint() -> dict[str, Any]:
    import released_dwc
    import torch

    state: dict[str, Any] = {}
    for name in ("imgconv.0", "imgatt.0", "txtatt.0", "txt2img.0", "img2txt.0"):
        released_dwc._inception(state, name, 4, 8, 1)
    released_dwc._linear(state, "img_fc", 8, 8)
    state["txt_model.embedding_layer.weight"] = torch.zeros(5, 4)
    return {"model_state_dict": state}


def texts(root: Path) -> None:
    from cirbench.models import convert_dwc
    from cirbench.models.lstm_text import build_vocabulary

    json.dumps(build_vocabulary(convert_dwc.read_texts(root / "texts.json"))).encode()


def converted(root: Path) -> None:
    from cirbench.models import convert_dwc

    dwc(root)
    convert_dwc.convert(root / "clip.pth", None, None, root / "new", "RN50-quickgelu:openai")


def load_converted(root: Path) -> None:
    from cirbench.models import convert_dwc
    from cirbench.runs.evaluate_run import plan_eval

    plan_eval(root / "new", "scenes")
    convert_dwc.load(root / "new")


def vectors(root: Path) -> None:
    rows = {"red": "0.5 -1.25 3e-2", ". . .": "1 2 3", "ring": "4 5 6", "caf\u00e9": "1 1 1"}
    body = "".join(f"{word} {row}\n" for word, row in rows.items()).encode()
    (root / "glove.txt").write_bytes(body)
    (root / "some.vec").write_bytes(b"4 3\n" + body)
    (root / "glove.txt.gz").write_bytes(gzip.compress(body, mtime=0))


def read_vectors(file: str) -> Callable[[Path], None]:
    def read(root: Path) -> None:
        from cirbench.models import word_vectors

        ids, rows = word_vectors.read_vectors(str(root / file), ["a", "red", "ring"], 3)
        assert ids and rows.shape == (len(ids), 3) and rows.isfinite().all()

    return read


@cache
def _planned() -> Any:
    import tiny

    planned = tiny.plan("concat", method__streams="clip")
    module = find_dataset("scenes")
    return planned, module.load(planned.knobs)


def weights(root: Path) -> None:
    from cirbench.runs.building import build, save_weights

    save_weights(root / "model.safetensors", build(*_planned(), state={"a": [1]}))


def load_weights(root: Path) -> None:
    import torch

    from cirbench.runs.building import load_method

    planned, dataset = _planned()
    load_method(planned, dataset, root / "model.safetensors", torch.device("cpu"))


# ------------------------------------------------------------------------------------------ archives, caches, leases


def archive(root: Path) -> None:
    (root / "a.zip").write_bytes(zipped([("images/a.jpg", b"x" * 20), ("images/b.jpg", b"y" * 20), ("index.json", b"[1]")]))


def tar(root: Path) -> None:
    with tarfile.open(root / "a.tar.gz", "w:gz") as out:
        for name in ("images/a.jpg", "images/b.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 20
            out.addfile(info, io.BytesIO(b"x" * 20))


def unpack(file: str) -> Callable[[Path], None]:
    def read(root: Path) -> None:
        """Everything or nothing is unpacked, and nothing beside the folder."""
        with tempfile.TemporaryDirectory() as scratch:
            shutil.copyfile(root / file, Path(scratch, file))
            inside = Path(scratch, "in")
            download._damage(Path(scratch, file), file)
            try:
                download.unpack(Path(scratch, file), inside)
            except CirbenchError:
                assert not inside.exists()
                raise
            finally:
                assert {p.name for p in Path(scratch).iterdir()} <= {file, "in"}

    return read


def state(root: Path) -> None:
    found = download._state(root / "x.part")
    assert isinstance(found, dict) and all(isinstance(v, str) for v in found.values())
    (root / "x.part").write_bytes(b"abc")
    download._request("http://127.0.0.1/x", root / "x.part")


def holder(root: Path) -> None:
    assert lease.Watch(60).dead(lease._read(root / "lease.json")) in (True, False)


def cached(root: Path) -> None:
    for mapped in (False, True):
        found = caches.usable(root / "x.npy", (3, None), np.dtype(np.float32), mapped)
        assert found is None or (found.shape[0] == 3 and np.asarray(found).dtype == np.float32)


def picture(root: Path) -> None:
    found = image_files.decode(root / "a.jpg")
    assert (found.image is None) == (found.problem in image_files.DESCRIBED)


def jpeg(root: Path) -> None:
    from own_data import encoded, noise

    (root / "a.jpg").write_bytes(encoded(noise(1, 8), "JPEG"))


READERS: tuple[Reader, ...] = (
    of_dataset("fashioniq", "captions/cap.dress.val.json", "json", "val", "fashioniq-captions"),
    of_dataset("fashioniq", "image_splits/split.dress.val.json", "json", "val", "fashioniq-split"),
    of_dataset("cirr", "captions/cap.rc2.val.json", "json", "val", "cirr-captions"),
    of_dataset("cirr", "image_splits/split.rc2.val.json", "json", "val", "cirr-split"),
    of_dataset("circo", "annotations/val.json", "json", "val", "circo"),
    of_dataset("circo", "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json", "json", "val", "circo-coco"),
    of_dataset("genecis", "change_object.json", "json", "test", "genecis-object"),
    of_dataset("genecis", "change_attribute.json", "json", "test", "genecis-attribute"),
    of_dataset("shoes", "relative_captions_shoes.json", "json", "eval", "shoes-captions"),
    of_dataset("shoes", "eval_im_names.txt", "text", "eval", "shoes-names"),
    of_dataset("fashion200k", "labels/dress_train_detect_all.txt", "text", "test", "fashion200k-labels"),
    of_dataset("fashion200k", "test_queries.txt", "text", "test", "fashion200k-queries"),
    of_dataset("css3d", "css_toy_dataset_novel2_small.dup.npy", "pickle", "test"),
    of_dataset("custom", "images.csv", "text", "test", "custom-images"),
    of_dataset("custom", "triplets.test.jsonl", "jsonl", "test", "custom-triplets"),
    Reader("rankings-json", "rankings.json", "json", results, score("rankings.json")),
    Reader("rankings-jsonl", "rankings.jsonl", "jsonl", results, score("rankings.jsonl")),
    Reader("embeddings", "embeddings.npz", "npz", results, score("embeddings.npz")),
    Reader("server-file", "server.json", "json", server, validate),
    Reader("record", "record.json", "json", record, show),
    Reader("record-queries", "queries.jsonl", "jsonl", record, show),
    Reader("record-gallery", "gallery.json", "json", record, show),
    Reader("record-training", "training.jsonl", "jsonl", record, show),
    Reader("record-explain", "explain.json", "json", record, show),
    Reader("record-rankings", "rankings.npz", "npz", record, show),
    Reader("record-select", "select.npz", "npz", selected, blocks),
    Reader("record-pictures", "pictures.zip", "zip", record, show),
    Reader("sweep", "sweeps/s/sweep.json", "json", sweep, status),
    Reader("sweep-design", "mine.toml", "toml", design, read_design),
    Reader("clip-json", "clip.json", "json", clip, load_clip),
    Reader("clip-words", "vocab.txt", "text", clip, load_clip),
    Reader("clip-weights", "model.safetensors", "weights", clip, load_clip),
    Reader("word-vectors", "glove.txt", "text", vectors, read_vectors("glove.txt")),
    Reader("word-vectors-header", "some.vec", "text", vectors, read_vectors("some.vec")),
    Reader("word-vectors-packed", "glove.txt.gz", "bytes", vectors, read_vectors("glove.txt.gz")),
    Reader("dwc-clip", "clip.pth", "tensors", dwc, convert),
    Reader("dwc-cnn", "cnn.pth", "tensors", lambda root: (root / "cnn.pth").write_bytes(torched(tiny_cnn_checkpoint())), cnn_rename),
    Reader("dwc-texts", "texts.json", "json", dwc, texts),
    Reader("dwc-converted", "new/converted.json", "json", converted, load_converted),
    Reader("dwc-weights", "new/model.safetensors", "weights", converted, load_converted),
    Reader("run-weights", "model.safetensors", "weights", weights, load_weights),
    Reader("download-zip", "a.zip", "zip", archive, unpack("a.zip")),
    Reader("download-tar", "a.tar.gz", "bytes", tar, unpack("a.tar.gz")),
    Reader("download-state", "x.part.json", "json", lambda root: files.write_json(root / "x.part.json", {"url": "http://127.0.0.1/x", "tag": '"1"'}), state),
    Reader("lease", "lease.json", "json", lambda root: files.write_json(root / "lease.json", lease.identity()), holder),
    Reader("cached", "x.npy", "npy", lambda root: np.save(root / "x.npy", np.ones((3, 2), np.float32)), cached),
    Reader("picture", "a.jpg", "bytes", jpeg, picture),
)
BY_NAME = {reader.name: reader for reader in READERS}


class Tried:
    """A reader with its valid folder, ready for many inputs."""

    def __init__(self, reader: Reader, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        reader.make(root)
        self.reader, self.root, self.path = reader, root, root / reader.file
        self.valid = self.path.read_bytes()

    def __call__(self, body: bytes) -> str:
        """`accepted`, or the message of a refusal; anything else is a defect and is raised.

        Raises:
            Exception: what the reader raises and should not.
        """
        import mutations

        self.path.write_bytes(body)
        try:
            self.reader.read(self.root)
        except CirbenchError as error:
            said = str(error)
            assert said.strip() and len(said) < 4100, f"no message for a person: {said[:200]!r}"
            return said
        finally:
            assert not mutations.ran, "the file ran code"
            self.path.write_bytes(copy.copy(self.valid))
        return "accepted"

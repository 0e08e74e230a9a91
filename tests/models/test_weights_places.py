"""Weights from the hub and from a finished run; by what weights are identified; wrong names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_weights
import torch
from commands import exit_code
from safetensors.torch import load_file, save_file
from tiny_weights import encoded, expected, keep, same, write
from torch import Tensor

from cirbench.models import names
from cirbench.models.clip import check_clip, load_clip, without_weights
from cirbench.models.weights import ASSETS, weights_id, weights_in
from cirbench.runs import planning
from cirbench.runs.identity import identify
from cirbench.types import CirbenchError

# ------------------------------------------------------------------------------------------- the hub


@pytest.mark.parametrize("make", [tiny_weights.open_clip_folder, tiny_weights.hf_folder])
def test_the_hubs_cache_is_read_without_a_connection(make: Any, hub: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "mine")
    kept = keep(hub, "people/their-clip", folder)
    (kept / "README.md").write_text("read me")
    clip, local = load_clip("hf-hub:people/their-clip"), load_clip(f"local-dir:{folder}")
    same(encoded(clip), encoded(local))
    assert clip.key == local.key and weights_id("hf-hub:people/their-clip") == weights_id(f"local-dir:{folder}")
    assert weights_id(f"local-dir:{folder}").startswith("sha256:")


def test_what_cannot_be_fetched_is_told_at_once(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    waits = list[float]()
    monkeypatch.setattr(time, "sleep", waits.append)
    for name, said in {
        "hf-hub:people/nothing": r"could not be fetched: there is no connection to the hub.*without a connection name a folder",
        "hf-hub:nothing": "written hf-hub:OWNER/NAME", "hf-hub:": "written hf-hub:OWNER/NAME",
        "hf-hub:a/b/c": "written hf-hub:OWNER/NAME", "timm:hf-hub:timm/none": "could not be fetched",
    }.items():
        with pytest.raises(CirbenchError, match=said):
            check_clip(name)
    assert not waits


def test_a_proxy_that_refuses_is_not_asked_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one that never answers: one attempt, then what is cached."""
    import socket

    from huggingface_hub import constants

    from cirbench.data import hosts
    from cirbench.models import hub

    tried = list[Any]()

    def connect(address: Any, timeout: float) -> Any:
        tried.append((address, timeout))
        raise ConnectionRefusedError

    for variable in ("ALL_PROXY", "all_proxy", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(socket, "create_connection", connect)
    for proxy, door in (("http://127.0.0.1:9", ("127.0.0.1", 9)), ("proxy.example:3128", ("proxy.example", 3128)), ("", ("huggingface.co", 443))):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        with hub.fetching():
            assert constants.HF_HUB_OFFLINE
        assert tried.pop() == (door, hosts.CONNECT) and not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: socket.socket())
    with hub.fetching():
        assert not constants.HF_HUB_OFFLINE


def test_a_half_fetched_repository_is_not_taken_for_whole(hub: Path, tmp_path: Path) -> None:
    kept = keep(hub, "people/clip", tiny_weights.hf_folder(tmp_path / "mine"))
    (kept / "model.safetensors").unlink()
    with pytest.raises(CirbenchError, match="could not be fetched"):
        check_clip("hf-hub:people/clip")


def test_the_files_that_count_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a second copy of the weights nor pictures in the repository; parts that an index names are."""
    import huggingface_hub

    there, cache = tiny_weights.hf_folder(tmp_path / "there"), tmp_path / "cache"
    (there / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "part.safetensors"}}))
    shutil.move(there / "model.safetensors", there / "part.safetensors")
    for other in ("pytorch_model.bin", "tf_model.h5", "photo.jpg"):
        (there / other).write_bytes(b"x")

    def snapshot(repository: str, local_files_only: bool = False, allow_patterns: list[str] | None = None) -> str:
        if local_files_only and not cache.exists():
            raise OSError("nothing there")
        cache.mkdir(exist_ok=True)
        for name in allow_patterns or ():
            shutil.copy(there / name, cache / name)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *a: [p.name for p in there.iterdir()])
    clip = load_clip("hf-hub:people/clip")
    assert clip.dim == 12 and sorted(p.name for p in cache.iterdir()) == [
        "config.json", "model.safetensors.index.json", "part.safetensors", "preprocessor_config.json",
    ]


# ---------------------------------------------------------------------------------- what counts


def test_content_identifies_weights_and_places_do_not(model: str, tmp_path: Path) -> None:
    a = write(tmp_path / "a.pt", dict(tiny_weights.clip(0).state_dict()))
    shutil.copy(a, tmp_path / "b.bin")
    c = write(tmp_path / "c.pt", dict(tiny_weights.clip(1).state_dict()))
    assert weights_id(f"{model}:{a}") == weights_id(f"{model}:{tmp_path / 'b.bin'}") != weights_id(f"{model}:{c}")
    shutil.copy(a, tmp_path / "epoch_20")
    assert weights_id(f"{model}:{tmp_path / 'epoch_20'}") == weights_id(f"{model}:{a}"), "whatever the file's ending"
    assert weights_id(f"{model}:{a}") != weights_id(f"{model}-quickgelu:{a}"), "another architecture computes other features"
    assert load_clip(f"{model}:{a}").key == load_clip(f"{model}:{tmp_path / 'b.bin'}").key != load_clip(f"{model}:{c}").key
    folder = tiny_weights.open_clip_folder(tmp_path / "mine")
    before, key = weights_id(f"local-dir:{folder}"), load_clip(f"local-dir:{folder}").key
    shutil.move(folder, tmp_path / "elsewhere")
    assert weights_id(f"local-dir:{tmp_path / 'elsewhere'}") == before
    config = json.loads((tmp_path / "elsewhere/open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.1, 0.1, 0.1]
    (tmp_path / "elsewhere/open_clip_config.json").write_text(json.dumps(config))
    assert weights_id(f"local-dir:{tmp_path / 'elsewhere'}") != before
    assert load_clip(f"local-dir:{tmp_path / 'elsewhere'}").key != key
    small = tmp_path / "small"
    shutil.copytree(ASSETS / "scenes-small", small)
    assert weights_id(str(small)) == weights_id(f"local-dir:{small}") == weights_id("scenes-small")
    for name in ("RN50-quickgelu:openai", "resnet50.tv_in1k", "timm:resnet50.tv_in1k", "a photo of $: a.pt", "run", "a: b/" + "c" * 999, "a:/\0", ""):
        assert weights_id(name) == name and not weights_in({"clip": name})


def test_the_id_of_a_run_holds_the_content(model: str, tmp_path: Path) -> None:
    a = write(tmp_path / "a.safetensors", dict(tiny_weights.clip(0).state_dict()))
    dataset = planning.load(tiny.plan("sum"))

    def ident(path: Path) -> str:
        return identify(tiny.plan("sum", "clip-only", method__clip=f"{model}:{path}"), dataset).id

    before = ident(a)
    shutil.copy(a, tmp_path / "b.safetensors")
    assert ident(tmp_path / "b.safetensors") == before
    write(a, dict(tiny_weights.clip(1).state_dict()))
    assert ident(a) != before, "the same name with other bytes is another run"


def test_a_run_with_a_file_and_with_a_folder_agree(model: str, tmp_path: Path) -> None:
    """Equal tensors and preprocessing give equal rankings, whichever form names them; the record says what was read."""
    path = write(tmp_path / "w.pt", {"model": dict(tiny_weights.clip().state_dict())})
    folder = tiny_weights.open_clip_folder(tmp_path / "mine", mean=None, std=None)
    config = json.loads((folder / "open_clip_config.json").read_text())
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config["model_cfg"]}))
    found = [
        tiny.run("sum", tmp_path / "runs", "zero-shot", method__clip=name, train__epochs=0)
        for name in (f"{model}:{path}", f"local-dir:{folder}")
    ]
    assert found[0].data["id"] != found[1].data["id"]
    with np.load(found[0].folder / "rankings.npz") as one, np.load(found[1].folder / "rankings.npz") as other:
        assert set(one.files) == set(other.files) and all(np.array_equal(one[n], other[n]) for n in one.files)
    assert list(found[0].data["loaded"].values()) == list(found[1].data["loaded"].values())
    pixels = found[1].data["preprocessing"]["clip"]
    assert pixels["size"] == 32 and pixels["resize"] == "crop" and pixels["interpolation"] == "bicubic"


# ------------------------------------------------------------------------------------- a finished run


def test_the_second_stage_reads_the_first(tmp_path: Path) -> None:
    """The CLIP that `sum clip4cir-1` trained, under `combiner`."""
    trained = tiny.run("sum", tmp_path / "first", "clip4cir-1")
    clip = load_clip(f"run:{trained.folder}")
    kept = load_file(trained.folder / "model.safetensors")
    for name, value in clip.model.state_dict().items():
        assert torch.equal(value, kept[f"trained_clip.model.{name}"]), name
    base = load_clip("scenes-small")
    assert not torch.equal(encoded(clip)[0], encoded(base)[0]) and clip.pixels.resize == "targetpad"
    assert base.pixels.resize == "crop" and clip.pixels.mean == base.pixels.mean
    record = tiny.run(
        "combiner", tmp_path, method__clip=f"run:{trained.folder}", method__projection=8, method__hidden=8
    )
    assert set(record.data["loaded"]) == {f"run:{trained.folder}"}
    assert record.data["inputs"]["weights"][f"run:{trained.folder}"].startswith("sha256:")
    moved = shutil.copytree(trained.folder, tmp_path / "moved")
    again = tiny.plan("combiner", method__clip=f"run:{moved}", method__projection=8, method__hidden=8)
    assert identify(again, planning.load(again)).id == record.data["id"], "the same weights in another place"
    assert exit_code("eval", str(record.folder), "--quiet", "--out", str(tmp_path / "evals")) == 0, "the weights of the second stage load over it"


def made_run(folder: Path, clip: str, state: dict[str, Tensor], weights: dict[str, str] | None = None, **config: Any) -> str:
    """`run:` of a folder that looks like a finished run's."""
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
    inputs = {"config": {"clip": clip, "clip_size": None, **config}, "weights": weights or {}}
    (folder / "record.json").write_text(json.dumps({"id": folder.name, "inputs": inputs}))
    return f"run:{folder}"


def inside(state: Any, prefix: str = "trained_clip.model.") -> dict[str, Tensor]:
    return {"head.weight": torch.zeros(2), **{f"{prefix}{k}": v for k, v in state.items()}}


def test_a_stage_on_a_stage_is_other_weights(tmp_path: Path) -> None:
    """A run that trained the CLIP of another run: its base is that run."""
    state = load_clip("scenes-small").model.state_dict()
    first = made_run(tmp_path / "a", "scenes-small", inside(state), {"scenes-small": weights_id("scenes-small")})
    state = {k: v * 0.9 if v.is_floating_point() else v for k, v in state.items()}
    second = made_run(tmp_path / "b", first, inside(state, "mine."), {first: weights_id(first)})
    assert weights_id(first) != weights_id(second) and load_clip(first).key != load_clip(second).key
    assert torch.equal(load_clip(second).model.logit_scale, state["logit_scale"])
    resized = made_run(tmp_path / "c", first, inside(state, "mine."), {first: weights_id(first)}, clip_resize="squash")
    assert weights_id(resized) != weights_id(second) and load_clip(resized).pixels.resize == "squash"


def test_a_trained_clip_of_open_clip_needs_no_download(
    model: str, tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its architecture and the tag's preprocessing are known; the weights that it started from are not asked for."""
    from open_clip import pretrained

    told = {"hf_hub": "people/mine/", "mean": (0.1, 0.2, 0.3), "std": (0.2, 0.2, 0.2), "resize_mode": "squash"}
    monkeypatch.setitem(pretrained._PRETRAINED, model, {"mine": told})
    with pytest.raises(CirbenchError, match="could not be loaded"):
        load_clip(f"{model}:mine")
    name = made_run(tmp_path / "first", f"{model}:mine", inside(tiny_weights.clip().state_dict()))
    clip = load_clip(name)
    same(encoded(clip), expected())
    assert clip.pixels.mean == (0.1, 0.2, 0.3) and clip.pixels.resize == "squash"
    assert load_clip(name, seed=7).key == clip.key


def test_runs_that_trained_no_clip_are_told(tmp_path: Path) -> None:
    runs, head = tmp_path / "runs", {"head.weight": torch.zeros(2)}
    made_run(runs / "frozen", "scenes-small", head)
    made_run(runs / "without", "", head)
    (runs / "without/record.json").write_text(json.dumps({"inputs": {"config": {"dim": 3}}}))
    made_run(tmp_path / "lost", "scenes-small", head)
    (tmp_path / "lost/model.safetensors").unlink()
    made_run(tmp_path / "torn", "scenes-small", head)
    (tmp_path / "torn/record.json").write_text("{")
    part = inside(load_clip("scenes-small").model.state_dict())
    del part["trained_clip.model.text_projection"]
    made_run(tmp_path / "part", "scenes-small", part)
    (tmp_path / "begun").mkdir()
    for folder, said in {
        "runs/frozen": r"trained no CLIP \(method\.freeze_clip=true\), it used scenes-small as it is",
        "runs/without": "has no field `clip`", "lost": "model.safetensors is missing.*--force",
        "torn": "record.json cannot be read", "part": "1 missing: text_projection", "begun": "no finished run", "runs": "holds 2 runs",
        "runs/frozn": f"Did you mean run:{runs}/frozen", "nowhere/x": "there is no folder",
    }.items():
        with pytest.raises(CirbenchError, match=said):
            load_clip(f"run:{tmp_path / folder}")


@pytest.mark.parametrize("record", ["[]", "{}", '{"inputs": 3}', '{"inputs": {"config": {"clip": 3}}}',
                                    '{"inputs": {"config": {"clip": "scenes-small", "clip_size": "x"}, "weights": 3}}',
                                    '{"inputs": {"config": {"clip": "SELF"}}}'])
def test_a_damaged_record_is_told(record: str, tmp_path: Path) -> None:
    name = made_run(tmp_path / "x", "scenes-small", {"a": torch.zeros(1)})
    record = record.replace("SELF", name)
    (tmp_path / "x/record.json").write_text(record)
    with pytest.raises(CirbenchError, match=r"started from itself|no JSON object|no field `clip`|trained no CLIP"):
        load_clip(name)


def test_a_run_whose_start_has_changed_is_refused(tmp_path: Path) -> None:
    """Words and architecture are the start's: other ones would silently be read with the trained weights."""
    mine = shutil.copytree(ASSETS / "scenes-small", tmp_path / "mine")
    state = load_clip(str(mine)).model.state_dict()
    name = made_run(tmp_path / "first", str(mine), inside(state), {str(mine): weights_id(str(mine))})
    load_clip(name)
    words = (mine / "vocab.txt").read_text().split()
    (mine / "vocab.txt").write_text("\n".join([words[1], words[0], *words[2:]]) + "\n")
    with pytest.raises(CirbenchError, match="has other content now"):
        load_clip(name)


# ----------------------------------------------------------------------------------- wrong names


@pytest.mark.parametrize(("name", "said"), [
    ("ViT-B/32:openai", "Did you mean ViT-B-32:openai"),
    ("RN50:/nowhere/mine.pt", r"there is no file '/nowhere/mine\.pt'"),
    ("RN50:opena.pt", r"there is no file 'opena\.pt'.* Did you mean RN50:openai"),
    ("RN5O:/nowhere/mine.pt", "'RN5O'.*Did you mean 'RN50'"),
    ("hf:people/clip", "Did you mean hf-hub:people/clip"),
    ("hf_hub:people/clip", "Did you mean hf-hub:people/clip"),
    ("local:mine", "Did you mean local-dir:mine"),
    ("runs:scenes-sum-s0-123", "Did you mean run:scenes-sum-s0-123"),
    ("tim:resnet50", "Did you mean timm:resnet50"),
    ("vit_small_patch14_dinov2.lvd142m", r"Did you mean timm:vit_small_patch14_dinov2\.lvd142m"),
    ("timm:vit_smal_patch14_dinov2.lvd142m", r"unknown model of timm 'vit_smal_patch14_dinov2\.lvd142m'\. Did you mean 'vit_small_patch14_dinov2'"),
    ("timm:vit_small_patch14_dinov2.lvd142", "weights tag of vit_small_patch14_dinov2.*'lvd142m'"),
    ("timm:resnet50:openai", r"named resnet50\.TAG"),
    ("timm:resnet50:/nowhere/x.pt", "there is no file"),
    ("timm:run:x", "a run holds a CLIP"),
    ("timm:scenes-cnn", "Write scenes-cnn"),
    ("ViT-B-32", "has no weights tag"),
    ("ViT-B-32:openay", "Did you mean 'openai'"),
    ("some/folder/of/mine", "some/folder/of/mine holds no CLIP"),
    ("BAAI/BGE-VL-base", "named hf-hub:BAAI/BGE-VL-base"),
    ("https://huggingface.co/BAAI/BGE-VL-base", "named hf-hub:BAAI/BGE-VL-base"),
    ("local-dir:" + "x" * 1500, "there is no folder"), ("run:" + "x" * 1500, "there is no folder"),
    ("local-dir:\0", "there is no folder"), ("run:\0", "there is no folder"), ("run:", "names no folder"),
    ("ViT-B-32:/dev/null", "there is no file"), ("timm:", "unknown model of timm"), (":", "unknown backbone"),
    ("hf-hub:../x", "could not be fetched: HFValidationError"),
    ("scenes-smal", "Did you mean 'scenes-small'"),
    ("scenes-cnn", "scenes-cnn is a CNN, without a text tower"),
    ("x\0y", "unknown backbone"),
    ("", "unknown backbone"),
])
def test_a_wrong_name_is_told_with_the_nearest(name: str, said: str) -> None:
    with pytest.raises(CirbenchError, match=said):
        check_clip(name)


def test_measuring_needs_no_weights() -> None:
    for name, bare in {
        "RN50:openai": "RN50:random", "RN50:/x/y.pt": "RN50:random", "scenes-small": "scenes-small",
        "local-dir:/x": "local-dir:/x", "timm:resnet50.a1_in1k": "timm:resnet50.a1_in1k:random",
    }.items():
        assert without_weights(name) == bare


def test_the_list_names_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("list", "backbones") == 0
    said = capsys.readouterr().out
    for form in ("MODEL:TAG", "MODEL:FILE", "local-dir:DIR", "hf-hub:OWNER/NAME", "run:FOLDER", "timm:NAME"):
        assert form in said
    assert all(any(form.startswith(prefix) or prefix in form for form, _ in names.FORMS) for prefix in names.PREFIXES)


def test_bad_weights_end_with_one_message_and_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "w.pt").write_bytes(b"not weights")
    for backbone in (f"ViT-B-32:{tmp_path / 'w.pt'}", f"local-dir:{tmp_path}", f"run:{tmp_path}", "timm:nothing"):
        code = exit_code(
            "run", "--method", "sum", "--variant", "zero-shot", "--dataset", "scenes", "--backbone", backbone, "--out", str(tmp_path / "runs"),
            "--set", "data.train_scenes=48", "--set", "data.report_scenes=12", "--set", "data.select_scenes=8",
        )
        said = capsys.readouterr().err
        assert code == 2 and "Traceback" not in said and len(said.strip().splitlines()) <= 2, said
    assert not list((tmp_path / "runs").glob("*")), "nothing is left"

"""The real annotation files: exact counts, and the first, tenth and last record of every split.

Records of CIRCO and GeneCIS (CC BY-NC) are pinned by hash, so that none of their text is in this repository.
"""


from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cirbench import plugins
from cirbench.data import reading
from cirbench.data.splits import load_named
from cirbench.datasets import _common as common
from cirbench.models.lstm_text import build_vocabulary
from cirbench.plugins import find_dataset

PINNED: list[tuple[str, str, str, int, dict[int, Any]]] = [
    ("fashioniq", "annotations/fashion_iq", "val", 6016, {
        0: ('dress/0', 'B005X4PL1G', ('is shiny and silver with shorter sleeves', 'fit and flare'), ('B0084Y8XIU',)),
        9: ('dress/9', 'B000WIRE54', ('has longer sleeves and a different color', 'has longer sleeves and is more casual'), ('B007UYY43I',)),
        6015: ('toptee/1960', 'B0059LBD1A', ('is a see-thru striped long sleeved t-shirt and U collar', 'Is striped and lighter in color'), ('B004070YLE',)),
    }),
    ("fashioniq", "annotations/fashion_iq", "train", 18000, {
        0: ('dress/0', 'B003FGW7MK', ('is solid black with no sleeves', 'is black with straps'), ('B008BHCT58',)),
        9: ('dress/9', 'B0045KDJYU', ('has long sleeves and stripes', 'is striped with sleeves'), ('B002GT074M',)),
        17999: ('toptee/6026', 'B008WZCD1E', ('has a long sleeve cheetah pattern', 'has cheetah print with black trim'), ('B007WADBUC',)),
    }),
    ("fashioniq", "annotations/fashion_iq", "test", 6118, {
        0: ('dress/0', 'B007E66YTO', (' yello and more flowing', 'short and black'), ()),
        9: ('dress/9', 'B008PC5CN0', ('is more revealing', 'has a leopard art pattern'), ()),
        6117: ('toptee/2055', 'B00A6V2ZDS', ('The shirt is black with white orange and gray coloring.', 'is black colored with a different graphic'), ()),
    }),
    ("shoes", "annotations/shoes", "eval", 1761, {
        0: ('8', 'img_womens_boots_1508.jpg', ('has a strap on the side',), ('img_womens_boots_480.jpg',)),
        9: ('47', 'img_womens_high_heels_1414.jpg', ('has no buckle strap',), ('img_womens_high_heels_1332.jpg',)),
        1760: ('10739', 'img_womens_flats_246.jpg', ('purple ballet flats with a buckle',), ('img_womens_flats_253.jpg',)),
    }),
    ("cirr", "annotations/cirr", "val", 4181, {
        0: ('12060', 'dev-244-0-img0', ('show three bottles of soft drink',), ('dev-1028-1-img1',)),
        9: ('12092', 'dev-104-3-img1', ('put the fries in a white plate with white background, clean',), ('dev-104-1-img0',)),
        4180: ('38762', 'dev-271-1-img0', ('Shows a similar dog standing in a grassy area with a stone fence in the background.',), ('dev-841-0-img1',)),
    }),
    ("cirr", "annotations/cirr", "test1", 4148, {
        0: ('12063', 'test1-147-1-img1', ('remove all but one dog and add a woman hugging it',), ()),
        9: ('12075', 'test1-105-1-img0', ('Change to black vending machine, Fill machine with colorful drink and snack packages',), ()),
        4147: ('39059', 'test1-38-0-img1', ('One wolf changed into two wolves in a blue background.',), ()),
    }),
    ("circo", "annotations/circo", "val", 220, {
        0: "fd125b8e1a5d0d00",
        9: "77e3c6f813d05213",
        219: "ec97b02ff5fa27de",
    }),
    ("circo", "annotations/circo", "test", 800, {
        0: "bd04f351452c10a6",
        9: "63cdcad5d5bb015e",
        799: "f457c0501add799d",
    }),
    ("genecis", "annotations/genecis", "test", 3920, {
        0: "f5795bdd4c4a19df",
        9: "382803f75eafc151",
        3919: "4b2f9243725ffa2c",
    }),
    ("fashion200k", "products/fashion200k", "test", 2500, {
        0: ('0', 'women/topwear/sweater/18731/18731_0.jpeg', ('replace sweater with shirt',), ('women/topwear/shirt/16250/16250_0.jpeg',)),
        9: ('9', 'women/topwear/sweatshirt/20209/20209_0.jpeg', ('replace women with men',), ('women/topwear/sweatshirt/20342/20342_0.jpeg',)),
        2499: ('2499', 'women/topwear/kurta/15830/15830_0.jpeg', ('replace cream with orange',), ('women/topwear/kurta/20118/20118_0.jpeg', 'women/topwear/kurta/15096/15096_0.jpeg', 'women/topwear/kurta/15094/15094_0.jpeg')),
    }),
    ("custom", "products/custom", "test", 1500, {
        0: ('test-0', '18866', ('same but blue',), ('12538', '19573')),
        9: ('test-9', '16225', ('make it casual instead of ethnic',), ('13282', '15484')),
        1499: ('test-1499', '12041', ('make it casual instead of formal',), ('12385', '13320')),
    }),
]
#: dataset, folder, split, group, queries, (reference, target, last caption) of the first, tenth and last; images, three of them.
#: Written from the raw files, not by the loaders.
EVERY: list[tuple[str, str, str, str, int, list[Any], int, list[str]]] = [
    ("fashioniq", "fashion_iq", "train", "dress", 5985,
     [('B003FGW7MK', 'B008BHCT58', 'is black with straps'),
      ('B0045KDJYU', 'B002GT074M', 'is striped with sleeves'),
      ('B008OTJTH4', 'B00B53H8R4', 'is grey with longer sleeves')],
     11452, ['B008BHCT58', 'B00EV1B9C2', 'B00824GAGY']),
    ("fashioniq", "fashion_iq", "val", "dress", 2017,
     [('B005X4PL1G', 'B0084Y8XIU', 'fit and flare'),
      ('B000WIRE54', 'B007UYY43I', 'has longer sleeves and is more casual'),
      ('B00BY3GO0C', 'B0030EHJ66', 'is red with a floral print')],
     3817, ['B009PMCJLW', 'B007L3WP5W', 'B00A9VAS2K']),
    ("fashioniq", "fashion_iq", "test", "dress", 2024,
     [('B007E66YTO', '', 'short and black'),
      ('B008PC5CN0', '', 'has a leopard art pattern'),
      ('B00CCW4UVO', '', 'is more vibrant white')],
     3818, ['B00BZSUNYE', 'B008R8BF60', 'B00AXVFNO4']),
    ("fashioniq", "fashion_iq", "train", "shirt", 5988,
     [('B008E5CF6U', 'B00CBNH8JK', 'is grey with shorter sleeves'),
      ('B001UL1VWO', 'B00B7386O6', 'is yellow with black words'),
      ('B007K3IXZ4', 'B005X5ZX8Q', 'is darker')],
     19036, ['B00CBNH8JK', 'B000E7OQ68', 'B004B8OF3K']),
    ("fashioniq", "fashion_iq", "val", "shirt", 2038,
     [('B00CZ7QJUG', 'B005AD7WZI', 'is a lighter color'),
      ('B00EW84RMS', 'B00BGVUTBC', ' has more buttons'),
      ('B0042P6BVG', 'B00D78EKUS', 'is more formal')],
     6346, ['B000KENMD8', 'B0051UW60Q', 'B00D78EKUS']),
    ("fashioniq", "fashion_iq", "test", "shirt", 2038,
     [('B00E9AWYWO', '', 'is white with a different graphic'),
      ('B00BL6QKU6', '', 'is more funny'),
      ('B00BGVOZD0', '', 'is green with longer sleeves')],
     6346, ['B00A9Y82Q6', 'B004DLLPF6', 'B00C0GEWEM']),
    ("fashioniq", "fashion_iq", "train", "toptee", 6027,
     [('B000FLD4AC', 'B005LUQ0FI', ' pink'),
      ('B00BRCLPJ0', 'B00AGC2MP8', 'Has longer sleeves'),
      ('B008WZCD1E', 'B007WADBUC', 'has cheetah print with black trim')],
     16121, ['B0052WOJKI', 'B00355BRZE', 'B007WADBUC']),
    ("fashioniq", "fashion_iq", "val", "toptee", 1961,
     [('B008CFZW76', 'B008CG1JJ0', 'appears to be exactly the same'),
      ('B00EE0DYZ0', 'B001UEUTF6', 'is of orange camo pattern'),
      ('B0059LBD1A', 'B004070YLE', 'Is striped and lighter in color')],
     5373, ['B008CG1JJ0', 'B0015O8JLC', 'B003BHB50I']),
    ("fashioniq", "fashion_iq", "test", "toptee", 2056,
     [('B001PJEB82', '', 'has no sleeves'),
      ('B00B2JHU88', '', "has sleeves that don't reach the wrist"),
      ('B00A6V2ZDS', '', 'is black colored with a different graphic')],
     5374, ['B004BP94D4', 'B0077DR53S', 'B00858FLWQ']),
    ("shoes", "shoes", "train", "", 8990,
     [('img_womens_clogs_512.jpg', 'img_womens_clogs_851.jpg', 'is more of a textured material'),
      ('img_womens_sneakers_1115.jpg', 'img_womens_sneakers_464.jpg', 'is a red and black color and has a pattern'),
      ('img_womens_stiletto_1217.jpg', 'img_womens_stiletto_1038.jpg', 'brown high heeled strappy shoes')],
     10000, ['img_womens_pumps_813.jpg', 'img_womens_athletic_shoes_443.jpg', 'img_womens_stiletto_609.jpg']),
    ("shoes", "shoes", "eval", "", 1761,
     [('img_womens_boots_1508.jpg', 'img_womens_boots_480.jpg', 'has a strap on the side'),
      ('img_womens_high_heels_1414.jpg', 'img_womens_high_heels_1332.jpg', 'has no buckle strap'),
      ('img_womens_flats_246.jpg', 'img_womens_flats_253.jpg', 'purple ballet flats with a buckle')],
     4658, ['img_womens_athletic_shoes_987.jpg', 'img_womens_stiletto_967.jpg', 'img_womens_wedding_shoes_257.jpg']),
    ("cirr", "cirr", "val", "", 4181,
     [('dev-244-0-img0', 'dev-1028-1-img1', 'show three bottles of soft drink'),
      ('dev-104-3-img1', 'dev-104-1-img0', 'put the fries in a white plate with white background, clean'),
      ('dev-271-1-img0', 'dev-841-0-img1', 'Shows a similar dog standing in a grassy area with a stone fence in the background.')],
     2297, ['dev-244-0-img0', 'dev-940-3-img0', 'dev-1012-3-img0']),
    ("cirr", "cirr", "test1", "", 4148,
     [('test1-147-1-img1', '', 'remove all but one dog and add a woman hugging it'),
      ('test1-105-1-img0', '', 'Change to black vending machine, Fill machine with colorful drink and snack packages'),
      ('test1-38-0-img1', '', 'One wolf changed into two wolves in a blue background.')],
     2315, ['test1-147-1-img1', 'test1-206-1-img0', 'test1-255-0-img1']),
    ("circo", "circo", "val", "", 220,
     ['312ae2019fc0',
      'fd7131cdc5c2',
      '1fd1056fc9d7'],
     0, []),
    ("circo", "circo", "test", "", 800,
     ['4fba023a5828',
      '32e330f2e738',
      '34c5766c5b55'],
     0, []),
    ("genecis", "genecis", "test", "change_object", 1960,
     ['153e1aa85c2e',
      '46c98fea4292',
      '770324bdad3a'],
     0, []),
    ("genecis", "genecis", "test", "focus_object", 1960,
     ['33ef6bd0b100',
      '4451a7a9fd93',
      '62553addd6da'],
     0, []),
]
CARVED = [
    ("fashioniq", "annotations/fashion_iq", 17100, 900,
     "c0c31f613312e744cbc5b7898724af8e8df7d1e0e93e8a52faf8d7ce5255b743"),
    ("shoes", "annotations/shoes", 8540, 450,
     "f950898bbe32e538e4541205c15f056d6bd426ff91ceb3e340c4202fe4e6fb27"),
    ("fashion200k", "products/fashion200k", 5357, 588,
     "13e928eb562b5a29188bbe512329c91efaae51f52ac5270d1b2369a5f738ecb3"),
]


@pytest.mark.parametrize(("name", "folder", "split", "count", "records"), PINNED, ids=lambda v: str(v)[:20])
def test_first_tenth_and_last_record(
    name: str, folder: str, split: str, count: int, records: dict[int, Any], shared: Path
) -> None:
    _, found = load_named(name, shared / "data" / folder, split)
    assert len(found.queries) == count
    for n, record in records.items():
        q = found.queries[n]
        found_record = (q.id, q.reference, q.texts, q.targets[:3])
        if isinstance(record, str):
            assert hashlib.sha256(repr(found_record).encode()).hexdigest()[:16] == record
        else:
            assert found_record == record
    assert len({q.id for q in found.queries}) == count


@pytest.mark.parametrize("pinned", EVERY, ids=lambda p: "-".join(filter(None, (p[0], p[2], p[3]))))
def test_every_annotation_file_first_tenth_and_last(pinned: tuple[Any, ...], shared: Path) -> None:
    name, folder, split, group, count, records, images, names = pinned
    sets = [f"data.category={group}"] if name == "fashioniq" else []
    _, found = load_named(name, shared / "data/annotations" / folder, split, sets)
    queries = [q for q in found.queries if q.group == group]
    assert len(queries) == count
    for query, record in zip((queries[0], queries[9], queries[-1]), records, strict=True):
        # Test labels are hidden; CIRR and CIRCO have one target that counts, CIRCO names it first.
        read = (query.reference, query.targets[0] if query.targets else "", query.texts[-1])
        assert (hashlib.sha256(repr(read).encode()).hexdigest()[:12] if isinstance(record, str) else read) == record
    if names:
        galleries = next(iter(found.galleries.values()))
        gallery = galleries[group] if group in galleries else galleries[""]
        assert len(gallery) == images and [gallery[0], gallery[9], gallery[-1]] == names


def test_cirr_training_images(shared: Path) -> None:
    names = reading.read_json(shared / "data/annotations/cirr/image_splits/split.rc2.train.json")
    assert len(names) == find_dataset("cirr").SPEC.counts["train images"] == 16939
    listed = list(names)
    assert [listed[0], listed[9], listed[-1]] == ["train-11041-2-img0", "train-7069-3-img1", "train-9689-3-img0"]


@pytest.mark.parametrize(("name", "folder"), [
    ("fashioniq", "fashion_iq"), ("shoes", "shoes"), ("genecis", "genecis"), ("circo", "circo"),
])
def test_published_counts(name: str, folder: str, shared: Path) -> None:
    module = find_dataset(name)
    knobs = module.Knobs(tasks="object") if name == "genecis" else module.Knobs()
    assert module.counts(knobs, shared / "data/annotations" / folder) == dict(module.SPEC.counts)


def test_cirr_counts_and_what_is_not_there(shared: Path) -> None:
    module = find_dataset("cirr")
    found = module.counts(module.Knobs(), shared / "data/annotations/cirr")
    if isinstance(found["train queries"], str):  # the training captions are not among the files at hand
        assert "cap.rc2.train.json" in found["train queries"]
        found = {**found, "train queries": 28225, "train images": 16939}
    assert found == dict(module.SPEC.counts)


def test_fashioniq_totals_and_overlaps(shared: Path) -> None:
    root = shared / "data/annotations/fashion_iq"
    splits = {s: load_named("fashioniq", root, s)[1] for s in ("train", "val", "test")}
    assert [len(splits[s].queries) for s in ("train", "val", "test")] == [18000, 6016, 6118]
    original = {s: splits[s].galleries["original"] for s in splits}
    assert [sum(map(len, original[s].values())) for s in ("train", "val", "test")] == [46609, 15536, 15538]
    assert len({i for ids in original["val"].values() for i in ids}) == 15415
    assert len({i for groups in original.values() for ids in groups.values() for i in ids}) == 74381
    assert sum(map(len, splits["val"].galleries["val"].values())) == 8619
    train = {i for ids in original["train"].values() for i in ids}
    assert len(train & {i for ids in original["val"].values() for i in ids}) == 811
    assert sum(not t.strip() for q in splits["val"].queries for t in q.texts) == 3
    assert not any(q.reference in q.targets for q in splits["val"].queries)


def test_notes_of_fashioniq_name_what_train_and_select_share_with_report(shared: Path) -> None:
    dataset, report = load_named("fashioniq", shared / "data/annotations/fashion_iq", "report")
    asked = set(common.images_of(report.queries))
    for role, n in (("train", 197), ("select", 15)):
        assert len(asked & set(common.images_of(dataset.splits[role].queries))) == n
        assert any(f"images of {role}" in note and f"{n} of them in val queries" in note for note in dataset.notes)
    alone, _ = load_named("fashioniq", shared / "data/annotations/fashion_iq", "report", ("data.category=dress",))
    assert alone.notes == ()


def test_shoes_cut_list_of_the_val_repository(shared: Path, tmp_path: Path) -> None:
    for name in ("relative_captions_shoes.json", "train_im_names.txt"):
        (tmp_path / name).write_bytes((shared / "data/annotations/shoes" / name).read_bytes())
    cut = (shared / "data/annotations/shoes_val_copy/eval_im_names.txt").read_bytes()
    (tmp_path / "eval_im_names.txt").write_bytes(cut)
    dataset, split = load_named("shoes", tmp_path, "eval")
    assert len(split.queries) == 1732 and len(split.galleries["4658"][""]) == 4621
    assert any("cut list" in note for note in dataset.notes)
    whole = load_named("shoes", shared / "data/annotations/shoes", "eval")[1]
    assert whole.galleries["4621"][""] == split.galleries["4658"][""]
    # Rows that touch one of the 37 names are in no file here, so the protocol that has them is left out.
    assert "shoes-val" not in [p.name for p in dataset.protocols]
    assert any("shoes-val needs the 37 names" in note for note in dataset.notes)


@pytest.mark.parametrize("name", ["eval", "report"])
def test_shoes_val_ranks_the_rows_and_pictures_of_its_authors(shared: Path, name: str) -> None:
    """VAL pairs every annotation that names a picture of its list, and adds whatever the pairs touch to the gallery."""
    dataset, split = load_named("shoes", shared / "data/annotations/shoes", name)
    rows = [row for q in split.queries for row in dataset.forms["val"](q)]
    assert len(rows) == 3492 and all(len(row) == 1 for row in rows)
    gallery = split.galleries["val"][""]
    assert len(gallery) == len(set(gallery)) == 4642 and gallery[:4621] == split.galleries["4621"][""]
    touched = [q for q in split.queries if dataset.forms["val"](q)]
    assert {q.reference for q in touched} | {t for q in touched for t in q.targets} <= set(gallery)
    assert "val" in next(p.known_as for p in dataset.protocols if p.name == "shoes-val")


def test_nothing_is_cut_from_the_train_names_of_shoes(shared: Path) -> None:
    dataset, split = load_named("shoes", shared / "data/annotations/shoes", "train")
    assert [len(ids[""]) for ids in split.galleries.values()] == [10000] * 3
    assert sum(len(dataset.forms["val"](q)) for q in split.queries) == 17954


def test_cirr_sets_and_soft_labels(shared: Path) -> None:
    _, val = load_named("cirr", shared / "data/annotations/cirr", "val")
    assert len(val.galleries["all"][""]) == 2297 and len({q.reference for q in val.queries}) == 2165
    values = Counter(v for q in val.queries for v in q.extra["soft"].values())
    assert values == {1.0: 4216, 0.5: 62, 0.2: 6, -1.0: 807}
    assert all(len(q.extra["members"]) == 6 for q in val.queries)
    assert sum(q.targets[0] not in q.extra["soft"] for q in val.queries) == 37
    _, test = load_named("cirr", shared / "data/annotations/cirr", "test1")
    assert len(test.galleries["all"][""]) == 2315 and not any(q.targets for q in test.queries)


def test_circo_targets(shared: Path) -> None:
    _, val = load_named("circo", shared / "data/annotations/circo", "val")
    sizes = [len(q.targets) for q in val.queries]
    assert (sum(sizes), min(sizes), max(sizes)) == (916, 1, 14)
    assert not any(q.reference in q.targets for q in val.queries)


def test_genecis_targets_stand_anywhere(shared: Path) -> None:
    _, split = load_named("genecis", shared / "data/annotations/genecis", "test")
    places = Counter((q.candidates or ()).index(q.targets[0]) for q in split.queries)
    assert set(places) == set(range(15)) and max(places.values()) < 320
    assert Counter(len(q.candidates or ()) for q in split.queries) == {15: 3919, 14: 1}


@pytest.mark.parametrize(("name", "folder", "train", "select", "digest"), CARVED, ids=lambda v: str(v)[:12])
def test_select_is_carved_without_a_shared_image_and_always_the_same(
    name: str, folder: str, train: int, select: int, digest: str, shared: Path
) -> None:
    module = find_dataset(name)
    splits = module.load(module.Knobs(), shared / "data" / folder).splits
    assert (len(splits["train"].queries), len(splits["select"].queries)) == (train, select)
    assert not set(splits["train"].images()) & set(splits["select"].images())
    assert common.id_list_digest(splits["select"].queries) == digest


def test_fashion200k_on_real_photographs(shared: Path) -> None:
    module = find_dataset("fashion200k")
    dataset = module.load(module.Knobs(), shared / "data/products/fashion200k")
    train, report = dataset.splits["train"], dataset.splits["report"]
    again = module.load(module.Knobs(), shared / "data/products/fashion200k").splits["train"]
    assert [q.targets[0] for q in train.queries] == [q.targets[0] for q in again.queries]
    other = module.load(module.Knobs(triplet_seed=1), shared / "data/products/fashion200k").splits["train"]
    assert [q.extra["target"] for q in train.queries] != [q.extra["target"] for q in other.queries]
    for q in train.queries:
        a, b = q.extra["source_caption"].split(), q.extra["target_caption"].split()
        assert any(a[:i] + a[i + 1 :] == b[:j] + b[j + 1 :] for i in range(len(a)) for j in range(len(b)))
    by_caption: dict[str, Any] = {}
    for q in report.queries:
        assert by_caption.setdefault(q.extra["target_caption"], q.targets) is q.targets
        assert dataset.forms["leaky"](q)[0][0].endswith(f"and get {q.extra['target_caption']}")
        assert dataset.forms["caption"](q) == [[q.extra["target_caption"]]]
    assert dataset.images.open(report.queries[0].reference).mode == "RGB"


@pytest.mark.parametrize(("category", "words"), [("dress", 1602), ("shirt", 2294), ("toptee", 2152)])
def test_vocabularies_are_as_long_as_those_of_the_released_checkpoints(shared: Path, category: str, words: int) -> None:
    """Accented letters are dropped whole: reduced to plain ones, toptee would have 2,151 words, and other ids."""
    module = plugins.find_dataset("fashioniq")
    root = shared / "data/annotations/fashion_iq"
    train = module.load_split(module.Knobs(category=category), root, "train")
    texts = [t for q in train.splits["train"].queries for row in train.forms["ab"](q) for t in row]
    assert len(build_vocabulary(texts)) == words

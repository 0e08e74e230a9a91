"""The data behind the query gallery and the query explorer: texts, ranks, first ten, pictures within a budget.

Blocks are zlib-compressed JSON in base64, inside the page; the browser decodes one when it is first needed.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cirbench.runs.record import Record

from .collect import Arm, TestSet, rows_of

__all__ = [
    "Block", "Example", "Explorer", "Strip", "add_pictures", "data_uri", "examples", "explorer", "first_rows", "hits",
    "pack", "pictures",
]

STRIP = 10
"""Images shown of a ranking."""

TARGETS = 3
"""Targets shown of a query; in a ranking every one is marked."""

SAMPLE = 200
"""Queries whose first ten are kept where no pictures say which."""

CHUNK = 48
"""Pictures in one block: few enough to decode at once, many enough to keep the page small."""

TEXT_BUDGET = 6_000_000
"""Characters of caption a test set may bring before long ones are cut."""


@dataclass
class Block:
    """A named piece of data of the page: `zlib` JSON in base64, or plain JSON."""

    id: str
    text: str
    kind: str = "application/zlib+base64"


def pack(name: str, value: Any) -> Block:
    """`value` as a compressed block; the bytes depend on nothing else."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Block(name, base64.b64encode(zlib.compress(text.encode("utf-8", "replace"), 9)).decode())


@dataclass
class Strip:
    """The first images of one ranking: (image id, is a target, data URI or "")."""

    label: str
    rank: int
    images: list[tuple[str, bool, str]]


@dataclass
class Example:
    """One query of the gallery."""

    query: dict[str, Any]
    reference: str
    targets: list[tuple[str, str]]
    more: int
    strips: list[Strip]
    seed: Any


@dataclass
class Explorer:
    """What the page needs to explore one test set."""

    index: int
    test: TestSet
    arms: list[Arm]
    protocol: str
    groups: list[str]
    edits: list[str]
    sampled: list[int]
    tops: list[np.ndarray] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    pictures: int = 0
    omitted: int = 0
    cut: bool = False
    beyond: bool = False


def first_rows(record: Record, protocol: str, queries: int) -> np.ndarray:
    """(B,) the first row of each of so many queries, -1 where it has none.

    The number is asked for because every run of a test set has the same queries: reading them once is enough.
    """
    rows = rows_of(record, protocol)
    out = np.full(queries, -1, dtype=np.int64)
    out[rows[::-1]] = np.arange(len(rows))[::-1]
    return out


def _tops(record: Record, protocol: str, shown: int = STRIP) -> np.ndarray:
    name = f"top/{record.run.protocols[protocol].form}"
    if name not in record.rankings:
        return np.full((len(rows_of(record, protocol)), shown), -1)
    return record.rankings[name][:, :shown]


def hits(
    record: Record, protocol: str, gallery: Sequence[str], asked: Iterable[tuple[int, Mapping[str, Any]]],
    shown: int = STRIP,
) -> list[list[int]]:
    """For each (row, its query): the places, from 0, of the targets among the first images of `top`.

    A record holds 50 targets of a query. Of those beyond, the best is known by its rank: it stands there, unless the
    rank counts ties against it, or is that of another protocol than the one whose first images were kept.
    """
    top, ranks = _tops(record, protocol, shown), record.rankings[f"rank/{protocol}"]
    form = record.run.protocols[protocol].form
    kept = next(n for n, p in record.run.protocols.items() if p.form == form)
    # Without `ties` nothing is certain.
    certain = np.zeros(len(ranks), dtype=bool)
    if kept == protocol and f"ties/{protocol}" in record.rankings:
        certain = record.rankings[f"ties/{protocol}"] == 0
    out = []
    for row, query in asked:
        targets = set(query["targets"])
        places = {n for n, t in enumerate(top[row]) if t >= 0 and gallery[t] in targets}
        place = int(ranks[row]) - 1
        if query["targets_total"] > len(query["targets"]) and certain[row] and 0 <= place < (top[row] >= 0).sum():
            places.add(place)
        out.append(sorted(places))
    return out


def _sampled(test: TestSet) -> list[int]:
    """Queries of which pictures were kept, by any run; without pictures, evenly spaced ones."""
    known: set[str] = set()
    for arm in test.arms:
        known.update(arm.records[0].pictures.index)
    sample = [
        n for n, q in enumerate(test.queries) if q.get("reference") in known and known.issuperset(q["targets"][:1])
    ]
    # A picture is kept of some query's first ten too, so nearly every reference may be there: keep an even share.
    if not sample:
        sample = list(range(len(test.queries)))
    step = max(1, -(-len(sample) // SAMPLE))
    return sample[::step]


def examples(test: TestSet, protocol: str, count: int, with_pictures: bool) -> list[Example]:
    """Queries for the printed gallery: as many answered first, in the first ten, and later, under the first arm.

    Two strips each: the first arm, and the first arm of another method.
    """
    scored = [a for a in test.arms if protocol in a.protocols()]
    if not scored:
        return []
    shown = [scored[0], *[a for a in scored[1:] if a.method != scored[0].method][:1]]
    record = shown[0].records[0]
    first = first_rows(record, protocol, len(test.queries))
    ranks = record.rankings[f"rank/{protocol}"]
    bins: list[list[int]] = [[], [], []]
    kept = record.pictures.index if with_pictures else {}
    tops = _tops(record, protocol)
    whole: set[int] = set()
    for n in range(len(test.queries)) if kept else _sampled(test):
        if first[n] < 0 or (kept and test.queries[n]["reference"] not in kept):
            continue
        rank = int(ranks[first[n]])
        bins[0 if rank == 1 else 1 if 1 < rank <= STRIP else 2].append(n)
        if kept and all(test.gallery[t] in kept for t in tops[first[n]] if t >= 0):
            whole.add(n)
    # Strips without gaps where the record has them: pictures are kept of some queries' first ten only.
    bins = [[n for n in part if n in whole] or part for part in bins]
    share = max(1, count // 3)
    chosen = [n for part in bins for n in part[:: max(1, len(part) // share)][:share]]
    columns = {}
    for arm in shown:
        of = arm.records[0]
        places = first_rows(of, protocol, len(test.queries))
        right = hits(of, protocol, test.gallery, [(places[n], test.queries[n]) for n in chosen])
        columns[arm.key] = (places, of.rankings[f"rank/{protocol}"], _tops(of, protocol), right)
    wanted: dict[str, None] = {}
    for n in chosen:
        query = test.queries[n]
        wanted.update(dict.fromkeys([query["reference"], *query["targets"][:TARGETS]]))
        for rows, _, best, _ in columns.values():
            wanted.update(dict.fromkeys(test.gallery[t] for t in best[rows[n]] if t >= 0))
    found = pictures(shown, wanted) if with_pictures else {}
    uri = {image_id: data_uri(data) for image_id, data in found.items()}
    out = []
    for number, n in enumerate(chosen):
        query = test.queries[n]
        strips = []
        for arm in shown:
            rows, rank_of, best, right = columns[arm.key]
            strips.append(Strip(arm.label, int(rank_of[rows[n]]), [
                (test.gallery[t], place in right[number], uri.get(test.gallery[t], ""))
                for place, t in enumerate(best[rows[n]]) if t >= 0
            ]))
        reference = query["reference"]
        targets = [(t, uri.get(t, "")) for t in query["targets"][:TARGETS]]
        out.append(Example(query, uri.get(reference, ""), targets, _more(query), strips, shown[0].seeds[0]))
    return out


def _more(query: Mapping[str, Any]) -> int:
    """Targets of a query beyond those shown."""
    return max(query["targets_total"], len(query["targets"])) - len(query["targets"][:TARGETS])


def pictures(arms: Iterable[Arm], wanted: Iterable[str]) -> dict[str, bytes]:
    """Those of the wanted pictures that any run of these arms kept."""
    kept: dict[str, bytes] = {}
    for arm in arms:
        for record in arm.records:
            missing = [i for i in wanted if i not in kept]
            if not missing:
                return kept
            kept |= record.pictures.many(missing)
    return kept


def data_uri(data: bytes) -> str:
    """A picture inside the page."""
    return "data:image/webp;base64," + base64.b64encode(data).decode()


def explorer(test: TestSet, protocol: str, index: int) -> Explorer:
    """All queries of a test set, packed, still without pictures."""
    arms = [a for a in test.arms if protocol in a.protocols() and f"rank/{protocol}" in a.records[0].rankings]
    groups = list(dict.fromkeys(str(q.get("group") or "") for q in test.queries))
    edit_of = [str((q.get("extra") or {}).get("edit") or "") for q in test.queries]
    edits = list(dict.fromkeys(edit_of))
    sampled = _sampled(test)
    out = Explorer(index, test, arms, protocol, groups, edits, sampled)
    texts = [" / ".join(map(str, q.get("texts") or ())) for q in test.queries]
    if sum(map(len, texts)) > TEXT_BUDGET:
        longest = max(80, TEXT_BUDGET // len(texts))
        texts = [t if len(t) <= longest else t[:longest] + f"… [{len(t) - longest} more characters]" for t in texts]
        out.cut = True
    out.beyond = any(q["targets_total"] > len(q["targets"]) for q in test.queries)
    place = {g: n for n, g in enumerate(groups)}
    edit_place = {e: n for n, e in enumerate(edits)}
    out.blocks.append(pack(f"q{index}", {
        "ids": [str(q.get("id", n)) for n, q in enumerate(test.queries)],
        "refs": [str(q.get("reference", "")) for q in test.queries],
        "targets": [[str(t) for t in q["targets"][:TARGETS]] for q in test.queries],
        "more": [_more(q) for q in test.queries], "texts": texts, "groups": groups, "edits": edits, "sampled": sampled,
        "group": [place[str(q.get("group") or "")] for q in test.queries], "edit": [edit_place[e] for e in edit_of],
    }))
    for number, arm in enumerate(arms):
        record = arm.records[0]
        first = first_rows(record, protocol, len(test.queries))
        ranks = np.where(first >= 0, record.rankings[f"rank/{protocol}"][np.maximum(first, 0)], 0)
        out.blocks.append(pack(f"r{index}-{number}", ranks.tolist()))
        top = _tops(record, protocol)[first[sampled]]
        right = hits(record, protocol, test.gallery, [(first[n], test.queries[n]) for n in sampled])
        out.tops.append(top)
        names = list(dict.fromkeys(int(t) for t in top.ravel() if t >= 0))
        local = {t: n for n, t in enumerate(names)}
        out.blocks.append(pack(f"t{index}-{number}", {
            "ids": [test.gallery[t] for t in names], "top": [[local[int(t)] for t in row if t >= 0] for row in top],
            "hits": right,
        }))
    return out


def add_pictures(out: Explorer, budget: int) -> None:
    """Pictures for as many bytes of the page: of the queries themselves first, then of the rankings, arm by arm."""
    wanted: dict[str, None] = {}
    test = out.test
    for n in out.sampled:
        wanted.update(dict.fromkeys([test.queries[n]["reference"], *test.queries[n]["targets"][:TARGETS]]))
    for top in out.tops:
        for row in top:
            wanted.update(dict.fromkeys(test.gallery[t] for t in row if t >= 0))
    known = pictures(out.arms, list(wanted))
    where: dict[str, list[int]] = {}
    chunk: list[str] = []
    chunks: list[list[str]] = []
    for image_id in wanted:
        data = known.get(image_id)
        if data is None:
            continue
        text = base64.b64encode(data).decode()
        budget -= len(text) + len(image_id) + 16
        if budget < 0:
            out.omitted += 1
            continue
        if not chunk or len(chunk) == CHUNK:
            chunk = []
            chunks.append(chunk)
        where[image_id] = [len(chunks) - 1, len(chunk)]
        chunk.append(text)
        out.pictures += 1
    for number, members in enumerate(chunks):
        # Stored: WebP does not get smaller. Base64 has no character that could end the element.
        out.blocks.append(Block(f"p{out.index}-{number}", json.dumps(members), "application/json"))
    out.blocks.append(pack(f"w{out.index}", where))

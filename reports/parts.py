"""What a report shows of one test set: every section as a typed value, which the templates read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cirbench.runs.store import Study

from . import analysis, attention, claims, explorer, modalities, shortcuts, studies
from .collect import TestSet
from .filters import slug
from .published import Mixture, Published, mixtures, published
from .tables import CostRow, MainTable, cost_rows, main_table

if TYPE_CHECKING:
    from .figures import Figure

__all__ = ["Backbone", "Doubtful", "Figures", "Part", "Section", "part_of", "sections"]

EXAMPLES = 6


@dataclass(frozen=True)
class Backbone:
    """Scores over CLIP models, everything else equal, and what each arm costs, by its key."""

    curve: analysis.Curve
    costs: dict[str, CostRow]


@dataclass(frozen=True)
class Doubtful:
    """A likely false negative, and data URIs of its pictures by image id."""

    found: analysis.FalseNegative
    uri: dict[str, str]


@dataclass(frozen=True)
class Figures:
    """Figures by section."""

    summary: list[Figure] = field(default_factory=list)
    cost: list[Figure] = field(default_factory=list)
    ablation: list[Figure] = field(default_factory=list)
    sensitivity: list[Figure] = field(default_factory=list)
    noise: list[Figure] = field(default_factory=list)
    modality: list[Figure] = field(default_factory=list)
    training: list[Figure] = field(default_factory=list)

    def all(self) -> list[Figure]:
        """Of all sections, in the order of the page's data."""
        return [*self.summary, *self.cost, *self.ablation, *self.sensitivity, *self.noise, *self.modality,
                *self.training]


@dataclass
class Part:
    """One test set of a report.

    Attributes:
        index: its place in the page.
        test: the runs.
        protocol, metric: the default protocol and its first metric; every section but Summary is about these.
        tables: main tables, one a protocol.
        costs: one row an arm.
        published, mixtures: numbers of papers on the dataset; tables of theirs that hold unlike numbers.
        examples: queries shown with their first ten images.
        families: ablations.
        curves, noise: scores over one knob; over the rate of wrong labels.
        backbones: scores over CLIP models.
        audit, rest, modality: which modality answers queries alone; who answers the rest; learned weights.
        studies: sweeps.
        attention: evidence of `cirbench explain`.
        doubtful: likely false negatives.
        training: curves by epoch.
        answers: to the questions of claims.toml.
        figures: by section.
    """

    index: int
    test: TestSet
    protocol: str
    metric: str
    tables: list[MainTable]
    costs: list[CostRow]
    published: list[Published]
    mixtures: list[Mixture]
    examples: list[explorer.Example]
    families: list[analysis.Family]
    curves: list[analysis.Curve]
    noise: list[analysis.Curve]
    backbones: list[Backbone]
    audit: modalities.Audit | None
    rest: list[shortcuts.RestRow]
    modality: list[modalities.WeightRow]
    studies: list[studies.StudyPart]
    attention: list[attention.Evidence]
    doubtful: list[Doubtful]
    training: list[analysis.TrainingCurves]
    answers: list[claims.Answer]
    figures: Figures = field(default_factory=Figures)

    @property
    def published_metrics(self) -> list[str]:
        """Every metric that a published row has, in order."""
        return list(dict.fromkeys(m for row in self.published for m in row.metrics))


def part_of(test: TestSet, index: int, images: bool, sweeps: Sequence[Study]) -> Part:
    """Everything that the templates show of one test set.

    Args:
        test: the runs.
        index: its place in the page.
        images: whether pictures may be shown.
        sweeps: those that some of the runs belong to.
    """
    protocols = test.protocols()
    protocol = protocols[0]
    shown = [main_table(test, name) for name in protocols]
    metric = shown[0].metrics[0] if shown[0].metrics else ""
    audit = modalities.audit(test, protocol, metric)
    modality, evidence = modalities.modality(test, audit), attention.attention(test, images)
    part = Part(
        index, test, protocol, metric, shown, cost_rows(test.arms), published(test.dataset),
        mixtures(test.dataset),
        explorer.examples(test, protocol, EXAMPLES, images),
        families=analysis.ablations(test, protocol, metric), curves=analysis.curves(test, protocol, metric),
        noise=analysis.curves(test, protocol, metric, analysis.NOISE, least=2),
        backbones=[
            Backbone(curve, {row.arm.key: row for row in cost_rows([arm for _, _, arm in curve.points])})
            for curve in analysis.curves(test, protocol, metric, analysis.BACKBONE, least=2)
        ],
        audit=audit, rest=shortcuts.rest(test, audit, protocol) if audit else [], modality=modality,
        studies=studies.studies(test, sweeps, metric), attention=evidence,
        doubtful=_doubtful(test, protocol, images), training=analysis.training(test),
        answers=claims.answers(test, protocol, metric, modality, audit, evidence),
    )
    part.figures = _figures(part)
    return part


def _doubtful(test: TestSet, protocol: str, images: bool) -> list[Doubtful]:
    """Likely false negatives with their pictures, where kept."""
    doubtful = analysis.false_negatives(test, protocol)
    ids = [i for d in doubtful for i in (d.query["reference"], d.query["targets"][0], d.image)]
    known = explorer.pictures(test.arms, ids) if images and ids else {}
    uri = {image_id: explorer.data_uri(data) for image_id, data in known.items()}
    return [Doubtful(d, uri) for d in doubtful]


def _figures(part: Part) -> Figures:
    from . import figures as draw

    n, metric = part.index, part.metric
    scores = {row.arm.key: cell.mean for row in part.tables[0].rows if (cell := row.cells.get(metric))}
    by_knob: dict[str, list[analysis.Curve]] = {}
    for curve in part.curves:
        by_knob.setdefault(curve.knob, []).append(curve)
    # Streams of the first arm that has weights.
    weights = [row for row in part.modality if row.arm is part.modality[0].arm]
    return Figures(
        summary=[f for f in [draw.score_figure(f"score-{n}", part.tables[0], metric),
                             draw.rank_figure(f"rank-{n}", part.tables[0])] if f],
        cost=[f for f in [draw.cost_figure(f"cost-{n}", part.costs, scores, metric)] if f],
        ablation=[
            draw.ablation_figure(f"ablation-{n}-{k}", f) for k, f in enumerate(part.families) if len(f.deltas) > 1
        ],
        sensitivity=[
            draw.curve_figure(f"curve-{n}-{slug(knob)}", curves[:8], metric) for knob, curves in by_knob.items()
        ],
        noise=[draw.curve_figure(f"noise-{n}", part.noise[:8], metric)] if part.noise else [],
        modality=[draw.modality_figure(f"modality-{n}-{slug(r.stream)}", r, part.test.groups) for r in weights],
        training=[
            *draw.training_figures(f"losses-{n}", part.training, "losses", ""),
            *draw.training_figures(f"select-{n}", part.training, "select", "%"),
            *draw.training_figures(f"bound-{n}", part.training, "bound", "nats"),
        ],
    )


@dataclass(frozen=True)
class Section:
    """A section of the page: its anchor, its heading, and the template that shows it."""

    id: str
    name: str

    @property
    def template(self) -> str:
        """File of the template."""
        return f"{self.id}.html.j2"


def sections(parts: Sequence[Part]) -> list[Section]:
    """Those that have something to show, in the order of the page."""
    shown = [
        (Section("summary", "Summary"), True),
        (Section("questions", "Questions"), any(p.answers for p in parts)),
        (Section("ablation", "Ablation"), any(p.families for p in parts)),
        (Section("sensitivity", "Sensitivity"), any(p.curves or p.studies for p in parts)),
        (Section("backbones", "Backbones"), any(p.backbones for p in parts)),
        (Section("modality", "Modality importance"), any(p.modality or p.audit for p in parts)),
        (Section("queries", "Queries"), any(p.examples for p in parts)),
        (Section("attention", "Attention"), any(p.attention for p in parts)),
        (Section("noise", "Label noise"), any(p.noise or p.doubtful for p in parts)),
        (Section("training", "Training"), any(p.training for p in parts)),
        (Section("provenance", "Provenance"), True),
    ]
    return [section for section, has in shown if has]

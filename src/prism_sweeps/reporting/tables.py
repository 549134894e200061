"""Tables as data: what stands in each field, and how it sorts. `render.py` and the page turn them into text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from prism_sweeps.reporting.comparisons import SEES_BELOW, AxisComparison, Comparison, Sight, Standing
from prism_sweeps.reporting.frame import StudyFrames
from prism_sweeps.reporting.statistics import Estimate

MINUS = "−"
NONE = "–"
ONE_SEED = (
    "One seed: the intervals cover the choice of test images alone; seed spread unknown, so a difference may be one "
    "that another seed would undo."
)


ANSWERS = 4
"""Questions per benchmark whose answers are shown."""


@dataclass(frozen=True)
class Field:
    """One field: its text, a second line (a difference and its interval), its sort key and how it is marked."""

    text: str
    detail: str = ""
    order: float | None = None
    tone: str = ""
    """better | worse | muted | strong, or nothing."""


@dataclass(frozen=True)
class Table:
    """A titled table. The first column holds names, the others numbers; `notes` stand under it."""

    title: str
    columns: list[str]
    rows: list[list[Field]]
    notes: list[str] = field(default_factory=list)


# ---- text of numbers


def points(value: float) -> str:
    """A score, or a bound, with one decimal and a true minus sign."""
    if math.isnan(value):
        return NONE
    text = f"{value:.1f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", MINUS)


def signed(value: float) -> str:
    """A difference: always with its sign, but for one that rounds to zero."""
    text = points(value)
    return text if text == NONE or text.startswith(MINUS) or float(text) == 0 else f"+{text}"


def interval(found: Estimate) -> str:
    """`+2.3 [0.4, 4.2]`, or the difference alone when its spread cannot be known."""
    known = not math.isnan(found.low)
    return f"{signed(found.value)} [{points(found.low)}, {points(found.high)}]" if known else signed(found.value)


def probability(p: float) -> str:
    if math.isnan(p):
        return NONE
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def tone(found: Estimate) -> str:
    return "" if not found.excludes_zero else "better" if found.value > 0 else "worse"


# ---- ablations


def axis_table(frames: StudyFrames, found: AxisComparison) -> Table:
    """One axis: a row for each choice, the reference's first; the mean, then the benchmarks."""
    notes = ["Scores in percent; below each, its difference from the first row in points with the 95 % interval."]
    pairs = [len(row.variants) for row in found.rows[1:]]
    if any(count > 1 for count in pairs):
        notes.append("Each difference is the mean over all pairs of variants that differ in this axis alone.")
    if found.alone:
        notes.append(
            f"No row for variants that change this axis only together with others: {'; '.join(found.alone)}. "
            "They are among all variants."
        )
    return ablation(frames, found.axis, found.rows, notes)


def variant_table(frames: StudyFrames, rows: Sequence[Comparison]) -> Table:
    """Every variant against the reference."""
    notes = [f"Scores in percent; below each, its difference from {rows[0].label} in points with the 95 % interval."]
    return ablation(frames, "All variants", rows, notes)


def ablation(frames: StudyFrames, title: str, rows: Sequence[Comparison], notes: list[str]) -> Table:
    body = [
        [Field(row.label), mean_field(row, len(frames.benchmarks)), *(score_field(row, b) for b in frames.benchmarks)]
        for row in rows
    ]
    return Table(title, [title, "mean", *frames.benchmarks], body, notes + warnings(frames, rows))


def warnings(frames: StudyFrames, rows: Sequence[Comparison]) -> list[str]:
    """What a reader of these rows must know about their seeds and gaps."""
    estimates = [one for row in rows for one in row.differences.values()]
    notes = []
    if any(one.seeds == 1 for one in estimates):
        notes.append(ONE_SEED)
    if any(one.done < one.planned for row in rows for one in row.scores.values()):
        notes.append("Evaluations failed or are missing: see the end of the report.")
    strange = sorted(frames.unexplained)
    if strange:
        notes.append(f"Not a mean over examples, so the differences are those of that mean: {', '.join(strange)}.")
    return notes


def mean_field(row: Comparison, benchmarks: int) -> Field:
    if row.mean is None:
        return Field(points(row.mean_score), order=row.mean_score)
    partial = f" ({row.mean.benchmarks} of {benchmarks})" if row.mean.benchmarks < benchmarks else ""
    return Field(points(row.mean_score), interval(row.mean) + partial, row.mean.value, tone(row.mean))


def score_field(row: Comparison, benchmark: str) -> Field:
    standing, found = row.scores[benchmark], row.differences.get(benchmark)
    if standing.done == 0:
        return Field("missing" if standing.planned else NONE, tone="muted")
    gap = gap_text(standing)
    if found is None:
        return Field(points(standing.score), gap, standing.score)
    return Field(points(standing.score), f"{interval(found)}{' ' if gap else ''}{gap}", standing.score, tone(found))


def gap_text(standing: Standing) -> str:
    return f"({standing.done} of {standing.planned} runs)" if standing.done < standing.planned else ""


def compact_tables(frames: StudyFrames, rows: Sequence[Comparison], width: int) -> list[Table]:
    """For a terminal of `width` characters: the mean differences, then the scores in as many tables as fit."""
    body = []
    for row in rows:
        change = "reference" if not row.partners else interval(row.mean) if row.mean else "missing"
        style = tone(row.mean) if row.mean else "muted"
        seeds = str(row.mean.seeds) if row.mean else ""
        body.append([Field(row.label), Field(points(row.mean_score)), Field(change, tone=style), Field(seeds)])
    heads = ["variant", "mean", "difference [95 %]", "seeds"]
    first = Table(frames.study, heads, body, warnings(frames, rows))
    room = width - min(max(len(row.label) for row in rows), width // 3) - 4
    return [first, *(score_table(rows, part) for part in fitting(frames.benchmarks, room))]


def fitting(names: Sequence[str], room: int) -> list[list[str]]:
    """`names` cut into runs that fit side by side as columns in `room` characters."""
    parts: list[list[str]] = []
    used = room
    for name in names:
        needed = max(len(name), len("100.0")) + 2
        if used + needed > room:
            parts.append([])
            used = 0
        parts[-1].append(name)
        used += needed
    return parts


def score_table(rows: Sequence[Comparison], benchmarks: Sequence[str]) -> Table:
    body = []
    for row in rows:
        fields = [score_field(row, name) for name in benchmarks]
        body.append([Field(row.label), *(Field(one.text, tone=one.tone) for one in fields)])
    return Table("", ["variant", *benchmarks], body)


# ---- does it see


def sight_table(variant: str, found: Sequence[Sight]) -> Table:
    """Benchmark by benchmark, the score with the image and without."""
    names = [Field(f"{one.benchmark}") for one in found]
    rows = [[name, *sight_fields(one)] for name, one in zip(names, found, strict=True)]
    return Table(f"Does it see? {variant}", ["benchmark", *SIGHT_COLUMNS], rows, sight_notes(found))


def compact_sights(found: Sequence[Sight]) -> list[Table]:
    """For the terminal: all variants together, one table per way of taking the image away."""
    shown = []
    for condition in dict.fromkeys(one.condition for one in found):
        rows = [[Field(one.benchmark), *compact_sight(one)] for one in found if one.condition == condition]
        heads = ["benchmark", "with image", "without", "gain [95 %]", "p", "verdict"]
        shown.append(Table(f"Does it see? ({condition} images, all variants together)", heads, rows))
    return shown


def compact_sight(one: Sight) -> list[Field]:
    with_image, without, gain = Field(points(one.with_image)), Field(points(one.without)), Field(interval(one.gain))
    return [with_image, without, gain, Field(probability(one.p)), Field(one.verdict, tone=VERDICT_TONES[one.verdict])]


def group_table(variant: str, benchmark: str, found: Sequence[Sight]) -> Table:
    """The same for each group of examples of one benchmark."""
    rows = [[Field(one.group), *sight_fields(one)] for one in found]
    title = f"{benchmark} by group: {variant}"
    return Table(title, ["group", *SIGHT_COLUMNS], rows, sight_notes(found))


SIGHT_COLUMNS = [
    "examples",
    "with image",
    "without",
    "image taken away",
    "gain",
    "had blind",
    "p",
    "p (Holm)",
    "verdict",
]
VERDICT_TONES = {"sees": "better", "misled": "worse", "no evidence": "muted"}


def sight_fields(one: Sight) -> list[Field]:
    share = one.blind_share
    return [
        Field(str(one.examples), order=one.examples),
        Field(points(one.with_image), order=one.with_image),
        Field(points(one.without), order=one.without),
        Field(one.condition),
        Field(interval(one.gain), order=one.gain.value, tone=tone(one.gain)),
        Field(NONE if math.isnan(share) else f"{100 * share:.0f} %", order=share),
        Field(probability(one.p), order=one.p),
        Field(probability(one.p_holm), order=one.p_holm),
        Field(one.verdict, tone=VERDICT_TONES[one.verdict]),
    ]


def sight_notes(found: Sequence[Sight]) -> list[str]:
    notes = [
        f"Exact sign-flip test over images, scores summed over seeds; verdict at p < {SEES_BELOW}. "
        f"Holm's correction is over the {len(found)} rows of this table. The test speaks of the models trained; "
        "the interval of the gain also covers what other seeds would give.",
        "blank: a grey image; shuffled: another example's image. "
        "Had blind: the share of the score that is reached without the right image.",
    ]
    return [*notes, ONE_SEED] if any(one.gain.seeds == 1 for one in found) else notes


# ---- cells and jobs


def cell_table(frames: StudyFrames) -> Table:
    """Every cell with its state and mean score."""
    real = frames.scores[frames.scores["condition"] == "real"]
    means = real.groupby("cell", sort=False)["score"].agg(lambda scores: scores.mean(skipna=False))
    rows = []
    for cell in frames.cells.to_dict("records"):
        mean = float(means.get(cell["cell"], math.nan))
        done = Field(f"{cell['done']} of {cell['jobs']}", order=cell["done"])
        state = Field(cell["state"], tone="" if cell["state"] == "done" else "worse")
        name = Field(cell["variant"], tone="strong" if cell["baseline"] else "")
        rows.append([name, Field(str(cell["seed"]), order=cell["seed"]), state, done, Field(points(mean), order=mean)])
    return Table("Cells", ["cell", "seed", "state", "jobs done", "mean"], rows)


def missing_table(frames: StudyFrames) -> Table:
    """Every job without a result, and why."""
    table = frames.jobs[frames.jobs["state"] != "done"]
    rows = [
        [
            Field(job["title"]),
            Field(job["state"]),
            Field(str(job["attempts"]), order=job["attempts"]),
            Field(job["reason"]),
        ]
        for job in table.to_dict("records")
    ]
    return Table("Jobs without a result", ["job", "state", "attempts", "why"], rows)


def answer_table(frames: StudyFrames) -> Table | None:
    """What the reference answered, with its image and without, to the first questions of each benchmark."""
    table = frames.examples
    mine = table[table["variant"] == frames.reference]
    mine = mine[mine["seed"] == mine["seed"].min()]
    rows = []
    for benchmark, part in mine.groupby("benchmark", observed=True, sort=False):
        for example in part["example"].drop_duplicates()[:ANSWERS]:
            asked = part[part["example"] == example]
            said = dict(zip(asked["condition"], map(str, asked["answer"]), strict=True))
            answers = [Field(said.get(condition, NONE)) for condition in frames.conditions]
            rows.append([Field(str(benchmark)), Field(example), Field(gold_text(asked["gold"].iloc[0])), *answers])
    heads = ["benchmark", "example", "right", *frames.conditions]
    return Table(f"Answers: {frames.reference}", heads, rows) if rows else None


def gold_text(gold: object) -> str:
    return ", ".join(dict.fromkeys(map(str, gold))) if isinstance(gold, list | tuple) else str(gold)

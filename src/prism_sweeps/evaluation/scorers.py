"""Scorers by name, and what each is equal to.

| scorer | an answer is right when | equal to |
|---|---|---|
| vqav2 | soft accuracy over ten human answers | vlm-evaluation, util/evaluation/vqav2/eval.py |
| vqav2-official | the same; answers that all agree are left alone | GT-Vision-Lab/VQA (c4e6a0e4), vqaEval.py |
| vizwiz | the same; human answers are left alone | vlm-evaluation, util/evaluation/vizwiz/eval.py |
| vizwiz-official | the same with other contractions | VizWiz API (Gurari et al. 2018), vqaEval.py |
| textvqa | the same; human answers are normalised too | EvalAIAnswerProcessor (mmf, vlm-evaluation) |
| gqa | equal to the answer, lower-cased without punctuation | vlm-evaluation, harnesses/gqa.py with GQA's eval.py |
| gqa-official | equal to the answer, letter for letter | eval.py of GQA (Hudson and Manning 2019) alone |
| exact | equal to one of the answers, both lower-cased without punctuation | - |
| choice | the option chosen is the answer | vlm-evaluation, harnesses/vsr.py |
| pope | the same; the mean of its splits | vlm-evaluation, harnesses/pope.py |
| pope-official | its first sentence says yes, or no, as the answer does | AoiDragon/POPE, evaluate.py |
| letter, tallyqa, ai2d | the letter chosen is the answer | vlm-evaluation, harnesses/tallyqa.py and ai2d.py |
| iou | its box overlaps the true one by `iou_threshold` or more | vlm-evaluation, but for the forms of a box |
| iou-literal | the same; it is a list of four numbers, the true ones rounded | vlm-evaluation, harnesses/refcoco.py |
| package.module:name | what one's own Scorer or function says | `scoring.own` |

vlm-evaluation is TRI-ML/vlm-evaluation, from which the numbers of Karamcheti et al. 2024 come. Where the publisher of a
benchmark does otherwise, the plain name is vlm-evaluation's. `iou` departs from it in what counts as a box (whatever
`iou-literal` accepts it accepts too) and in that the true box is not rounded.

Scores and metrics are not rounded (the published scripts print two decimals), but for the areas.
"""

from __future__ import annotations

from prism_sweeps.config.errors import ConfigError, DataError, nearest
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.evaluation.benchmarks import Example
from prism_sweeps.evaluation.boxes import numbers_in
from prism_sweeps.evaluation.scoring.free_text import (
    gqa_metrics,
    score_exact,
    score_gqa,
    score_gqa_official,
    score_textvqa,
    score_vizwiz,
    score_vizwiz_official,
    score_vqav2,
    score_vqav2_official,
    vizwiz_metrics,
)
from prism_sweeps.evaluation.scoring.golds import any_answers, letter_answer, one_answer, ten_answers, yes_or_no
from prism_sweeps.evaluation.scoring.grounding import iou, literal_numbers, rounded, whole
from prism_sweeps.evaluation.scoring.options import (
    choice_metrics,
    letter_metrics,
    letters_by,
    pope,
    score_choice,
    score_letter,
    yes_or_no_in,
)
from prism_sweeps.evaluation.scoring.own import own_scorer
from prism_sweeps.evaluation.scoring.rows import Gold, Row, Scorer
from prism_sweeps.evaluation.text_normalisation import without_punctuation

__all__ = ["SCORERS", "Gold", "Row", "Scorer", "gold_of", "scorer"]

SCORERS = {
    "vqav2": Scorer(score_vqav2, ten_answers),
    "vqav2-official": Scorer(score_vqav2_official, ten_answers),
    "vizwiz": Scorer(score_vizwiz, ten_answers, vizwiz_metrics),
    "vizwiz-official": Scorer(score_vizwiz_official, ten_answers, vizwiz_metrics),
    "textvqa": Scorer(score_textvqa, ten_answers),
    "gqa": Scorer(score_gqa, one_answer, gqa_metrics),
    "gqa-official": Scorer(score_gqa_official, one_answer, gqa_metrics),
    "exact": Scorer(score_exact, any_answers),
    "choice": Scorer(score_choice, one_answer, choice_metrics),
    "pope": pope(without_punctuation, one_answer),
    "pope-official": pope(yes_or_no_in, yes_or_no),
    "letter": Scorer(score_letter, letter_answer, letter_metrics),
    "tallyqa": Scorer(score_letter, letter_answer, letters_by("kind")),
    "ai2d": Scorer(score_letter, letter_answer, letters_by("split")),
    "iou": iou(numbers_in, whole),
    "iou-literal": iou(literal_numbers, rounded),
}


def scorer(name: str) -> Scorer:
    """The scorer of that name, or one's own, `package.module:name`. Raises ConfigError."""
    if ":" in name:
        return own_scorer(name)
    if name not in SCORERS:
        raise ConfigError(f"unknown scorer '{name}'; {nearest(name, SCORERS)}, or package.module:name of one's own")
    return SCORERS[name]


def gold_of(example: Example, benchmark: Benchmark) -> Gold:
    """What the benchmark's scorer compares an answer with. Raises DataError when the example lacks it."""
    try:
        gold = scorer(benchmark.scorer).gold(example)
        strange = [answer for answer in example.answers if answer not in benchmark.choices]
        if benchmark.answer == "choice" and strange:
            raise ValueError(f"its answer '{strange[0]}' is not among the choices {', '.join(benchmark.choices)}")
    except ValueError as error:
        raise DataError(f"{benchmark.name}, example '{example.id}' (scorer {benchmark.scorer}): {error}") from None
    return gold

"""Areas under the curves of options' probabilities, as scikit-learn defines them. Tested against it.

Shapes: N rows, O options.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from prism_sweeps.evaluation.scoring.rows import Metrics, Row
from prism_sweeps.evaluation.text_normalisation import without_punctuation

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

NAT_DECIMALS = 4
"""Log-likelihoods differ from batch size to batch size after these: what is equal up to them is a tie."""
AREA_DECIMALS = 4


def areas(rows: Sequence[Row], options: Sequence[str]) -> Metrics:
    """`roc_auc` and `pr_auc`, 0..1, from probabilities renormalised over the options of each row.

    Of two options the first one is the positive class. Of more, the mean over one-versus-rest areas (`macro`), for all
    options that are right somewhere and wrong somewhere; and `roc_auc_ovo`, the mean over pairs of options, which is
    what vlm-evaluation reports as ROC AUC of TallyQA and AI2D. Nothing where a row has no likelihoods or fewer than two
    options are ever right; `invalid_likelihood_count` alone where some are not numbers.
    """
    if not rows or not all(row.get("log_likelihoods") for row in rows):
        return {}
    probability_NO = probabilities(rows, options)
    invalid = int(np.isnan(probability_NO).any(axis=1).sum())
    right_NO = np.array([[same(row["gold"], option) for option in options] for row in rows])
    told: Metrics = {} if invalid else curves(probability_NO, right_NO)
    return {name: round(value, AREA_DECIMALS) for name, value in told.items()} | {"invalid_likelihood_count": invalid}


def same(one: str, other: str) -> bool:
    """Whether two options are one but for case and punctuation."""
    return without_punctuation(one) == without_punctuation(other)


def probabilities(rows: Sequence[Row], options: Sequence[str]) -> Floats:
    """probability_NO: 0 of an option that a row does not have; a row of NaN where its likelihoods are not numbers."""
    nats_NO = np.array([[row["log_likelihoods"].get(option, -np.inf) for option in options] for row in rows], float)
    nats_NO = np.round(nats_NO, NAT_DECIMALS)
    with np.errstate(invalid="ignore"):
        weights_NO = np.exp(nats_NO - nats_NO.max(axis=1, keepdims=True))
        probability_NO: Floats = weights_NO / weights_NO.sum(axis=1, keepdims=True)
    return probability_NO


def curves(probability_NO: Floats, right_NO: Flags) -> Metrics:
    """The areas, not rounded; none where fewer than two options are ever right."""
    if right_NO.shape[1] == 2:
        probability_NO, right_NO = probability_NO[:, :1], right_NO[:, :1]
    seen = [o for o in range(right_NO.shape[1]) if right_NO[:, o].any() and not right_NO[:, o].all()]
    if not seen:
        return {}
    roc = [roc_auc(probability_NO[:, o], right_NO[:, o]) for o in seen]
    pr = [average_precision(probability_NO[:, o], right_NO[:, o]) for o in seen]
    told = {"roc_auc": float(np.mean(roc)), "pr_auc": float(np.mean(pr))}
    pairs = [one_versus_one(probability_NO, right_NO, *pair) for pair in combinations(seen, 2)]
    return told | ({"roc_auc_ovo": float(np.mean(pairs))} if pairs else {})


def roc_auc(score_N: Floats, right_N: Flags) -> float:
    """How often a right one has the higher score than a wrong one; ties count half (Mann and Whitney)."""
    from scipy.stats import rankdata  # most of a second, which nobody else who looks up a scorer should pay

    positive = int(right_N.sum())
    above = rankdata(score_N)[right_N].sum() - positive * (positive + 1) / 2
    return float(above / (positive * (len(right_N) - positive)))


def average_precision(score_N: Floats, right_N: Flags) -> float:
    """Sum over distinct scores, from the highest, of the precision there times the recall gained; no interpolation."""
    order = np.argsort(-score_N)
    hits = np.cumsum(right_N[order])
    last = np.append(np.flatnonzero(np.diff(score_N[order])), len(order) - 1)
    gained = np.diff(hits[last], prepend=0) / hits[-1]
    return float(np.sum(gained * hits[last] / (last + 1)))


def one_versus_one(probability_NO: Floats, right_NO: Flags, a: int, b: int) -> float:
    """Of the rows where a or b is right: the mean of the areas by a's and by b's probability (Hand and Till 2001)."""
    either_N = right_NO[:, a] | right_NO[:, b]
    both = [roc_auc(probability_NO[either_N, o], right_NO[either_N, o]) for o in (a, b)]
    return sum(both) / 2

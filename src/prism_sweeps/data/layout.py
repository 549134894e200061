"""How one global batch is cut into forward passes, for one process or many; and what each token counts in its loss.

The cut changes a result by rounding alone: a token's share of the loss is settled for the global batch as a whole.

`indices` are the examples of one global batch, in its order, and point into the other lists. An example can stand in a
batch twice (`order.split_modality_epoch`) and have another share each time. Where it may, let them be the places in the
batch, `range(len(batch))`, and let the other lists have one entry for each place.
"""

from __future__ import annotations

from collections.abc import Sequence

from prism_sweeps.config.checks import divisors_text
from prism_sweeps.config.errors import ConfigError

Passes = list[list[list[int]]]
"""[process][forward pass][index]; all processes have equally many passes."""


def check_ranks(global_batch: int, ranks: int) -> None:
    """Raises ConfigError where `ranks` processes cannot have equal shares of `global_batch` examples."""
    if ranks < 1 or global_batch % ranks:
        raise ConfigError(
            f"a global_batch of {global_batch} cannot be shared out equally to {ranks} processes; take a number of "
            f"processes that divides it, or another global_batch; {divisors_text(global_batch)}"
        )


def padded(indices: Sequence[int], lengths: Sequence[int], ranks: int, micro_batch: int) -> Passes:
    """Passes of at most `micro_batch` examples (0: a process's share in one), the longest first.

    Passes that run at the same time have about equal lengths, and all processes have equally many examples. Raises
    ConfigError where `ranks` does not divide the batch.
    """
    check_ranks(len(indices), ranks)
    ordered = sorted(indices, key=lambda i: -lengths[i])
    share = len(ordered) // ranks
    size = micro_batch or share
    return [[ordered[rank::ranks][at : at + size] for at in range(0, share, size)] for rank in range(ranks)]


def packed(indices: Sequence[int], lengths: Sequence[int], ranks: int, row_tokens: int) -> Passes:
    """Passes of one row each, of at most `row_tokens` positions, the fullest first; no row is empty.

    There are as few rows as best-fit decreasing needs, up to the next multiple of `ranks`. They are about equally
    full, and most so those that run at the same time. Raises ConfigError where `ranks` does not divide the batch or
    an example is longer than a row.
    """
    check_ranks(len(indices), ranks)
    ordered = sorted(indices, key=lambda i: -lengths[i])
    if lengths[ordered[0]] > row_tokens:
        raise ConfigError(
            f"row_tokens is {row_tokens}, but an example takes {lengths[ordered[0]]} positions; "
            "give at least as many, or 0"
        )
    tight = _best_fit(ordered, lengths, row_tokens)
    count = -(-len(tight) // ranks) * ranks
    rows = _emptiest_first(ordered, lengths, count)
    if max(_sums(rows, lengths)) > row_tokens:
        rows = _split_up(tight, lengths, count)
    rows.sort(key=lambda row: -sum(lengths[i] for i in row))
    return [[rows[at] for at in range(rank, count, ranks)] for rank in range(ranks)]


def _sums(rows: list[list[int]], lengths: Sequence[int]) -> list[int]:
    return [sum(lengths[i] for i in row) for row in rows]


def _best_fit(ordered: Sequence[int], lengths: Sequence[int], room: int) -> list[list[int]]:
    """Each example goes to the fullest row that has room for it, or begins one."""
    rows: list[list[int]] = []
    sums: list[int] = []
    for i in ordered:
        fitting = [at for at, used in enumerate(sums) if used + lengths[i] <= room]
        if fitting:
            at = max(fitting, key=lambda at: sums[at])
            rows[at].append(i)
            sums[at] += lengths[i]
        else:
            rows.append([i])
            sums.append(lengths[i])
    return rows


def _emptiest_first(ordered: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """`count` rows about equally full, whatever that takes: each example goes to the emptiest row."""
    rows: list[list[int]] = [[] for _ in range(count)]
    sums = [0] * count
    for i in ordered:
        at = sums.index(min(sums))
        rows[at].append(i)
        sums[at] += lengths[i]
    return rows


def _split_up(rows: list[list[int]], lengths: Sequence[int], count: int) -> list[list[int]]:
    """`rows` made `count` by halving the fullest that can be."""
    rows = list(rows)
    while len(rows) < count:
        fullest = max((row for row in rows if len(row) > 1), key=lambda row: sum(lengths[i] for i in row))
        rows.remove(fullest)
        rows += _emptiest_first(fullest, lengths, 2)
    return rows


def shares(
    indices: Sequence[int], supervised: Sequence[int], words: Sequence[int], loss: str, micro_batch: int | None
) -> list[float]:
    """What each supervised token of each example of `indices` counts in the loss of the global batch; all sum up to 1.

    token-mean: all the same. micro-batch-mean: a mean over groups of `micro_batch` examples of the mean over the tokens
    of each, as the reference forms them where a process does its share of a batch at once (the paper's 8 times 16).
    Every example needs a supervised token, and micro-batch-mean a `micro_batch` that divides the batch; the checks of
    data and config see to both.
    """
    if loss == "token-mean":
        return [1 / sum(supervised[i] for i in indices)] * len(indices)
    assert loss == "micro-batch-mean", loss
    assert micro_batch is not None
    groups = reference_groups([words[i] for i in indices], micro_batch)
    found = [0.0] * len(indices)
    for group in groups:
        tokens = sum(supervised[indices[place]] for place in group)
        for place in group:
            found[place] = 1 / (len(groups) * tokens)
    return found


def reference_groups(words: Sequence[int], size: int) -> list[list[int]]:
    """Places in a global batch whose examples have `words`, in groups of `size`, as the reference forms them
    (prismatic-vlms, `SplitModalitySampler.reindex_batch`): the longest first, each to the group of fewest words that is
    not full, the first of equals."""
    groups: list[list[int]] = [[] for _ in range(len(words) // size)]
    totals = [0] * len(groups)
    for place in sorted(range(len(words)), key=lambda place: words[place], reverse=True):
        open_ = [at for at, group in enumerate(groups) if len(group) < size]
        at = min(open_, key=lambda at: totals[at])
        groups[at].append(place)
        totals[at] += words[place]
    return groups

import hashlib
import json
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import BATCHINGS
from prism_sweeps.data.conversations import Conversation
from prism_sweeps.data.order import Corpus, batch_stream, evened_out, split_modality_epoch, steps_in, word_count

CARRIED_OVER = ("grouped", "packed")


def of_lengths(lengths: list[int]) -> Corpus:
    return Corpus(lengths, [True] * len(lengths), lengths)


def first(count: int, strategy: str, corpus: Corpus, global_batch: int, seed: int) -> list[list[int]]:
    return list(islice(batch_stream(strategy, corpus, global_batch, seed), count))


# ---- all of them


@pytest.mark.parametrize("strategy", BATCHINGS)
def test_order_is_that_of_its_seed(strategy: str):
    corpus = Corpus([7 + index % 11 for index in range(60)], [index % 3 > 0 for index in range(60)], list(range(60)))
    found = first(20, strategy, corpus, 8, seed=5)
    assert {len(batch) for batch in found} == {8}
    assert found == first(20, strategy, corpus, 8, seed=5)
    assert found != first(20, strategy, corpus, 8, seed=6)


@pytest.mark.parametrize("strategy", CARRIED_OVER)
@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=60),
    global_batch=st.integers(1, 20),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_every_epoch_shows_every_example_once_in_full_batches(
    strategy: str, lengths: list[int], global_batch: int, seed: int
):
    count, epochs = len(lengths), 3
    batches = first(-(-count * epochs // global_batch), strategy, of_lengths(lengths), global_batch, seed)
    assert {len(batch) for batch in batches} == {global_batch}
    stream = [index for batch in batches for index in batch]
    for epoch in range(epochs):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))


@pytest.mark.parametrize("strategy", BATCHINGS)
def test_epochs_make_small_data_other_batches(strategy: str):
    batches = first(16, strategy, of_lengths(list(range(64))), 8, seed=1)
    seen = [frozenset(batch) for batch in batches]
    assert not set(seen[:8]) & set(seen[8:])


@pytest.mark.parametrize("strategy", CARRIED_OVER)
def test_length_says_nothing_about_time(strategy: str):
    batches = first(128, strategy, of_lengths(list(range(4096))), 32, seed=1)
    means = torch.tensor([sum(batch) / 32 for batch in batches])
    assert abs(float(torch.corrcoef(torch.stack([means, torch.arange(128.0)]))[0, 1])) < 0.25


@pytest.mark.parametrize("strategy", BATCHINGS)
def test_nothing_to_train_on_is_an_error(strategy: str):
    with pytest.raises(ConfigError, match="no example"):
        batch_stream(strategy, Corpus([], [], []), 8, seed=1)
    with pytest.raises(ConfigError, match="no example"):
        steps_in(strategy, Corpus([], [], []), 8, 1.0, None)


def test_unknown_strategies_are_named():
    with pytest.raises(ConfigError, match=r"batching is 'pact'; did you mean 'packed'\? valid: grouped, packed, split"):
        batch_stream("pact", of_lengths([1]), 8, seed=1)


# ---- steps


@pytest.mark.parametrize("strategy", CARRIED_OVER)
@pytest.mark.parametrize(
    ("examples", "batch", "epochs", "limit", "steps"),
    [
        (665_298, 128, 1.0, None, 5_198),  # the reference's finetuning stage
        (558_128, 256, 1.0, None, 2_181),  # and its alignment
        (665_298, 128, 2.0, 6_500, 6_500),  # its 1.25 epochs
        (1000, 10, 1.1, None, 110),
        (10, 32, 0.5, None, 1),
    ],
)
def test_steps(strategy: str, examples: int, batch: int, epochs: float, limit: int | None, steps: int):
    corpus = Corpus(range(examples), [], [])
    assert steps_in(strategy, corpus, batch, epochs, limit) == steps


@pytest.mark.parametrize(
    ("pictured", "text", "batch", "epochs", "limit", "steps"),
    [
        (624_610, 40_688, 128, 1.0, None, 4_880 + 318),  # the reference's finetuning stage
        (129, 1, 128, 1.0, None, 3),  # two batches for its examples, three for its kinds
        (129, 1, 128, 1.5, None, 5),
        (129, 1, 128, 4.0, 7, 7),
        (1_000, 0, 10, 1.1, None, 110),
        (0, 5, 8, 0.1, None, 1),
    ],
)
def test_split_modality_rounds_up_each_kind(
    pictured: int, text: int, batch: int, epochs: float, limit: int | None, steps: int
):
    corpus = Corpus(range(pictured + text), [True] * pictured + [False] * text, range(pictured + text))
    assert steps_in("split-modality", corpus, batch, epochs, limit) == steps


# ---- grouped


def test_grouped_order_stays_as_it_is():
    """Another order under the same fingerprint would be another result under the same name."""
    assert first(6, "grouped", of_lengths([index % 7 for index in range(20)]), 4, seed=5) == [
        [11, 4, 15, 0],
        [6, 18, 8, 14],
        [3, 2, 1, 7],
        [13, 5, 17, 9],
        [19, 12, 10, 16],
        [5, 17, 9, 7],
    ]
    assert first(6, "grouped", of_lengths([index * 37 % 101 for index in range(10)]), 4, seed=2) == [
        [4, 9, 6, 3],
        [5, 2, 1, 0],
        [8, 7, 6, 0],
        [8, 1, 9, 3],
        [5, 2, 7, 4],
        [5, 4, 3, 0],
    ]
    assert first(2, "grouped", of_lengths([3, 1, 2]), 8, seed=0) == [[0, 2, 1, 0, 1, 2, 2, 0], [1, 1, 0, 2, 0, 1, 2, 2]]
    many = first(400, "grouped", of_lengths([index * 7919 % 391 for index in range(3001)]), 16, seed=7)
    digest = hashlib.sha256(json.dumps(many).encode()).hexdigest()
    assert digest == "8bbb0f7f988bf7e53d1af6c4dfde2bbcbcdd8161cbc5d75d454e84f4652ebaba"


def test_grouped_batches_hold_examples_of_like_length():
    lengths = [10 + 7919 * index % 391 for index in range(4096)]
    real = padded = 0
    for batch in first(128, "grouped", of_lengths(lengths), 32, seed=1):
        real += sum(lengths[index] for index in batch)
        padded += len(batch) * max(lengths[index] for index in batch)
    assert real / padded > 0.9  # 0.53 in random order


# ---- packed


def spread(batches: list[list[int]], lengths: list[int]) -> float:
    """Of the sums of lengths, relative to their mean."""
    sums = [total(batch, lengths) for batch in batches]
    return (max(sums) - min(sums)) / np.mean(sums)


@pytest.mark.parametrize(("global_batch", "times"), [(128, 1000), (32, 100), (8, 3)])
def test_packed_batches_have_nearly_equal_sums(global_batch: int, times: int):
    draw = np.random.default_rng(1)
    texts = draw.lognormal(4, 1, 4096).astype(int)
    lengths = np.where(draw.random(4096) < 0.94, 576 + texts, np.minimum(8 * texts, 2048)).tolist()
    batches = first(4096 // global_batch, "packed", of_lengths(lengths), global_batch, seed=3)
    at_random = np.random.default_rng(2).permutation(4096).reshape(-1, global_batch).tolist()
    for group in (slice(0, 16), slice(16, 32)):  # evened out together, before they were shuffled
        order = [i for batch in at_random[group] for i in batch]
        assert spread(evened_out(order, lengths, global_batch), lengths) * times < spread(at_random[group], lengths)
    assert 3 * spread(batches, lengths) < spread(at_random, lengths)


@given(
    lengths=st.lists(st.integers(1, 100), min_size=6, max_size=40), global_batch=st.integers(1, 6), order=st.randoms()
)
@settings(max_examples=100, deadline=None)
def test_no_exchange_with_the_largest_or_smallest_sum_would_even_out_more(lengths: list[int], global_batch: int, order):
    indices = list(range(len(lengths) // global_batch * global_batch))
    order.shuffle(indices)
    batches = evened_out(indices, lengths, global_batch)
    assert sorted(i for batch in batches for i in batch) == sorted(indices)
    assert {len(batch) for batch in batches} == {global_batch}
    for at in range(0, len(batches), 16):
        settled = [not helpful(batch, batches[at : at + 16], lengths) for batch in batches[at : at + 16]]
        sums = [total(batch, lengths) for batch in batches[at : at + 16]]
        for extreme in (min(sums), max(sums)):
            assert any(done for done, found in zip(settled, sums, strict=True) if found == extreme)


def total(batch: list[int], lengths: list[int]) -> int:
    return sum(lengths[i] for i in batch)


def helpful(batch: list[int], others: list[list[int]], lengths: list[int]) -> bool:
    """Whether exchanging any one example with any other batch brings the two sums closer."""
    gaps = [total(batch, lengths) - total(other, lengths) for other in others]
    return any(
        abs(gap - 2 * (lengths[i] - lengths[j])) < abs(gap)
        for gap, other in zip(gaps, others, strict=True)
        for i in batch
        for j in other
    )


# ---- split-modality


def published(
    modality_lengths: list[tuple[bool, int]], global_batch: int, replicas: int, seed: int, epoch: int
) -> list[int]:
    """The order in which prismatic-vlms lines up one epoch, told step by step (its SplitModalitySampler)."""
    generator = torch.Generator()
    generator.manual_seed(seed + epoch)
    own_numbers, own_lengths, shuffled = {}, {}, {}
    for kind in (True, False):
        own_numbers[kind] = [number for number, (image, _) in enumerate(modality_lengths) if image == kind]
        own_lengths[kind] = [length for image, length in modality_lengths if image == kind]
    for kind in (True, False):
        shuffled[kind] = torch.randperm(len(own_numbers[kind]), generator=generator)

    merged = []
    for kind in (True, False):
        cut = [piece.tolist() for piece in torch.split(shuffled[kind], global_batch) if len(piece)]
        if cut and len(cut[-1]) < global_batch:
            cut[-1] = cut[-1] + cut[0][: global_batch - len(cut[-1])]
        for piece in cut:
            assert len(piece) == global_batch
            in_buckets = buckets(
                sorted(piece, key=own_lengths[kind].__getitem__, reverse=True), own_lengths[kind], replicas
            )
            merged.append([own_numbers[kind][at] for bucket in in_buckets for at in bucket])

    merged = [merged[at] for at in torch.randperm(len(merged), generator=generator)]
    costs = [length + 24 * 24 if image else length for image, length in modality_lengths]
    worst = np.argmax([max(costs[number] for number in batch) for batch in merged])
    merged[0], merged[worst] = merged[worst], merged[0]
    line = [number for batch in merged for number in batch]
    assert set(line) == set(range(len(modality_lengths)))
    return line


def buckets(longest_first: list[int], lengths: list[int], count: int) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in range(count)]
    loads = np.zeros(count)
    for at in longest_first:
        emptiest = int(np.argmin(loads))
        found[emptiest].append(at)
        loads[emptiest] += lengths[at]
        if len(found[emptiest]) == len(longest_first) // count:
            loads[emptiest] = np.inf
    return found


@st.composite
def corpora(draw: st.DrawFn) -> tuple[Corpus, int]:
    """With as many examples of a kind as the published code can do with: half a batch, or no text at all."""
    global_batch = draw(st.sampled_from([4, 8, 12]))
    pictured = draw(st.integers(global_batch // 2, 50))
    text = draw(st.one_of(st.just(0), st.integers(global_batch // 2, 30)))
    with_image = draw(st.permutations([True] * pictured + [False] * text))
    words = draw(st.lists(st.integers(0, 600), min_size=len(with_image), max_size=len(with_image)))
    return Corpus([1] * len(words), with_image, words), global_batch


@given(corpora(), st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_split_modality_is_the_published_order_for_any_number_of_processes(found: tuple[Corpus, int], seed: int):
    corpus, global_batch = found
    steps = steps_in("split-modality", corpus, global_batch, 2.0, None)
    ours = first(steps, "split-modality", corpus, global_batch, seed)
    modality_lengths = list(zip(corpus.with_image, corpus.words, strict=True))
    for replicas in (1, 2, 4):
        line = [i for epoch in (0, 1) for i in published(modality_lengths, global_batch, replicas, seed, epoch)]
        theirs = [line[at : at + global_batch] for at in range(0, len(line), global_batch)]
        if replicas == 1:
            assert ours == theirs
        assert [sorted(batch) for batch in ours] == [sorted(batch) for batch in theirs]


def test_split_modality_order_stays_as_it_is():
    corpus = Corpus([1] * 13, [index % 3 > 0 for index in range(13)], [index * 5 % 7 for index in range(13)])
    assert split_modality_epoch(corpus, 4, seed=7) == [[11, 1, 5, 7], [12, 6, 3, 0], [4, 8, 2, 10], [12, 9, 3, 0]]


@pytest.mark.parametrize("pictured", [0, 1, 3])
def test_kinds_too_small_for_half_a_batch_are_repeated(pictured: int):
    """Where the published code stops."""
    corpus = Corpus([1] * 12, [index < pictured for index in range(12)], list(range(12)))
    batches = split_modality_epoch(corpus, 8, seed=1)
    assert len(batches) == 2 + (pictured > 0)
    assert {len(batch) for batch in batches} == {8}
    assert {i for batch in batches for i in batch} == set(range(12))
    for batch in batches:
        assert len({corpus.with_image[i] for i in batch}) == 1
        if corpus.with_image[batch[0]]:
            times = [batch.count(i) for i in range(pictured)]
            assert max(times) - min(times) <= 1


# ---- words


def test_words_are_counted_between_white_space_in_all_turns():
    turns = [("human", "<image>\nWhat is  it?"), ("gpt", "A cat."), ("human", " why "), ("gpt", "")]
    assert word_count(Conversation("x", "s", None, turns)) == 4 + 2 + 1

"""The zoo's scripts: runs that go on where they stopped, regions that lie where their pixels are."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F

from prism_sweeps.config.compose import design_space
from prism_sweeps.data.nano_world.captions import coordinates
from prism_sweeps.data.nano_world.expressions import box_text
from prism_sweeps.data.nano_world.scenes import SIMPLE, Scene, SceneStyle, generator, scene
from prism_sweeps.data.nano_world.words import CATEGORIES, plural
from prism_sweeps.models.prompts import prompt_format
from prism_sweeps.models.resize import square
from prism_sweeps.models.weights import ZOO
from prism_sweeps.training.zoo import language, towers
from prism_sweeps.training.zoo.contrastive import pooled, sigmoid_loss, softmax_loss
from prism_sweeps.training.zoo.maps import EASY, FULL, boxes, map_of, place_codes, register, words
from prism_sweeps.training.zoo.pictures import covered, regions, squared
from prism_sweeps.training.zoo.reading import DRILLS, balances, conversations, documents, drill, tallied


def run_to(last: int | None, folder: Path, samples: int = 24, seed: int = 0) -> tuple[dict[str, Tensor], towers.Run]:
    """A run of four-example steps on made-up data, broken off before step `last`."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    run = towers.Run(samples, batch=4, learning_rate=1e-2)

    def loss_of(step: int) -> Tensor:
        if step == last:
            raise InterruptedError
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        return F.cross_entropy(model(x), (x[:, 0] > 0).long())

    towers.optimise(run, model, loss_of, "made up 64", folder)
    return model.state_dict(), run


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, run = run_to(None, tmp_path)
    monkeypatch.setattr(towers, "KEEP_SECONDS", 0.0)
    with pytest.raises(InterruptedError):
        run_to(4, tmp_path)
    resumed, later = run_to(None, tmp_path)
    assert later.losses == run.losses
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not list(tmp_path.iterdir()), "what was kept is not needed any more"


def test_another_recipe_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "KEEP_SECONDS", 0.0)
    with pytest.raises(InterruptedError):
        run_to(4, tmp_path)
    _, run = run_to(None, tmp_path, samples=32)
    assert len(run.losses) == run.steps == 8


def test_another_start_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the tower a run goes on from has been trained again."""
    other, _ = run_to(None, tmp_path / "alone", seed=1)
    monkeypatch.setattr(towers, "KEEP_SECONDS", 0.0)
    with pytest.raises(InterruptedError):
        run_to(4, tmp_path)
    found, _ = run_to(None, tmp_path, seed=1)
    assert all(torch.equal(found[name], other[name]) for name in other)


@pytest.mark.parametrize("strategy", ["naive", "letterbox"])
def test_boxes_lie_where_their_pixels_are(strategy: str) -> None:
    """The objects of a scene painted as plain rectangles, made square by the code that makes pictures square."""
    told = next(found for found in map(simple, range(100)) if found.things and found.width > 1.3 * found.height)
    canvas = Image.new("RGB", (told.width, told.height), "black")
    box = told.things[0].box
    ImageDraw.Draw(canvas).rectangle((round(box[0]), round(box[1]), round(box[2]) - 1, round(box[3]) - 1), fill="white")
    bright = np.asarray(square(canvas, strategy, 96, (0, 0, 0)))[:, :, 0] > 127
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / 96
    assert np.abs(found - squared(box, told, strategy)).max() < 1.5 / 96


def simple(number: int) -> Scene:
    return scene("test", number, SIMPLE)


def test_regions_name_every_object_and_the_whole() -> None:
    told = next(found for found in map(simple, range(100)) if len(found.things) == 2)
    named = regions(told, "naive")
    assert named[0] == (f"a {told.background} background".replace("a orange", "an orange"), (0.0, 0.0, 1.0, 1.0))
    assert [thing.category in phrase for thing, (phrase, _) in zip(told.things, named[1:], strict=False)] == [True] * 2


def test_pooling_takes_the_patches_inside() -> None:
    x_BPD = torch.arange(2 * 16, dtype=torch.float32).reshape(2, 16, 1)
    boxes = [[(0.0, 0.0, 1.0, 1.0)], [(0.0, 0.0, 0.5, 0.5), (0.99, 0.99, 1.0, 1.0)]]
    assert covered((0.0, 0.0, 0.5, 0.5), 4) == [0, 1, 4, 5]
    assert pooled(x_BPD, boxes)[:, 0].tolist() == [7.5, 16 + 2.5, 31.0]


def test_losses_are_those_of_the_papers_when_no_phrase_repeats() -> None:
    """Against cross entropy over rows and columns, and against binary cross entropy."""
    logits, match = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)), torch.eye(5)
    target = torch.arange(5)
    both = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert torch.allclose(softmax_loss(logits, match), both)
    binary = F.binary_cross_entropy_with_logits(logits, match, reduction="sum") / 5
    assert torch.allclose(sigmoid_loss(logits, match), binary)


def test_a_map_says_what_stands_where() -> None:
    rng = np.random.default_rng(1)
    for number in range(30):
        drawn = scene("test maps", number, SIMPLE)
        for side in (8, 12):
            said = words(drawn, side, "letterbox", rng)
            assert len(said) == side * side
            known = {drawn.background, drawn.texture, "-"}
            for thing in drawn.things:
                known |= {thing.category, thing.size, thing.tile or thing.size}
                inside = {said[cell] for cell in covered(squared(thing.box, drawn, "letterbox"), side)}
                assert thing.category in inside or len(inside) < 3
            if drawn.sign is not None:
                known |= {drawn.sign.word, "sign"}
            assert set(said) <= known
            short = 1 - min(drawn.width, drawn.height) / max(drawn.width, drawn.height)
            assert said.count("-") / len(said) == pytest.approx(short, abs=2 / side)


@pytest.mark.parametrize("name", ["nano-base", "nano-instruct"])
def test_the_map_of_a_conversation_stands_where_the_image_will(name: str) -> None:
    tokenizer = language.load_zoo_tokenizer(ZOO / name)
    writing = prompt_format(design_space().part("llm", name, {}), tokenizer)
    for shown, turns in conversations(range(8)):
        ids, weights, patches, _ = language.conversed(shown, turns, tokenizer, writing, 0.1)
        assert patches == len(shown.split())
        assert patches in (0, 64, 144)
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[1 : 1 + patches]) == shown
        encoded = writing.encode(turns)
        assert ids[1 + patches :] == encoded.ids[1:]
        assert [weight == 1 for weight in weights[1 + patches :]] == encoded.supervised[1:]
        assert not any(weights[: 1 + patches])


@pytest.mark.parametrize("asked", [0.0, 0.6])
def test_entries_of_a_register_hold_for_its_scene(asked: float) -> None:
    """Numbers, Yes and No, each where the spans say, compared with what stands in the scene."""
    checked = Counter[str]()
    for number in range(60):
        text, spans, mapped = register(number, EASY, asked)
        drawn, shown = map_of(number, generator("pretrain registers", number), EASY)
        things = Counter(thing.category for thing in drawn.things)
        names = {name: category for category in CATEGORIES for name in (category, plural(category))}
        assert text.startswith(shown)
        assert len(shown.split()) == mapped
        before = 0
        for first, last in spans:
            key, said = text[before:first], text[first:last].strip(" ;\n")
            before = last - 1
            found = re.search(r"(count|how many|any|is there an?) ([a-z]+)", key)
            if found is not None:
                there = things[names[found[2]]]
                assert said == (str(there) if said.isdigit() else "Yes" if there else "No"), (text, key)
                checked[said] += 1
    assert min(checked[said] for said in ("Yes", "No", "0", "1")) > 30
    assert ("\nIn:" in "".join(register(number, EASY, asked)[0] for number in range(60))) == (asked > 0)


def test_boxes_are_listed_once_for_each_thing() -> None:
    """And each is the box of a thing in the scene."""
    shared, listed = balances(), 0
    for number in range(40):
        text, spans, _ = boxes(number, shared, FULL)
        drawn, _ = map_of(number, generator("pretrain boxes", number), FULL)
        there = {box_text(coordinates(drawn, thing)) for thing in drawn.things}
        found = [text[first:last].strip(" ;\n") for first, last in spans]
        assert set(found) <= there
        assert len(found) == len(set(found))
        listed += len(found)
    assert listed > 60


@pytest.mark.parametrize("strategy", ["naive", "letterbox"])
@pytest.mark.parametrize("side", [4, 8])
def test_a_map_names_everything_that_is_not_covered(strategy: str, side: int) -> None:
    """A lone thing has its name on the map, however small it is."""
    for number in range(40):
        drawn = scene("names on maps", number, SceneStyle(things=(1, 1), sizes=(1.0, 0.0, 0.0), signs=0.0))
        assert drawn.things[0].category in words(drawn, side, strategy, generator("names", number))


def test_early_rows_are_also_judged_half_way_up() -> None:
    """Against transformers' own loss, with half of the layers cut off."""
    llm = design_space().part("llm", "nano-base", {})
    torch.manual_seed(0)
    model = language.new_llama(llm)
    ids = [0, *range(10, 30)]
    weights = [0.0] * 11 + [1.0] * 10
    row = language.Weighted(ids, weights, 0)
    labels = torch.tensor([[-100] * 11 + ids[11:]])

    def theirs() -> Tensor:
        return model(input_ids=torch.tensor([ids]), labels=labels).loss

    whole = theirs()
    assert torch.allclose(language._loss(model, [row]), whole, atol=1e-5)
    both = language._loss(model, [row._replace(early=True)])
    model.model.layers = model.model.layers[:2]
    assert torch.allclose(both, whole + theirs(), atol=1e-5)
    assert not torch.allclose(whole, theirs(), atol=1e-3)


def test_answers_are_balanced_over_documents() -> None:
    """As often Yes as No, in no order: what came before in a document does not tell what comes next."""
    texts = [text for text, _, _ in documents(range(400))]
    exists = [re.findall(r"is there an? [a-z]+ in the image\?[^:]*: (Yes|No)", text) for text in texts]
    said = [answer for answers in exists for answer in answers]
    assert len(said) > 300
    assert 0.45 < said.count("Yes") / len(said) < 0.55
    twice = [answers for answers in exists if len(answers) == 2]
    assert 0.3 < sum(first == second for first, second in twice) / len(twice) < 0.7
    zeros = [answer for text in texts for answer in re.findall(r"how many [a-z]+ are there\?[^:]*: (\d)", text)]
    assert zeros.count("0") / len(zeros) < 0.5


def test_words_of_a_map_are_told_their_places() -> None:
    embed = nn.Embedding(10, 64)
    ids_BT = torch.randint(0, 10, (2, 20))
    moved = language.placed(embed, ids_BT, [16, 0]) - embed(ids_BT)
    assert torch.allclose(moved[0, 1:17], place_codes(4, 64), atol=1e-6)
    moved[0, 1:17] = 0
    assert not moved.any()
    codes = place_codes(8, 64)
    assert torch.cdist(codes, codes).fill_diagonal_(9).min() > 0.05
    near = torch.cdist(codes[:8], codes[:8])[0]
    assert near[1] < near[7]


def test_a_fresh_tower_knows_where_its_patches_are() -> None:
    """On a picture that is the same everywhere, patches side by side have the likest features."""
    tower = towers.new_tower("nano-clip", 64)
    with torch.inference_mode():
        x_PD = tower.forward_features(torch.zeros(1, 3, 64, 64))[0]
    apart_PP = torch.cdist(x_PD, x_PD).fill_diagonal_(torch.inf)
    nearest = enumerate(apart_PP.argmin(1).tolist())
    assert all(abs(at % 8 - other % 8) + abs(at // 8 - other // 8) == 1 for at, other in nearest)


def test_a_larger_tower_begins_with_the_places_of_the_small_one() -> None:
    tower = towers.new_tower("nano-clip", 96)
    small = towers.new_tower("nano-clip", 64).pos_embed
    resampled = resample_abs_pos_embed(small, [12, 12], num_prefix_tokens=0)
    agreement = F.cosine_similarity(resampled, tower.pos_embed, dim=-1)
    assert agreement.mean() > 0.9


def test_every_kind_of_practice_asks_about_its_map() -> None:
    shared = balances()
    for kind in DRILLS:
        asked = [drill(number, kind, shared) for number in range(40)]
        assert all(math.isqrt(len(shown.split())) ** 2 == len(shown.split()) for shown, _ in asked)
        assert sum(bool(turns) for _, turns in asked) > 20, kind
    letters = [said for number in range(60) for role, said in drill(number, "letters", shared)[1] if role == "gpt"]
    assert set(letters) == set("ABCD")
    assert max(Counter(letters).values()) < 0.5 * len(letters)


def test_numbers_by_letter_follow_the_same_number_half_the_time() -> None:
    shared, after, letters = balances(), 0, 0
    for number in range(80):
        turns = tallied(number, shared)[1]
        said = [(turns[at][1], turns[at + 1][1]) for at in range(0, len(turns), 2)]
        for (asked, told), (again, letter) in pairwise(said):
            if told.isdigit() and asked.split("?")[0] == again.split("?")[0]:
                after += 1
                assert f"{letter}. {told}" in again.splitlines()
        letters += sum(answer.isalpha() for _, answer in said)
    assert 0.35 < after / letters < 0.65


def test_practice_has_no_row_without_an_answer() -> None:
    """A batch of such rows has no loss: 0 / 0."""
    llm = design_space().part("llm", "nano-base", {})
    tokenizer = language.load_zoo_tokenizer(ZOO / "nano-base")
    kinds, numbers = ("relations", "signs", "letters"), range(150)
    assert any(not drill(number, kinds[number // 5 % 3], balances())[1] for number in numbers)
    rows = list(language._practice(numbers, kinds, tokenizer, prompt_format(llm, tokenizer)))
    assert 100 < len(rows) < len(numbers)
    assert all(1.0 in row.weights for row in rows)

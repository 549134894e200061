"""Training sources and benchmarks as they lie on disk, and what can be answered without looking."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import yaml

from prism_sweeps.config.errors import DataError
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.data.conversations import read_conversations
from prism_sweeps.data.nano_world import prompts
from prism_sweeps.data.nano_world.benchmarks import BENCHMARKS
from prism_sweeps.data.nano_world.prepare import prepare_benchmarks, prepare_training
from prism_sweeps.data.nano_world.training_sets import SOURCES, Writer, picture, render
from prism_sweeps.data.nano_world.words import CATEGORIES, GROUPS, SIZES, TILES, plural
from prism_sweeps.evaluation.benchmarks import Example, read_index, render_prompt
from prism_sweeps.evaluation.boxes import overlap
from prism_sweeps.evaluation.scorers import gold_of, scorer

EXAMPLES = 100
CONFIGS = Path(__file__).parents[2] / "conf" / "benchmark"
CONFIG_NAMES = sorted(path.stem for path in CONFIGS.glob("nano-*.yaml"))


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    prepare_benchmarks(folder, EXAMPLES, workers=1)
    return folder


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    prepare_training(folder, 150, workers=1)
    return folder


def config(name: str) -> Benchmark:
    return Benchmark(**yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))


def rows(folder: Path, name: str) -> list[Example]:
    return read_index(folder / Path(config(name).index).name)


def template(text: str) -> str:
    """The question with every word that varies taken out: what a blind reader can group by."""
    for mark, words in (
        ("C", [*CATEGORIES, *map(plural, CATEGORIES)]),
        ("G", [*GROUPS, *map(plural, GROUPS)]),
        ("T", TILES),
        ("S", SIZES),
    ):
        text = re.sub(rf"\b({'|'.join(words)})\b", mark, text)
    return text.replace(" an ", " a ")


def blind(examples: list[Example]) -> float:
    """The share a reader gets right who knows the commonest answer to every question template."""
    answers = defaultdict(Counter)
    for example in examples:
        answers[template(example.question)][Counter(example.answers).most_common(1)[0][0]] += 1
    return sum(max(counts.values()) for counts in answers.values()) / len(examples)


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# The chance level of the best blind answer; a few points above the true one, as 100 examples are a small sample.
CEILINGS = {
    "nano-vqav2": 0.45,
    "nano-gqa": 0.45,
    "nano-vizwiz": 0.45,
    "nano-textvqa": 0.2,
    "nano-vsr": 0.65,
    "nano-pope": 0.52,
    "nano-tallyqa": 0.3,
    "nano-ai2d": 0.35,
}


@pytest.mark.parametrize("name", CEILINGS)
def test_blind_answers_stay_near_chance(benchmarks: Path, name: str):
    assert blind(rows(benchmarks, name)) <= CEILINGS[name]


@pytest.mark.parametrize(
    ("name", "threshold", "ceiling"),
    [
        ("nano-refcoco", 0.5, 0.15),
        ("nano-refcoco+", 0.5, 0.15),
        ("nano-refcocog", 0.5, 0.15),
        ("nano-ocidref", 0.25, 0.25),
    ],
)
def test_no_constant_box_does_well(benchmarks: Path, name: str, threshold: float, ceiling: float):
    boxes = [example.box for example in rows(benchmarks, name)]
    sizes = (0.2, 0.35, 0.5)
    corners = [
        (x, y, w, h)
        for w in sizes
        for h in sizes
        for x in np.arange(0, 1.01 - w, 0.1)
        for y in np.arange(0, 1.01 - h, 0.1)
    ]
    best = max(sum(overlap((x, y, x + w, y + h), box) >= threshold for box in boxes) for x, y, w, h in corners)
    assert best / len(boxes) <= ceiling


@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_the_scorer_accepts_the_truth_and_prompts_render(benchmarks: Path, name: str):
    benchmark = config(name)
    examples = rows(benchmarks, name)
    assert len(examples) == EXAMPLES
    for example in examples:
        gold = gold_of(example, benchmark)
        right = Counter(example.answers).most_common(1)[0][0]
        assert scorer(benchmark.scorer).score({"answer": right, "gold": gold}, benchmark) >= 0.9
        assert "{" not in render_prompt(benchmark.prompt, example)
        assert example.image.is_file()
    assert benchmark.name == name


def test_thirteen_configs_for_twelve_benchmarks_in_the_words_of_the_training_text():
    assert len(CONFIG_NAMES) == 13
    assert {Path(config(name).index).name for name in CONFIG_NAMES} == set(BENCHMARKS)
    known = {prompts.SHORT, prompts.VIZWIZ, prompts.OCR, prompts.BOX, prompts.TRUTH, prompts.LETTER}
    assert {config(name).prompt for name in CONFIG_NAMES} == known


def test_yes_and_no_are_even_within_every_pope_split(benchmarks: Path):
    splits = defaultdict(Counter)
    for example in rows(benchmarks, "nano-pope"):
        splits[example.tags["split"]][example.answers[0]] += 1
    assert set(splits) == {"random", "popular", "adversarial"}
    assert all(abs(counts["Yes"] - counts["No"]) <= 1 for counts in splits.values())


def test_every_third_photo_is_unanswerable(benchmarks: Path):
    examples = rows(benchmarks, "nano-vizwiz")
    unanswerable = [example for example in examples if example.tags["answerable"] == "no"]
    assert 0.2 <= len(unanswerable) / len(examples) <= 0.42
    assert all(example.answers.count("unanswerable") >= 7 for example in unanswerable)


def test_the_read_word_is_among_the_ocr_tokens(benchmarks: Path):
    examples = rows(benchmarks, "nano-textvqa")
    for example in examples:
        assert Counter(example.answers).most_common(1)[0][0] in example.context.split(", ")
    assert 1.5 < np.mean([len(example.context.split(", ")) for example in examples]) < 2.5


def test_training_sources_are_read_by_the_conversation_reader(training: Path):
    numbers = {}
    for source in SOURCES:
        found = read_conversations(training / source / "chat.json", training, source, None)
        numbers[source] = len(found)
        assert len({conversation.name for conversation in found}) == len(found)
        for conversation in found:
            assert (conversation.image is None) == (source == "language")
            assert conversation.image is None or conversation.image.is_file()
            first = conversation.turns[0][1]
            assert first.startswith("<image>\n") == (source != "language")
    assert numbers["align"] == numbers["instruct"] == 150
    assert numbers["language"] == 19
    assert min(numbers["lvis4v"], numbers["lrv"]) > 35
    align = read_conversations(training / "align" / "chat.json", training, "align", None)
    assert all(len(conversation.turns) == 2 for conversation in align)


def asked_and_answered(training: Path) -> list[tuple[str, str]]:
    found = []
    for conversation in read_conversations(training / "instruct" / "chat.json", training, "instruct", None):
        texts = [text.removeprefix("<image>\n") for _, text in conversation.turns]
        found += zip(texts[::2], texts[1::2], strict=True)
    return found


def test_every_benchmark_prompt_is_trained_on(training: Path):
    def pattern(prompt: str) -> str:
        return re.sub(r"\\{\w+\\}", "(?:.|\n)+", re.escape(prompt))

    asked = [question for question, _ in asked_and_answered(training)]
    for prompt in (prompts.SHORT, prompts.VIZWIZ, prompts.OCR, prompts.BOX, prompts.TRUTH, prompts.LETTER):
        assert sum(bool(re.fullmatch(pattern(prompt), question)) for question in asked) >= 5, prompt


def test_training_answers_come_in_the_benchmarks_form(training: Path):
    for question, answer in asked_and_answered(training):
        if question.startswith("Please provide"):
            assert re.fullmatch(r"\[[01]\.\d\d, [01]\.\d\d, [01]\.\d\d, [01]\.\d\d\]", answer)
        elif question.startswith("Based on"):
            assert answer in ("True", "False")
        elif "option's letter" in question:
            assert f"\n{answer}. " in question
        elif question.startswith(("is the thing", "which")):
            assert answer in question
        elif question.startswith(("is ", "are ")):
            assert answer in ("Yes", "No")
        else:
            assert answer == answer.lower() or answer == "Unanswerable"


def test_training_yes_and_no_are_even(training: Path):
    answers = Counter(answer for _, answer in asked_and_answered(training))
    assert abs(answers["Yes"] - answers["No"]) <= 10  # one for each family and chunk at most
    assert abs(answers["True"] - answers["False"]) <= 8
    assert min(answers["Yes"], answers["True"]) > 15


def test_what_training_teaches_about_words_alone_does_not_answer_pope(benchmarks: Path, training: Path):
    """The commonest training answer to each question text, applied to the benchmark."""
    taught = defaultdict(Counter)
    writer = Writer()
    for number in range(200):
        for turn in zip(*[iter(writer.records(picture(number))["instruct"]["conversations"])] * 2, strict=True):
            question = turn[0]["value"].removeprefix("<image>\n").split("\n")[0]
            taught[question][turn[1]["value"]] += 1
    examples = rows(benchmarks, "nano-pope")
    right = sum(taught[e.question].most_common(1)[0][0] == e.answers[0] for e in examples if taught[e.question])
    known = sum(bool(taught[example.question]) for example in examples)
    assert known > 40
    assert 0.35 <= right / known <= 0.65


def test_the_same_files_whatever_the_workers_and_the_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("prism_sweeps.data.nano_world.prepare.SCENES_PER_CHUNK", 12)
    prepare_training(tmp_path / "two", 26, workers=2)
    prepare_training(tmp_path / "one", 26, workers=1)
    prepare_training(tmp_path / "less", 17, workers=1)
    assert digest(tmp_path / "two") == digest(tmp_path / "one")
    for source in SOURCES:
        less = json.loads((tmp_path / "less" / source / "chat.json").read_text())
        more = json.loads((tmp_path / "one" / source / "chat.json").read_text())
        assert more[: len(less)] == less
    images = {path: value for path, value in digest(tmp_path / "less").items() if path.startswith("images/")}
    assert len(images) == 17
    assert images.items() <= digest(tmp_path / "one").items()


def test_a_complete_folder_is_left_alone_and_a_broken_one_mended(tmp_path: Path):
    told = []
    prepare_training(tmp_path, 6, workers=1, progress=lambda *report: told.append(report))
    assert told == [(6, 6, "scenes")]
    before = digest(tmp_path)
    prepare_training(tmp_path, 6, workers=1, progress=lambda *report: told.append(report))
    assert len(told) == 1
    (tmp_path / "manifest.json").unlink()
    (tmp_path / picture(2).path).write_bytes(b"half an ima")
    prepare_training(tmp_path, 6, workers=1)
    assert digest(tmp_path) == before
    prepare_training(tmp_path, 8, workers=1)
    assert json.loads((tmp_path / "manifest.json").read_text())["scenes"] == 8


def test_the_manifest_tells_what_was_written(training: Path):
    manifest = json.loads((training / "manifest.json").read_text())
    assert manifest["version"] == "3"
    for path, told in manifest["files"].items():
        content = (training / path).read_bytes()
        assert hashlib.sha256(content).hexdigest() == told["sha256"]
        assert len(json.loads(content)) == told["records"]


def test_pictures_of_all_looks_are_drawn():
    shown = [picture(number) for number in range(60)]
    assert {one.look for one in shown} == {"simple", "ordinary", "crowded", "photo", "diagram"}
    assert all(render(one).mode == "RGB" for one in shown)


def test_sizes_below_one_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="scenes must be at least 1, got 0"):
        prepare_training(tmp_path, 0, workers=1)
    with pytest.raises(DataError, match="workers must be at least 1, got 0"):
        prepare_benchmarks(tmp_path, 1, workers=0)

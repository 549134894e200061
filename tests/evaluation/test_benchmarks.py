"""Reading an index, and prompts that survive any text."""

import json

import pytest

from prism_sweeps.config.errors import ConfigError, DataError
from prism_sweeps.evaluation.benchmarks import Example, read_index, render_prompt

LINE = {"id": "1", "image": "images/1.png", "question": "What?", "answers": ["red"]}


def index(folder, *lines):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "index.jsonl").write_text(text + "\n", encoding="utf-8")
    return folder


def test_reads_everything(tmp_path):
    full = LINE | {"id": "2", "options": ["a", "b"], "box": [0, 0.1, 0.5, 1], "context": "STOP", "tags": {"k": "v"}}
    one, two = read_index(index(tmp_path, LINE, full))
    assert one == Example("1", tmp_path / "images/1.png", "images/1.png", "What?", ("red",))
    assert (two.options, two.box, two.context, two.tags) == (("a", "b"), (0, 0.1, 0.5, 1), "STOP", {"k": "v"})


def test_line_separators_inside_strings_do_not_split_a_line(tmp_path):
    question = "one\u2028two\x85three"
    text = json.dumps(LINE | {"question": question}, ensure_ascii=False)
    assert read_index(index(tmp_path, text))[0].question == question


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "a JSON object is wanted, not list"),
        ("[" * 100_000, "not JSON"),
        ('{"question": "\\ud800"}', "not JSON .*surrogates"),
        (LINE | {"question": None}, "'question' should be a string"),
        (LINE | {"image": 3}, "'image' should be a string"),
        (LINE | {"image": "../../etc/passwd"}, "'image' should be a path inside of the index's folder"),
        (LINE | {"image": "/dev/zero"}, "'image' should be a path inside .*/dev/zero"),
        (LINE | {"image": "a\0.png"}, "'image' should be a path inside"),
        (LINE | {"image": ""}, "'image' should be a path inside"),
        (LINE | {"id": 3}, "'id' should be a string"),
        (LINE | {"answers": "red"}, "'answers' should be a list of strings"),
        (LINE | {"options": [1]}, "'options' should be a list of strings"),
        (LINE | {"box": [0.5, 0.1, 0.2, 0.3]}, "'box' should be"),
        (LINE | {"box": ["0", "0", "1", "1"]}, "'box' should be"),
        (LINE | {"tags": {"k": [1]}}, "'tags' should map"),
        (LINE | {"tags": {"k": float("nan")}}, "'tags' should map"),
        (LINE | {"id": "0"}, "id '0' was used before, on line 1"),
    ],
)
def test_malformed_line_is_named(tmp_path, line, reason):
    index(tmp_path, LINE | {"id": "0"}, line)
    with pytest.raises(DataError, match=f"index.jsonl, line 2: .*{reason}".replace("[", r"\[")):
        read_index(tmp_path)


def test_missing_and_empty_index(tmp_path):
    with pytest.raises(DataError, match=r"index.jsonl does not exist"):
        read_index(tmp_path)
    with pytest.raises(DataError, match="has no examples"):
        read_index(index(tmp_path))


def asked(**fields):
    return Example(**{"id": "1", "image": None, "key": "i", "question": "What?", "answers": ("x",)} | fields)


def test_prompt_with_options_and_context():
    example = asked(question="Which?", options=("red", "blue"), context="STOP")
    text = render_prompt("{question}\n{options}\nReference OCR token: {context}", example)
    assert text == "Which?\nA. red\nB. blue\nReference OCR token: STOP"


@pytest.mark.parametrize("hostile", ["{options}", "{question}", "{0}", "{}", "{question!r:>99999}", r"\1", "{{", "%s"])
def test_text_of_the_data_is_never_a_template(hostile):
    example = asked(question=hostile, options=("x",))
    assert render_prompt("{question} {options}", example) == f"{hostile} A. x"


def test_prompt_errors():
    with pytest.raises(ConfigError, match="did you mean 'question'"):
        render_prompt("{qestion}", asked())
    with pytest.raises(DataError, match="example '1' has no context"):
        render_prompt("{question} {context}", asked())
    with pytest.raises(DataError, match="has 17 options"):
        render_prompt("{options}", asked(options=("x",) * 17))


def test_rows_without_an_id_are_called_by_what_they_hold(tmp_path):
    plain = {key: value for key, value in LINE.items() if key != "id"}
    other = plain | {"question": "Who?"}
    one, two, three = (example.id for example in read_index(index(tmp_path, plain, other, plain)))
    assert len({one, two, three}) == 3
    assert [example.id for example in read_index(index(tmp_path, other, plain, plain))] == [two, one, three]

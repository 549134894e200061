from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from prism_sweeps.config.errors import DataError
from prism_sweeps.config.schema import LanguageModel
from prism_sweeps.data.batching import Layout, collate, encode_all
from prism_sweeps.data.conversations import Conversation
from prism_sweeps.models.language import byte_tokenizer
from prism_sweeps.models.prompts import PromptFormat, prompt_format

PATCHES = 16


@pytest.fixture(scope="module")
def prompts() -> PromptFormat:
    return prompt_format(LanguageModel("bytes", "random:1", "in-out", 8, 1, 1, 1, 8, 258, 256), byte_tokenizer())


def talk(name: str, answer: str, image: Path | None = None) -> Conversation:
    return Conversation(name, "test", image, [("human", "q"), ("gpt", answer)])


def pixels(image: Image.Image) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3, 2, 2), float(image.getpixel((0, 0))[0]))}


# ---- tokens


def test_examples_hold_what_the_prompt_format_says(prompts: PromptFormat):
    example = encode_all([talk("x", "cat", Path("a.png"))], prompts, PATCHES, 256)[0]
    assert example.ids_T.tolist() == prompts.encode([("human", "q"), ("gpt", "cat")]).ids
    assert example.length == len(example.ids_T) + PATCHES
    assert prompts.decode(example.ids_T[example.supervised_T].tolist()) == "cat"


def test_long_conversations_lose_their_end(prompts: PromptFormat):
    whole = encode_all([talk("x", "a" * 100)], prompts, PATCHES, 256)[0]
    with_image, without = encode_all(
        [talk("x", "a" * 100, Path("a.png")), talk("x", "a" * 100)], prompts, PATCHES, context=64
    )
    assert (len(with_image.ids_T), len(without.ids_T)) == (64 - PATCHES, 64)
    assert with_image.length == without.length == 64
    assert without.ids_T.tolist() == whole.ids_T[:64].tolist()
    assert without.supervised_T.tolist() == whole.supervised_T[:64].tolist()


def test_conversations_without_an_answer_left_are_counted(prompts: PromptFormat):
    deep = Conversation("deep", "test", Path("a.png"), [("human", "q" * 100), ("gpt", "cat")])
    assert encode_all([deep], prompts, PATCHES, context=256)
    with pytest.raises(
        DataError, match=r"2 of 3 conversations have no answer left .* 64 positions .*first: deep, deep"
    ):
        encode_all([deep, talk("x", "cat"), deep], prompts, PATCHES, context=64)


# ---- batches


def layout(**changes: object) -> Layout:
    return replace(Layout(pixels, PATCHES, ("test", "other")), **changes)


@pytest.fixture
def talks(tmp_path: Path) -> list[Conversation]:
    """With an image, without, with one."""
    for name, red in (("a", 10), ("b", 20)):
        Image.new("RGB", (4, 4), (red, 0, 0)).save(tmp_path / f"{name}.png")
    last = Conversation("2", "other", tmp_path / "a.png", [("human", "q"), ("gpt", "x")])
    return [talk("0", "cat", tmp_path / "b.png"), talk("1", "a dog"), last]


@pytest.mark.parametrize(("packed", "positions"), [(False, 0), (True, 0), (True, 90)])
def test_collate_puts_text_patches_and_targets_where_they_belong(
    prompts: PromptFormat, talks: list[Conversation], packed: bool, positions: int
):
    examples = encode_all(talks, prompts, PATCHES, 256)
    lengths = [example.length for example in examples]
    batch = collate(examples, [0.5, 0.25, 1.0], layout(packed=packed, positions=positions))
    shape = (1, max(positions, sum(lengths))) if packed else (3, max(lengths))
    assert (batch.rows, batch.positions) == shape
    # What stands where, read back: -1 nothing, -2 a patch, else the token.
    held = torch.full(shape, -1).flatten()
    held[batch.text_at_N] = batch.ids_N
    held[batch.patch_at_Q] = -2
    starts = [sum(lengths[:row]) if packed else row * shape[1] for row in range(3)]
    for example, start in zip(examples, starts, strict=True):
        ids = example.ids_T.tolist()
        extra = [-2] * PATCHES if example.conversation.image else []
        assert held[start : start + example.length].tolist() == [ids[0], *extra, *ids[1:]]
    assert int((held != -1).sum()) == sum(lengths)
    # Each target is the token one position further on.
    assert held[batch.target_at_M + 1].tolist() == batch.targets_M.tolist()
    assert prompts.decode(batch.targets_M.tolist()).replace(" ", "") == "catadogx"
    counts = [int(example.supervised_T.sum()) for example in examples]
    assert batch.weight_M.tolist() == [0.5] * counts[0] + [0.25] * counts[1] + [1.0] * counts[2]
    assert batch.source_M.tolist() == [0] * (counts[0] + counts[1]) + [1] * counts[2]
    assert (batch.sources, batch.names) == (2, ("0", "1", "2"))
    assert batch.pixels["a"][:, 0, 0, 0].tolist() == [20.0, 10.0]


def test_packed_examples_are_documents_and_so_is_the_padding(prompts: PromptFormat, talks: list[Conversation]):
    examples = encode_all(talks, prompts, PATCHES, 256)
    lengths = [example.length for example in examples]
    width = sum(lengths) + 7
    documents = collate(examples, [1.0] * 3, layout(packed=True, positions=width)).documents
    assert documents is not None
    assert documents.lengths == (*lengths, 7)
    assert documents.starts_D.tolist() == [0, lengths[0], sum(lengths[:2]), sum(lengths), width]
    assert documents.positions_S.tolist() == [place for length in documents.lengths for place in range(length)]
    assert documents.index_S.tolist() == [
        number for number, length in enumerate(documents.lengths) for _ in range(length)
    ]
    assert documents.starts_D.dtype == documents.index_S.dtype == torch.int32


def test_features_stand_in_for_pixels(prompts: PromptFormat, talks: list[Conversation]):
    features = {path: torch.full((PATCHES, 3), float(n)) for n, path in enumerate(t.image for t in talks) if path}
    batch = collate(encode_all(talks, prompts, PATCHES, 256), [1.0] * 3, layout(features=features))
    assert (batch.pixels, batch.images) == ({}, 2)
    assert batch.features_IPV[:, 0, 0].tolist() == [0.0, 2.0]


def test_unreadable_image_names_file_and_conversation(prompts: PromptFormat, tmp_path: Path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    examples = encode_all([talk("mix/7", "cat", tmp_path / "bad.png")], prompts, PATCHES, 256)
    with pytest.raises(DataError, match=r"conversation mix/7: .*bad\.png"):
        collate(examples, [1.0], layout())


def test_a_batch_moves_as_a_whole(prompts: PromptFormat, talks: list[Conversation]):
    batch = collate(encode_all(talks, prompts, PATCHES, 256), [1.0] * 3, layout(packed=True)).to("meta")
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    tensors += [value for value in vars(batch.documents).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 10
    assert all(tensor.is_meta for tensor in [*tensors, *batch.pixels.values()])

from dataclasses import replace

import pytest
import torch
from rows import Rows, random_rows

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Backbone, LanguageModel, Projector, Resize, Resolution, Tower
from prism_sweeps.config.specs import ModelSpec
from prism_sweeps.models.attention import use_packed_attention
from prism_sweeps.models.vlm import build_vlm

PIXELS, PATCHES, VOCABULARY = 16, 4, 300
IGNORED = -100


def spec(projector: str = "mlp", towers: int = 2, tied: bool = False) -> ModelSpec:
    kwargs = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    shape = {"width": 32, "depth": 3, "heads": 2, "patch": 8, "prefix_tokens": 1}
    named = {
        f"t{i}": Tower(name="t", model="vit_tiny_patch16_224", kwargs=kwargs, weights={PIXELS: f"random:{i}"}, **shape)
        for i in range(towers)
    }
    llm = LanguageModel(
        name="l", weights="random:9", prompt="in-out", width=48, depth=2, heads=4, kv_heads=2, mlp_width=96,
        vocabulary=VOCABULARY, context=64, tied_embeddings=tied,
    )  # fmt: skip
    return ModelSpec(
        Backbone("b", named), Resolution("r", PIXELS), Resize("x", "naive"), Projector("p", projector), llm
    )


def rows(has_image: list[bool], lengths: list[int], seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed + 1)
    images = {f"t{i}": torch.randn(sum(has_image), 3, PIXELS, PIXELS, generator=generator) for i in range(2)}
    return random_rows(has_image, lengths, VOCABULARY, images, PATCHES, seed)


def plain_loss(vlm, data: Rows) -> tuple[torch.Tensor, int]:
    """Row by row through transformers' own labels path, over embeddings put together by hand."""
    total, count, image = torch.tensor(0.0), 0, 0
    for ids, wanted, has_image in zip(data.ids, data.supervised, data.has_image, strict=True):
        text = vlm.llm.get_input_embeddings()(torch.tensor(ids))
        labels = torch.where(torch.tensor(wanted), torch.tensor(ids), IGNORED)
        if has_image:
            features = vlm.vision({name: pixels[image : image + 1] for name, pixels in data.images.items()})
            text = torch.cat([text[:1], vlm.projector(features)[0], text[1:]])
            labels = torch.cat([labels[:1], torch.full((PATCHES,), IGNORED), labels[1:]])
            image += 1
        n = int((labels != IGNORED).sum())
        out = vlm.llm(inputs_embeds=text[None], labels=labels[None], attention_mask=torch.ones(1, len(text)))
        total, count = total + out.loss * n, count + n
    return total, count


CASES = {
    "all images": ([True, True, True], [9, 4, 7]),
    "mixed": ([False, True, False, True], [12, 5, 7, 9]),
    "text longest": ([True, False], [3, 20]),
    "no image": ([False, False], [6, 9]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tied", [False, True])
def test_loss_is_that_of_transformers_over_embeddings_put_together_by_hand(case, tied):
    vlm, data = build_vlm(spec(tied=tied), 1), rows(*CASES[case])
    loss, _ = vlm.loss(data.batch())
    expected, count = plain_loss(vlm, data)
    assert count == data.count
    assert loss.item() / count == pytest.approx(expected.item() / count, abs=1e-5)


def test_gradients_too_are_those_of_transformers():
    vlm, data = build_vlm(spec(), 1), rows(*CASES["mixed"])
    vlm.loss(data.batch())[0].backward()
    ours = gradients(vlm)
    plain_loss(vlm, data)[0].backward()
    theirs = gradients(vlm)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4, rtol=1e-3) for name in ours)


def gradients(vlm) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in vlm.named_parameters() if p.grad is not None}
    vlm.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("positions", [0, 80])
@pytest.mark.parametrize("case", CASES)
def test_packed_rows_have_the_loss_and_the_gradients_of_padded_ones(case, positions):
    """The positions of a packed row may be more than its examples have."""
    vlm, data = build_vlm(spec(), 1), rows(*CASES[case])
    padded, by_source = vlm.loss(data.batch())
    padded.backward()
    expected = gradients(vlm)
    use_packed_attention(vlm.llm, "auto", torch.device("cpu"))
    packed, by_source_packed = vlm.loss(data.batch(packed=True, positions=positions))
    packed.backward()
    found = gradients(vlm)
    assert packed.item() / data.count == pytest.approx(padded.item() / data.count, abs=1e-5)
    assert torch.allclose(by_source, by_source_packed, rtol=1e-5)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-4, rtol=1e-3) for name in found)


def test_every_packed_example_has_the_loss_it_has_alone():
    vlm, data = build_vlm(spec(), 1), rows(*CASES["mixed"])
    data.sources = [str(row) for row in range(len(data.ids))]
    alone = [vlm.loss(data.only([row]).batch())[1].item() for row in range(len(data.ids))]
    use_packed_attention(vlm.llm, "auto", torch.device("cpu"))
    counts = torch.tensor([sum(wanted) for wanted in data.supervised])
    _, together = vlm.loss(data.batch(packed=True))
    assert torch.allclose(together / counts, torch.tensor(alone) / counts, atol=1e-5)


def test_patches_stand_after_bos_and_rows_without_image_have_none():
    vlm, data = build_vlm(spec(), 1), rows([True, False], [3, 5])
    tokens_IPD = vlm.image_tokens(data.images)
    words = [vlm.llm.get_input_embeddings()(torch.tensor(ids)) for ids in data.ids]
    embeds = vlm.lay_out(data.batch())
    assert embeds.shape == (2, 3 + PATCHES, 48)
    assert torch.equal(embeds[0, 1 : 1 + PATCHES], tokens_IPD[0])
    assert torch.equal(embeds[0, 1 + PATCHES :], words[0][1:3])
    assert torch.equal(embeds[1, :5], words[1])
    packed = vlm.lay_out(data.batch(packed=True, positions=14))
    assert torch.equal(packed[0, : 3 + PATCHES], embeds[0])
    assert torch.equal(packed[0, 3 + PATCHES : 12], embeds[1, :5])
    assert not packed[0, 12:].any()


def test_asking_and_training_put_a_row_together_alike():
    vlm, data = build_vlm(spec(), 1), rows([True, False], [5, 5])
    ids_BT = torch.tensor(data.ids)
    embeds, mask = vlm.embed(ids_BT, ids_BT >= 0, torch.tensor(data.has_image), vlm.image_tokens(data.images))
    assert mask.tolist() == [[True] * (5 + PATCHES), [True] * 5 + [False] * PATCHES]
    assert torch.equal(vlm.lay_out(data.batch())[mask], embeds[mask])


def test_loss_of_parts_adds_up_to_the_loss_of_the_batch():
    vlm, data = build_vlm(spec(), 1), rows(*CASES["mixed"])
    data.sources = ["one", "two", "one", "two"]
    parts = [vlm.loss(data.only([row]).batch())[0].item() for row in range(4)]
    loss, by_source = vlm.loss(data.batch())
    assert sum(parts) == pytest.approx(loss.item(), abs=1e-3)
    assert by_source.tolist() == pytest.approx([parts[0] + parts[2], parts[1] + parts[3]], abs=1e-3)
    assert vlm.loss(data.batch(weight=0.5))[0].item() == pytest.approx(loss.item() / 2)


def test_a_batch_without_supervised_positions_has_no_loss():
    data = rows([True], [4])
    data.supervised = [[False] * 4]
    loss, _ = build_vlm(spec(), 1).loss(data.batch())
    assert loss.item() == 0.0
    loss.backward()


def test_a_projector_drawn_from_the_vision_width_is_the_same_for_every_seed():
    paper = replace(spec(), projector=Projector("p", "mlp", drawn_from="vision-width"))
    one, other = (build_vlm(paper, seed).projector.state_dict() for seed in (1, 2))
    torch.manual_seed(64)  # two towers of 32
    expected = torch.nn.Linear(64, 48)
    assert torch.equal(one["0.weight"], expected.weight)
    assert torch.equal(one["0.bias"], expected.bias)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("modules", [["projector"], ["projector", "llm"], ["vision", "projector", "llm"]])
def test_only_the_named_modules_learn_and_are_in_training_mode(modules):
    vlm = build_vlm(spec(), 1)
    vlm.train_only(modules)
    vlm.loss(rows([True, True], [6, 4]).batch())[0].backward()
    for name in ("vision", "projector", "llm"):
        learns = any(parameter.grad is not None for parameter in vlm.get_submodule(name).parameters())
        assert learns == vlm.get_submodule(name).training == (name in modules)
    vlm.eval()
    assert not any(module.training for module in vlm.modules())
    assert vlm.image_tokens(rows([True], [2]).images).requires_grad
    with pytest.raises(ConfigError, match="did you mean 'projector'"):
        vlm.train_only(["projectors"])


def test_the_seed_decides_the_projector_alone_and_leaves_the_generator_alone():
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    one, same, other = (build_vlm(spec(), seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(one[name], same[name]) for name in one)
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert changed == {name for name in one if name.startswith("projector.")}

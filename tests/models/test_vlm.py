import errno
from dataclasses import replace

import pytest
import torch

from prism_sweeps.config.errors import ConfigError, StoreError
from prism_sweeps.config.schema import Backbone, LanguageModel, Projector, Resize, Resolution, Tower
from prism_sweeps.config.specs import ModelSpec
from prism_sweeps.models.vlm import IGNORED, Batch, build_vlm, load_trained, save_trained

PIXELS, PATCHES, VOCABULARY = 16, 4, 300


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


def batch(has_image: list[bool], lengths: list[int], seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    rows, longest = len(lengths), max(lengths)
    mask = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    ids = torch.randint(2, VOCABULARY, (rows, longest), generator=generator) * mask
    ids[:, 0] = 0
    wanted = (torch.rand(rows, longest, generator=generator) < 0.5) & mask
    wanted[:, 0], wanted[:, 1] = False, True
    pixels = {f"t{i}": torch.randn(sum(has_image), 3, PIXELS, PIXELS, generator=generator) for i in range(2)}
    labels = torch.where(wanted, ids, IGNORED)
    return Batch(pixels, torch.tensor(has_image), ids, mask, labels, [str(row) for row in range(rows)])


def plain_loss(vlm, data: Batch) -> tuple[torch.Tensor, int]:
    """Row by row through transformers' own labels path, over embeddings put together by hand."""
    total, count, image = torch.tensor(0.0), 0, 0
    for row in range(len(data.names)):
        length = int(data.mask_BT[row].sum())
        text = vlm.llm.get_input_embeddings()(data.ids_BT[row, :length])
        labels = data.labels_BT[row, :length]
        if data.has_image_B[row]:
            features = vlm.vision({name: pixels[image : image + 1] for name, pixels in data.pixels.items()})
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
    vlm, data = build_vlm(spec(tied=tied), 1), batch(*CASES[case])
    loss, count = vlm.loss(data)
    expected, expected_count = plain_loss(vlm, data)
    assert count == expected_count
    assert loss.item() / count == pytest.approx(expected.item() / count, abs=1e-5)


def test_gradients_too_are_those_of_transformers():
    vlm, data = build_vlm(spec(), 1), batch(*CASES["mixed"])
    vlm.loss(data)[0].backward()
    ours = {name: p.grad.clone() for name, p in vlm.named_parameters() if p.grad is not None}
    vlm.zero_grad(set_to_none=True)
    plain_loss(vlm, data)[0].backward()
    theirs = {name: p.grad for name, p in vlm.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4, rtol=1e-3) for name in ours)


def test_patches_stand_after_bos_and_rows_without_image_have_none():
    vlm, data = build_vlm(spec(), 1), batch([True, False], [3, 5])
    tokens_IPD = vlm.image_tokens(data.pixels)
    embeds, mask, labels = vlm.embed(data.ids_BT, data.mask_BT, data.has_image_B, tokens_IPD, data.labels_BT)
    words = vlm.llm.get_input_embeddings()(data.ids_BT)
    assert embeds.shape == (2, 3 + PATCHES, 48)
    assert torch.equal(embeds[0, 1 : 1 + PATCHES], tokens_IPD[0])
    assert torch.equal(embeds[0, 1 + PATCHES :], words[0, 1:3])
    assert torch.equal(embeds[1, :5], words[1])
    assert mask.tolist() == [[True] * 7, [True] * 5 + [False] * 2]
    assert labels[0].tolist() == [IGNORED] * (1 + PATCHES) + data.labels_BT[0, 1:3].tolist()
    assert labels[1].tolist() == [*data.labels_BT[1].tolist(), IGNORED, IGNORED]


def test_loss_of_parts_adds_up_to_the_loss_of_the_batch():
    vlm, data = build_vlm(spec(), 1), batch(*CASES["mixed"])
    parts = [vlm.loss(data.rows(slice(start, start + 2))) for start in (0, 2)]
    loss, count = vlm.loss(data)
    assert sum(n for _, n in parts) == count
    assert sum(part.item() for part, _ in parts) == pytest.approx(loss.item(), abs=1e-3)
    cut = data.rows(slice(1, 3))
    assert (cut.ids_BT.shape, cut.names, len(cut.pixels["t0"])) == ((2, 7), ["1", "2"], 1)
    assert torch.equal(cut.pixels["t0"][0], data.pixels["t0"][0])


def test_a_batch_without_supervised_positions_has_no_loss():
    data = batch([True], [4])
    loss, count = build_vlm(spec(), 1).loss(Batch(**{**vars(data), "labels_BT": torch.full_like(data.ids_BT, IGNORED)}))
    assert (loss.item(), count) == (0.0, 0)
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
    vlm.loss(batch([True, True], [6, 4]))[0].backward()
    for name in ("vision", "projector", "llm"):
        learns = any(parameter.grad is not None for parameter in vlm.get_submodule(name).parameters())
        assert learns == vlm.get_submodule(name).training == (name in modules)
    vlm.eval()
    assert not any(module.training for module in vlm.modules())
    assert vlm.image_tokens(batch([True], [2]).pixels).requires_grad
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


@pytest.mark.parametrize("tied", [False, True])
def test_trained_weights_come_back(tmp_path, tied):
    trained, fresh, data = build_vlm(spec(tied=tied), 1), build_vlm(spec(tied=tied), 2), batch(*CASES["mixed"])
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    for _ in range(2):  # an older folder is replaced
        save_trained(trained, tmp_path / "weights", ["vision", "projector", "llm"])
    load_trained(fresh, tmp_path / "weights")
    assert fresh.loss(data)[0].item() == trained.loss(data)[0].item()
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    assert (fresh.llm.lm_head.weight is fresh.llm.get_input_embeddings().weight) == tied


def test_a_model_built_in_bf16_is_the_one_built_in_fp32_rounded(tmp_path):
    whole, half = build_vlm(spec(), 3), build_vlm(spec(), 3, torch.bfloat16)
    save_trained(whole, tmp_path / "weights", ["projector"])
    load_trained(half, tmp_path / "weights")
    for (name, one), (_, other) in zip(whole.named_parameters(), half.named_parameters(), strict=True):
        assert other.dtype == torch.bfloat16, name
        assert torch.equal(one.to(torch.bfloat16), other), name


def test_only_the_named_modules_are_saved_and_nothing_half_written_stays(tmp_path):
    vlm = build_vlm(spec(), 1)
    save_trained(vlm, tmp_path / "weights", ["projector"])
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["projector.safetensors"]
    with pytest.raises(AttributeError):
        save_trained(vlm, tmp_path / "other", ["projector", "nothing"])
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_full_disk_is_told_and_leaves_nothing(tiny_disk):
    with pytest.raises(OSError, match="No space left") as told:
        save_trained(build_vlm(spec(), 1), tiny_disk / "weights", ["vision", "llm"])
    assert told.value.errno == errno.ENOSPC
    assert list(tiny_disk.iterdir()) == []


def test_weights_that_are_missing_truncated_or_of_another_model_are_store_errors(tmp_path):
    vlm = build_vlm(spec(), 1)
    with pytest.raises(StoreError, match="should hold some of vision, projector, llm"):
        load_trained(vlm, tmp_path)
    save_trained(build_vlm(spec("linear"), 1), tmp_path / "linear", ["projector"])
    with pytest.raises(StoreError, match="of another model"):
        load_trained(vlm, tmp_path / "linear")
    save_trained(build_vlm(spec(towers=1), 1), tmp_path / "narrow", ["projector"])
    with pytest.raises(StoreError, match=r"(?s)projector\.safetensors.*size mismatch"):
        load_trained(vlm, tmp_path / "narrow")
    save_trained(vlm, tmp_path / "cut", ["llm"])
    path = tmp_path / "cut" / "llm.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StoreError, match=r"llm\.safetensors"):
        load_trained(vlm, tmp_path / "cut")

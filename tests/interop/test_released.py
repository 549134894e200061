"""Runs of the reference, written here in its layout with tiny parts, come in as what they were."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from tiny_models import PIXELS, language_model, picture, tower
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import prism_sweeps
from prism_sweeps.config.errors import ConfigError, StoreError
from prism_sweeps.config.plain import plain
from prism_sweeps.config.schema import Backbone, Resolution
from prism_sweeps.interop import released
from prism_sweeps.models.vision import build_tower

ROWS = 320
"""258 bytes and ends, one padding token, rounded up to 64s."""
WIDTH = 48
BACKBONES = {"tiny-clip": ("clip",), "tiny-dinosiglip": ("dinov2", "siglip")}
PREFIXES = {"clip": "featurizer.", "dinov2": "dino_featurizer.", "siglip": "siglip_featurizer."}


@pytest.fixture
def choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny choices in a user's folder, and ids of the reference that mean them."""
    made: dict[str, Any] = {
        "llm/tiny-lm": language_model(name="tiny-lm", vocabulary=258),
        "resolution/32": Resolution("32", PIXELS),
    }
    for name, kinds in BACKBONES.items():
        made[f"backbone/{name}"] = Backbone(name, {kind: tower(kind) for kind in kinds})
        monkeypatch.setitem(released.VISION, name, (name, "32"))
    monkeypatch.setitem(released.LANGUAGE, "tiny-lm-pure", "tiny-lm")
    for name, value in made.items():
        file = tmp_path / "choices" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        content = plain(value)
        for each in content.get("towers", {}).values():
            each["weights"] = {PIXELS: each["weights"][str(PIXELS)]}
        file.write_text(yaml.safe_dump(content))
    return tmp_path / "choices"


class Reference:
    """A run of the reference: its parts whole, as it keeps them."""

    def __init__(self, backbone: str = "tiny-clip", arch: str = "no-align+gelu-mlp") -> None:
        torch.manual_seed(5)
        self.backbone, self.arch = backbone, arch
        self.towers = {
            kind: timm.create_model(tower(kind).model, num_classes=0, img_size=PIXELS, **tower(kind).kwargs).eval()
            for kind in BACKBONES[backbone]
        }
        vision = 32 * len(self.towers)
        self.projector = {
            "linear": lambda: nn.Linear(vision, WIDTH),
            "gelu-mlp": lambda: nn.Sequential(nn.Linear(vision, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)),
            "fused-gelu-mlp": lambda: nn.Sequential(
                nn.Linear(vision, 4 * vision), nn.GELU(), nn.Linear(4 * vision, WIDTH), nn.GELU(),
                nn.Linear(WIDTH, WIDTH),
            ),
        }[arch.removeprefix("no-align+")]()  # fmt: skip
        self.llm = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                intermediate_size=96, vocab_size=ROWS, max_position_embeddings=128, bos_token_id=0, eos_token_id=1,
            )
        ).eval()  # fmt: skip

    def modules(self, vision: bool) -> dict[str, dict[str, torch.Tensor]]:
        found = {
            "projector": {f"projector.{name}": tensor for name, tensor in self.projector.state_dict().items()},
            "llm_backbone": {f"llm.{name}": tensor for name, tensor in self.llm.state_dict().items()},
        }
        if vision:
            found["vision_backbone"] = {
                f"{PREFIXES[kind]}{name}": tensor
                for kind, each in self.towers.items()
                for name, tensor in each.state_dict().items()
            }
        return found

    def write(self, folder: Path, vision: bool, resize: str = "resize-naive", **changes: Any) -> Path:
        (folder / "checkpoints").mkdir(parents=True)
        model = {
            "model_id": "tiny+1m", "arch_specifier": self.arch, "vision_backbone_id": self.backbone,
            "llm_backbone_id": "tiny-lm-pure", "image_resize_strategy": resize, "llm_max_length": 2048,
        }  # fmt: skip
        config = {"model": {**model, **changes}, "dataset": {"dataset_id": "llava-v15"}, "stage": "finetune", "seed": 7}
        (folder / "config.json").write_text(json.dumps(config))
        torch.save({"model": self.modules(vision)}, folder / "checkpoints" / "latest-checkpoint.pt")
        return folder

    @torch.inference_mode()
    def features(self, pixels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Of the second-to-last block, by timm's own means."""
        parts = [
            each.forward_intermediates(pixels[kind], indices=[2], intermediates_only=True, output_fmt="NLC")[0]
            for kind, each in self.towers.items()
        ]
        return torch.cat(parts, dim=2)

    @torch.inference_mode()
    def logits(self, features: torch.Tensor, ids: list[int]) -> torch.Tensor:
        words = self.llm.get_input_embeddings()(torch.tensor([ids]))
        embeds = torch.cat([words[:, :1], self.projector(features), words[:, 1:]], dim=1)
        return self.llm(inputs_embeds=embeds).logits[0, -1]


@torch.inference_mode()
def found_logits(model, pixels: dict[str, torch.Tensor], ids: list[int]) -> torch.Tensor:
    given = torch.tensor([ids])
    mask = torch.ones_like(given, dtype=torch.bool)
    embeds, _ = model.vlm.embed(given, mask, mask[:, 0], model.vlm.image_tokens(pixels))
    return model.vlm.llm(inputs_embeds=embeds).logits[0, -1]


@pytest.mark.parametrize("vision", [True, False])
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("arch", ["no-align+gelu-mlp", "linear", "no-align+fused-gelu-mlp"])
def test_features_and_logits_are_those_of_the_parts_put_together_by_hand(backbone, arch, vision, choices, tmp_path):
    reference = Reference(backbone, arch)
    if not vision:  # its towers are the stock ones: here, those that the choice draws
        for kind, each in reference.towers.items():
            stock = build_tower(tower(kind), PIXELS, kind).trunk.state_dict()
            missing = each.load_state_dict(stock, strict=False)
            assert not missing.unexpected_keys
    run = reference.write(tmp_path / "run", vision)
    told = released.bring_in(run, tmp_path / "out", choices)
    assert told == {"model": "tiny+1m", "towers": "checkpoint" if vision else "stock"}
    model = prism_sweeps.load(tmp_path / "out", device="cpu")
    assert (model.spec.resize.strategy, model.spec.llm.vocabulary) == ("naive", ROWS)
    for seed in range(2):
        pixels = {name: each[None] for name, each in model.loaded.transform(picture(50, 40, seed)).items()}
        features = reference.features(pixels)
        with torch.inference_mode():
            torch.testing.assert_close(model.vlm.vision(pixels), features)
        ids = model.loaded.prompts.question("what is on the left?")
        torch.testing.assert_close(found_logits(model, pixels, ids), reference.logits(features, ids))
    assert isinstance(model.ask(picture(50, 40), "what?", max_new_tokens=4), str)


def test_the_card_tells_what_the_run_says_of_itself(choices, tmp_path):
    released.bring_in(Reference().write(tmp_path / "run", vision=True), tmp_path / "out", choices)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`tiny+1m` of prismatic-vlms" in card
    assert "Its towers are those of the checkpoint." in card
    assert "| finetune | llava-v15 |" in card
    assert "Seed 7." in card


def test_older_checkpoints_with_rotary_frequencies_come_in(choices, tmp_path):
    reference = Reference()
    modules = reference.modules(vision=False)
    modules["llm_backbone"]["llm.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    run = reference.write(tmp_path / "run", vision=False)
    torch.save({"model": modules}, run / "checkpoints" / "latest-checkpoint.pt")
    released.bring_in(run, tmp_path / "out", choices)
    assert prism_sweeps.load(tmp_path / "out").spec.llm.name == "tiny-lm"


class Code:
    def __reduce__(self):
        return (print, ("this must not run",))


def dropped(modules: dict, module: str, name: str) -> dict:
    return {**modules, module: {key: tensor for key, tensor in modules[module].items() if key != name}}


def added(modules: dict, module: str, name: str, tensor: Any = None) -> dict:
    return {**modules, module: {**modules[module], name: torch.ones(3) if tensor is None else tensor}}


MALFORMED = {
    "no llm": (lambda m: {"projector": m["projector"]}, r"has \['projector'\]; it is of the align stage"),
    "another module": (lambda m: {**m, "optimizer": {}}, r"perhaps vision_backbone, has .*optimizer"),
    "missing": (lambda m: dropped(m, "llm_backbone", "llm.lm_head.weight"), r"llm_backbone.*1 tensors missing"),
    "missing in a tower": (
        lambda m: dropped(m, "vision_backbone", "featurizer.cls_token"), r"vision_backbone.*missing \['cls_token'\]",
    ),
    "unexpected": (lambda m: added(m, "projector", "projector.4.weight"), r"projector.*1 not known \['4\.weight'\]"),
    "another prefix": (lambda m: added(m, "llm_backbone", "model.norm"), r"should begin with 'llm\.'.*model\.norm"),
    "another tower": (
        lambda m: added(m, "vision_backbone", "dino_featurizer.norm"), r"should begin with featurizer\., not",
    ),
    "wrong shape": (
        lambda m: added(m, "projector", "projector.0.weight", torch.ones(2, 2)),
        r"projector is not of the model.*1 of another shape: 0\.weight is \[2, 2\], not \[48, 32\]",
    ),
    "small vocabulary": (
        lambda m: added(m, "llm_backbone", "llm.model.embed_tokens.weight", torch.ones(100, WIDTH)),
        "vocabulary of 100 does not hold the 258 tokens",
    ),
    "no tensors": (lambda m: {**m, "projector": [1]}, "'projector' should be tensors by name"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_checkpoint_that_does_not_fit_is_told_and_nothing_is_written(case, choices, tmp_path):
    change, reason = MALFORMED[case]
    reference = Reference()
    run = reference.write(tmp_path / "run", vision=True)
    torch.save({"model": change(reference.modules(True))}, run / "checkpoints" / "latest-checkpoint.pt")
    with pytest.raises(ConfigError, match=f"(?s)latest-checkpoint.pt.*{reason}"):
        released.bring_in(run, tmp_path / "out", choices)
    assert not [path for path in tmp_path.iterdir() if path.name not in {"run", "choices"}]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("vision_backbone_id", "clip-vit-l-335px", "did you mean 'clip-vit-l-336px'"),
        ("llm_backbone_id", "gpt", "llm_backbone_id 'gpt' is not known; valid: llama2-13b-chat"),
        ("arch_specifier", "no-align+resampler", "arch_specifier 'resampler' is not known"),
        ("image_resize_strategy", "naive", "'naive' is not known.*valid: letterbox, resize-crop, resize-naive"),
        ("model_id", None, "missing: model_id"),
    ],
)
def test_unknown_ids_list_the_known_ones(key, value, reason, choices, tmp_path):
    run = Reference().write(tmp_path / "run", vision=False, **{key: value})
    with pytest.raises(ConfigError, match=f"(?s){reason}"):
        released.bring_in(run, tmp_path / "out", choices)
    assert not (tmp_path / "out").exists()


def test_code_in_a_checkpoint_is_refused_and_not_run(choices, tmp_path, capsys):
    run = Reference().write(tmp_path / "run", vision=False)
    torch.save({"model": Code()}, run / "checkpoints" / "latest-checkpoint.pt")
    with pytest.raises(StoreError, match="refused: it holds more than tensors"):
        released.bring_in(run, tmp_path / "out", choices)
    assert "this must not run" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", pickle.dumps({"model": {}})])
def test_files_that_are_no_checkpoints_are_told(content, choices, tmp_path):
    run = Reference().write(tmp_path / "run", vision=False)
    (run / "checkpoints" / "latest-checkpoint.pt").write_bytes(content)
    with pytest.raises(StoreError, match="is not a whole checkpoint"):
        released.bring_in(run, tmp_path / "out", choices)


def test_folders_that_are_no_runs_are_told(choices, tmp_path):
    with pytest.raises(ConfigError, match=r"should be a run of prismatic-vlms: it has no config\.json"):
        released.bring_in(tmp_path, tmp_path / "out", choices)
    run = Reference().write(tmp_path / "run", vision=False)
    (run / "checkpoints" / "latest-checkpoint.pt").unlink()
    with pytest.raises(ConfigError, match=r"latest-checkpoint\.pt is missing"):
        released.bring_in(run, tmp_path / "out", choices)


def test_every_published_id_is_known_and_means_choices_that_exist():
    for vision in released.VISION:
        for llm in released.LANGUAGE:
            named = {
                "vision_backbone_id": vision, "llm_backbone_id": llm, "arch_specifier": "no-align+fused-gelu-mlp",
                "image_resize_strategy": "letterbox",
            }  # fmt: skip
            spec = released.spec_of(named)
            assert all(spec.resolution.pixels in each.weights for each in spec.backbone.towers.values())
            assert spec.projector.kind == "fused-mlp"

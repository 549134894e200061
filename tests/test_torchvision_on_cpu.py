import subprocess
import sys

import pytest
import torch

from prism_sweeps import torchvision_on_cpu


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_importing_the_package_imports_neither_torch_nor_torchvision():
    code = "import prism_sweeps, sys; print([m for m in ('torch', 'torchvision', 'transformers') if m in sys.modules])"
    assert python(code).stdout.strip() == "[]"


@pytest.mark.slow
def test_timm_open_clip_and_transformers_import_after_the_package():
    done = python(
        "import prism_sweeps, timm, open_clip\n"
        "from transformers import LlamaForCausalLM\n"
        "from torchvision.transforms import CenterCrop\n"
        "from PIL import Image\n"
        "print(CenterCrop(2)(Image.new('RGB', (4, 4))).size, LlamaForCausalLM.__name__)"
    )
    assert done.stdout.strip() == "(2, 2) LlamaForCausalLM", done.stderr


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is not None, reason="the defect is that of a CPU torch")
def test_the_cure_is_still_needed_without_the_package():
    done = python("import torchvision")
    if done.returncode == 0:
        pytest.skip("this torchvision loads by itself")
    assert "torchvision::nms" in done.stderr


def test_install_adds_one_finder_only(monkeypatch):
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if type(f).__name__ != "TorchvisionFinder"])
    torchvision_on_cpu.install()
    torchvision_on_cpu.install()
    assert [type(finder).__name__ for finder in sys.meta_path].count("TorchvisionFinder") == 1


def test_nothing_is_declared_beside_a_cuda_torch(monkeypatch, tmp_path):
    monkeypatch.setattr(torchvision_on_cpu, "_declared", [])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    torchvision_on_cpu.declare_missing_operators(tmp_path)
    assert torchvision_on_cpu._declared == []

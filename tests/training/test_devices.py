"""Names as CUDA gives them; the CPU against what the system itself says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from prism_sweeps.config.gpus import card_of
from prism_sweeps.training import devices
from prism_sweeps.training.devices import cpu_model, device_name, peak_flops, peak_memory

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)

# Dense bf16, as the vendor's product pages have it (halved where they say "with sparsity").
KNOWN = {
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H100 PCIe": 756.5,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA H200": 989.4,
    "NVIDIA GH200 480GB": 989.4,
    "NVIDIA B200": 2250.0,
    "NVIDIA GB200": 2500.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA A10": 125.0,
    "NVIDIA A40": 149.7,
    "NVIDIA L40S": 362.0,
    "NVIDIA L4": 121.0,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA RTX A6000": 154.8,
}
UNKNOWN = [
    "NVIDIA A10G",
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    "NVIDIA GeForce RTX 4090 Laptop GPU",
    "NVIDIA GeForce RTX 4090 D",
    "NVIDIA GeForce GTX 1080 Ti",
    "NVIDIA A1000",
]


@pytest.mark.parametrize("name", KNOWN)
def test_the_best_a_known_gpu_can_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "device_name", lambda device: name)
    assert peak_flops(GPU, "bf16", None) == peak_flops(GPU, "bf16-true", None) == KNOWN[name] * 1e12
    assert peak_flops(GPU, "bf16", 100.0) == 100e12


@pytest.mark.parametrize("name", UNKNOWN)
def test_of_another_nothing_is_claimed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "device_name", lambda device: name)
    assert peak_flops(GPU, "bf16", None) is None
    assert peak_flops(GPU, "bf16", 70.0) == 70e12


def test_fp32_is_what_torch_is_allowed_to_do_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    assert peak_flops(GPU, "fp32", None) == 19.5e12
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert peak_flops(GPU, "fp32", None) == 156e12
    monkeypatch.setattr(devices, "device_name", lambda device: "Tesla V100-SXM2-16GB")
    assert peak_flops(GPU, "fp32", None) == 15.7e12
    assert peak_flops(GPU, "bf16", None) is None


def test_tensor_cores_are_never_slower_than_none() -> None:
    for name in KNOWN:
        card = card_of(name)
        assert card is not None
        peak = card.peak
        assert peak.bf16 is not None
        assert peak.tf32 is not None
        assert peak.bf16 >= 1.9 * peak.tf32 >= 1.9 * peak.fp32


def test_a_cpu_has_a_name_and_no_peak() -> None:
    assert peak_flops(CPU, "fp32", None) is None
    assert peak_flops(CPU, "fp32", 0.5) == 0.5e12
    told = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    if "Model name:" not in told:
        pytest.skip("lscpu tells no model")
    assert device_name(CPU) in told


def test_a_cpu_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "arm").write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    (tmp_path / "two").write_text("model name\t:  A  CPU @ 2GHz \nmodel name\t: B\n")
    assert cpu_model(tmp_path / "none") is None
    assert cpu_model(tmp_path / "arm") is None
    assert cpu_model(tmp_path / "two") == "A  CPU @ 2GHz"


def test_memory_is_in_bytes_and_the_most_there_was() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("no Linux")
    held = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    assert peak_memory(CPU) == pytest.approx(held, rel=0.01)

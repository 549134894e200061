"""What a device is called, what it can do at best, and how much of its memory was used."""

from __future__ import annotations

import platform
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Peak:
    """Dense TFLOP/s by the vendor's datasheet: tensor cores on bfloat16 and TF32 (None: cannot do it), plain fp32."""

    bf16: float | None
    tf32: float | None
    fp32: float


PEAKS = (
    # B200, GB200: NVIDIA Blackwell Architecture Technical Brief, per GPU.
    (r"GB200", Peak(2500.0, 1250.0, 80.0)),
    (r"B200", Peak(2250.0, 1100.0, 80.0)),
    # H100, H200, GH200: NVIDIA H100 and H200 datasheets; those with a PCIe plug run slower.
    (r"H100 NVL|H200 NVL", Peak(835.5, 417.5, 60.0)),
    (r"H100 PCIe", Peak(756.5, 378.0, 51.2)),
    (r"GH200|H200|H100|H800", Peak(989.4, 494.7, 66.9)),
    # A100, A40, A30, A10: NVIDIA datasheets of each; A6000, 3090: NVIDIA Ampere GA102 whitepaper.
    (r"A100|A800", Peak(312.0, 156.0, 19.5)),
    (r"A40", Peak(149.7, 74.8, 37.4)),
    (r"A30", Peak(165.0, 82.0, 10.3)),
    (r"A10", Peak(125.0, 62.5, 31.2)),
    (r"RTX A6000", Peak(154.8, 77.4, 38.7)),
    (r"RTX 3090", Peak(71.0, 35.6, 35.6)),
    # L40S, L40, L4: NVIDIA datasheets; 4090: NVIDIA Ada GPU Architecture whitepaper, appendix A (fp32 accumulation).
    (r"L40S", Peak(362.0, 183.0, 91.6)),
    (r"L40", Peak(181.0, 90.5, 90.5)),
    (r"L4", Peak(121.0, 60.0, 30.3)),
    (r"RTX 4090", Peak(165.2, 82.6, 82.6)),
    # V100: NVIDIA Tesla V100 datasheet; its tensor cores know fp16 alone.
    (r"V100-SXM\d", Peak(None, None, 15.7)),
    (r"V100-PCIE", Peak(None, None, 14.0)),
)
"""What the name must hold as words of its own -> peak; the first that fits."""
SLICED = re.compile(r"\bMIG\b|Laptop|Max-Q|\b4090 D\b")
"""Part of such a GPU, or a slower one of the same name: its peak is not known."""


def peak_flops(device: torch.device, precision: str, stated_tflops: float | None) -> float | None:
    """Dense FLOP/s of the device at best; as stated, else by its name; None for a CPU or a GPU that is not known.

    For fp32 it is TF32's where torch may use that (`torch.set_float32_matmul_precision`).
    """
    if stated_tflops is not None:
        return stated_tflops * 1e12
    if device.type != "cuda":
        return None
    peak = named_peak(device_name(device))
    if peak is None:
        return None
    tflops = peak.bf16
    if precision == "fp32":
        tensor_cores = torch.get_float32_matmul_precision() != "highest"
        tflops = peak.tf32 if tensor_cores and peak.tf32 else peak.fp32
    return None if tflops is None else tflops * 1e12


def named_peak(name: str) -> Peak | None:
    """By a GPU's name, as CUDA gives it (`NVIDIA H100 80GB HBM3`)."""
    if SLICED.search(name):
        return None
    return next((peak for pattern, peak in PEAKS if re.search(rf"(?<!\w)(?:{pattern})(?!\w)", name)), None)


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU the most that tensors took at a time, else the most that this process had resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # macOS counts bytes, Linux KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_name(device: torch.device) -> str:
    """`NVIDIA H100 80GB HBM3`; of a CPU its model, else its architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_model(Path("/proc/cpuinfo")) or platform.processor() or platform.machine()


def cpu_model(information: Path) -> str | None:
    """The first `model name` in what Linux tells about its processors; None where there is none."""
    try:
        text = information.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^model name\s*:\s*(\S.*?)\s*$", text, re.MULTILINE)
    return found[1] if found else None

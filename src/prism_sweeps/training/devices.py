"""What a device is called, what it can do at best, and how much of its memory was used."""

from __future__ import annotations

import platform
import re
import resource
import sys
from pathlib import Path

import torch

from prism_sweeps.config.gpus import card_of
from prism_sweeps.config.schema import Engine
from prism_sweeps.models.device import device_of


def peak_flops(device: torch.device, precision: str, stated_tflops: float | None) -> float | None:
    """Dense FLOP/s of the device at best; as stated, else by its name; None for a CPU or a GPU that is not known.

    For fp32 it is TF32's where torch may use that (`torch.set_float32_matmul_precision`).
    """
    if stated_tflops is not None:
        return stated_tflops * 1e12
    if device.type != "cuda":
        return None
    card = card_of(device_name(device))
    if card is None:
        return None
    peak = card.peak
    tflops = peak.bf16
    if precision == "fp32":
        tensor_cores = torch.get_float32_matmul_precision() != "highest"
        tflops = peak.tf32 if tensor_cores and peak.tf32 else peak.fp32
    return None if tflops is None else tflops * 1e12


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU the most that tensors took at a time, else the most that this process had resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # macOS counts bytes, Linux KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_used(engine: Engine) -> tuple[str, str]:
    """Name and type (cpu | cuda) of what the engine computes on here."""
    device = device_of(engine)
    return device_name(device), device.type


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

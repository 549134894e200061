"""GPUs: what each can do at best and its memory, by the name that CUDA gives it and by one to ask for it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prism_sweeps.config.errors import ConfigError, nearest


@dataclass(frozen=True)
class Peak:
    """Dense TFLOP/s by the vendor's datasheet: tensor cores on bfloat16 and TF32 (None: cannot do it), plain fp32."""

    bf16: float | None
    tf32: float | None
    fp32: float


@dataclass(frozen=True)
class Card:
    """GPUs of one speed."""

    cuda: str
    """What the name must hold as words of its own."""
    peak: Peak
    memory: dict[str, int]
    """Name to ask for (`cluster.gpu`) -> MiB that the driver shows, error correction on; less than what is printed on
    some (https://thundergolfer.com/blog/nvidia-gpu-memory-capacity lists what NVML reports)."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, as `cluster.gpu` names it."""

    name: str
    card: Card
    memory: int
    """Bytes."""


CARDS = (
    # B200, GB200: NVIDIA Blackwell Architecture Technical Brief, per GPU.
    Card(r"GB200", Peak(2500.0, 1250.0, 80.0), {"gb200": 189471}),
    Card(r"B200", Peak(2250.0, 1100.0, 80.0), {"b200": 183359}),
    # H100, H200, GH200: NVIDIA H100 and H200 datasheets; those with a PCIe plug run slower.
    Card(r"H100 NVL|H200 NVL", Peak(835.5, 417.5, 60.0), {"h100-nvl": 95830, "h200-nvl": 143771}),
    Card(r"H100 PCIe", Peak(756.5, 378.0, 51.2), {"h100-pcie": 81559}),
    Card(
        r"GH200|H200|H100|H800",
        Peak(989.4, 494.7, 66.9),
        {"h100-80gb": 81559, "h200-141gb": 143771, "gh200-96gb": 97871},
    ),
    # A100, A40, A30, A10: NVIDIA datasheets of each; A6000, 3090: NVIDIA Ampere GA102 whitepaper.
    Card(r"A100|A800", Peak(312.0, 156.0, 19.5), {"a100-40gb": 40960, "a100-80gb": 81920}),
    Card(r"A40", Peak(149.7, 74.8, 37.4), {"a40": 46068}),
    Card(r"A30", Peak(165.0, 82.0, 10.3), {"a30": 24576}),
    Card(r"A10", Peak(125.0, 62.5, 31.2), {"a10": 23028}),
    Card(r"RTX A6000", Peak(154.8, 77.4, 38.7), {"rtx-a6000": 49140}),
    Card(r"RTX 3090", Peak(71.0, 35.6, 35.6), {"rtx-3090": 24576}),
    # L40S, L40, L4: NVIDIA datasheets; 4090: NVIDIA Ada GPU Architecture whitepaper, appendix A (fp32 accumulation).
    Card(r"L40S", Peak(362.0, 183.0, 91.6), {"l40s": 46068}),
    Card(r"L40", Peak(181.0, 90.5, 90.5), {"l40": 46068}),
    Card(r"L4", Peak(121.0, 60.0, 30.3), {"l4": 23034}),
    Card(r"RTX 4090", Peak(165.2, 82.6, 82.6), {"rtx-4090": 24564}),
    # V100: NVIDIA Tesla V100 datasheet; its tensor cores know fp16 alone.
    Card(r"V100-SXM\d", Peak(None, None, 15.7), {"v100-16gb": 16384, "v100-32gb": 32768}),
    Card(r"V100-PCIE", Peak(None, None, 14.0), {"v100-pcie-16gb": 16384, "v100-pcie-32gb": 32768}),
)
"""The first whose name fits counts."""
GPUS = {name: Gpu(name, card, mebibytes << 20) for card in CARDS for name, mebibytes in card.memory.items()}
SLICED = re.compile(r"\bMIG\b|Laptop|Max-Q|\b4090 D\b")
"""Part of such a GPU, or a slower one of the same name: its peak is not known."""


def card_of(device: str) -> Card | None:
    """The card with this CUDA name (`NVIDIA H100 80GB HBM3`); None for one that is not known."""
    if SLICED.search(device):
        return None
    return next((card for card in CARDS if re.search(rf"(?<!\w)(?:{card.cuda})(?!\w)", device)), None)


def gpu_named(name: str) -> Gpu:
    """The GPU that `cluster.gpu` names; ConfigError, with the nearest one, for another."""
    if name not in GPUS:
        raise ConfigError(f"cluster.gpu={name}: no such GPU is known; {nearest(name, GPUS)}")
    return GPUS[name]


def peak_flops_of(gpu: Gpu, precision: str) -> float | None:
    """Dense FLOP/s at best, TF32 left alone as torch does by itself; None where it does not compute in bfloat16."""
    tflops = gpu.card.peak.fp32 if precision == "fp32" else gpu.card.peak.bf16
    return None if tflops is None else tflops * 1e12

"""Low-rank adapters (LoRA, arXiv 2106.09685) on a language model, by peft: put in, trained, and merged again.

Shapes: I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.schema import Tuning
from prism_sweeps.models.weights import private_seed

APART = 1 << 32
"""Between the seeds of projector and adapters, so that they are not drawn from the same numbers."""


def add_adapters(llm: PreTrainedModel, tuning: Tuning, seed: int) -> None:
    """Freezes `llm` and puts trainable A (rank x in) and B (out x rank) beside the weights W (out x in) of its layers.

    They then act as W + alpha/rank B A. B starts at zero, so nothing changes at first; A is drawn from `seed`. Torch's
    global generator is left as it was. Raises ConfigError for targets that the language model does not have.
    """
    from peft import LoraConfig, inject_adapter_in_model  # not at the top, as most runs train the model whole

    config = LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,  # type: ignore[arg-type]  # said to be int, used as a number
        lora_dropout=tuning.dropout,
        target_modules=targets_in(llm, tuning.targets),
    )
    with private_seed(seed + APART):
        inject_adapter_in_model(config, llm)


def targets_in(llm: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """`targets`, or the names of all linear layers but the head where there are none."""
    head = llm.get_output_embeddings()
    linear = {name for name, module in llm.named_modules() if isinstance(module, nn.Linear) and module is not head}
    names = {name.rpartition(".")[2] for name in linear}
    for target in targets:
        if target not in names:
            raise ConfigError(f"tuning: the language model has no linear layer '{target}'; {nearest(target, names)}")
    return sorted(targets or names)


def merge_adapters(llm: PreTrainedModel) -> None:
    """Puts W + alpha/rank B A in the place of each adapted W: a model of the same names and shapes as without adapters.

    Without adapters it does nothing. The adapters are not kept: the merged weights are what evaluation, later stages
    and export read, and base and merged weights together tell them.
    """
    if not hasattr(llm, "peft_config"):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {name: module for name, module in llm.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, layer in adapted.items():
        base = layer.get_base_layer()
        for adapter in layer.active_adapters:
            base.weight.data += spread_as(layer.get_delta_weight(adapter).detach(), base.weight)
        llm.set_submodule(name, base)
    del llm.peft_config


def spread_as(delta_OI: Tensor, weight_OI: Tensor) -> Tensor:
    """`delta_OI` in the type of `weight_OI`, and over the same processes where they share either."""
    delta_OI = delta_OI.to(weight_OI.dtype)
    if isinstance(weight_OI, DTensor):
        if isinstance(delta_OI, DTensor):
            return delta_OI.redistribute(weight_OI.device_mesh, weight_OI.placements)
        return distribute_tensor(delta_OI, weight_OI.device_mesh, weight_OI.placements, src_data_rank=None)
    return delta_OI.full_tensor() if isinstance(delta_OI, DTensor) else delta_OI

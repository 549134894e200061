"""How a model is spread over processes, and what precision its parts are kept and computed in.

FSDP2 (`torch.distributed.fsdp.fully_shard`) keeps of every weight a shard per process: in fp32 the master that the
optimiser moves, gathered in bf16 where it is computed with. Blocks are gathered one after another, everything else at
the root. Frozen towers are small and run without autograd, so every process has them whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.schema import PRECISIONS
from prism_sweeps.models.vlm import VLM
from prism_sweeps.training.world import World


def check_precision(precision: str, device: torch.device) -> None:
    """Raises ConfigError for a precision that is unknown, or that the device does not compute in."""
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision '{precision}'; {nearest(precision, PRECISIONS)}")
    if precision != "fp32" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise ConfigError(f"precision is {precision}, but {name} has no bfloat16; take precision=fp32")


def blocks_of(vlm: VLM) -> list[nn.Module]:
    """The blocks of everything that a gradient passes through, in the order they run."""
    of_towers = [block for tower in vlm.vision.towers.values() for block in tower.layers()]
    if "vision" not in vlm.trained:
        of_towers = []
    names = set(vlm.llm._no_split_modules or ())
    of_llm = [module for module in vlm.llm.modules() if type(module).__name__ in names]
    if not of_llm:
        raise ConfigError(
            f"which modules are the blocks of {type(vlm.llm).__name__} is not known (transformers has them as "
            "`_no_split_modules`), so it cannot be sharded, compiled or recomputed by block"
        )
    return of_towers + of_llm


def place(vlm: VLM, precision: str, sharding: str, world: World) -> None:
    """Puts the model on its device, in its precision, spread over the processes where there are several.

    What is trained is sharded with fp32 masters; in bf16 that is so for a process alone too, so that it computes what
    several do. Weights that are mapped from files become masters block by block, so no process ever holds more of them
    than its shards and one block.
    """
    computed = torch.float32 if precision == "fp32" else torch.bfloat16
    masters = torch.float32 if precision == "bf16" else computed
    if "vision" not in vlm.trained or precision == "bf16-true":
        vlm.vision.to(computed)
    if world.size > 1 or precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=computed, reduce_dtype=torch.float32)
        shard(vlm, masters, policy, mesh_of(world, sharding), sharding != "grad-only")
    else:
        held_in(vlm, masters, computed)
    vlm.to(world.device)


def held_in(module: nn.Module, masters: torch.dtype, computed: torch.dtype) -> None:
    """Converts what is trained to `masters`, the rest to `computed`.

    Not the buffers: a language model's rotary frequencies stay in fp32.
    """
    for parameter in module.parameters():
        if not isinstance(parameter, DTensor):
            parameter.data = parameter.data.to(masters if parameter.requires_grad else computed)


def mesh_of(world: World, sharding: str) -> DeviceMesh:
    """All processes in a row, or nodes x processes of a node, of which only the latter share weights."""
    kind = world.device.type
    if not dist.is_initialized():  # a process alone, in bf16
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if sharding != "hybrid":
        return init_device_mesh(kind, (world.size,), mesh_dim_names=("shard",))
    per_node = world.place.local_size
    if world.size % per_node:
        raise ConfigError(f"sharding=hybrid needs equally many processes on every node, not {world.size} by {per_node}")
    return init_device_mesh(kind, (world.size // per_node, per_node), mesh_dim_names=("replicate", "shard"))


def shard(vlm: VLM, masters: torch.dtype, policy: MixedPrecisionPolicy, mesh: DeviceMesh, reshard: bool) -> None:
    # Of a process alone nothing is gathered that could as well stay as it is.
    part = vlm if mesh.size() == 1 else vlm.vision
    whole = {parameter for parameter in part.parameters() if not parameter.requires_grad}
    blocks = [block for block in blocks_of(vlm) if not whole.issuperset(block.parameters())]
    assert policy.param_dtype is not None
    for module in (*blocks, vlm):
        held_in(module, masters, policy.param_dtype)
        # Of a batch only what the model computes with is rounded, not the weights of the loss.
        own = replace(policy, cast_forward_inputs=module is not vlm)
        fully_shard(module, mesh=mesh, mp_policy=own, reshard_after_forward=reshard, ignored_params=whole)
    for module in vlm.modules():
        if isinstance(module, FSDPModule):
            # The loss of a process is its share of that of the global batch: gradients are summed, not averaged.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    vlm.sharded = True


def hold_between_passes(vlm: VLM, sharding: str, ranks: int, last: bool) -> None:
    """Before each pass of a step: where weights are to be gathered once, they stay so until the `last` one is over.

    A process alone need not hand its gradients to anybody before then either; they are summed up in fp32 meanwhile.
    """
    if not vlm.sharded or (ranks > 1 and sharding != "grad-only"):
        return
    assert isinstance(vlm, FSDPModule)
    vlm.set_reshard_after_backward(last)
    if ranks == 1:
        vlm.set_requires_gradient_sync(last)


def put_away(vlm: VLM) -> None:
    """Lets go of all that was gathered for a forward pass without a backward one: weights are their shards again."""
    for module in vlm.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(part: Tensor, tensor: Tensor) -> Tensor:
    """`part` as this process's share of something that is spread as `tensor` is."""
    if not isinstance(tensor, DTensor) or part.ndim == 0:
        return part
    return DTensor.from_local(
        part, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def shard_group(parameters: Iterable[nn.Parameter]) -> dist.ProcessGroup | None:
    """The processes that share each weight between them; None where every process has it whole."""
    first = next(iter(parameters), None)
    if not isinstance(first, DTensor) or first.device_mesh.size() == 1:
        return None
    return first.device_mesh.get_group("shard")

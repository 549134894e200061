"""The memory of tensors that are really alive, on a CPU too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that operators make inside it and that somebody still holds, autograd included.

    Those of `apart` are left out. FSDP empties the storages of gathered weights, so sizes are looked up, not kept.
    """

    def __init__(self, apart: list[Tensor]) -> None:
        super().__init__()
        self.apart = {tensor.untyped_storage()._cdata for tensor in apart}
        self.seen: dict[int, StorageWeakRef] = {}
        self.most = 0

    def now(self) -> int:
        self.seen = {key: storage for key, storage in self.seen.items() if not storage.expired()}
        return sum(
            torch.UntypedStorage._new_with_weak_ptr(storage.cdata).nbytes()
            for key, storage in self.seen.items()
            if key not in self.apart
        )

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.seen or self.seen[storage._cdata].expired():
                    self.seen[storage._cdata] = StorageWeakRef(storage)
        self.most = max(self.most, self.now())
        return out

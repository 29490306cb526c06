"""Bytes of all tensors that are alive, on any device and without one."""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, counts the memory of a device's tensors from their making to their end, temporary ones included, by
    storage.

    What autograd does on a GPU happens in threads that this does not see: it is for the CPU and for the meta device,
    where tensors have sizes and no memory.
    """

    def __init__(self, device: str, known: Iterable[Tensor] = ()) -> None:
        """Nothing is alive yet, but for `known` tensors, which do not count."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self.now = 0
        """Bytes alive."""
        self.peak = 0
        """The most there were."""
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it makes."""
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(one, Tensor) and one.device.type == self._device:
                self._count(one.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        if storage in self._seen:
            return
        size: int = storage.nbytes()
        self._seen.add(storage)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.now -= size

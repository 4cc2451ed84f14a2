"""What does a computation cost, in multiply-accumulates? Counted once, on the meta device.

1 MAC = 2 FLOPs. Shapes decide: an unstructured mask saves nothing. Convolutions, transposed
convolutions and matrix products count, forward and backward; normalisation, activations and the
optimizer do not (below one percent of a convolutional step).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what torch's own formulas say of every operation.

    FlopCounterMode has the same formulas, but tracks modules on the way, which fails where
    gradients are asked for by ``torch.autograd.grad`` through a parametrization.
    """

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation, and count it if there is a formula for it."""
        del types
        made = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=made)
        return made


def count_macs(fn: Callable[[], object]) -> int:
    """Multiply-accumulates of everything that ``fn()`` computes, backward passes included.

    Tensors may be on the meta device: then nothing is computed. Backward passes of grouped
    convolutions are overcounted by torch.
    """
    with _Counter() as counter:  # type: ignore[no-untyped-call]
        fn()
    return int(counter.total) // 2

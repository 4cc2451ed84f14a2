"""What does a computation cost, in multiply-accumulates? Counted once, on the meta device.

1 MAC = 2 FLOPs. Shapes decide: an unstructured mask saves nothing. Convolutions, transposed
convolutions and matrix products count, forward and backward; normalisation, activations and the
optimizer do not (below one percent of a convolutional step).
"""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.flop_counter import FlopCounterMode


def count_macs(fn: Callable[[], object]) -> int:
    """Multiply-accumulates of everything that ``fn()`` computes, backward passes included.

    Tensors may be on the meta device: then nothing is computed. Backward passes of grouped
    convolutions are overcounted by torch.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        fn()
    return int(counter.get_total_flops()) // 2

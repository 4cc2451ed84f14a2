"""What does a computation cost, in multiply-accumulates? Counted once, on the meta device.

1 MAC = 2 FLOPs. Shapes decide: an unstructured mask saves nothing. Convolutions, transposed
convolutions, linear layers and other products of matrices and vectors, and normalisations count,
forward and backward. Biases, activations, pooling, embeddings, losses and the optimizer do not:
they are one pass over their elements, without a product of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
Arguments = Mapping[str, Any]
"""The arguments of an operation by the names that its schema gives them."""


def _convolution_backward(given: Arguments, made: Any) -> int:
    """The products of the forward pass, once for the input's gradient, once for the weight's.

    They are each weight, once for each image and place: of the output; if transposed, of the input.
    A weight tensor has outputs x inputs / groups x kernel numbers (transposed: inputs x outputs /
    groups x kernel), so groups need no more care: torch's own formula here takes them for one.
    """
    del made
    by_input, by_weight, _ = given["output_mask"]
    walked: Tensor = given["input" if given["transposed"] else "grad_output"]
    products = walked.shape[0] * prod(walked.shape[2:]) * given["weight"].numel()
    return int((by_input + by_weight) * products)


def _matrix_vector(given: Arguments, made: Any) -> int:
    """Of a matrix and a vector, or of two vectors: as many as the first has elements."""
    del made
    first: Tensor = given["mat" if "mat" in given else "self"]
    return first.numel()


def _normalise(given: Arguments, made: Any) -> int:
    """Batch and group normalisation, an element: 3 with its own statistics, 1 with running ones.

    The sum of x, the sum of x^2, and a x + b.
    """
    del made
    # Without the argument an operation always takes the batch's, unless its name denies it.
    return (3 if given.get("training", True) else 1) * int(given["input"].numel())


def _normalise_running(given: Arguments, made: Any) -> int:
    return _normalise({**given, "training": False}, made)


def _normalise_backward(given: Arguments, made: Any) -> int:
    """Of batch and group normalisation, an element: 5, or 4 with running statistics.

    With y = gamma x' + beta: x' = (x - mean) / deviation again (1), the sums of dy and dy x' (2),
    and dx = a dy + b x' + c (2), as the statistics depend on x; where they do not, dx = a dy (1).
    The sums are the gradients by beta and gamma too. What is not asked for is left out.
    """
    del made
    by_input, by_scale, by_shift = given.get("output_mask", (True, True, True))
    own = given.get("train", given.get("update", True))
    through = by_input and own
    each = 2 * (through or by_scale) + (through or by_shift) + by_input * (2 if own else 1)
    return int(each * given["input"].numel())


def _layer_norm(given: Arguments, made: Any) -> int:
    """An element: the sum of x, the sum of x^2, x' = a x + b, and gamma x' + beta if there is one.

    Its own, since gamma differs within what is normalised together.
    """
    del made
    affine = given["weight"] is not None or given["bias"] is not None
    return (4 if affine else 3) * int(given["input"].numel())


def _layer_norm_backward(given: Arguments, made: Any) -> int:
    """An element: x' again (1), the gradient by gamma (1) and by beta (1), and by the input.

    That is g = gamma dy (1), the sums of g and g x' (2), dx = a g + b x' + c (2).
    """
    del made
    by_input, by_scale, by_shift = given["output_mask"]
    scaled = given["weight"] is not None
    each = (by_input or by_scale) + by_scale + by_shift + by_input * (5 if scaled else 4)
    return int(each * given["input"].numel())


FORMULAS: Mapping[Any, Callable[[Arguments, Any], int]] = {
    aten.convolution_backward: _convolution_backward,
    aten.mv: _matrix_vector,
    aten.addmv: _matrix_vector,
    aten.dot: _matrix_vector,
    aten.vdot: _matrix_vector,
    aten.native_batch_norm: _normalise,
    aten._native_batch_norm_legit: _normalise,
    aten._native_batch_norm_legit_no_training: _normalise_running,
    aten._batch_norm_with_update: _normalise,
    aten._batch_norm_no_update: _normalise_running,
    aten.cudnn_batch_norm: _normalise,
    aten.miopen_batch_norm: _normalise,
    aten.native_batch_norm_backward: _normalise_backward,
    aten.batch_norm_backward: _normalise_backward,
    aten.cudnn_batch_norm_backward: _normalise_backward,
    aten.miopen_batch_norm_backward: _normalise_backward,
    aten.native_group_norm: _normalise,
    aten.native_group_norm_backward: _normalise_backward,
    aten.native_layer_norm: _layer_norm,
    aten.native_layer_norm_backward: _layer_norm_backward,
}
"""Operation -> its MACs, before torch's own formulas. Terms by channel, not element, are left out.
"""


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what the formulas say of every operation.

    FlopCounterMode has torch's, but tracks modules on the way, which fails where gradients are
    asked for by ``torch.autograd.grad`` through a parametrization.
    """

    macs = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation, and count it if there is a formula for it."""
        del types
        kwargs = kwargs or {}
        own = FORMULAS.get(func._overloadpacket)
        torchs = flop_registry.get(func._overloadpacket)
        if own is None and torchs is None:
            with self:  # in inference mode layers arrive whole: count what they consist of
                made = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if made is NotImplemented else made
        made = func(*args, **kwargs)
        if own is not None:
            names = (argument.name for argument in func._schema.arguments)
            self.macs += own(dict(zip(names, args, strict=False)), made)
        elif torchs is not None:
            self.macs += torchs(*args, **kwargs, out_val=made) // 2
        return made


def count_macs(fn: Callable[[], object]) -> int:
    """Multiply-accumulates of everything that ``fn()`` computes, backward passes included.

    Tensors may be on the meta device: then nothing is computed, and batches of any size cost the
    same. Convolutions and products count as torch.utils.flop_counter has them, halved, but for the
    backward pass of grouped convolutions; batch, group, instance and layer normalisation by the
    formulas here, each of which says its sums. Not told apart from other multiplications, so not
    counted: the outer product in the gradient of a matrix by which a vector was multiplied.
    """
    with _Counter() as counter:  # type: ignore[no-untyped-call]
        fn()
    return int(counter.macs)

"""How does a checked file make images? ONNX by onnxruntime, a .pt2 by ``graph.py``, on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tombola.exported.files import Opened, need
from tombola.exported.graph import Graph
from tombola.sparsity.layout import shown, unsound

Network = Callable[[Tensor], Tensor]
SILENT = 4
"""onnxruntime's severity of what is fatal: the rest comes as an exception, not on stderr."""


def network_of(opened: Opened) -> Network:
    """What makes images (N, C, H, W) of inputs (N, ...), float32; TicketError if it cannot.

    Images of another shape than the file promises are a TicketError as well.
    """
    run = _session(opened) if opened.to == "onnx" else Graph(opened.path, opened.records)

    def checked(inputs: Tensor) -> Tensor:
        images = run(inputs)
        wanted = (len(inputs), *opened.facts.shape)
        if not isinstance(images, Tensor) or tuple(images.shape) != wanted:
            raise unsound(opened.path, f"it makes no images of shape {list(wanted)}")
        return images.to(torch.float32)

    return checked


def _session(opened: Opened) -> Network:
    """The network of an ONNX file, whose operators onnxruntime checks as it builds them."""
    onnxruntime, _ = need("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(
            opened.blob, options, providers=["CPUExecutionProvider"]
        )
        (given,), (made,) = session.get_inputs(), session.get_outputs()
    except Exception as error:  # onnxruntime has a class of its own for each kind of fault
        raise unsound(opened.path, f"onnxruntime cannot open it ({shown(error)})") from error

    def run(inputs: Tensor) -> Tensor:
        try:
            (images,) = session.run([made.name], {given.name: inputs.numpy()})
        except Exception as error:
            raise unsound(opened.path, f"onnxruntime cannot run it ({shown(error)})") from error
        return torch.from_numpy(images)

    return run

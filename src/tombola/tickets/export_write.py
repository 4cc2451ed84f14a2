"""How does a network become the bytes of an ONNX file or a .pt2? One traced graph makes both.

ONNX goes through torch's exporter of traced graphs: the older one, of TorchScript, is deprecated
and, like a traced graph without the check of several batch sizes, fixes the batch of a network that
asks for ``len(images)``. Neither file holds a pickle, or the places of files on this machine.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tombola.errors import ConfigError, escape
from tombola.tickets.export_facts import EXTRA_FILE, ONNX_KEY, Facts, need

TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn")
"""What a traced node remembers of the code it comes from."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Neither torch's warnings nor its log lines on stderr, where a user could act on none."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def traced(network: nn.Module, inputs: Tensor) -> ExportedProgram:
    """The graph of a network in eval mode, for any number of inputs (N, ...).

    ``inputs`` is an example, N = 2 or more. ConfigError for a network that torch cannot trace.
    """
    batch = ({0: Dim("batch")},)
    reason = ""
    # Tracing through the interpreter is slower and takes fewer networks, but sees len(images).
    for strict in (False, True):
        try:
            return torch.export.export(network, (inputs,), dynamic_shapes=batch, strict=strict)
        except Exception as error:  # whatever a user's network raises, or torch of it
            first, *rest = f"{type(error).__name__}: {error}".splitlines()
            guards = [line.strip(" -") for line in rest if line.lstrip().startswith("- ")]
            reason = reason or " ".join((first, *guards[:1]))
    raise ConfigError(
        f"torch cannot trace the network for any number of images ({escape(reason, 400)}); "
        "write its forward without Python that depends on the values or number of its inputs"
    )


def to_onnx(program: ExportedProgram, facts: Facts) -> bytes:
    """The bytes of an ONNX file with everything inside: no file of weights lies beside it."""
    need("onnx", "onnxscript", "onnxruntime")
    made = torch.onnx.export(
        program,
        (),
        input_names=["latents" if facts.latent else "codes"],
        output_names=["images"],
        dynamo=True,
        verbose=False,
    )
    assert made is not None
    model = made.model_proto
    for node in model.graph.node:
        node.ClearField("metadata_props")  # among others, the lines of code it comes from
        node.ClearField("doc_string")
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        value.ClearField("metadata_props")
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    model.producer_name = "tombola"
    model.metadata_props.add(key=ONNX_KEY, value=facts.text())
    return bytes(model.SerializeToString(deterministic=True))


def to_torch_export(program: ExportedProgram, facts: Facts) -> bytes:
    """The bytes of a .pt2 archive that ``torch.export.load`` reads, with no pickle in it."""
    program.example_inputs = None  # they would be pickled, and nothing asks for them
    for node in program.graph.nodes:
        for key in TRACES:
            node.meta.pop(key, None)
    stream = io.BytesIO()
    extra: dict[str, Any] = {EXTRA_FILE: facts.text()}
    torch.export.save(program, stream, extra_files=extra)
    return stream.getvalue()

"""How is the graph in a .pt2 run without trusting the file? Operators of a closed list, on numbers.

The records are those that ``files.py`` let through: ``models/model.json`` as torch.export writes it
(torch/_export/serde/schema.py), weights and constants as raw bytes. No name in the file is looked
up anywhere but among the operators below and the values of the graph itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from tombola.sparsity.layout import shown, unsound

_COMPUTING = """
abs adaptive_avg_pool2d add addmm alpha_dropout avg_pool2d batch_norm bmm cat celu chunk clamp
clamp_max clamp_min clone contiguous conv1d conv2d conv_transpose1d conv_transpose2d cos div
dropout elu exp expand feature_dropout flatten gelu group_norm hardsigmoid hardswish hardtanh
instance_norm layer_norm leaky_relu linalg_vector_norm linear log log_softmax matmul max_pool2d
mean mish mm movedim mul mv neg norm pad permute pixel_shuffle pow prelu reflection_pad2d relu
relu6 replication_pad2d reshape rms_norm rsqrt rsub scaled_dot_product_attention select selu
sigmoid silu sin slice softmax softplus split split_with_sizes sqrt square squeeze stack sub sum
sym_size t tanh transpose unflatten unsqueeze upsample_bicubic2d upsample_bilinear2d
upsample_nearest2d vdot view zero_pad2d
"""
OPERATORS = frozenset(_COMPUTING.split())
"""Operators of torch.ops.aten, in place or not, that only compute: none reads or writes files."""
TARGET = re.compile(r"torch\.ops\.aten\.([a-z][a-z0-9_]*)\.([A-Za-z][A-Za-z0-9_]*)")
DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64,
    6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
"""Codes of torch._export.serde.schema.ScalarType."""
PLAIN = ("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string")
_BROKEN = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


class Graph:
    """The network of a .pt2; call it on inputs (N, ...) to get images (N, C, H, W)."""

    def __init__(self, path: str, records: Mapping[str, bytes]) -> None:
        self.path = path
        try:
            module = json.loads(records["models/model.json"])["graph_module"]
            self._weights, (self._input,) = _inputs(module["signature"], records)
            self._nodes = module["graph"]["nodes"]
            (output,) = module["graph"]["outputs"]
            self._output: str = output["as_tensor"]["name"]
            self._last = self._last_uses()
        except (*_BROKEN, RecursionError) as error:
            raise unsound(path, f"its graph cannot be read ({shown(repr(error), 250)})") from error

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """Inputs (N, ...) -> images (N, C, H, W); TicketError for what cannot be run."""
        values: dict[str, Any] = {**self._weights, self._input: inputs}
        for index, node in enumerate(self._nodes):
            operator = self._operator(node["target"])
            try:
                positional, named = [], {}
                for given in node["inputs"]:
                    if given.get("kind") == 2:  # ArgumentKind.KEYWORD
                        named[given["name"]] = _value(values, given["arg"])
                    else:
                        positional.append(_value(values, given["arg"]))
                _keep(values, node["outputs"], operator(*positional, **named))
            except _BROKEN as error:
                raise unsound(
                    self.path, f"operator {shown(node['target'])} failed ({shown(error)})"
                ) from error
            for name in self._last.get(index, ()):
                values.pop(name, None)
        if self._output not in values:
            raise unsound(self.path, "no operator of its graph makes the images")
        return cast(Tensor, values[self._output])

    def _operator(self, target: object) -> Any:
        """The operator of a node; TicketError unless it is on the list."""
        found = TARGET.fullmatch(target) if isinstance(target, str) else None
        if found is None or found[1].removesuffix("_") not in OPERATORS:
            raise unsound(
                self.path,
                f"operator {shown(target)} is none of those that tombola sample runs from a .pt2",
                "sample from the model file",
            )
        return getattr(getattr(torch.ops.aten, found[1]), found[2])

    def _last_uses(self) -> dict[int, list[str]]:
        """Index of a node -> the values that no later node takes, to be let go behind it."""
        last: dict[str, int] = {}
        for index, node in enumerate(self._nodes):
            for name in _names([node["inputs"], node["outputs"]]):
                last[name] = index
        uses: dict[int, list[str]] = {}
        for name, index in last.items():
            if name != self._output:
                uses.setdefault(index, []).append(name)
        return uses


def _inputs(
    signature: Mapping[str, Any], records: Mapping[str, bytes]
) -> tuple[dict[str, Tensor], list[str]]:
    """(weights by their names in the graph, names of what the caller gives)."""
    weights = _tensors("weights", records)
    constants = _tensors("constants", records)
    held, given = {}, []
    for spec in signature["input_specs"]:
        ((kind, value),) = spec.items()
        match kind:
            case "user_input":
                given.append(value["arg"]["as_tensor"]["name"])
            case "parameter" | "buffer" | "tensor_constant":
                key = value[f"{kind}_name"]
                held[value["arg"]["name"]] = weights[key] if key in weights else constants[key]
            case _:
                raise ValueError(f"an input is a {kind}")
    return held, given


def _tensors(folder: str, records: Mapping[str, bytes]) -> dict[str, Tensor]:
    """Tensors of a folder by name; each lies within its record's bytes, or torch refuses it."""
    table = json.loads(records[f"data/{folder}/model_{folder}_config.json"])["config"]
    found = {}
    for name, entry in table.items():
        meta = entry["tensor_meta"]
        if entry["use_pickle"] or meta["layout"] != 7:  # Layout.Strided
            raise ValueError(f"{name} is pickled or sparse")
        sizes, strides = ([part["as_int"] for part in meta[key]] for key in ("sizes", "strides"))
        data = bytearray(records[f"data/{folder}/{entry['path_name']}"])
        flat = torch.frombuffer(data, dtype=DTYPES[meta["dtype"]])
        found[name] = flat.as_strided(sizes, strides, meta["storage_offset"]["as_int"])
    return found


def _value(values: Mapping[str, Any], argument: Mapping[str, Any]) -> Any:
    """An argument of a node: a value of the graph by its name, numbers, or a list of either."""
    ((kind, value),) = argument.items()
    match kind:
        case "as_tensor":
            return values[value["name"]]
        case "as_tensors":
            return [values[part["name"]] for part in value]
        case "as_sym_int":
            return value["as_int"] if "as_int" in value else values[value["as_name"]]
        case "as_sym_ints":
            return [_value(values, {"as_sym_int": part}) for part in value]
        case "as_none":
            return None
        case _ if kind in PLAIN:
            return value
    raise ValueError(f"an argument is {kind}")


def _keep(values: dict[str, Any], outputs: list[Mapping[str, Any]], result: Any) -> None:
    """Put what an operator gave under the names of its outputs."""
    (output,) = outputs
    ((kind, value),) = output.items()
    match kind:
        case "as_tensor":
            values[value["name"]] = result
        case "as_tensors":
            values.update(zip((part["name"] for part in value), result, strict=True))
        case "as_sym_int":
            values[value["as_name"]] = result
        case _:
            raise ValueError(f"an output is {kind}")


def _names(tree: Any) -> list[str]:
    """Every name of a value in the arguments of a node."""
    if isinstance(tree, list):
        return [name for part in tree for name in _names(part)]
    if not isinstance(tree, dict):
        return []
    own = [tree[key] for key in ("name", "as_name") if isinstance(tree.get(key), str)]
    return own + [name for part in tree.values() for name in _names(part)]

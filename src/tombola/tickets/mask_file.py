"""How do the masks of a ticket get out of its file, without its weights?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tombola.sparsity.masks import Masks
from tombola.store.container import Source, open_file
from tombola.store.format import TICKET_FORMAT, expect, numel
from tombola.store.tensors import read_tensor


def load_masks(path: str | Path) -> Masks:
    """The masks of a ticket alone, after checking all of it; TicketError as ``load_ticket``."""
    with open_file(path) as source:
        expect(source.header, TICKET_FORMAT)
        masked = source.check()
        return {key: read_mask(source, key) for key in source.header.shapes if key in masked}


def read_mask(source: Source, key: str) -> Tensor:
    """The mask of a weight ``network.parameter`` of a checked file: bool, of the weight's shape."""
    shape = source.header.shapes[key]
    packed = read_tensor(source, f"mask.{key}").numpy()
    mask = torch.from_numpy(np.unpackbits(packed, count=numel(shape)).view(np.bool_))
    return mask.reshape(shape)

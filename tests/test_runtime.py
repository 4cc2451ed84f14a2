"""Where and how numbers are computed."""

from __future__ import annotations

import subprocess
import sys

DENORMAL = """
import torch
from tombola.runtime import Runtime
Runtime.open("cpu", "fp32", {threads})
faded = torch.full((1 << 20,), 1e-30).mul_(1e-10)
print(int(faded.count_nonzero()))
"""


def test_denormal_numbers_count_as_zero_in_every_thread():
    for threads in (1, 2):
        script = DENORMAL.format(threads=threads)
        shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert shown.stdout.strip() == "0", shown.stderr

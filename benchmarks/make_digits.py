"""Which command made src/tombola/data/files/digits.npz, from which file?

    pip download scikit-learn==1.9.1 --no-deps -d wheel
    python benchmarks/make_digits.py wheel/*.whl src/tombola/data/files/digits.npz

The wheel carries the UCI optical digits as ``sklearn/datasets/data/digits.csv.gz``: 1,797 rows of
64 integers in 0..16 and a label. They are kept as they are (uint8, in the file's order); scaling
to 0..255 happens on loading. The same wheel gives the same bytes.
"""

from __future__ import annotations

import gzip
import io
import sys
import zipfile
from pathlib import Path

import numpy as np


def main(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        text = gzip.decompress(archive.read("sklearn/datasets/data/digits.csv.gz"))
    rows = np.loadtxt(io.BytesIO(text), delimiter=",").astype(np.uint8)
    assert rows.shape == (1797, 65)
    assert rows[:, :64].max() == 16
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(target, images=rows[:, :64].reshape(-1, 8, 8), labels=rows[:, 64])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: make_digits.py SCIKIT_LEARN_WHEEL TARGET.npz")
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Prints a digest of what the engine answers, which no instruction set may change.

The sizes take the kernels' longest loops and their remainders, in every dtype.
"""

import hashlib

import numpy as np
import torch
from strategies import DTYPES

import lampfast

_SIZE = 70_001


def digest() -> str:
    """Of masks and pruned weights."""
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.standard_normal(_SIZE))
    ties = torch.from_numpy(rng.integers(-9, 10, _SIZE) / 4.0)
    model = {}
    for dtype in DTYPES:
        model[f"{dtype}, noise"] = noise.to(dtype)
        model[f"{dtype}, every third"] = ties.to(dtype)[1::3]
    found = hashlib.sha256()
    for sparsity in (0.1, 0.5, 0.95):
        for mask in lampfast.masks(model, sparsity).values():
            found.update(mask.numpy().tobytes())
        lampfast.prune(model, sparsity)
        for layer in model.values():
            found.update(layer.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    print(digest())

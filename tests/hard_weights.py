"""Weights that are hard to prune: ties of all sorts, heavy tails, values in a narrow range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)

Values = np.ndarray[Any, Any]
Draw = Callable[[np.random.Generator, tuple[int, int]], Values]


def _normal(rng: np.random.Generator, shape: tuple[int, int]) -> Values:
    return rng.standard_normal(shape)


def _near_one(exponent: int) -> Draw:
    return lambda rng, shape: 1 + rng.random(shape) * 2.0**exponent


def _partly(part: float, value: float) -> Draw:
    return lambda rng, shape: np.where(rng.random(shape) < part, value, _normal(rng, shape))


HARD: dict[str, Draw] = {
    "gaussian": _normal,
    "a few values": lambda rng, shape: np.round(_normal(rng, shape) * 2) / 2,
    "two values": lambda rng, shape: np.where(rng.random(shape) < 0.5, 1.0, 2.0),
    "one value": lambda rng, shape: np.full(shape, 0.7),
    "60% zeros": _partly(0.6, 0.0),
    "95% zeros": _partly(0.95, 0.0),
    "half of them equal": _partly(0.5, 0.5),
    "each 64 times": lambda rng, shape: np.resize(_normal(rng, (shape[0], shape[1] // 64)), shape),
    "Cauchy": lambda rng, shape: rng.standard_cauchy(shape),
    "Cauchy to the third": lambda rng, shape: rng.standard_cauchy(shape) ** 3,
    "exp(20 Gaussian)": lambda rng, shape: np.exp(20 * _normal(rng, shape)),
    "uniform exponents": lambda rng, shape: np.exp(rng.uniform(-80, 80, shape)),
    "powers of two": lambda rng, shape: 2.0 ** rng.integers(-60, 60, shape),
    "subnormal": lambda rng, shape: _normal(rng, shape) * 1e-40,
    "1 + 2^-4 x": _near_one(-4),
    "1 + 2^-12 x": _near_one(-12),
    "1 + 2^-20 x": _near_one(-20),
    "1 + 2^-29 x": _near_one(-29),
    "1 + 2^-45 x": _near_one(-45),
    "sorted": lambda rng, shape: np.sort(_normal(rng, shape), axis=None).reshape(shape),
    "scaled by row": lambda rng, shape: _normal(rng, shape) * np.exp(_normal(rng, (shape[0], 1))),
}


def hard_layers(kind: str, dtype: torch.dtype, layers: int, side: int) -> list[torch.Tensor]:
    """Layers of one kind, the same at every call."""
    rng = np.random.default_rng(1)
    limits = torch.finfo(dtype)
    drawn = [HARD[kind](rng, (side, side)) for _ in range(layers)]
    return [torch.from_numpy(np.clip(it, limits.min, limits.max)).to(dtype) for it in drawn]

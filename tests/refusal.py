"""Errors that change nothing: the right type, the words a user needs, and every byte as it was."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

Weight = torch.Tensor | npt.NDArray[Any]


@contextmanager
def refused(
    error: type[Exception], *words: str, keeps: Iterable[Weight]
) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Require an error with all the words in its message, and the weights' bytes unchanged."""
    weights = list(keeps)
    before = [_bytes(weight) for weight in weights]
    with pytest.raises(error) as caught:
        yield caught
    for word in words:
        assert word in str(caught.value)
    assert [_bytes(weight) for weight in weights] == before


def _bytes(weight: Weight) -> bytes:
    if isinstance(weight, torch.Tensor):
        weight = weight.detach().clone(memory_format=torch.contiguous_format)
        weight = weight.view(-1).view(torch.uint8).cpu().numpy()
    return np.ascontiguousarray(weight).tobytes()

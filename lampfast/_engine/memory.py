"""Which weights share memory: exactly, from addresses, shapes and strides; nothing is read."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from operator import gt
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt


def array(
    address: int, itemsize: int, shape: Sequence[int], strides: Sequence[int]
) -> npt.NDArray[np.void]:
    """An array over any tensor's memory, whatever its dtype, for the questions below.

    Args:
        address: Of the first element.
        itemsize: Bytes an element.
        shape: Its shape.
        strides: Its strides, in elements.

    Returns:
        An array of opaque elements. It does not keep the memory alive, and is never read.
    """
    interface = {
        "version": 3,
        "data": (address, True),
        "typestr": f"|V{itemsize}",
        "shape": tuple(shape),
        "strides": tuple(step * itemsize for step in strides),
    }
    return np.asarray(SimpleNamespace(__array_interface__=interface))


@lru_cache
def reach(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int]:
    """Offsets of the lowest and the highest element from the first, in elements.

    Example:
        >>> reach((3, 4), (-4, 1))
        (-8, 3)
    """
    first = last = 0
    for n, step in zip(shape, strides, strict=True):
        if step < 0:
            first += (n - 1) * step
        else:
            last += (n - 1) * step
    return first, last


def clusters(starts: Sequence[int], stops: Sequence[int]) -> Iterator[list[int]]:
    """Which [start, stop) spans of addresses overlap, directly or through others.

    Example:
        >>> list(clusters([0, 20, 4, 8], [8, 28, 12, 20]))
        [[0, 2, 3]]

    Args:
        starts: Of any number of spans.
        stops: Of the same; one that is empty overlaps nothing.

    Yields:
        Ascending positions of two or more spans; most models yield nothing.
    """
    if not any(map(gt, sorted(stops), sorted(starts)[1:])):
        return  # apart, as every span ends before the next one starts: so it is in most models
    cluster: list[int] = []
    end = 0
    for start, stop, i in sorted(zip(starts, stops, count(), strict=False)):
        if start >= end:
            if len(cluster) > 1:
                yield sorted(cluster)
            cluster = []
        if start < stop:
            cluster.append(i)
            end = max(end, stop)
    if len(cluster) > 1:
        yield sorted(cluster)


def merged_dimensions(array: npt.NDArray[Any]) -> tuple[tuple[int, int], ...]:
    """The (step in bytes, count) of an array's dimensions, neighbours in memory merged into one.

    Views that permute, flip, split or flatten the dimensions of an array have equal ones; a dense
    array has a single one.

    Example:
        >>> w = np.zeros((3, 4, 5), np.float32)
        >>> merged_dimensions(w), merged_dimensions(w.T), merged_dimensions(w[::-1].reshape(3, 20))
        (((4, 60),), ((4, 60),), ((4, 60),))
        >>> merged_dimensions(w[:, :2])
        ((4, 10), (80, 3))
    """
    found = [(array.itemsize, 1)]
    dims = zip(array.strides, array.shape, strict=True)
    for step, n in sorted((abs(step), n) for step, n in dims if n > 1):
        inner, count = found[-1]
        if step == inner * count:
            found[-1] = inner, count * n
        else:
            found.append((step, n))
    return tuple(found)


@lru_cache  # as slices of one parameter are all alike
def are_nested(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether each dimension's step leads beyond all that the smaller steps reach.

    Then no two elements are the same memory; where it is not so, `repeats` tells.

    Example:
        >>> are_nested((3, 4), (8, 2)), are_nested((3, 4), (2, 1))
        (True, False)
    """
    last = 0
    for step, n in sorted((abs(step), n) for step, n in zip(strides, shape, strict=True) if n > 1):
        if step <= last:
            return False
        last += (n - 1) * step
    return True


def repeats(array: npt.NDArray[Any]) -> bool:
    """Whether two elements of an array are the same memory, or overlap.

    Example:
        >>> repeats(np.broadcast_to(np.zeros(3), (2, 3)))
        True
    """
    if len(merged_dimensions(array)) == 1 or not array.size:
        return False
    # Take two elements at the same address. Up to the first dimension d in which their indices
    # differ, both may be moved to index 0, and along d until one of them is at 0: so it is enough
    # to compare the first slice along every d with the later ones, at 0 in all dimensions before.
    fixed = (array[(0,) * d] for d in range(array.ndim))
    return any(np.shares_memory(part[:1], part[1:]) for part in fixed)

"""Shared memory: every answer against a list of all the bytes."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lampfast._engine import memory

shapes_and_strides = st.lists(st.tuples(st.integers(1, 4), st.integers(-7, 7)), max_size=3)


def offsets(shape: list[int], strides: list[int]) -> list[int]:
    places = itertools.product(*map(range, shape))
    return [sum(i * step for i, step in zip(place, strides, strict=True)) for place in places]


@given(shapes_and_strides)
def test_repeats(dims: list[tuple[int, int]]) -> None:
    shape, strides = [n for n, _ in dims], [step for _, step in dims]
    every = offsets(shape, strides)
    array = memory.array(10_000, 4, shape, strides)
    assert memory.repeats(array) == (len(set(every)) < len(every))


@given(shapes_and_strides)
def test_reach(dims: list[tuple[int, int]]) -> None:
    shape, strides = [n for n, _ in dims], [step for _, step in dims]
    every = offsets(shape, strides)
    assert memory.reach(tuple(shape), tuple(strides)) == (min(every), max(every))


@given(shapes_and_strides)
def test_nested_strides_repeat_nothing(dims: list[tuple[int, int]]) -> None:
    shape, strides = [n for n, _ in dims], [step for _, step in dims]
    every = offsets(shape, strides)
    if memory.are_nested(tuple(shape), tuple(strides)):
        assert len(set(every)) == len(every)


def runs(dims: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    shape, strides = [n for n, _ in dims], [step for _, step in dims]
    return memory.merged_dimensions(memory.array(10_000, 4, shape, strides))


def places(dims: list[tuple[int, int]]) -> list[int]:
    """Where the elements lie, from the lowest on."""
    every = offsets([n for n, _ in dims], [step for _, step in dims])
    return sorted(offset - min(every) for offset in every)


@given(shapes_and_strides, st.data())
def test_the_same_memory_in_another_order_has_the_same_runs(
    dims: list[tuple[int, int]], data: st.DataObject
) -> None:
    other = [
        (n, data.draw(st.sampled_from([step, -step])))
        for n, step in data.draw(st.permutations(dims))
    ]
    assert places(other) == places(dims)
    assert runs(other) == runs(dims)


@given(shapes_and_strides.filter(bool), st.data())
def test_other_memory_has_other_runs(dims: list[tuple[int, int]], data: st.DataObject) -> None:
    other = list(dims)
    changed = data.draw(st.integers(0, len(dims) - 1))
    other[changed] = data.draw(st.tuples(st.integers(1, 4), st.integers(-7, 7)))
    assume(places(other) != places(dims))
    assert runs(other) != runs(dims)


@given(st.permutations(range(4)), st.lists(st.booleans(), min_size=4, max_size=4))
def test_runs_of_a_permuted_and_flipped_array(order: list[int], flips: list[bool]) -> None:
    array = np.zeros((2, 3, 4, 5), np.float32)
    view = array[tuple(slice(None, None, -1 if flip else 1) for flip in flips)].transpose(order)
    assert memory.merged_dimensions(view) == ((4, 120),)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)), max_size=8))
def test_clusters(starts_and_sizes: list[tuple[int, int]]) -> None:
    spans = [(start, start + size) for start, size in starts_and_sizes]
    group = list(range(len(spans)))  # of every span, the least position that it is connected to
    for _ in spans:
        for i, (start, stop) in enumerate(spans):
            for j, (other_start, other_stop) in enumerate(spans):
                if max(start, other_start) < min(stop, other_stop):
                    group[i] = min(group[i], group[j])
    expected = [[i for i in range(len(spans)) if group[i] == g] for g in range(len(spans))]
    starts, stops = [start for start, _ in spans], [stop for _, stop in spans]
    found = memory.clusters(starts, stops)
    assert sorted(found) == [cluster for cluster in expected if len(cluster) > 1]


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), ()])
def test_empty_and_single(shape: tuple[int, ...]) -> None:
    assert not memory.repeats(np.broadcast_to(np.float32(1), shape))

"""Schedules against their formulas; exact at the ends, never down, values and not objects."""

import copy
import pickle
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lampfast import schedules
from lampfast.schedules import Schedule, constant, cubic, geometric, linear

FRACTIONS = st.one_of(st.sampled_from([0.0, 0.1, 0.3, 0.9, 1.0, 5e-324]), st.floats(0, 1))
STEPS = st.one_of(st.integers(0, 50), st.integers(0, 10**7))


@st.composite
def ramps(draw: st.DrawFn, kind: type[cubic] | type[linear]) -> cubic | linear:
    """A ramp with any ends, length and start."""
    initial, final = sorted([draw(FRACTIONS), draw(FRACTIONS)])
    steps = draw(st.one_of(st.integers(1, 20), st.integers(1, 10**7)))
    return kind(final, steps, initial=initial, start=draw(STEPS))


@pytest.mark.parametrize(("kind", "power"), [(cubic, 3), (linear, 1)])
@given(st.data())
def test_ramps_follow_their_formula(
    kind: type[cubic] | type[linear], power: int, data: st.DataObject
) -> None:
    ramp = data.draw(ramps(kind))
    step = ramp.start + data.draw(st.integers(0, ramp.steps))
    initial, final = Fraction(ramp.initial), Fraction(ramp.final)
    progress = Fraction(step - ramp.start, ramp.steps)
    exact = final + (initial - final) * (1 - progress) ** power
    assert abs(Fraction(ramp(step)) - exact) <= 2**-50


@pytest.mark.parametrize("kind", [cubic, linear])
@given(st.data())
def test_ramps_are_exact_at_their_ends_and_never_go_down(
    kind: type[cubic] | type[linear], data: st.DataObject
) -> None:
    ramp = data.draw(ramps(kind))
    end = ramp.start + ramp.steps
    assert ramp(ramp.start) == ramp.initial
    assert ramp(end) == ramp(end + 1) == ramp(10 * end) == ramp.final
    assert ramp.start == 0 or ramp(ramp.start - 1) == ramp(0) == 0.0
    first = data.draw(st.integers(0, end))
    values = [ramp(step) for step in range(first, first + 30)]
    assert all(a <= b for a, b in pairwise([*values, ramp.final]))


@given(
    st.integers(1, 10**6),
    st.one_of(st.just(0.2), st.floats(0, 1)),
    st.none() | st.integers(1, 100),
    st.none() | st.integers(0, 10**6),
    st.integers(0, 10**7),
)
def test_geometric_prunes_a_fraction_of_what_remains_at_each_round(
    interval: int, fraction: float, rounds: int | None, start: int | None, step: int
) -> None:
    schedule = geometric(interval, fraction=fraction, rounds=rounds, start=start)
    first = interval if start is None else start
    step = min(step, first + 200 * interval)
    done = len(range(first, step + 1, interval)[: rounds or 10**9])
    remaining = 1.0
    for _ in range(done):
        remaining *= 1 - fraction
    assert schedule(step) == pytest.approx(1 - remaining, rel=1e-12, abs=1e-12)
    assert 0.0 <= schedule(step) <= schedule(step + interval) <= 1.0


def test_geometric_is_the_protocol_of_the_paper() -> None:
    """Percentages that remain after every fifth round."""
    by_round = geometric(rounds=20)
    remaining = [round(100 * (1 - by_round(done)), 1) for done in range(0, 21, 5)]
    assert remaining == [100.0, 32.8, 10.7, 3.5, 1.2]
    assert by_round(21) == by_round(20)
    after_long_training = geometric(10, start=100)
    assert [after_long_training(step) for step in (99, 100, 109)] == [0.0, by_round(1), by_round(1)]
    assert after_long_training(110) == by_round(2)
    everything = geometric(fraction=1.0)
    assert [everything(done) for done in range(3)] == [0.0, 1.0, 1.0]


@given(FRACTIONS, STEPS, STEPS)
def test_constant(sparsity: float, start: int, step: int) -> None:
    assert constant(sparsity, start=start)(step) == (sparsity if step >= start else 0.0)


@pytest.mark.parametrize(
    "schedule",
    [
        geometric(10, fraction=0.1, rounds=3, start=4),
        cubic(0.9, 10, initial=0.1, start=5),
        linear(0.9, 10, initial=0.1, start=5),
        constant(0.9, start=5),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_schedules_are_values(schedule: Schedule) -> None:
    assert eval(repr(schedule), vars(schedules)) == schedule
    for twin in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert twin == schedule
        assert hash(twin) == hash(schedule)
    with pytest.raises(AttributeError):
        schedule.start = 0  # type: ignore[attr-defined]


def test_schedules_of_another_kind_differ() -> None:
    assert len({cubic(0.9, 10), linear(0.9, 10), cubic(0.9, 10), cubic(0.9, 11)}) == 3


def test_other_numbers_will_do() -> None:
    schedule = cubic(np.float32(0.5), np.int64(10))  # type: ignore[arg-type]
    assert [type(schedule(step)) for step in (0, 5, 10)] == [float] * 3
    assert [type(linear(1, 10)(step)) for step in (0, 5, 10)] == [float] * 3
    assert type(constant(1)(0)) is type(geometric(fraction=np.float32(0.5))(1)) is float  # type: ignore[arg-type]


def test_rounding_does_not_exceed_the_end() -> None:
    assert cubic(0.9, 10**6, initial=0.3)(999_999) <= 0.9


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: geometric(0), ValueError, ("interval is 0", "least is 1")),
        (lambda: geometric(1.5), TypeError, ("interval is 1.5", "int")),  # type: ignore[arg-type]
        (lambda: geometric(True), TypeError, ("interval is a bool",)),
        (lambda: geometric(fraction=1.2), ValueError, ("fraction is 1.2", "0.0 to 1.0")),
        (lambda: geometric(rounds=0), ValueError, ("rounds is 0",)),
        (lambda: geometric(start=-1), ValueError, ("start is -1",)),
        (lambda: cubic(90, 100), ValueError, ("final is 90", "such as 0.9 for 90 %")),
        (lambda: cubic(float("nan"), 100), ValueError, ("final is nan",)),
        (lambda: cubic("0.9", 100), TypeError, ("final is a str",)),  # type: ignore[arg-type]
        (lambda: cubic(True, 100), TypeError, ("final is a bool",)),
        (lambda: cubic(0.9, 0), ValueError, ("steps is 0", "least is 1")),
        (lambda: cubic(0.9, 1e4), TypeError, ("steps is 10000.0", "pass an int")),  # type: ignore[arg-type]
        (lambda: cubic(0.5, 10, initial=0.6), ValueError, ("initial is 0.6", "final is 0.5")),
        (lambda: linear(0.5, 10, initial=-0.1), ValueError, ("initial is -0.1",)),
        (lambda: linear(0.5, 10, start=-5), ValueError, ("start is -5",)),
        (lambda: constant(1.1), ValueError, ("sparsity is 1.1",)),
        (lambda: constant(0.5, start=0.5), TypeError, ("start is 0.5",)),  # type: ignore[arg-type]
    ],
)
def test_arguments_are_checked_when_a_schedule_is_made(
    make: Callable[[], Schedule], error: type[Exception], words: tuple[str, ...]
) -> None:
    with pytest.raises(error) as caught:
        make()
    for word in words:
        assert word in str(caught.value)

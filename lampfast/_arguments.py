"""Checks the numbers and schedules that callers pass, with one set of error texts."""

from collections.abc import Callable
from functools import wraps
from math import inf
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

_OTHER_NAMES = (
    "s",
    "amount",
)  # of the sparsity: ours before it was named so, and torch.nn.utils.prune's

FRACTION = "a fraction of weights is a float from 0.0 to 1.0, such as 0.9 for 90 %"


def fraction(name: str, value: object) -> float:
    """A sparsity or other share as a float, if it is one.

    Example:
        >>> fraction("final", 0.9), fraction("final", 1)
        (0.9, 1.0)

    Args:
        name: What the caller calls it.
        value: What was passed.

    Returns:
        The value as a float.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not in [0, 1].
    """
    return float(_checked(name, value, Real, 0, 1, FRACTION))


def integer(name: str, value: object, least: int, most: float = inf) -> int:
    """A number of steps, rounds or weights as an int, if it is one.

    Example:
        >>> integer("every", 10, least=1)
        10

    Args:
        name: What the caller calls it.
        value: What was passed.
        least: The smallest that it may be.
        most: The largest that it may be.

    Returns:
        The value as an int.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is below `least` or above `most`.
    """
    expected = f"pass an int from {least} to {most}"
    if most == inf:
        expected = f"pass an int; the least is {least}"
    return int(_checked(name, value, Integral, least, most, expected))


def flag(name: str, value: object) -> bool:
    """What is on or off, if it is that.

    Raises:
        TypeError: It is neither True nor False.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is a {type(value).__name__}; pass True or False")
    return value


def amount(name: str, value: object) -> None:
    """Check what is a fraction, or a number of weights that are not known yet.

    Raises:
        TypeError: It is no number.
        ValueError: It is out of range.
    """
    if isinstance(value, Integral):
        integer(name, value, least=0)
    else:
        fraction(name, value)


def count(name: str, value: object, numel: int) -> int:
    """How many of `numel` weights a sparsity means.

    Example:
        >>> count("sparsity", 0.9, 1000), count("sparsity", 900, 1000)
        (900, 900)

    Args:
        name: What the caller calls it.
        value: A float is the fraction to prune, 0.0 to 1.0; an int is the number of weights itself.
        numel: How many weights there are.

    Returns:
        `round(value * numel)` for a float, `value` for an int.

    Raises:
        TypeError: It is neither, or a bool.
        ValueError: It is out of range.
    """
    expected = f"{FRACTION}; a number of weights is an int from 0 to {numel}"
    if isinstance(value, Integral):
        return int(_checked(name, value, Integral, 0, numel, expected))
    return round(float(_checked(name, value, Real, 0, 1, expected)) * numel)


def schedule(value: Callable[[int], float]) -> Callable[[int], float]:
    """A schedule, if it is something that gives a sparsity for a step.

    Raises:
        TypeError: It is not.
    """
    if isinstance(value, type):
        raise TypeError(
            f"schedule is the class {value.__name__} itself; call it with its numbers, as in "
            "lampfast.schedules.constant(0.9)"
        )
    if not callable(value):
        raise TypeError(
            f"schedule is a {type(value).__name__}; pass a callable from a step to a sparsity, "
            "such as lampfast.schedules.constant(0.9)"
        )
    return value


def _checked(name: str, value: Any, kind: type, least: float, most: float, expected: str) -> Any:
    """A value, if it is a number of this kind and in this range; bools are not numbers here."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    is_of_kind = is_number and isinstance(value, kind)
    if not is_of_kind:
        shown = f"{value}, " if is_number else ""
        raise TypeError(f"{name} is {shown}a {type(value).__name__}; {expected}")
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}; {expected}")
    return value


def by_its_name(verb: Callable[_P, _R]) -> Callable[_P, _R]:
    """A verb that tells those who call its sparsity by another name what it is called.

    Example:
        >>> by_its_name(lambda model, sparsity: sparsity)([], s=0.9)
        Traceback (most recent call last):
        TypeError: <lambda>() has no argument 's'; pass sparsity=0.9
    """

    @wraps(verb)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        for name in _OTHER_NAMES:
            if name in kwargs:
                raise TypeError(
                    f"{verb.__name__}() has no argument {name!r}; pass sparsity={kwargs[name]!r}"
                )
        return verb(*args, **kwargs)

    return call

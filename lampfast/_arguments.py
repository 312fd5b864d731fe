"""Checks of the numbers that the rooms around training take."""

from collections.abc import Callable
from numbers import Integral, Real


def fraction(name: str, value: object) -> float:
    """A sparsity or other share as a float, if it is one.

    Example:
        >>> fraction("final", 0.9), fraction("final", 1)
        (0.9, 1.0)

    Raises:
        TypeError: It is not a number.
        ValueError: It is not in [0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"{name} is a {type(value).__name__}; a fraction of weights is a float, such as 0.9"
        )
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError(
            f"{name} is {value}; a fraction of weights lies in 0.0 to 1.0, such as 0.9 for 90 %"
        )
    return number


def integer(name: str, value: object, least: int) -> int:
    """A number of steps or rounds as an int, if it is one.

    Example:
        >>> integer("every", 10, least=1)
        10

    Raises:
        TypeError: It is not an integer.
        ValueError: It is below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}, a {type(value).__name__}; pass an int")
    if value < least:
        raise ValueError(f"{name} is {value}; the least is {least}")
    return int(value)


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

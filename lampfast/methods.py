"""How the pruned weights are shared among the layers: by LAMP, or by one of its baselines.

`Method` and `Allocation` are the types of every argument `method=`; `kept_counts` says how many
weights each layer keeps by a method that does not look at magnitudes.
"""

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, TypeAlias, get_args

from lampfast import _arguments, _core, parameters
from lampfast._engine import calls
from lampfast._engine.views import View

__all__ = ["Allocation", "Method", "kept_counts"]

Method: TypeAlias = Literal["lamp", "global", "uniform", "uniform+", "erk"]
"""How a sparsity of all layers together is shared among them; see `lampfast.prune`."""
Allocation: TypeAlias = Mapping[str, float]
"""The sparsity of each layer, by its name or by a glob pattern: `{"*": 0.5, "*.mlp.*": 0.7}`."""
Shape: TypeAlias = Sequence[int]

_METHODS = get_args(Method)
_LOOKING = ("lamp", "global")  # those that look at magnitudes


def check(method: object) -> None:
    """Check that a method is known.

    Raises:
        TypeError: It is no str.
        ValueError: It is not known.
    """
    if not isinstance(method, str):
        raise TypeError(f"method is a {type(method).__name__}; choose one of {_METHODS}")
    if method not in _METHODS:
        near = difflib.get_close_matches(method.strip().lower(), _METHODS, 1)
        meant = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"method={method!r} is not known{meant}; choose one of {_METHODS}")


def check_choice(sparsity: object, method: object) -> None:
    """Check that what is to be pruned is said once: by a sparsity and a method, or an allocation.

    Raises:
        TypeError: There is no sparsity, or one beside an allocation; or as `check`.
        ValueError: As `check`.
    """
    if isinstance(method, Mapping):
        if sparsity is not None:
            raise TypeError(
                f"sparsity is {sparsity!r}, and method gives the layers sparsities of their own; "
                f"leave the sparsity out, or choose one of {_METHODS}"
            )
        if not method:
            raise ValueError("method is an empty mapping; give at least one layer a sparsity")
        for pattern in method:
            if not isinstance(pattern, str):
                raise TypeError(
                    f"method has the key {pattern!r}; pass layer names, or glob patterns of them"
                )
        return
    check(method)
    if sparsity is None:
        raise TypeError(
            f"sparsity is missing; {_arguments.FRACTION}, or give every layer its own by "
            "method={pattern: fraction}"
        )


def allocation_spec(
    allocation: Allocation, stacks: Mapping[str, list[str]], layers: Sequence[View]
) -> _core.SelectionSpec:
    """What the engine is to select where layers are given sparsities of their own.

    Args:
        allocation: Sparsities by layer name, by the name of a stack, or by pattern.
        stacks: By parameter that holds several layers, their names.
        layers: The distinct layers.

    Raises:
        TypeError: A pattern is no str, or a sparsity no number.
        ValueError: A pattern matches nothing, or nothing that later ones do not match too; or a
            sparsity is out of range.
    """
    meant = {layer.name: [layer.name] for layer in layers}
    by_rank = dict.fromkeys(stacks, 1) | dict.fromkeys(meant, 2)
    meant |= {name: slices for name, slices in stacks.items() if set(slices) <= meant.keys()}
    chosen: dict[str, str] = {}
    for pattern in sorted(allocation, key=lambda it: by_rank.get(it, 0)):
        for name in parameters.matching("method", [pattern], meant):
            chosen |= dict.fromkeys(meant[name], pattern)
    for pattern in allocation.keys() - set(chosen.values()):
        raise ValueError(
            f"method[{pattern!r}] decides no layer, as later patterns, or names, match all of its; "
            "put general patterns first, and leave out what is not needed"
        )
    pruned = []
    for layer in layers:
        deciding = chosen.get(layer.name)
        asked = 0 if deciding is None else allocation[deciding]
        pruned.append(_arguments.count(f"method[{deciding!r}]", asked, layer.size))
    return _core.SelectionSpec(_core.Ranking.per_layer, pruned)


def selection_spec(
    method: Method,
    count: int,
    layers: Sequence[View],
    sources: Sequence[View],
    tiles: Sequence[tuple[int, int, int]] | None = None,
) -> _core.SelectionSpec:
    """What the engine is to select for a method that prunes `count` weights of all layers together.

    Args:
        method: How the weights are shared among the layers.
        count: How many are pruned in all.
        layers: Views that the engine can reach.
        sources: What is scored in the layers' place, or the layers themselves.
        tiles: Where blocks are pruned, those of each layer.

    Raises:
        ValueError: The method cannot prune as many weights.
    """
    match method:
        case "lamp":
            return _core.SelectionSpec(_core.Ranking.lamp, [count])
        case "global":
            return _core.SelectionSpec(_core.Ranking.magnitude, [count])
    if tiles is not None:
        zeros = calls.sizes_of_zero_blocks(layers, sources, tiles)
    else:
        zeros = [found.pruned for found in calls.zero_thresholds(layers, sources)]
    return spec_beside_zeros(method, count, [layer.weight.shape for layer in layers], zeros)


def looks_at_magnitudes(method: Method) -> bool:
    """Whether a method need not be told how many weights are zero already."""
    return method in _LOOKING


def spec_beside_zeros(
    method: Method, count: int, shapes: Sequence[Shape], zeros: Sequence[int]
) -> _core.SelectionSpec:
    """What the engine is to select for a method that does not look at magnitudes."""
    sizes = [_product(shape) for shape in shapes]
    kept = _kept_counts(method, sum(sizes) - count, shapes, zeros)
    pruned = [size - stay for size, stay in zip(sizes, kept, strict=True)]
    return _core.SelectionSpec(_core.Ranking.per_layer, pruned)


def kept_counts(
    method: Method, kept: int, shapes: Sequence[Shape], zeros: Sequence[int]
) -> list[int]:
    """How many weights each layer keeps by a method that does not look at their magnitudes.

    Example:
        >>> from lampfast import methods
        >>> methods.kept_counts("erk", 1000, [(16, 3, 3, 3), (32, 16, 3, 3), (10, 32)], [0, 0, 0])
        [215, 465, 320]

    Args:
        method: "uniform", "uniform+" or "erk".
        kept: How many weights all layers keep together, 0 to as many as there are.
        shapes: The layers' shapes.
        zeros: How many weights of each layer are zero already.

    Returns:
        Counts whose sum is `kept`, none above what remains of its layer. Only where more are to be
        kept than remain, zeros count as kept, in proportion to each layer's.

    Raises:
        TypeError: An argument has another type.
        ValueError: The method looks at magnitudes or is not known, a number is out of range, or
            "uniform+" has to keep more.
    """
    check(method)
    if method in _LOOKING:
        others = [other for other in _METHODS if other not in _LOOKING]
        raise ValueError(f"method={method!r} looks at magnitudes; choose one of {others}")
    for name, given in (("shapes", shapes), ("zeros", zeros)):
        if not isinstance(given, Sequence) or isinstance(given, str | bytes | bytearray):
            raise TypeError(f"{name} is a {type(given).__name__}; pass a list with one a layer")
    if len(shapes) != len(zeros) or not shapes:
        raise ValueError(
            f"shapes has {len(shapes)} and zeros {len(zeros)} layers; pass both of the same layers"
        )
    for i, (shape, zero) in enumerate(zip(shapes, zeros, strict=True)):
        if not isinstance(shape, Sequence) or isinstance(shape, str | bytes | bytearray):
            raise TypeError(f"shapes has a {type(shape).__name__} at position {i}; pass a tuple")
        for length in shape:
            _arguments.integer(f"a length in shapes at position {i}", length, least=0)
        _arguments.integer(f"zeros at position {i}", zero, least=0, most=_product(shape))
    _arguments.integer("kept", kept, least=0, most=sum(map(_product, shapes)))
    return _kept_counts(method, kept, shapes, zeros)


def _kept_counts(
    method: Method, kept: int, shapes: Sequence[Shape], zeros: Sequence[int]
) -> list[int]:
    sizes = [_product(shape) for shape in shapes]
    remaining = [size - zero for size, zero in zip(sizes, zeros, strict=True)]
    surplus = kept - sum(remaining)
    if surplus >= 0:
        more = _shares(surplus, zeros, zeros)
        return [stay + zero for stay, zero in zip(remaining, more, strict=True)]
    match method:
        case "uniform":
            return _shares(kept, remaining, remaining)
        case "erk":
            return _shares(kept, remaining, [max(sum(shape), 1) for shape in shapes])
        case "uniform+":
            return _uniform_plus(kept, shapes, sizes, remaining)
    raise AssertionError(method)


def _uniform_plus(
    kept: int, shapes: Sequence[Shape], sizes: Sequence[int], remaining: Sequence[int]
) -> list[int]:
    """The first layer stays, if it is a convolution; the last keeps a fifth of its size."""
    first, last = 0, len(shapes) - 1
    fixed = {}
    if len(shapes[first]) > 2:
        fixed[first] = remaining[first]
    fifth = {} if last in fixed else {last: min(-(-sizes[last] // 5), remaining[last])}
    least = sum(fixed.values()) + sum(fifth.values())
    if kept < least:
        raise ValueError(
            "method='uniform+' leaves the first layer as it is, if it is a convolution, and a "
            f"fifth of the last one: of these {sum(sizes)} weights it keeps at least {least}, but "
            f"sparsity asks it to keep {kept}; pass a smaller one, or choose another method"
        )
    shares = _shares_beside(fixed, kept, remaining)
    if fifth and shares[last] < fifth[last]:
        shares = _shares_beside(fixed | fifth, kept, remaining)
    return shares


def _shares_beside(fixed: dict[int, int], kept: int, remaining: Sequence[int]) -> list[int]:
    """The fixed layers keep what they keep, the others the same part of what remains of each."""
    free = [0 if i in fixed else size for i, size in enumerate(remaining)]
    shares = _shares(kept - sum(fixed.values()), free, free)
    return [fixed.get(i, share) for i, share in enumerate(shares)]


def _shares(total: int, limits: Sequence[int], weights: Sequence[int]) -> list[int]:
    """Integers in proportion to the weights, none above its limit, whose sum is `total`.

    What a share would have above its limit goes to the others, in the same proportion. Shares are
    rounded by the largest remainder; of equal ones the earlier layers' are rounded up.
    """
    full: set[int] = set()
    while True:
        free = [i for i in range(len(limits)) if i not in full]
        rest, whole = total - _sum_of(limits, full), _sum_of(weights, free)
        over = {i for i in free if rest * weights[i] > limits[i] * whole}
        if not over:
            break
        full |= over
    shares, remainders = list(limits), {}
    for i in free:
        shares[i], remainders[i] = divmod(rest * weights[i], max(whole, 1))
    for i in sorted(free, key=remainders.__getitem__, reverse=True)[: total - sum(shares)]:
        shares[i] += 1
    return shares


def _sum_of(numbers: Sequence[int], positions: Collection[int]) -> int:
    return sum(numbers[i] for i in positions)


def _product(shape: Shape) -> int:
    result = 1
    for length in shape:
        result *= length
    return result

"""n:m patterns: along a layer's inputs, each group of m weights keeps the n that are largest."""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from torch import nn

from lampfast import _arguments, _modules
from lampfast._engine.calls import Groups
from lampfast._engine.stacks import Layers, Stack
from lampfast._engine.views import View

_MOST = 64
_FORM = re.compile(r"(\d*):(\d+)")


class Pattern(NamedTuple):
    """What `pattern=` and `dim=` ask for.

    Attributes:
        kept: n, how many weights of a group stay; None where each layer gets an n of its own.
        size: m, the size of a group.
        dim: The dimension along which a group lies; None for that of a layer's inputs.
    """

    kept: int | None
    size: int
    dim: int | None


def parse(pattern: str | None, dim: int | None = None) -> Pattern | None:
    """What is asked for, if it is a pattern.

    Example:
        >>> parse("2:4"), parse(":8", dim=0)
        (Pattern(kept=2, size=4, dim=None), Pattern(kept=None, size=8, dim=0))

    Raises:
        TypeError: It is no str, or the dimension no int.
        ValueError: It has another form, keeps more than there are, or a group is too large.
    """
    if dim is not None:
        _arguments.integer("dim", dim, least=-_MOST, most=_MOST)
    if pattern is None:
        if dim is not None:
            raise TypeError(f"dim={dim} says how groups lie, but there is no pattern; pass both")
        return None
    way_out = (
        "pass 'n:m' to keep n of every m weights, as in '2:4', or ':m', as in ':8', for an n of "
        f"each layer's own by its share of the sparsity; m is 2 to {_MOST}, and n 1 to m"
    )
    if not isinstance(pattern, str):
        raise TypeError(f"pattern is a {type(pattern).__name__}; {way_out}")
    found = _FORM.fullmatch(pattern)
    if found is None:
        raise ValueError(f"pattern={pattern!r} has another form; {way_out}")
    kept, size = found.groups()
    n, m = int(kept) if kept else None, int(size)
    if not 2 <= m <= _MOST or (n is not None and not 1 <= n <= m):
        raise ValueError(f"pattern={pattern!r} is out of range; {way_out}")
    return Pattern(n, m, dim)


def check_scheduled(pattern: str | None, dim: int | None) -> None:
    """Check what is asked for where a schedule gives the sparsity.

    Raises:
        TypeError: As `parse`.
        ValueError: As `parse`; or the pattern gives n itself.
    """
    parsed = parse(pattern, dim)
    if parsed is not None and parsed.kept is not None:
        raise ValueError(
            f"pattern={pattern!r} says by itself how much is pruned, and here a schedule does; "
            f"pass pattern=':{parsed.size}', or prune once by the pattern and call keep_zeros"
        )


def input_dims(model: object, found: Layers, layers: Sequence[View], dim: int | None) -> list[int]:
    """The dimension of each layer along which its groups lie.

    Raises:
        ValueError: A layer has no such dimension.
    """
    own = {} if dim is not None else _first_dims(model, found)
    dims = []
    for layer in layers:
        ndim = len(layer.shape)
        if ndim == 0:
            raise ValueError(
                f"layer {layer.name!r} has no dimension along which groups of weights could lie; "
                "leave it out with exclude="
            )
        chosen = min(own.get(layer.name, 1), ndim - 1) if dim is None else dim
        if not -ndim <= chosen < ndim:
            raise ValueError(
                f"dim={dim} is not one of layer {layer.name!r} of shape {tuple(layer.shape)}; pass "
                "one that every layer has, or leave the layer out with exclude="
            )
        dims.append(chosen % ndim)
    return dims


def _first_dims(model: object, found: Layers) -> dict[str, int]:
    """The names of layers that have their inputs in the first dimension, with that."""
    if isinstance(model, nn.Module):
        model, _ = _modules.unwrapped(model)
        modules = {
            _modules.plain_name(f"{name}.").removesuffix("."): module
            for name, module in model.named_modules(remove_duplicate=False)
        }
    elif isinstance(model, Sequence):
        modules = {str(i): entry[0] for i, entry in enumerate(model) if isinstance(entry, tuple)}
    else:
        modules = {}
    halved = {name.rpartition(".")[0] for name, it in found.stacks.items() if _is_across(it)}
    dims = {}
    for name in found.wholes:
        owner = name.rpartition(".")[0]
        module = modules.get(owner)
        if owner in halved or (module is not None and _modules.has_inputs_first(module)):
            dims.update(dict.fromkeys(found.names(name), 0))
    return dims


def _is_across(stack: Stack) -> bool:
    """Whether gate and up lie side by side in the last dimension, where outputs are then."""
    return stack.halves is not None and stack.halves.dim == 2


def kept_of(pruned: Sequence[int], sizes: Sequence[int], size: int) -> list[int]:
    """How many weights of a group each layer keeps, for the numbers that it is to prune.

    What a layer keeps of a group is rounded down, but is at least 1 of a layer that keeps any; then
    up for the layers with the largest remainders, the earlier one first, for as many of them as
    bring the weights that are kept nearest to what was asked for.

    Example:
        >>> kept_of([50, 90], [100, 100], 8)  # 4 and 0.8 of 8 are asked for
        [4, 1]

    Raises:
        ValueError: Less than one weight of a group would stay.
    """
    total, kept = sum(sizes), sum(sizes) - sum(pruned)
    if kept * size < total:
        raise ValueError(
            f"sparsity asks to keep {kept} of {total} weights, which is less than one in a group "
            f"of {size}; pass a smaller one, or a pattern of larger groups"
        )
    shares = [(numel - gone) * size for numel, gone in zip(sizes, pruned, strict=True)]
    counts = [
        max(share // max(numel, 1), min(share, 1))
        for share, numel in zip(shares, sizes, strict=True)
    ]
    over = sum(n * numel for n, numel in zip(counts, sizes, strict=True)) - kept * size
    remainders = [share - n * numel for share, n, numel in zip(shares, counts, sizes, strict=True)]
    order = sorted(
        (i for i, rest in enumerate(remainders) if rest > 0),
        key=lambda i: Fraction(remainders[i], sizes[i]),
        reverse=True,
    )
    best, nearest = 0, abs(over)
    for raised, i in enumerate(order, 1):
        over += sizes[i]
        if abs(over) < nearest:
            best, nearest = raised, abs(over)
    for i in order[:best]:
        counts[i] += 1
    return counts


def groups(
    pattern: Pattern, dims: Sequence[int], sizes: Sequence[int], pruned: Sequence[int] | None
) -> Groups:
    """What the engine is to keep: the pattern's n, or one for each layer by what it is to prune."""
    if pattern.kept is not None or pruned is None:
        assert pattern.kept is not None
        counts = [pattern.kept] * len(dims)
    else:
        counts = kept_of(pruned, sizes, pattern.size)
    return Groups([(n, pattern.size, dim) for n, dim in zip(counts, dims, strict=True)])


def check_alone(pattern: Pattern, sparsity: object, method: object) -> None:
    """Check that what is asked for is said once.

    Raises:
        TypeError: n:m comes with a sparsity or a method, which it says itself.
    """
    asked = f"'{pattern.kept}:{pattern.size}'"
    if sparsity is not None or isinstance(method, Mapping) or method != "lamp":
        raise TypeError(
            f"pattern={asked} says by itself how many weights of every layer go; leave sparsity "
            f"and method out, or pass pattern=':{pattern.size}' to let them choose n for each layer"
        )

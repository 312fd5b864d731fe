"""n:m patterns: along a layer's inputs, each group of m weights keeps the n that are largest."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from lampfast import _arguments, _modules
from lampfast._engine import copies
from lampfast._engine.calls import Groups
from lampfast._engine.stacks import Layers, Stack
from lampfast._engine.views import View

if TYPE_CHECKING:
    from lampfast._engine.sharded import Cuts

_MOST = 64
_FORM = re.compile(r"([0-9]*):([0-9]+)")


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


class Grouped(NamedTuple):
    """A layer whose weights lie in groups along a dimension.

    Attributes:
        name: Its name.
        numel: How many weights it has.
        dim: The dimension.
        extent: How long it is.
    """

    name: str
    numel: int
    dim: int
    extent: int

    def kept(self, n: int, m: int) -> int:
        """How many weights stay if n of m do, and of a shorter group as many in proportion.

        Example:
            >>> Grouped("fc", 70, 1, 7).kept(2, 4)  # of each 7: 2 of 4, and 2 of 3
            40
        """
        if not self.numel:
            return 0
        short = -(-n * (self.extent % m) // m)
        return self.numel // self.extent * (self.extent // m * n + short)

    def most(self, count: int, m: int) -> int:
        """The largest n that keeps no more than so many weights; 1 if it is to keep any."""
        n = min(count * m // max(self.numel, 1), m)
        while self.kept(n, m) > count:
            n -= 1
        return max(n, min(count, 1))


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


def check_scheduled(pattern: str | None, dim: int | None, schedule: object) -> None:
    """Check what is asked for where a schedule gives the sparsity.

    Raises:
        TypeError: As `parse`.
        ValueError: As `parse`; or the pattern gives n itself, or keeps more than the schedule, as
            far as that tells its end.
    """
    parsed = parse(pattern, dim)
    end = getattr(schedule, "final", getattr(schedule, "sparsity", None))
    if parsed is not None and isinstance(end, float) and end > 1 - 1 / parsed.size:
        raise ValueError(
            f"schedule ends at {end}, and pattern={pattern!r} keeps one weight in a group of "
            f"{parsed.size} at least; end at most {1 - 1 / parsed.size}, or pass a pattern of "
            "larger groups"
        )
    if parsed is not None and parsed.kept is not None:
        raise ValueError(
            f"pattern={pattern!r} says by itself how much is pruned, and here a schedule does; "
            f"pass pattern=':{parsed.size}', or prune once by the pattern and call keep_zeros"
        )


def grouped(own: Mapping[str, int], layers: Sequence[View], dim: int | None) -> list[Grouped]:
    """The layers with the dimensions along which their groups lie.

    Args:
        own: What `first_dims` has found.
        layers: The distinct layers.
        dim: The dimension that is asked for; None for that of a layer's inputs.

    Raises:
        ValueError: A layer has no such dimension.
    """
    cut = []
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
        at = chosen % ndim
        cut.append(Grouped(layer.name, layer.size, at, layer.shape[at]))
    return cut


def check_cuts(size: int, layers: Iterable[Grouped], cuts: Iterable[Cuts]) -> None:
    """Check that no group of a sharded layer lies on both sides of a cut.

    Args:
        size: m.
        layers: The layers.
        cuts: Where they are cut.

    Raises:
        ValueError: One does.
    """
    for layer, cut in zip(layers, cuts, strict=True):
        for at in cut.positions[layer.dim]:
            if at % size:
                raise ValueError(
                    f"layer {layer.name!r} of shape {cut.shape} with {cut.why} is cut at {at} "
                    f"along dimension {layer.dim}, inside a group of {size} weights; shard it "
                    f"along another dimension or at multiples of {size}, pass dim= for groups "
                    "along another one, or choose the pattern before the model is sharded"
                )


def first_dims(model: object, found: Layers) -> dict[str, int]:
    """The names of layers that have their inputs in the first dimension, with that.

    Other layers have them in dimension 1, vectors in their only one.
    """
    if isinstance(model, nn.Module):
        model, _ = _modules.unwrapped(model)
        modules = {
            _modules.plain_name(f"{name}.").removesuffix("."): module
            for name, module in model.named_modules(remove_duplicate=False)
        }
    elif isinstance(model, Sequence):
        pairs = ((i, entry) for i, entry in enumerate(model) if isinstance(entry, Sequence))
        modules = {str(i): entry[0] for i, entry in pairs}
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


def kept_of(asked: Sequence[int], layers: Sequence[Grouped], m: int) -> list[int]:
    """How many weights of a group of m each layer keeps, for the numbers that it is to keep.

    First the largest n that keeps no more than that, but at least 1 of a layer that keeps any; then
    one more for the layers that come nearest to it, the earlier one first, for as many of them as
    bring the weights that are kept in all nearest to what was asked for.

    Example:
        >>> kept_of([50, 10], [Grouped("a", 100, 1, 8), Grouped("b", 100, 1, 8)], 8)
        [4, 1]

    Raises:
        ValueError: Less than one weight of a group would stay.
    """
    total, kept = sum(layer.numel for layer in layers), sum(asked)
    if kept * m < total:
        raise ValueError(
            f"sparsity asks to keep {kept} of {total} weights, which is less than one in a group "
            f"of {m}; it may be at most {1 - 1 / m}, or pass a pattern of larger groups"
        )
    counts = [layer.most(count, m) for layer, count in zip(layers, asked, strict=True)]
    now = [layer.kept(n, m) for layer, n in zip(layers, counts, strict=True)]
    steps = [layer.kept(n + 1, m) - at for layer, n, at in zip(layers, counts, now, strict=True)]
    shares = {
        i: Fraction(count - at, step)
        for i, (count, at, step) in enumerate(zip(asked, now, steps, strict=True))
        if count > at and step
    }
    over = sum(now) - kept
    best, nearest = 0, abs(over)
    order = sorted(shares, key=shares.__getitem__, reverse=True)
    for raised, i in enumerate(order, 1):
        over += steps[i]
        if abs(over) < nearest:
            best, nearest = raised, abs(over)
    for i in order[:best]:
        counts[i] += 1
    return counts


def _kept_of_each(asked: Sequence[int], layers: Sequence[Grouped], m: int) -> list[int]:
    """The same where each layer has a sparsity of its own, and gets the n nearest to that."""
    counts = []
    for layer, count in zip(layers, asked, strict=True):
        if 0 < count * m < layer.numel:
            raise ValueError(
                f"method asks to keep {count} of the {layer.numel} weights of layer "
                f"{layer.name!r}, which is less than one in a group of {m}; give it a sparsity of "
                f"at most {1 - 1 / m}, or pass a pattern of larger groups"
            )
        n = layer.most(count, m)
        is_nearer = abs(layer.kept(n + 1, m) - count) < abs(layer.kept(n, m) - count)
        counts.append(n + (n < m and is_nearer))
    return counts


def groups(
    pattern: Pattern,
    layers: Sequence[Grouped],
    pruned: Sequence[int] | None,
    *,
    are_apart: bool = False,
) -> Groups:
    """What the engine is to keep: the pattern's n, or one for each layer by what it is to prune.

    Args:
        pattern: What is asked for.
        layers: The distinct layers.
        pruned: How many weights of each a method would prune; None if the pattern gives n.
        are_apart: Whether each of them was asked for by itself.
    """
    m = pattern.size
    if pruned is None:
        assert pattern.kept is not None
        counts = [pattern.kept] * len(layers)
    else:
        asked = [layer.numel - gone for layer, gone in zip(layers, pruned, strict=True)]
        counts = (_kept_of_each if are_apart else kept_of)(asked, layers, m)
    _warn_of_whole_layers(pattern, layers)
    return Groups([(n, m, layer.dim) for n, layer in zip(counts, layers, strict=True)])


def _warn_of_whole_layers(pattern: Pattern, layers: Sequence[Grouped]) -> None:
    """Warn of layers that lose nothing, since their groups are too short for the pattern."""
    n, m = pattern.kept or 1, pattern.size
    whole = [layer for layer in layers if layer.numel and n < m and layer.kept(n, m) == layer.numel]
    if whole:
        more = f" and {len(whole) - 1} more" if len(whole) > 1 else ""
        warnings.warn(
            f"pattern='{pattern.kept or ''}:{m}' leaves layer {whole[0].name!r}{more} as it is: "
            f"along dimension {whole[0].dim} it has {whole[0].extent} of {m} weights, and of so "
            "few all are kept; pass another dim=, or leave it out with exclude=",
            stacklevel=copies.frames_to_the_caller(),
        )


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

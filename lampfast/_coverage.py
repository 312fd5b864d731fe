"""Tells how much of a model its layers are: what a report says, and what `prune` warns of."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from weakref import WeakSet

from torch import nn

from lampfast import _modules
from lampfast._engine import copies
from lampfast._engine.views import View, Weight
from lampfast.parameters import Found
from lampfast.reports import LeftOut

_warned: WeakSet[nn.Module] = WeakSet()


def left_out(found: Found) -> list[LeftOut]:
    """The matrices of a model that are no layers, each under its first name."""
    if not found.others:
        return []
    distinct = {id(it): (name, it, reason) for name, it, reason in reversed(found.others)}
    shapes = [
        (name, tuple(_modules.shape_of(it)), reason)
        for name, it, reason in reversed(distinct.values())
        if _modules.is_matrix(it, reason)
    ]
    return [LeftOut(name, shape, prod(shape), reason) for name, shape, reason in shapes]


def warn(model: object, found: Found, left: Sequence[LeftOut], layers: Sequence[View]) -> None:
    """Warn of a model of which more than half, embeddings and adapters aside, is left out.

    Layers that are computed from others are told of in a warning of their own, however few they
    are. Each model is warned of once. A mapping of matrices and vectors, all of which are layers,
    is warned of wherever one is passed.
    """
    if isinstance(model, Mapping) and found.is_default:
        problem = _vectors(found.layers.wholes)
        if problem is not None:
            warnings.warn(problem, stacklevel=copies.frames_to_the_caller())
    if not (left or found.unfit) or not found.is_default or not isinstance(model, nn.Module):
        return
    if model in _warned:
        return
    for problem in _problems(model, found, left, layers):
        _warned.add(model)
        warnings.warn(problem, stacklevel=copies.frames_to_the_caller())


def _vectors(layers: Mapping[str, Weight]) -> str | None:
    """What to say of the vectors of a mapping, if it has matrices too."""
    vectors = [name for name, weight in layers.items() if weight.ndim < 2]
    if not vectors or len(vectors) == len(layers):
        return None
    shown = ", ".join(map(repr, vectors[:3])) + ", ..." * (len(vectors) > 3)
    return (
        f"every entry of a mapping is a layer, so {len(vectors)} vectors, as biases and norms are, "
        f"are pruned with the {len(layers) - len(vectors)} matrices: {shown}; leave them out with "
        "exclude=, choose the matrices with include=, or pass the module"
    )


def _problems(
    model: nn.Module, found: Found, left: Sequence[LeftOut], layers: Sequence[View]
) -> Iterator[str]:
    if found.unfit:
        name, unfit = next(iter(found.unfit.items()))
        more = f" and {len(found.unfit) - 1} more" if len(found.unfit) > 1 else ""
        yield f"left out of what is pruned{more}: layer {name!r} {unfit.problem()}"
    not_told = (*_modules.NOT_TOLD, _modules.COMPUTED)  # of the latter the warning above tells
    told = [it for it in left if it.reason not in not_told]
    told.sort(key=lambda it: it.numel, reverse=True)
    weights, covered = sum(it.numel for it in told), sum(layer.size for layer in layers)
    if weights > covered:
        shown = ", ".join(f"{it.name!r} ({it.reason})" for it in told[:3])
        more = f" and {len(told) - 3} more" if len(told) > 3 else ""
        yield (
            f"{type(model).__name__} has {weights:,} weights in matrices that are no layers and "
            f"stay as they are, beside {covered:,} in its layers: {shown}{more}; left_out of the "
            "report names all. Take them in with include=, or with stacked= where a parameter "
            "holds several matrices"
        )

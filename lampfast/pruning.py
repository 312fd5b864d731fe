"""The verbs: prune in place, or ask for masks, scores or the sparsity that there is now."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import isfinite
from typing import Any

from lampfast import _changes, _core, _engine, parameters, views
from lampfast._report import LayerReport, Report
from lampfast.parameters import Model, Patterns
from lampfast.views import View, Weight


def prune(
    model: Model,
    s: float,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    importance: Mapping[str, Weight] | None = None,
) -> Report:
    """Zero the weights of lowest LAMP score, in place, until the model has sparsity `s`.

    The result is the one that exact arithmetic gives: exactly as many weights as asked for, the
    same ones whatever the threads, memory format or dtype. If anything is wrong, nothing changes.

    Example:
        >>> import lampfast, torch
        >>> weights = {"a": torch.tensor([3.0, 1.0, -2.0]), "b": torch.tensor([[0.5, -8.0]])}
        >>> print(lampfast.prune(weights, 0.4))
        layer  shape   weights  kept  sparsity  threshold
        a      (3,)          3     2    33.33%          2
        b      (1, 2)        2     1    50.00%          8
        total                5     3    40.00%
        >>> weights
        {'a': tensor([ 3.,  0., -2.]), 'b': tensor([[ 0., -8.]])}

    Args:
        model: A module; a mapping of names to torch tensors or numpy arrays, such as a state_dict,
            where every entry is a layer; a sequence of tensors or arrays; or a sequence of
            (module, "weight") pairs, as torch.nn.utils.prune takes it. Layers may have any shape,
            memory format and mix of float32, float16, bfloat16, float64, float8_e4m3fn and
            float8_e5m2, on any device or several (those on devices without an engine are copied to
            host memory and back). Tied weights count once.
        s: The sparsity of all layers together: a float is the fraction that is zero at the end,
            0.0 to 1.0, an int the number of weights. Weights that are zero already count.
        include: Glob pattern or patterns over the names of a module's parameters (or a mapping's
            keys, or a sequence's positions): these are the layers. Without it, a module's layers
            are the weights of its linear, convolution, bilinear, attention and recurrent modules,
            never biases, normalisation or embeddings.
        exclude: Glob pattern or patterns over the same names: these are left as they are.
        importance: For the name of every layer a tensor of its shape whose magnitude takes the
            place of the weight's in the score.

    Returns:
        What was kept, overall and in every layer.

    Raises:
        TypeError: The model, a layer or `s` has a type, dtype, layout or device that is not
            pruned.
        ValueError: `s` is out of range, a value is NaN or infinite, a pattern matches nothing,
            layers share memory in part, or a layer cannot be written or is computed from others.

    Source:
        Lee, Park, Mo, Ahn, Shin: Layer-adaptive sparsity for the Magnitude-based Pruning, ICLR
        2021, arXiv 2010.07611, section 2.
    """
    weights = parameters.named(model, include, exclude)
    layers = views.layers(weights, write=True)
    sources, count = _sources(layers, importance, write=True), _count(s, layers)
    targets, near = _reachable(layers, sources)
    cuts = _engine.prune(targets, near, count)
    _changes.mark(weights.values())
    views.write_back(layers, targets)
    _changes.announce(layers)
    return _report(layers, cuts)


def masks(
    model: Model,
    s: float,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    importance: Mapping[str, Weight] | None = None,
) -> dict[str, Any]:
    """Which weights `prune` would keep; changes nothing.

    Example:
        >>> import lampfast, torch
        >>> lampfast.masks({"a": torch.tensor([3.0, 1.0, -2.0])}, 1)
        {'a': tensor([ True, False,  True])}

    Args:
        model: As for `prune`; read-only arrays and expanded tensors are fine too.
        s: As for `prune`.
        include: As for `prune`.
        exclude: As for `prune`.
        importance: As for `prune`.

    Returns:
        By layer name a bool tensor (a numpy array for a numpy array) of the layer's shape, on its
        device: True where the weight is kept.

    Raises:
        TypeError: As for `prune`.
        ValueError: As for `prune`.

    Source:
        As for `prune`.
    """
    layers = views.layers(parameters.named(model, include, exclude))
    sources, count = _sources(layers, importance), _count(s, layers)
    outputs = views.empty_masks(layers)
    targets, near = _reachable(layers, sources)
    _engine.masks(targets, near, outputs, count)
    return views.delivered(outputs, layers)


def scores(
    model: Model,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    importance: Mapping[str, Weight] | None = None,
) -> dict[str, Any]:
    """The LAMP score of every weight: its square over the sum of all squares not below it.

    Example:
        >>> import lampfast, torch
        >>> lampfast.scores({"a": torch.tensor([3.0, 0.0, -1.0])})
        {'a': tensor([1.0000, 0.0000, 0.1000])}

    Args:
        model: As for `masks`.
        include: As for `prune`.
        exclude: As for `prune`.
        importance: As for `prune`.

    Returns:
        By layer name a tensor (a numpy array for a numpy array) of the layer's shape: scores in
        [0, 1], float32, or float64 for float64 weights (importances, where given), each within
        one unit in the last place.

    Raises:
        TypeError: As for `prune`.
        ValueError: As for `prune`.

    Source:
        As for `prune`. Equal magnitudes are ordered by their position in the layer, row-major.
    """
    layers = views.layers(parameters.named(model, include, exclude))
    sources = _sources(layers, importance)
    outputs = views.empty_scores(layers, sources)
    targets, near = _reachable(layers, sources)
    _engine.scores(targets, near, outputs)
    return views.delivered(outputs, layers)


def report(model: Model, *, include: Patterns = None, exclude: Patterns = None) -> Report:
    """The sparsity that a model has now: how many weights of every layer are not zero.

    Example:
        >>> import lampfast, torch
        >>> lampfast.report([torch.tensor([3.0, 0.0, -1.0, 0.0])])
        Report(numel=4, kept=2, sparsity=0.5000, layers=1)

    Args:
        model: As for `masks`.
        include: As for `prune`.
        exclude: As for `prune`.

    Returns:
        What is there, overall and in every layer.

    Raises:
        TypeError: As for `prune`.
        ValueError: As for `prune`.
    """
    layers = views.layers(parameters.named(model, include, exclude))
    return _report(layers, _engine.census(views.reachable(layers)))


def _sources(
    layers: list[View], importance: Mapping[str, Weight] | None, *, write: bool = False
) -> list[View]:
    """What is scored: the importances, or the layers themselves."""
    if importance is None:
        return layers
    return views.importances(importance, layers, write=write)


def _reachable(layers: list[View], sources: list[View]) -> tuple[Sequence[View], Sequence[View]]:
    """Both where the engine can reach them; one list remains one list."""
    targets = views.reachable(layers)
    if sources is layers:
        return targets, targets
    return targets, views.beside(views.reachable(sources), targets)


def _count(s: float, layers: Sequence[View]) -> int:
    return views.count(s, sum(layer.size for layer in layers))


def _report(layers: Sequence[View], cuts: Sequence[_core.Cut]) -> Report:
    # Only what a row needs, so that a report keeps no weight alive; shapes as they are now.
    shapes = [layer.weight.shape for layer in layers]
    names, sizes = [layer.name for layer in layers], [layer.size for layer in layers]
    return Report.lazily(partial(map, _row, names, shapes, sizes, cuts))


def _row(name: str, shape: Sequence[int], size: int, cut: _core.Cut) -> LayerReport:
    threshold = cut.threshold if isfinite(cut.threshold) else None
    return LayerReport(name, tuple(shape), size, size - cut.pruned, threshold)

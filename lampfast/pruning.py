"""The verbs: prune in place, or ask for masks, scores or the sparsity that there is now."""

from __future__ import annotations  # so that help() shows Model, not all that it may be

from collections.abc import Mapping, Sequence
from functools import partial
from math import isfinite
from typing import Any

from lampfast import _arguments, _core, methods, parameters
from lampfast._engine import calls, changes, collector, views
from lampfast._engine.views import View, Weight
from lampfast.methods import Method
from lampfast.parameters import Model, Patterns
from lampfast.reports import LayerReport, Report


@collector.paused
def prune(
    model: Model,
    s: float,
    *,
    method: Method = "lamp",
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
            float8_e5m2 (of arrays, in the dtypes of ml_dtypes), on any device or several (those on
            devices without an engine are copied to host memory and back). Tied weights count once.
        s: The sparsity of all layers together: a float is the fraction that is zero at the end,
            0.0 to 1.0, an int the number of weights. Weights that are zero already count; a model
            that is sparser already stays as it is.
        method: How the sparsity is shared among the layers. "lamp": by the LAMP score. Its
            baselines prune the smallest magnitudes: "global", of all layers together; "uniform",
            the same fraction of what remains in every layer; "uniform+", so too, but the first
            layer stays as it is, if it is a convolution (three dimensions or more), and the last
            keeps at least a fifth of its size; "erk" (Erdős-Rényi-kernel), each layer keeps in
            proportion to the sum of its weight's dimensions (of a convolution, depthwise and
            grouped ones too: out + in / groups + kernel sides), and what a layer is too small for
            is shared by the others. What remains is what is not zero, of the importance where one
            is given. Counts of layers are rounded by the largest remainder.
        include: Glob pattern or patterns over the names of a module's parameters (or a mapping's
            keys, or a sequence's positions): these are the layers. Without it, a module's layers
            are the weights of its linear, convolution, bilinear, attention and recurrent modules,
            never biases, normalisation or embeddings, but an embedding that is tied to a linear
            layer, as in many language models, is that layer: leave it out with exclude=.
            A pattern that equals a name means just that name.
        exclude: Glob pattern or patterns over the same names: these are left as they are.
        importance: For the name of every layer a tensor of its shape whose magnitude takes the
            place of the weight's in the score.

    Returns:
        What was kept, overall and in every layer: what `s` says, also of a model that is sparser
        already, of which `lampfast.report(model)` says what there is.

    Raises:
        TypeError: The model, a layer or `s` has a type, dtype, layout or device that is not
            pruned.
        ValueError: `s` is out of range, a value is NaN or infinite, a pattern matches nothing,
            layers share memory in part, or a layer cannot be written, is computed from others,
            holds the directions of weight_norm, or is part of a sharded one; the method is
            unknown, or "uniform+" has to keep more.
        RuntimeError: torch is tracing or transforming the call.

    Source:
        Lee, Park, Mo, Ahn, Shin: Layer-adaptive sparsity for the Magnitude-based Pruning, ICLR
        2021, arXiv 2010.07611, section 2; section 4 for the baselines. "uniform+": Gale, Elsen,
        Hooker: The State of Sparsity in Deep Neural Networks, arXiv 1902.09574. "erk": Evci, Gale,
        Menick, Castro, Elsen: Rigging the Lottery, ICML 2020, arXiv 1911.11134, section 3.
    """
    methods.check(method)
    weights = parameters.named(model, include, exclude)
    layers = views.layers(weights, write=True)
    importances = _sources(layers, importance, write=True)
    targets, sources, spec = _plan(layers, importances, s, method)
    thresholds = calls.prune(targets, sources, spec)
    changes.mark(weights.values())
    views.write_back(layers, targets)
    changes.announce(layers)
    return _report(layers, thresholds)


@collector.paused
def masks(
    model: Model,
    s: float,
    *,
    method: Method = "lamp",
    include: Patterns = None,
    exclude: Patterns = None,
    importance: Mapping[str, Weight] | None = None,
    out: Mapping[str, Weight] | None = None,
) -> dict[str, Any]:
    """Which weights `prune` would keep; changes no weight.

    A loop that asks again and again may pass the masks that it has as `out`. That saves bringing in
    new memory, page by page, for every call; with thousands of small layers checking the masks
    takes longer than that.

    Example:
        >>> import lampfast, torch
        >>> weights = {"a": torch.tensor([3.0, 1.0, -2.0])}
        >>> kept = lampfast.masks(weights, 1)
        >>> kept
        {'a': tensor([ True, False,  True])}
        >>> weights["a"][1] = 4.0
        >>> lampfast.masks(weights, 1, out=kept)["a"] is kept["a"], kept
        (True, {'a': tensor([ True,  True, False])})

    Args:
        model: As for `prune`; read-only arrays and expanded tensors are fine too.
        s: As for `prune`.
        method: As for `prune`.
        include: As for `prune`.
        exclude: As for `prune`.
        importance: As for `prune`.
        out: Masks to write to, as this function returns them, in any memory format; their content
            does not matter. If the call fails once it has begun to read weights (one is NaN, memory
            runs out, Ctrl-C), what they hold is undefined; the weights are as they were.

    Returns:
        By layer name a bool tensor (a numpy array for a numpy array) of the layer's shape, on its
        device: True where the weight is kept. With `out`, the same tensors as there.

    Raises:
        TypeError: As for `prune`; or `out` is not a mapping, or has something other than a bool
            tensor, or a bool array for an array.
        ValueError: As for `prune`; or `out` has other names, shapes or devices than the layers, or
            a mask that cannot be written, or shares memory with another one or with what is read.

    Source:
        As for `prune`.
    """
    methods.check(method)
    layers = views.layers(parameters.named(model, include, exclude))
    scored = _sources(layers, importance)
    given = None if out is None else views.given_masks(out, layers, scored)
    targets, sources, spec = _plan(layers, scored, s, method)
    if given is None:
        outputs = views.empty_masks(layers)
        calls.masks(targets, sources, outputs, spec)
        return views.delivered(outputs, layers)
    reachable = views.local(given)
    try:
        calls.masks(targets, sources, reachable, spec)
        views.write_back(given, reachable)
    finally:
        changes.mark(mask.weight for mask in given)
    return {mask.name: mask.weight for mask in given}


@collector.paused
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
    importances = _sources(layers, importance)
    outputs = views.empty_scores(layers, importances)
    targets, sources = _local(layers, importances)
    calls.scores(targets, sources, outputs)
    return views.delivered(outputs, layers)


@collector.paused
def report(
    model: Model,
    s: float | None = None,
    *,
    method: Method = "lamp",
    include: Patterns = None,
    exclude: Patterns = None,
    importance: Mapping[str, Weight] | None = None,
) -> Report:
    """The sparsity that a model has now, or what `prune` would report; changes nothing.

    Example:
        >>> import lampfast, torch
        >>> weights = [torch.tensor([3.0, 0.0, -1.0, 0.0])]
        >>> lampfast.report(weights)
        Report(numel=4, kept=2, sparsity=0.5000, layers=1)
        >>> lampfast.report(weights, 0.75)
        Report(numel=4, kept=1, sparsity=0.7500, layers=1)

    Args:
        model: As for `masks`.
        s: As for `prune`; without it every weight that is not zero counts as kept.
        method: As for `prune`, of use only with s.
        include: As for `prune`.
        exclude: As for `prune`.
        importance: As for `prune`, of use only with s.

    Returns:
        What is there, or would be, overall and in every layer.

    Raises:
        TypeError: As for `prune`.
        ValueError: As for `prune`; or a method or an importance is given without s.
    """
    methods.check(method)
    if s is None and (method != "lamp" or importance is not None):
        raise ValueError(
            "method and importance say which weights are pruned, but no s says how many; pass s "
            "for what prune would do, or leave them out for what there is now"
        )
    layers = views.layers(parameters.named(model, include, exclude))
    if s is None:
        targets = views.local(layers)
        return _report(layers, calls.zero_thresholds(targets, targets))
    targets, sources, spec = _plan(layers, _sources(layers, importance), s, method)
    return _report(layers, calls.thresholds(targets, sources, spec))


def layerwise_sparsity(
    model: Model,
    s: float,
    *,
    method: Method = "lamp",
    include: Patterns = None,
    exclude: Patterns = None,
    importance: Mapping[str, Weight] | None = None,
) -> dict[str, float]:
    """What `prune` would prune of every layer; changes nothing.

    Example:
        >>> import lampfast, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(300, 100), torch.nn.Linear(100, 10))
        >>> lampfast.layerwise_sparsity(model, 0.9, method="erk")
        {'0.weight': 0.9189666666666667, '1.weight': 0.331}

    Args:
        model: As for `masks`.
        s: As for `prune`.
        method: As for `prune`.
        include: As for `prune`.
        exclude: As for `prune`.
        importance: As for `prune`.

    Returns:
        By layer name the fraction that would be pruned, 0.0 to 1.0.

    Raises:
        TypeError: As for `prune`.
        ValueError: As for `prune`.

    Source:
        As for `prune`.
    """
    if s is None:
        raise TypeError("s is a NoneType; " + _arguments.FRACTION)
    planned = report(
        model, s, method=method, include=include, exclude=exclude, importance=importance
    )
    return {layer.name: layer.sparsity for layer in planned.layers}


def _sources(
    layers: list[View], importance: Mapping[str, Weight] | None, *, write: bool = False
) -> list[View]:
    """What is scored: the importances, or the layers themselves."""
    if importance is None:
        return layers
    return views.importances(importance, layers, write=write)


def _local(layers: list[View], sources: list[View]) -> tuple[Sequence[View], Sequence[View]]:
    """Both where the engine can reach them; layers that are their own sources stay one list."""
    targets = views.local(layers)
    if sources is layers:
        return targets, targets
    return targets, views.beside(views.local(sources), targets)


def _plan(
    layers: list[View], sources: list[View], s: float, method: Method
) -> tuple[Sequence[View], Sequence[View], _core.SelectionSpec]:
    """Both where the engine can reach them, and what it is to select of them."""
    count = _arguments.count("s", s, sum(layer.size for layer in layers))
    targets, scored = _local(layers, sources)
    return targets, scored, methods.selection_spec(method, count, targets, scored)


def _report(layers: Sequence[View], thresholds: Sequence[_core.LayerThreshold]) -> Report:
    # Rows are made later, from copies of what they need: a report must not keep weights alive.
    shapes = [layer.shape for layer in layers]
    names, sizes = [layer.name for layer in layers], [layer.size for layer in layers]
    return Report.lazily(partial(map, _row, names, shapes, sizes, thresholds))


def _row(name: str, shape: Sequence[int], size: int, found: _core.LayerThreshold) -> LayerReport:
    threshold = found.magnitude if isfinite(found.magnitude) else None
    return LayerReport(name, tuple(shape), size, size - found.pruned, threshold)

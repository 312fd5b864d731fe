"""The verbs: prune in place, or ask for masks, scores or the present sparsity."""

from __future__ import annotations  # so that help() shows Model, not all that it may be

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, cast

from lampfast import _arguments, _blocks, _core, _coverage, _patterns, _ranks, methods, parameters
from lampfast._blocks import Block
from lampfast._engine import calls, changes, collector, in_place, views
from lampfast._engine.stacks import Layers
from lampfast._engine.views import View, Views, Weight
from lampfast._ranks import Asked
from lampfast.methods import Allocation, Method
from lampfast.parameters import Model, Patterns
from lampfast.reports import LayerReport, LeftOut, Report

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@_arguments.by_its_name
def prune(
    model: Model,
    sparsity: float | None = None,
    *,
    method: Method | Allocation = "lamp",
    pattern: str | None = None,
    dim: int | None = None,
    block: Block | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    stacked: Patterns = None,
    importance: Mapping[str, Weight] | None = None,
    group: ProcessGroup | None = None,
) -> Report:
    """Zero the weights of lowest LAMP score, in place, until the model has `sparsity`.

    The result is the one that exact arithmetic gives, in every dtype: exactly as many weights as
    asked for, and the same ones whatever the machine, the number of threads and the memory format.
    If anything is wrong, nothing changes.

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
        model: A module; a mapping of names to torch tensors or numpy arrays; a sequence of tensors
            or arrays; or a sequence of (module, "weight") pairs, as torch.nn.utils.prune takes it.
            In a mapping, such as a state_dict, every entry is a layer, biases too: pass the module,
            not its state_dict. Wrappers (torch.compile, DataParallel, DistributedDataParallel) are
            looked through, and names are those of the module inside. Layers may have any shape and
            memory format, and any mix of float32, float16, bfloat16, float64, float8_e4m3fn and
            float8_e5m2 (arrays, in the dtypes of ml_dtypes), on one or several devices. Layers on a
            device without an engine are copied to host memory and back. Tied weights count once.
            float8 weights with scales beside them ("X_scale_inv" or "X_scale" for "X", one for a
            tensor, a row or a block) are ranked by the exact product of value and scale, without a
            copy of the model (on a GPU through host memory, with a warning); a scale is never a
            layer.
        sparsity: That of all layers together: a float is the fraction that is zero at the end,
            0.0 to 1.0, an int the number of weights. Weights that are zero already count; a model
            that is sparser already stays as it is.
        method: How the sparsity is shared among the layers. "lamp": by the LAMP score. The
            baselines prune the smallest magnitudes. "global": of all layers together. "uniform":
            the same fraction of what remains in every layer. "uniform+": the same, but the first
            layer stays as it is, with the zeros that it has, if it is a convolution (three
            dimensions or more), and the last keeps at least a fifth of its size. "erk"
            (Erdős-Rényi-kernel): each layer keeps in proportion to the sum of its weight's
            dimensions (of a convolution, depthwise and grouped ones too: out + in / groups + kernel
            sides), and the excess of a layer that is too small for its share goes to the others.
            What remains is what is not zero; with an importance, where that is not zero. Counts of
            layers are rounded by the largest remainder. Or an allocation of your own, without a
            sparsity: for each layer name or glob pattern a sparsity, a fraction or a count as
            above. Names take precedence over patterns, and later patterns over earlier ones. The
            name of a stack stands for all its slices. Layers that nothing matches stay dense.
        pattern: "n:m", as "2:4": of every m weights along a layer's inputs (dimension 1, or 0 of
            what stores them first, as transformers' Conv1D, transposed convolutions and experts)
            the n of largest magnitude stay, of equal ones the later; sparsity and method are left
            out, as the pattern says both. ":m", as ":8": every layer keeps n of m, with its own n,
            1 to m, the one below or above what the method leaves of it at this sparsity, so that
            all layers together keep about what was asked for (docs/exactness.md, section 10); of
            an allocation the one nearest to it. m is 2 to 64. A group at the end with fewer than
            m weights keeps in proportion, rounded up; a warning names layers that lose nothing so.
        dim: Another dimension along which groups lie, for all layers.
        block: Tiles of weights that go or stay together: (r, c) for r outputs by c inputs, "row"
            for whole outputs, "column" for whole inputs. A layer is a matrix of its outputs and
            inputs (transposed where inputs come first, as above), a convolution's weight the one
            that weight.reshape(out, -1) is, of which "column" takes an input with its whole kernel;
            tiles at the edges are smaller. The method ranks tiles in place of weights: their
            magnitude is their 2-norm. They go as long as they fit the sparsity, which is then
            reached up to a tile (docs/exactness.md, section 11); a weight that is zero counts as
            pruned only where its whole tile is zero. Layers on a GPU go through host memory, with
            a warning.
        include: Glob pattern or patterns over the names of a module's parameters (or a mapping's
            keys, or a sequence's positions): these are the layers. Without it, a module's layers
            are the weights of its linear, convolution, bilinear, attention and recurrent modules,
            never biases, normalisation or embeddings, but an embedding that is tied to a linear
            layer, as in many language models, is that layer: leave it out with exclude=. Routers
            and gates that choose experts, adapters (of PEFT), and weights that are quantised or
            computed from others are no layers by default; `Report.left_out` names them.
            A pattern that equals a name means just that name.
        exclude: Glob pattern or patterns over the same names: these are left as they are.
        stacked: Glob pattern or patterns over the names of parameters that hold several layers:
            each slice along the first dimension is a layer of its own, named "parameter[3]", also
            in include= and exclude=. Without include=, they are layers besides the others; of a
            matrix every row is one. The stacked experts of transformers' models, and what looks
            like them (parameters of three dimensions in a module whose class name ends in
            "Experts", or that have a slice for each expert that a mixture's module counts), are
            stacks without being named: one layer for each expert, gate and up apart, as
            "parameter[3].gate" and "parameter[3].up", where they lie in one parameter. How they lie
            in it only a module's class says: of a mapping's entries a slice is one layer.
        importance: For the name of every layer a tensor of its shape whose magnitude takes the
            place of the weight's in the score; of a stack, also by the parameter's name.
        group: The ranks that hold the model, where some layers are on some of them only, as
            pipeline stages and experts are: what has one name is one layer, and what several hold
            alike is counted once. Models of DTensors need it only then; of these, too, every rank
            makes the same call.

    Returns:
        What was kept, overall and in every layer: as many as were asked for, also of a model that
        is sparser already, of which `lampfast.report(model)` says what there is.

    Raises:
        TypeError: The model, a layer or a sparsity has a type, dtype, layout or device that is not
            pruned; there is no sparsity, or one beside an allocation; or a pattern and a block.
        ValueError: A sparsity is out of range, a value is NaN or infinite, a pattern matches
            nothing, layers share memory in part, or a layer cannot be written, is computed from
            others, holds the directions of weight_norm, is scaled in a way that is not known, or is
            part of a sharded one; a group of the pattern or a block lies on several ranks; the
            method is unknown, or "uniform+" has to keep more.
        RuntimeError: torch is tracing or transforming the call.

    Source:
        Lee, Park, Mo, Ahn, Shin: Layer-adaptive sparsity for the Magnitude-based Pruning, ICLR
        2021, arXiv 2010.07611, section 2; section 4 for the baselines. "uniform+": Gale, Elsen,
        Hooker: The State of Sparsity in Deep Neural Networks, arXiv 1902.09574. "erk": Evci, Gale,
        Menick, Castro, Elsen: Rigging the Lottery, ICML 2020, arXiv 1911.11134, section 3.
    """
    return pruned(
        model,
        sparsity,
        method=method,
        pattern=pattern,
        dim=dim,
        block=block,
        include=include,
        exclude=exclude,
        stacked=stacked,
        importance=importance,
        group=group,
    )


@collector.paused
def pruned(
    model: Model,
    sparsity: float | None,
    *,
    method: Method | Allocation,
    pattern: str | None = None,
    dim: int | None = None,
    block: Block | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    stacked: Patterns = None,
    importance: Mapping[str, Weight] | None = None,
    record: Callable[[Report], None] | None = None,
    group: ProcessGroup | None = None,
) -> Report:
    """What `prune` does; `record` is called once nothing can keep the weights from changing."""
    with _ranks.telling_others(model, group):
        asked = _asked(sparsity, method, pattern, dim, block)
        found = parameters.find(model, include, exclude, stacked).ranked(importance)
        left = _coverage.left_out(found)
        are_several = _ranks.are_needed(found.layers, group)

    if are_several:
        made = partial(reported, left_out=left)
        return _ranks.pruned(model, found.layers, group, asked, importance, made, record)

    def result(thresholds: Sequence[_core.LayerThreshold]) -> Report:
        report = reported(layers, thresholds, left)
        if record is not None:
            record(report)
        return report

    layers = _reachable(found.layers.checked(write=True), asked)
    wholes = _reachable(found.layers.views(layers), asked)
    importances = _sources(found.layers, layers, importance, write=True)
    targets, sources, spec = _plan(model, found.layers, layers, importances, asked)
    _coverage.warn(model, found, left, layers)

    def write(before_writing: in_place.BeforeWriting) -> None:
        calls.prune(targets, sources, spec, before_writing)
        views.write_back(layers, targets)

    return in_place.zero(found.layers.wholes.values(), wholes, write, result)


@_arguments.by_its_name
@collector.paused
def masks(
    model: Model,
    sparsity: float | None = None,
    *,
    method: Method | Allocation = "lamp",
    pattern: str | None = None,
    dim: int | None = None,
    block: Block | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    stacked: Patterns = None,
    importance: Mapping[str, Weight] | None = None,
    out: Mapping[str, Weight] | None = None,
    group: ProcessGroup | None = None,
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
        model: A module, a mapping of names to torch tensors or numpy arrays, a sequence of either,
            or (module, "weight") pairs, as `lampfast.prune` describes them; read-only arrays and
            expanded tensors are fine too.
        sparsity: That of all layers together: a float is the fraction that is zero at the end, 0.0
            to 1.0, an int the number of weights.
        method: How the sparsity is shared among the layers: "lamp", "global", "uniform", "uniform+"
            or "erk"; or a mapping of layer names or patterns to sparsities of their own.
        pattern: "n:m", as "2:4", keeps n of every m weights along a layer's inputs, with no
            sparsity beside it; ":m", as ":8", gives every layer an n of its own for the sparsity.
        dim: The dimension along which the groups of a pattern lie, if it is not that of the inputs.
        block: Tiles that go or stay together: (r, c) for r outputs by c inputs, "row" for whole
            outputs, "column" for whole inputs. The sparsity is then reached up to a tile.
        include: Glob pattern or patterns over the parameters' names: these are the layers, in the
            place of those by default.
        exclude: Glob pattern or patterns over the same names: these are left out.
        stacked: Glob pattern or patterns over the names of parameters that hold several layers, one
            in each slice along the first dimension.
        importance: For the name of every layer a tensor of its shape, whose magnitude takes the
            place of the weight's.
        out: Masks to write to, as this function returns them, in any memory format; their content
            does not matter. If the call fails once it has begun to read weights (one is NaN, memory
            runs out, Ctrl-C), what they hold is undefined; the weights are as they were.
        group: The ranks that hold the model, where some layers are on some of them only, as experts
            and pipeline stages are.

    Returns:
        By parameter name a bool tensor (a numpy array for a numpy array) of the parameter's shape,
        on its device: True where the weight is kept, and where a stack has slices that are no
        layers. With `out`, the same tensors as there.

    Raises:
        TypeError: The model, a layer or an argument has a type, dtype, layout or device that is not
            taken; or `out` is not a mapping, or has something other than a bool tensor, or a bool
            array for an array.
        ValueError: An argument is out of range, a value is NaN or infinite, a pattern matches
            nothing, or a layer cannot be pruned; or `out` has other names, shapes or devices than
            the layers, or a mask that cannot be written, or shares memory with another one or with
            what is read.

    Source:
        Lee, Park, Mo, Ahn, Shin: Layer-adaptive sparsity for the Magnitude-based Pruning, ICLR
        2021, arXiv 2010.07611, section 2.
    """
    with _ranks.telling_others(model, group):
        asked = _asked(sparsity, method, pattern, dim, block)
        found = parameters.find(model, include, exclude, stacked).ranked(importance).layers
        are_several = _ranks.are_needed(found, group)
        if are_several and out is not None:
            raise TypeError("out is given for a sharded model, whose masks are always new; drop it")
    if are_several:
        return _ranks.masks(model, found, group, asked, importance)
    layers = _reachable(found.checked(), asked)
    wholes = _reachable(found.views(layers), asked)
    scored = _sources(found, layers, importance)
    given = None if out is None else views.given_masks(out, wholes, layers, scored)
    targets, sources, spec = _plan(model, found, layers, scored, asked)
    outputs = views.empty_masks(wholes) if given is None else views.local(given)
    try:
        found.fill_uncovered(outputs, True)
        calls.masks(targets, sources, found.spread(outputs), spec)
        if given is None:
            return views.delivered(outputs, wholes)
        views.write_back(given, outputs)
        return dict(zip(given.names, given.weights, strict=True))
    finally:
        if given is not None:
            changes.mark(given.weights)


@collector.paused
def scores(
    model: Model,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    stacked: Patterns = None,
    importance: Mapping[str, Weight] | None = None,
) -> dict[str, Any]:
    """The LAMP score of every weight: its square over the sum of all squares not below it.

    Example:
        >>> import lampfast, torch
        >>> lampfast.scores({"a": torch.tensor([3.0, 0.0, -1.0])})
        {'a': tensor([1.0000, 0.0000, 0.1000])}

    Args:
        model: A module, a mapping of names to torch tensors or numpy arrays, a sequence of either,
            or (module, "weight") pairs, as `lampfast.prune` describes them.
        include: Glob pattern or patterns over the parameters' names: these are the layers, in the
            place of those by default.
        exclude: Glob pattern or patterns over the same names: these are left out.
        stacked: Glob pattern or patterns over the names of parameters that hold several layers, one
            in each slice along the first dimension.
        importance: For the name of every layer a tensor of its shape, whose magnitude takes the
            place of the weight's.

    Returns:
        By parameter name a tensor (a numpy array for a numpy array) of the parameter's shape:
        scores in [0, 1], float32, or float64 for float64 weights (importances, where given), each
        within one unit in the last place; NaN where a stack has slices that are no layers. Of a
        DTensor, which is gathered for that, one parameter at a time, each rank gets its own part.

    Raises:
        TypeError: The model, a layer or an argument has a type, dtype, layout or device that is not
            taken.
        ValueError: An argument is out of range, a value is NaN or infinite, a pattern matches
            nothing, or a layer cannot be pruned.

    Source:
        Lee, Park, Mo, Ahn, Shin: Layer-adaptive sparsity for the Magnitude-based Pruning, ICLR
        2021, arXiv 2010.07611, section 2. Equal magnitudes are ordered by their position in the
        layer, row-major.
    """
    with _ranks.telling_others(model, None):
        found = parameters.find(model, include, exclude, stacked).ranked(importance).layers
        are_several = _ranks.are_needed(found, None)
    if are_several:
        return _ranks.scores(found, importance, _scores)
    return _scores(found, importance)


def _scores(found: Layers, importance: Mapping[str, Weight] | None) -> dict[str, Any]:
    layers = found.checked()
    wholes = found.views(layers)
    importances = _sources(found, layers, importance)
    outputs = views.empty_scores(wholes, found.scored(wholes, layers, importances))
    found.fill_uncovered(outputs, nan)
    targets, sources = _local(layers, importances)
    with views.row_major(found.spread(outputs)) as parts:
        calls.scores(targets, sources, parts)
    return views.delivered(outputs, wholes)


@_arguments.by_its_name
@collector.paused
def report(
    model: Model,
    sparsity: float | None = None,
    *,
    method: Method | Allocation = "lamp",
    pattern: str | None = None,
    dim: int | None = None,
    block: Block | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    stacked: Patterns = None,
    importance: Mapping[str, Weight] | None = None,
    group: ProcessGroup | None = None,
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
        model: A module, a mapping of names to torch tensors or numpy arrays, a sequence of either,
            or (module, "weight") pairs, as `lampfast.prune` describes them.
        sparsity: That of all layers together: a float is the fraction that is zero at the end, 0.0
            to 1.0, an int the number of weights. Without it, and without an allocation, every
            weight that is not zero counts as kept.
        method: How the sparsity is shared among the layers: "lamp", "global", "uniform", "uniform+"
            or "erk"; or a mapping of layer names or patterns to sparsities of their own; of use
            only with a sparsity, or as an allocation.
        pattern: "n:m", as "2:4", keeps n of every m weights along a layer's inputs, with no
            sparsity beside it; ":m", as ":8", gives every layer an n of its own for the sparsity.
        dim: The dimension along which the groups of a pattern lie, if it is not that of the inputs.
        block: Tiles that go or stay together: (r, c) for r outputs by c inputs, "row" for whole
            outputs, "column" for whole inputs. The sparsity is then reached up to a tile.
        include: Glob pattern or patterns over the parameters' names: these are the layers, in the
            place of those by default.
        exclude: Glob pattern or patterns over the same names: these are left out.
        stacked: Glob pattern or patterns over the names of parameters that hold several layers, one
            in each slice along the first dimension.
        importance: For the name of every layer a tensor of its shape, whose magnitude takes the
            place of the weight's; used only with a sparsity.
        group: The ranks that hold the model, where some layers are on some of them only, as experts
            and pipeline stages are.

    Returns:
        What is there, or would be, overall and in every layer.

    Raises:
        TypeError: The model, a layer or an argument has a type, dtype, layout or device that is not
            taken.
        ValueError: An argument is out of range, a value is NaN or infinite, a pattern matches
            nothing, or a layer cannot be pruned; or a method or an importance is given without a
            sparsity.
    """
    with _ranks.telling_others(model, group):
        asked = _asked_of_report(sparsity, method, pattern, dim, block, importance)
        found = parameters.find(model, include, exclude, stacked).ranked(importance)
        left = _coverage.left_out(found)
        are_several = _ranks.are_needed(found.layers, group)
    if are_several:
        return reported(*_ranks.thresholds(model, found.layers, group, asked, importance), left)
    layers = _reachable(found.layers.checked(), asked)
    if asked is None:
        targets = views.local(layers)
        return reported(layers, calls.zero_thresholds(targets, targets), left)
    scored = _sources(found.layers, layers, importance)
    targets, sources, spec = _plan(model, found.layers, layers, scored, asked)
    return reported(layers, calls.thresholds(targets, sources, spec), left)


@_arguments.by_its_name
def layerwise_sparsity(
    model: Model,
    sparsity: float | None = None,
    *,
    method: Method | Allocation = "lamp",
    pattern: str | None = None,
    dim: int | None = None,
    block: Block | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    stacked: Patterns = None,
    importance: Mapping[str, Weight] | None = None,
    group: ProcessGroup | None = None,
) -> dict[str, float]:
    """What `prune` would prune of every layer; changes nothing.

    Example:
        >>> import lampfast, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(300, 100), torch.nn.Linear(100, 10))
        >>> lampfast.layerwise_sparsity(model, 0.9, method="erk")
        {'0.weight': 0.9189666666666667, '1.weight': 0.331}

    Args:
        model: A module, a mapping of names to torch tensors or numpy arrays, a sequence of either,
            or (module, "weight") pairs, as `lampfast.prune` describes them.
        sparsity: That of all layers together: a float is the fraction that is zero at the end, 0.0
            to 1.0, an int the number of weights.
        method: How the sparsity is shared among the layers: "lamp", "global", "uniform", "uniform+"
            or "erk"; or a mapping of layer names or patterns to sparsities of their own.
        pattern: "n:m", as "2:4", keeps n of every m weights along a layer's inputs, with no
            sparsity beside it; ":m", as ":8", gives every layer an n of its own for the sparsity.
        dim: The dimension along which the groups of a pattern lie, if it is not that of the inputs.
        block: Tiles that go or stay together: (r, c) for r outputs by c inputs, "row" for whole
            outputs, "column" for whole inputs. The sparsity is then reached up to a tile.
        include: Glob pattern or patterns over the parameters' names: these are the layers, in the
            place of those by default.
        exclude: Glob pattern or patterns over the same names: these are left out.
        stacked: Glob pattern or patterns over the names of parameters that hold several layers, one
            in each slice along the first dimension.
        importance: For the name of every layer a tensor of its shape, whose magnitude takes the
            place of the weight's.
        group: The ranks that hold the model, where some layers are on some of them only, as experts
            and pipeline stages are.

    Returns:
        By layer name the fraction that would be pruned, 0.0 to 1.0.

    Raises:
        TypeError: The model, a layer or an argument has a type, dtype, layout or device that is not
            taken.
        ValueError: An argument is out of range, a value is NaN or infinite, a pattern matches
            nothing, or a layer cannot be pruned.

    Source:
        Lee, Park, Mo, Ahn, Shin: Layer-adaptive sparsity for the Magnitude-based Pruning, ICLR
        2021, arXiv 2010.07611, section 2.
    """
    _asked(sparsity, method, pattern, dim, block)  # report can do without
    planned = report(
        model,
        sparsity,
        method=method,
        pattern=pattern,
        dim=dim,
        block=block,
        include=include,
        exclude=exclude,
        stacked=stacked,
        importance=importance,
        group=group,
    )
    return {layer.name: layer.sparsity for layer in planned.layers}


def _sources(
    found: Layers,
    layers: Sequence[View],
    importance: Mapping[str, Weight] | None,
    *,
    write: bool = False,
) -> Sequence[View]:
    """What is scored: the importances, or the layers themselves."""
    if importance is None:
        return layers
    return views.importances(found.importances(importance), layers, write=write)


def _local(
    layers: Sequence[View], sources: Sequence[View]
) -> tuple[Sequence[View], Sequence[View]]:
    """Both where the engine can reach them; layers that are their own sources stay one list."""
    targets = views.local(layers)
    if sources is layers:
        return targets, targets
    return targets, views.beside(views.local(sources), targets)


def _asked(
    sparsity: float | None,
    method: Method | Allocation,
    pattern: str | None,
    dim: int | None,
    block: Block | None = None,
) -> Asked:
    """What is asked for, checked as far as that needs no model."""
    parsed = _patterns.parse(pattern, dim)
    tiles = _blocks.parse(block, pattern)
    if parsed is not None and parsed.kept is not None:
        _patterns.check_alone(parsed, sparsity, method)
    else:
        methods.check_choice(sparsity, method)
    return Asked(sparsity, method, parsed, tiles)


def _reachable(found: Sequence[View], asked: Asked | None) -> Sequence[View]:
    """The views, those on GPUs as of weights that are copied where blocks are asked for."""
    if asked is None or asked.block is None:
        return found
    return [view.through_host() for view in found]


def _asked_of_report(
    sparsity: float | None,
    method: Method | Allocation,
    pattern: str | None,
    dim: int | None,
    block: Block | None,
    importance: Mapping[str, Weight] | None,
) -> Asked | None:
    """The same, or None for what there is now."""
    if any(it is not None for it in (sparsity, pattern, block)) or isinstance(method, Mapping):
        return _asked(sparsity, method, pattern, dim, block)
    check_asked_of_now(method, dim, importance)
    return None


def check_asked_of_now(
    method: Method | Allocation, dim: int | None, importance: object | None
) -> None:
    """Check that nothing says which weights are pruned, where none are.

    Raises:
        TypeError: An argument has another type, or a dimension has no pattern.
        ValueError: There is another method, or an importance.
    """
    _patterns.parse(None, dim)
    methods.check(method)
    if method != "lamp" or importance is not None:
        raise ValueError(
            "method and importance say which weights are pruned, but no sparsity says how "
            "many; pass one for what prune would do, or leave them out for what there is now"
        )


def check_asked(
    sparsity: float | None,
    method: Method | Allocation,
    pattern: str | None,
    dim: int | None,
    block: Block | None,
) -> None:
    """Check what is asked for, as far as that needs no model.

    Raises:
        TypeError: As for `prune`.
        ValueError: As for `prune`.
    """
    _asked(sparsity, method, pattern, dim, block)


def selected(
    model: Model,
    found: Layers,
    layers: list[View],
    sparsity: float | None,
    *,
    method: Method | Allocation,
    pattern: str | None = None,
    dim: int | None = None,
    block: Block | None = None,
    importance: Mapping[str, Weight] | None = None,
) -> tuple[Sequence[View], Sequence[View], calls.Selection]:
    """What `prune` would select, for who has views of the layers that lie elsewhere.

    Args:
        model: That the layers are of, as its modules tell how their weights lie.
        found: The layers as `parameters.find` finds them.
        layers: The views.
        sparsity: As for `prune`.
        method: As for `prune`.
        pattern: As for `prune`.
        dim: As for `prune`.
        block: As for `prune`.
        importance: As for `prune`.

    Returns:
        The layers and what is compared, where the engine can reach both, and what it is to select.
    """
    asked = _asked(sparsity, method, pattern, dim, block)
    return _plan(model, found, layers, _sources(found, layers, importance), asked)


def _plan(
    model: Model,
    found: Layers,
    layers: Sequence[View],
    sources: Sequence[View],
    asked: Asked,
) -> tuple[Sequence[View], Sequence[View], calls.Selection]:
    """Both where the engine can reach them, and what it is to select of them."""
    grouped, count, tiles = None, None, None
    spec: calls.Selection | None = None
    if asked.block is not None:
        _refuse_scales(sources, "blocks")
        own = _patterns.first_dims(model, found)
        tiles = _blocks.shapes(own, found.slices(), sources, asked.block)
    if asked.pattern is not None:
        _refuse_scales(sources, "an n:m pattern")
        own = _patterns.first_dims(model, found)
        grouped = _patterns.grouped(own, layers, asked.pattern.dim)
    if isinstance(asked.method, Mapping):
        stacks = {name: found.names(name) for name in found.stacks}
        spec = methods.allocation_spec(asked.method, stacks, layers)
    elif asked.sparsity is not None:
        count = _arguments.count("sparsity", asked.sparsity, sum(Views.of(layers).sizes))
    targets, scored = _local(layers, sources)  # which may copy, and so comes after the checks
    if count is not None:
        spec = methods.selection_spec(cast(Method, asked.method), count, targets, scored, tiles)
    if asked.pattern is not None and grouped is not None:
        pruned, are_apart = None, isinstance(asked.method, Mapping)
        if spec is not None:
            pruned = [found.pruned for found in calls.thresholds(targets, scored, spec)]
        spec = _patterns.groups(asked.pattern, grouped, pruned, are_apart=are_apart)
    if tiles is not None:
        spec = calls.Blocks(tiles, cast(_core.SelectionSpec, spec))
    assert spec is not None
    return targets, scored, spec


def _refuse_scales(sources: Sequence[View], what: str) -> None:
    for source in sources:
        if source.scales is not None:
            raise ValueError(
                f"layer {source.name!r} has scales, whose products are not ranked by {what}; pass "
                "importance= for all layers, or leave it out with exclude="
            )


def reported(
    layers: Sequence[View],
    thresholds: Sequence[_core.LayerThreshold],
    left_out: Sequence[LeftOut],
    *,
    by_magnitude: bool = True,
) -> Report:
    """What pruning by thresholds leaves; with magnitudes, if these are what was compared."""
    # Rows are made later, of no more than they need: a report must not keep weights alive.
    names: Sequence[str]
    if isinstance(layers, Views):
        names, shapes, sizes = layers.names, layers.shapes, layers.sizes
    else:  # of all ranks together, or of files
        names, shapes = [layer.name for layer in layers], [layer.shape for layer in layers]
        sizes = [layer.size for layer in layers]
    row = partial(_row, by_magnitude)
    return Report.lazily(partial(map, row, names, shapes, sizes, thresholds), left_out)


def _row(
    by_magnitude: bool, name: str, shape: Sequence[int], size: int, found: _core.LayerThreshold
) -> LayerReport:
    threshold = found.magnitude if by_magnitude and isfinite(found.magnitude) else None
    return LayerReport(name, tuple(shape), size, size - found.pruned, threshold)

"""The verb that prunes by masks which somebody else has made: `lampfast.apply`."""

from __future__ import annotations  # so that help() shows Model, not all that it may be

from collections.abc import Mapping, Sequence
from typing import cast

from lampfast import _core, _coverage, _ranks, parameters
from lampfast._engine import calls, collector, in_place, placed, shards, views
from lampfast._engine.views import View, Weight
from lampfast.parameters import Found, Model, Patterns
from lampfast.pruning import reported
from lampfast.reports import Report


@collector.paused
def apply(
    model: Model,
    masks: Mapping[str, Weight],
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    stacked: Patterns = None,
) -> Report:
    """Zero the weights that masks do not keep, in place, in one streaming pass.

    For a model that is to have the zeros of another one: an averaged copy, a merged LoRA, another
    checkpoint, or masks that another program has made. If anything is wrong, nothing changes.

    Example:
        >>> import copy, lampfast, torch
        >>> model = torch.nn.Linear(64, 10)
        >>> average = copy.deepcopy(model)
        >>> report = lampfast.prune(model, 0.9)
        >>> masks = {"weight": model.weight != 0}
        >>> lampfast.apply(average, masks)
        Report(numel=640, kept=64, sparsity=0.9000, layers=1)

    Args:
        model: A module, a mapping of names to torch tensors or numpy arrays, a sequence of either,
            or (module, "weight") pairs, as `lampfast.prune` describes them. The weights may have
            any values: those that are kept stay as they are to the bit, NaN too, and the others
            become +0.
        masks: By layer name a bool tensor or array of the layer's shape, True where the weight is
            kept, as from `lampfast.masks` or `lampfast.load_masks`; tied weights have one, under
            their first name. It may have any memory format and lie on any device: one on another
            device than its layer is copied there, whole. Of a sharded model, of which every rank
            makes the call, it is a DTensor, or whole on every rank; one that is not placed as its
            layer is gathered for a moment.
        include: Glob pattern or patterns over the parameters' names: these are the layers, in the
            place of those by default.
        exclude: Glob pattern or patterns over the same names: these are left out.
        stacked: Glob pattern or patterns over the names of parameters that hold several layers, one
            in each slice along the first dimension; a parameter that holds several layers has one
            mask, of its own shape.

    Returns:
        What the masks keep, overall and in every layer. A weight that was zero and is kept counts
        as kept, as `lampfast.prune` would count it; `lampfast.report(model)` says what there is.
        There are no thresholds.

    Raises:
        TypeError: The masks are not a mapping of names to bool tensors or arrays; or the model or a
            layer has a type, dtype or layout that is not pruned.
        ValueError: A mask is missing, has no layer or another shape than its layer, or shares
            memory with one; or the model or a layer is not one that is pruned.
    """
    found = parameters.find(model, include, exclude, stacked)
    if _ranks.are_needed(found.layers, None):
        return _applied_by_ranks(found, masks)
    layers = found.layers.checked(write=True)
    wholes = found.layers.views(layers)
    given = found.layers.spread(views.masks_of_layers(masks, wholes))
    targets = views.local(layers)
    reachable = views.beside(given, targets)
    left = _coverage.left_out(found)

    def write(before_writing: in_place.BeforeWriting) -> None:
        calls.prune_zeros(targets, reachable, before_writing)
        views.write_back(layers, targets)

    def result(thresholds: Sequence[_core.LayerThreshold]) -> Report:
        return reported(layers, thresholds, left, by_magnitude=False)

    return in_place.zero(found.layers.wholes.values(), wholes, write, result)


def _applied_by_ranks(found: Found, masks: Mapping[str, Weight]) -> Report:
    """The same for a sharded model: each rank zeroes what it has."""
    from lampfast._engine.sharded import Sharded

    model = Sharded(found.layers, ("apply", placed.described(masks)), write=True)
    with model.together():
        views.check_names("masks", masks, list(model.wholes), views.OF_THE_LAYERS)
        for name, weight in model.wholes.items():
            views.readable_mask(name, shards.part(masks[name]))
            views.check_mask_shape(name, masks[name].shape, weight.shape)
    with model.together():
        own = {name: placed.own(weight, masks[name]) for name, weight in model.wholes.items()}
        views.masks_of_layers(own, model.local_views())
        left = _coverage.left_out(found)
    return in_place.zero(
        [*found.layers.wholes.values(), *(view.weight for view in model.local_views())],
        model.local_views(),
        lambda before_writing: model.prune_zeros(own, before_writing),
        lambda made: reported(cast(Sequence[View], model.layers), made, left, by_magnitude=False),
    )

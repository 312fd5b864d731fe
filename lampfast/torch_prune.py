"""LAMP for code that prunes with torch.nn.utils.prune; it takes one line to switch.

Modules keep `weight_orig` and `weight_mask`, amounts are relative to what remains, and torch's
`prune.remove` and `prune.is_pruned` work as before. In a loop such as

    from torch.nn.utils import prune

    weights = [(model[0], "weight"), (model[2], "weight")]
    for _ in range(3):
        prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=0.2)
        train(model)
    for module, name in weights:
        prune.remove(module, name)

the line that prunes becomes, after `from lampfast import torch_prune`,

        torch_prune.global_unstructured(weights, amount=0.2)

or stays as it is but for these two names, `pruning_method=torch_prune.LAMPUnstructured`. For one
module at a time `prune.l1_unstructured` becomes `torch_prune.lamp_unstructured`. From there
`torch_prune.to_zeros(model)` leads to lampfast's own way: ordinary weights with real zeros.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import prune

from lampfast import _arguments, pruning
from lampfast import parameters as _parameters
from lampfast._engine import views, ways_out
from lampfast._engine.interrupts import Deferred

__all__ = ["LAMPUnstructured", "global_unstructured", "lamp_unstructured", "to_zeros"]

_PASS_PAIRS = 'pass (module, parameter name) pairs, such as [(model.fc, "weight")]'


class _MaskedWeight(NamedTuple):
    """A weight, which of its elements torch's masks leave, and what these are ranked by."""

    weight: torch.Tensor  # its values now, those of masked elements too
    remaining: torch.Tensor | None  # True where an element is not masked; None: everywhere
    importance: torch.Tensor  # the weight itself, unless others were given


class _PruningType:
    """What torch asks a method for, and Lightning's ModelPruning its class.

    That callback has torch's `global_unstructured` prune, after an epoch of training; the answer is
    in the error that it raises at once.
    """

    def __get__(self, method: prune.BasePruningMethod | None, owner: type) -> str:
        if method is not None:
            return "unstructured"
        return (
            "LAMP, which scores each layer by itself, while this callback prunes one vector of all "
            "layers; pass a lampfast.lightning.PruningCallback to the Trainer in its place"
        )


class LAMPUnstructured(prune.L1Unstructured):
    """The pruning method, as torch.nn.utils.prune has them: the lowest LAMP scores of one tensor.

    Inside one tensor these are the smallest magnitudes. Unlike with torch's L1Unstructured, of
    equal magnitudes those of the lowest row-major index go first, on every device, and NaN is an
    error. Several layers share one threshold on their scores in `global_unstructured` of this
    module; torch's own sees all layers as one vector, which LAMP cannot rank, and is refused, and
    so is Lightning's ModelPruning, when it is made: `lampfast.lightning` has a callback.

    Example:
        >>> from lampfast.torch_prune import LAMPUnstructured
        >>> module = torch.nn.Linear(10, 10)
        >>> method = LAMPUnstructured.apply(module, "weight", 0.2)
        >>> module.weight_mask.sum(), module.weight_orig.shape
        (tensor(80.), torch.Size([10, 10]))
        >>> history = LAMPUnstructured.apply(module, "weight", 0.5)
        >>> module.weight_mask.sum(), len(history)
        (tensor(40.), 2)

    Args:
        amount: How much to prune of what remains: a float is a fraction, 0.0 to 1.0, an int the
            number of elements.

    Raises:
        TypeError: `amount` is not a number.
        ValueError: `amount` is out of range.
    """

    PRUNING_TYPE = _PruningType()

    def __init__(self, amount: float) -> None:
        _arguments.amount("amount", amount)
        super().__init__(amount)

    def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> torch.Tensor:
        """The mask with which `amount` of the elements that `default_mask` keeps are pruned.

        Example:
            >>> from lampfast.torch_prune import LAMPUnstructured
            >>> mask = torch.tensor([1.0, 1.0, 0.0, 1.0])
            >>> LAMPUnstructured(2).compute_mask(torch.tensor([3.0, -1.0, 0.0, 2.0]), mask)
            tensor([1., 0., 0., 0.])

        Args:
            t: The tensor to prune, or the importance of its elements.
            default_mask: What earlier prunings left: a tensor of its shape, 1 where an element
                remains.

        Returns:
            A new tensor like `default_mask`, 0 where an element is pruned now.

        Raises:
            TypeError: `t` has a dtype or layout that is not pruned, or it comes from torch's
                `global_unstructured`.
            ValueError: `amount` is more than remains, `t` has a NaN or an infinity, or the shapes
                differ.
        """
        for what, given in (("t", t), ("default_mask", default_mask)):
            if not isinstance(given, torch.Tensor):
                raise TypeError(f"{what} is a {type(given).__name__}; pass a torch tensor")
        if default_mask.is_meta or default_mask.layout is not torch.strided:
            raise TypeError("default_mask has no values, or is sparse; pass a plain tensor")
        if default_mask.shape != t.shape:
            raise ValueError(
                f"default_mask has shape {tuple(default_mask.shape)}, t has shape "
                f"{tuple(t.shape)}; pass one value for every element"
            )
        name = getattr(self, "_tensor_name", "tensor")
        _refuse_one_vector(name)
        with ways_out.without_patterns():
            kept = _kept({name: _MaskedWeight(t, _ones(default_mask), t)}, self.amount)[name]
        mask = default_mask.clone(memory_format=torch.contiguous_format)
        return mask.masked_fill_(~kept, 0)

    @classmethod
    def apply(  # type: ignore[override]  # torch's methods narrow it too
        cls,
        module: nn.Module,
        name: str,
        amount: float,
        importance_scores: torch.Tensor | None = None,
    ) -> prune.BasePruningMethod:
        """Prune a module's parameter: give it a mask and a hook, or prune more of what remains.

        Elements are ranked by the values that `name + "_orig"` has now, also where an optimizer
        has stepped since the last forward pass.

        Example:
            >>> from lampfast.torch_prune import LAMPUnstructured
            >>> module = torch.nn.Linear(10, 10)
            >>> method = LAMPUnstructured.apply(module, "bias", amount=3)
            >>> module.bias_mask.sum()
            tensor(7.)

        Args:
            module: The module that has the parameter.
            name: The parameter's name in it.
            amount: How much to prune of what remains: a float is a fraction, 0.0 to 1.0, an int
                the number of elements.
            importance_scores: A tensor of the parameter's shape whose magnitudes take the place of
                the parameter's.

        Returns:
            The hook: the method, or torch's PruningContainer of all methods applied so far.

        Raises:
            TypeError: An argument, or the parameter's dtype or layout, is not one that is pruned.
            ValueError: `amount` is out of range, there is no such parameter, a value is NaN or
                infinite, or the importance has another shape. The module is as it was.
        """
        pairs = _pairs([(module, name)])
        _refuse_one_vector(name)
        scores = {} if importance_scores is None else {(module, name): importance_scores}
        with ways_out.without_patterns():
            layers = _layers(pairs, scores)
            (kept,) = _kept(layers, amount).values()
        # All that can fail is done by now, for torch removes the hook of a module that is pruned
        # already before it asks `compute_mask` for the new mask. The finished mask goes there as an
        # importance in the weight's dtype: 0 for what is to be pruned.
        (layer,) = layers.values()
        importance = kept.to(layer.weight.dtype)
        with Deferred():
            method = super().apply(module, name, amount, importance)  # type: ignore[no-untyped-call]
        return cast(prune.BasePruningMethod, method)


def lamp_unstructured(
    module: nn.Module,
    name: str,
    amount: float,
    importance_scores: torch.Tensor | None = None,
) -> nn.Module:
    """Prune one parameter of a module by its LAMP scores, as torch's `l1_unstructured` does by |w|.

    In one layer the two agree but for ties, which go by row-major index here. To prune many layers
    by one threshold on their scores, which is what LAMP is for, see `global_unstructured`.

    Example:
        >>> from lampfast import torch_prune
        >>> module = torch_prune.lamp_unstructured(torch.nn.Linear(10, 10), "weight", amount=0.2)
        >>> sorted(module.state_dict())
        ['bias', 'weight_mask', 'weight_orig']

    Args:
        module: The module that has the parameter; changed in place.
        name: The parameter's name in it.
        amount: How much to prune of what remains: a float is a fraction, 0.0 to 1.0, an int the
            number of elements.
        importance_scores: A tensor of the parameter's shape whose magnitudes take the place of the
            parameter's.

    Returns:
        The module.

    Raises:
        TypeError: An argument, or the parameter's dtype or layout, is not one that is pruned.
        ValueError: `amount` is out of range, there is no such parameter, a value is NaN or
            infinite, or the importance has another shape. The module is as it was.
    """
    LAMPUnstructured.apply(module, name, amount, importance_scores)
    return module


def global_unstructured(
    parameters: Iterable[tuple[nn.Module, str]],
    pruning_method: type[LAMPUnstructured] = LAMPUnstructured,
    importance_scores: Mapping[tuple[nn.Module, str], torch.Tensor] | None = None,
    *,
    amount: float,
) -> None:
    """Prune many parameters by one threshold on their LAMP scores, each being one layer.

    It leaves what torch's `global_unstructured` leaves: masks, originals, hooks and their history.
    Only elements that are not masked yet are scored and counted, zeros among them too. They are
    ranked by the values that `weight_orig` has now, also where an optimizer has stepped since the
    last forward pass. A parameter that several modules share counts once; they get equal masks.

    Example:
        >>> from lampfast import torch_prune
        >>> model = torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.Linear(10, 10))
        >>> weights = [(model[0], "weight"), (model[1], "weight")]
        >>> for _ in range(2):
        ...     torch_prune.global_unstructured(weights, amount=0.2)
        >>> model[0].weight_mask.sum() + model[1].weight_mask.sum()
        tensor(128.)

    Args:
        parameters: (module, parameter name) pairs; the modules are changed in place.
        pruning_method: LAMPUnstructured; it is here so that calls of torch's `global_unstructured`
            need no other change.
        amount: How much to prune of what remains in all of them together: a float is a fraction,
            0.0 to 1.0, an int the number of elements.
        importance_scores: For some or all of the pairs a tensor of the parameter's shape whose
            magnitudes take the place of the parameter's. The score is relative to a layer, so
            importances need not be on one scale.

    Raises:
        TypeError: An argument, or a parameter's dtype or layout, is not one that is pruned, or
            `pruning_method` is another one.
        ValueError: `amount` is out of range, there is no pair, a pair is there twice, names no
            parameter or is the out_proj of a MultiheadAttention, which runs no hooks, a value is
            NaN or infinite, an importance has another shape or is not that of a pair, or
            parameters share memory in part or under different masks. No module has changed.

    Source:
        Lee, Park, Mo, Ahn, Shin: Layer-adaptive sparsity for the Magnitude-based Pruning, ICLR
        2021, arXiv 2010.07611, section 2.
    """
    _check_method(pruning_method, amount)
    pairs = _pairs(parameters)
    with ways_out.without_patterns():
        layers = _layers(pairs, {} if importance_scores is None else importance_scores)
        kept = _kept(layers, amount)
    with Deferred():
        for (module, name), mask in zip(pairs, kept.values(), strict=True):
            prune.custom_from_mask(module, name, mask)  # type: ignore[no-untyped-call]


def to_zeros(model: nn.Module) -> list[str]:
    """Turn masks into real zeros: every pruned parameter of a model becomes an ordinary one again.

    Whatever method of torch.nn.utils.prune made the masks; their hooks and buffers go. Parameters
    remain the objects that they are, in the memory that they have, so that optimizers go on. From
    then on `lampfast.report` counts the zeros, `lampfast.prune` prunes more, and
    `lampfast.keep_zeros` holds them while the model trains.

    Example:
        >>> from lampfast import report, torch_prune
        >>> model = torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.Linear(10, 10))
        >>> weights = [(model[0], "weight"), (model[1], "weight")]
        >>> torch_prune.global_unstructured(weights, amount=0.9)
        >>> torch_prune.to_zeros(model)
        ['0.weight', '1.weight']
        >>> report(model)
        Report(numel=200, kept=20, sparsity=0.9000, layers=2)

    Args:
        model: A module; changed in place.

    Returns:
        The names of the parameters that were pruned; none where nothing was.

    Raises:
        TypeError: The model is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    names = []
    with Deferred():
        for prefix, module in model.named_modules():
            for name in _pruned_names(module):
                _make_permanent(module, name)
                names.append(f"{prefix}.{name}" if prefix else name)
    return names


def _make_permanent(module: nn.Module, name: str) -> None:
    """What torch's `prune.remove` does, but in place, and with +0 where the mask is 0."""
    parameter, mask = module.get_parameter(f"{name}_orig"), module.get_buffer(f"{name}_mask")
    memory = parameter.data
    prune.remove(module, name)  # type: ignore[no-untyped-call]
    masked, parameter.data = parameter.data, memory
    with torch.no_grad():
        parameter.copy_(masked).masked_fill_(mask == 0, 0)


def _pruned_names(module: nn.Module) -> list[str]:
    """The tensors of a module that are pruned, as `prune.remove` finds them."""
    hooks = module._forward_pre_hooks.values()
    return [hook._tensor_name for hook in hooks if isinstance(hook, prune.BasePruningMethod)]


def _check_method(method: object, amount: object) -> None:
    """Check that it is ours: others rank what they see by magnitude, by chance, or as they like."""
    if method is LAMPUnstructured:
        return
    found = method.__name__ if isinstance(method, type) else f"a {type(method).__name__}"
    raise TypeError(
        f"pruning_method is {found}, and this prunes by LAMP scores; write lampfast.torch_prune."
        f"global_unstructured(parameters, pruning_method=LAMPUnstructured, amount={amount!r}), or "
        "call torch.nn.utils.prune.global_unstructured for other methods"
    )


def _refuse_one_vector(name: str) -> None:
    """Catch torch's global_unstructured, which would rank by magnitude and call it LAMP."""
    if name == "temp":
        raise TypeError(
            "'temp' is what torch.nn.utils.prune.global_unstructured calls its one vector of all "
            "layers, but LAMP scores each layer by itself; call "
            "lampfast.torch_prune.global_unstructured(parameters, amount=...) instead"
        )


def _layers(
    pairs: list[tuple[nn.Module, str]],
    importance_scores: Mapping[tuple[nn.Module, str], torch.Tensor],
) -> dict[str, _MaskedWeight]:
    """The layers that pairs mean, named by position and parameter, as everywhere in lampfast."""
    _check_importances(importance_scores, pairs)
    masks = [_mask(module, name) for module, name in pairs]
    originals = [
        (module, name if mask is None else f"{name}_orig")
        for (module, name), mask in zip(pairs, masks, strict=True)
    ]
    weights = cast(Mapping[str, torch.Tensor], _parameters.named(originals))
    for i, weight in enumerate(weights.values()):
        if weight.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
            raise TypeError(
                f"layer '{i}.{pairs[i][1]}' has dtype {weight.dtype}, in which torch cannot "
                "multiply by a mask; lampfast.prune needs none"
            )
    return {
        f"{i}.{pair[1]}": _MaskedWeight(
            weight, None if mask is None else _ones(mask), importance_scores.get(pair, weight)
        )
        for i, (pair, mask, weight) in enumerate(zip(pairs, masks, weights.values(), strict=True))
    }


def _mask(module: nn.Module, name: str) -> torch.Tensor | None:
    """The mask that a module's parameter has; None if it is not pruned."""
    if name in _pruned_names(module):
        return module.get_buffer(f"{name}_mask")
    for taken in (f"{name}_orig", f"{name}_mask"):
        if hasattr(module, taken):
            raise ValueError(
                f"{type(module).__name__} has a {taken!r} that torch.nn.utils.prune did not make "
                f"and that it needs the name of; rename it, or leave {name!r} out"
            )
    return None


def _pairs(parameters: Iterable[tuple[nn.Module, str]]) -> list[tuple[nn.Module, str]]:
    """Check that these are distinct pairs of a module and a name."""
    if not isinstance(parameters, Iterable) or isinstance(parameters, torch.Tensor | nn.Module):
        raise TypeError(f"parameters is a {type(parameters).__name__}; {_PASS_PAIRS}")
    positions: dict[tuple[nn.Module, str], int] = {}
    for i, entry in enumerate(parameters):
        match entry:
            case [nn.Module() as module, str() as name]:
                if (module, name) in positions:
                    raise ValueError(
                        f"positions {positions[module, name]} and {i} both hold {name!r} of the "
                        f"same {type(module).__name__}; leave one out"
                    )
                if isinstance(module, NonDynamicallyQuantizableLinear):
                    raise ValueError(
                        f"position {i} holds the out_proj of a MultiheadAttention, which reads "
                        f"{name!r} without calling it, so that the mask's hook never runs and the "
                        "weights that are used would be old ones; leave it out, or prune it with "
                        "lampfast.prune, which needs no hook"
                    )
                positions[module, name] = i
            case [*parts]:
                found = f"({', '.join(type(part).__name__ for part in parts)})"
                raise TypeError(f"position {i} holds {found}; {_PASS_PAIRS}")
            case _:
                raise TypeError(f"position {i} holds a {type(entry).__name__}; {_PASS_PAIRS}")
    if not positions:
        raise ValueError(f"parameters is empty, so there is nothing to prune; {_PASS_PAIRS}")
    return list(positions)


def _check_importances(
    importance_scores: Mapping[tuple[nn.Module, str], torch.Tensor],
    pairs: list[tuple[nn.Module, str]],
) -> None:
    """Check that importances are tensors, and those of pairs; they may be of some only."""
    if not isinstance(importance_scores, Mapping):
        raise TypeError(
            f"importance_scores is a {type(importance_scores).__name__}; pass a mapping "
            "{(module, name): tensor}"
        )
    known = set(pairs)
    for key, importance in importance_scores.items():
        if key not in known:
            raise ValueError(
                f"importance_scores has the key {key!r}, which is none of the (module, name) pairs "
                "to prune; leave it out"
            )
        if not isinstance(importance, torch.Tensor):
            raise TypeError(
                f"importance_scores[{key!r}] is a {type(importance).__name__}; pass a torch tensor"
            )


def _kept(layers: Mapping[str, _MaskedWeight], amount: float) -> dict[str, torch.Tensor]:
    """Masks of the layers' shapes: False where `amount` prunes an element that remained."""
    distinct = _distinct(layers)
    # Masks that prune nothing yet, to check the whole weights: errors name indices in these.
    kept: dict[str, torch.Tensor] = pruning.masks(
        {label: layer.weight for label, layer in distinct.items()},
        0,
        importance={label: layer.importance for label, layer in distinct.items()},
    )
    left = {label: _left(layer.weight, layer) for label, layer in distinct.items()}
    chosen = pruning.masks(
        left,
        _arguments.count("amount", amount, sum(weight.numel() for weight in left.values())),
        importance={
            label: left[label]
            if layer.importance is layer.weight
            else _left(layer.importance, layer)
            for label, layer in distinct.items()
        },
        out={
            label: kept[label]
            if layer.remaining is None
            else torch.empty_like(left[label], dtype=torch.bool)
            for label, layer in distinct.items()
        },
    )
    for label, layer in distinct.items():
        if layer.remaining is not None:
            kept[label].masked_scatter_(layer.remaining, chosen[label])
    first = {id(layer.weight): label for label, layer in distinct.items()}
    return {label: kept[first[id(layer.weight)]] for label, layer in layers.items()}


def _distinct(layers: Mapping[str, _MaskedWeight]) -> dict[str, _MaskedWeight]:
    """The layers, a parameter that several modules share under its first name only."""
    first: dict[int, str] = {}
    for label, layer in layers.items():
        earlier = first.setdefault(id(layer.weight), label)
        if not _equal(layers[earlier].remaining, layer.remaining):
            raise ValueError(
                f"layers {earlier!r} and {label!r} share one parameter and have different masks; "
                "leave one out, or call lampfast.torch_prune.to_zeros(model) first"
            )
    distinct = {label: layers[label] for label in first.values()}
    apart = [view.name for view in views.layers({name: x.weight for name, x in distinct.items()})]
    for label in distinct:
        if label not in apart:
            raise ValueError(
                f"layer {label!r} shares its memory with another, without being one parameter with "
                "it; leave one out, or make them one"
            )
    return distinct


def _left(tensor: torch.Tensor, layer: _MaskedWeight) -> torch.Tensor:
    """The elements of a tensor that are not masked, in row-major order."""
    if layer.remaining is None:
        return tensor
    return tensor.detach()[layer.remaining.to(tensor.device)]


def _ones(mask: torch.Tensor) -> torch.Tensor | None:
    """Where a mask is 1, which is what torch prunes further; None where it is everywhere."""
    ones = mask == 1
    return None if ones.all() else ones


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)

"""Sparse training: what is zero now stays zero through every step of an optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, cast

import torch
from torch.optim import Optimizer

from lampfast import _changes, parameters, views
from lampfast._kept import Layers
from lampfast.parameters import Model, Patterns
from lampfast.views import View

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


def keep_zeros(
    model: Model,
    optimizers: Optimizer | Sequence[Optimizer],
    *,
    include: Patterns = None,
    exclude: Patterns = None,
) -> KeptZeros:
    """Keep the weights that are zero now at zero through every step of the optimizers.

    After each step the weights that it has moved away from zero are set to +0 in one pass; the
    others are not touched. Momentum, weight decay, foreach and fused steps, closures, gradient
    scaling and torch.compile of the model need nothing else. `lampfast.prune` of the same layers
    adds the new zeros by itself. The weights stay ordinary parameters: nothing is wrapped, and a
    state_dict or a copy of the model is as it would be. The masks take one bit a weight, on the
    layer's device.

    Example:
        >>> import lampfast, torch
        >>> model = torch.nn.Linear(64, 10)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> report = lampfast.prune(model, 0.9)
        >>> kept = lampfast.keep_zeros(model, optimizer)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(8, 64)).square().mean().backward()
        ...     optimizer.step()
        >>> lampfast.report(model).sparsity
        0.9

    Args:
        model: As for `lampfast.prune`, of torch tensors. Tied weights are kept once.
        optimizers: The optimizer that trains the model, or a list of all of them. A step of one
            restores the zeros of the layers that are in its parameter groups at that time, those
            that were added to it later too.
        include: As for `lampfast.prune`.
        exclude: As for `lampfast.prune`.

    Returns:
        A handle: `remove()` ends it, as leaving it as a context manager does. It need not be held
        on to: the optimizers do that.

    Raises:
        TypeError: An optimizer is not a torch.optim.Optimizer, a layer is a numpy array, or the
            model or a layer has a type, dtype or layout that is not pruned.
        ValueError: An optimizer has none of the layers, a layer that requires a gradient is in no
            optimizer, a pattern matches nothing, or a layer cannot be written.
    """
    given = _checked(optimizers)
    layers = views.layers(parameters.named(model, include, exclude), write=True)
    _check_trained(layers, given)
    return KeptZeros(layers, given)


class KeptZeros:
    """Holds the zeros of a model's layers through its optimizers' steps; `keep_zeros` makes it.

    A layer's weights may move between steps, as by `model.half()`, `model.to(device)` or
    `model.to(memory_format=...)`: the mask goes with them. Only a change of its shape is an error,
    at the next step. Layers on devices without an engine are kept by torch's operations there, with
    masks of one byte a weight.

    Example:
        >>> import lampfast, torch
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 0.0]))
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> with lampfast.keep_zeros([weight], optimizer):
        ...     weight.sum().backward()
        ...     optimizer.step()
        >>> weight.tolist()
        [2.0, 0.0]
    """

    def __init__(self, layers: Sequence[View], optimizers: Sequence[Optimizer]) -> None:
        self._kept = Layers(layers)
        # torch.compile of a step must not look into the hook, which passes addresses on.
        hook = torch.compiler.disable(  # type: ignore[no-untyped-call]
            partial(_after_step, self._kept)
        )
        self._hooks: list[RemovableHandle] = [
            optimizer.register_step_post_hook(hook) for optimizer in optimizers
        ]
        _changes.listen(self._kept)

    def update(self) -> None:
        """Record anew: what is zero now is what is kept at zero from now on.

        Raises:
            TypeError: A layer is no longer one that can be pruned.
            ValueError: A layer can no longer be written.
            RuntimeError: The handle was removed.
        """
        self._check_in_use()
        self._kept.update()

    def remove(self) -> None:
        """Let the zeros go: later steps may change them. Once removed it holds nothing."""
        for hook in self._hooks:
            hook.remove()
        _changes.stop_listening(self._kept)
        self._hooks, self._kept = [], Layers([])

    def __enter__(self) -> KeptZeros:
        """Nothing to do: the zeros are kept already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let the zeros go."""
        self.remove()

    def __repr__(self) -> str:
        layers = self._kept.layers
        return f"KeptZeros(numel={sum(layer.view.size for layer in layers)}, layers={len(layers)})"

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The masks, to be saved beside the model's and the optimizers' state.

        Example:
            >>> import lampfast, torch
            >>> weight = torch.nn.Parameter(torch.tensor([3.0, 0.0, 0.0, 1.0]))
            >>> lampfast.keep_zeros([weight], torch.optim.SGD([weight])).state_dict()
            {'0': tensor([9], dtype=torch.uint8)}

        Returns:
            By layer name a uint8 tensor on the CPU with one bit a weight, set where the weight is
            kept: bit i % 8, counted from the lowest, of byte i // 8 is that of the i-th weight in
            row-major order, whatever the layer's memory format. The last byte's other bits are 0.

        Raises:
            ValueError: The shape of a layer has changed since its zeros were recorded.
            RuntimeError: The handle was removed.
        """
        self._check_in_use()
        return self._kept.state()

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over masks, and set to zero what they do not keep.

        Args:
            state: What `state_dict` returned, for layers of the same names and shapes.

        Raises:
            TypeError: It is not a mapping of names to uint8 tensors.
            ValueError: The names are not those of the layers, or a size is wrong.
            RuntimeError: The handle was removed.
        """
        self._check_in_use()
        _check_state(state, [layer.now() for layer in self._kept.layers])
        self._kept.load(state)

    def _check_in_use(self) -> None:
        if not self._hooks:
            raise RuntimeError("this handle was removed; call lampfast.keep_zeros again")


def _after_step(kept: Layers, optimizer: Optimizer, args: object, kwargs: object) -> None:
    kept.keep(_ids(optimizer))


def _ids(optimizer: Optimizer) -> set[int]:
    """What an optimizer trains now, tensors by their identity."""
    return {id(weight) for group in optimizer.param_groups for weight in group["params"]}


def _checked(optimizers: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    """The distinct optimizers, each of which calls step hooks."""
    given = [optimizers] if isinstance(optimizers, Optimizer) else optimizers
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise TypeError(
            f"optimizers is a {type(given).__name__}; pass the torch.optim.Optimizer that trains "
            "the model, or a list of them"
        )
    if not given:
        raise ValueError("optimizers is empty; pass the optimizers that train the model")
    for position, optimizer in enumerate(given):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizers has a {type(optimizer).__name__} at position {position}; pass "
                "instances of torch.optim.Optimizer"
            )
        if not hasattr(optimizer, "_optimizer_step_post_hooks"):
            raise TypeError(
                f"{type(optimizer).__name__} calls no step hooks, as it only wraps an optimizer; "
                "pass the one inside (often its attribute `optimizer`)"
            )
    return list(dict.fromkeys(given))


def _check_trained(layers: Sequence[View], optimizers: Sequence[Optimizer]) -> None:
    """Check that every layer that is trained is trained by the optimizers, and each has one."""
    trained: set[int] = set()
    for layer in layers:
        if not isinstance(layer.weight, torch.Tensor):
            raise TypeError(
                f"layer {layer.name!r} is a numpy array, which no optimizer trains; pass torch "
                "tensors, or leave it out with exclude="
            )
    for position, optimizer in enumerate(optimizers):
        ids = _ids(optimizer)
        if not any(id(layer.weight) in ids for layer in layers):
            raise ValueError(
                f"{type(optimizer).__name__} at position {position} of optimizers has none of the "
                "layers; pass the optimizers that train this model, or choose other layers with "
                "include= or exclude="
            )
        trained |= ids
    for layer in layers:
        weight = cast(torch.Tensor, layer.weight)
        if weight.requires_grad and id(weight) not in trained:
            raise ValueError(
                f"layer {layer.name!r} requires a gradient but is in none of the optimizers, so its"
                " zeros would not be kept; pass all optimizers as a list, leave it out with "
                "exclude=, or freeze it with requires_grad_(False)"
            )


def _check_state(state: Mapping[str, torch.Tensor], layers: Sequence[View]) -> None:
    if not isinstance(state, Mapping):
        raise TypeError(f"state is a {type(state).__name__}; pass what state_dict() returned")
    names = [layer.name for layer in layers]
    missing = [name for name in names if name not in state]
    unknown = state.keys() - names
    if missing or unknown:
        raise ValueError(
            "state must name exactly the layers whose zeros are kept (missing: "
            f"{missing[:5]}, unknown: {sorted(unknown, key=str)[:5]}); call keep_zeros with the "
            "include= and exclude= that it was saved with"
        )
    for layer in layers:
        mask, size = state[layer.name], (layer.size + 7) // 8
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.uint8:
            found = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise TypeError(
                f"state of layer {layer.name!r} is {found}, not a uint8 tensor; pass what "
                "state_dict() returned"
            )
        if mask.shape != (size,):
            raise ValueError(
                f"state of layer {layer.name!r} has shape {tuple(mask.shape)}, but {size} bytes are"
                f" needed for its {layer.size} weights; it was saved for another shape"
            )

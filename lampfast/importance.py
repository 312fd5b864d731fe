"""Importances that take the place of plain magnitudes: `lampfast.importance.wanda`."""

from __future__ import annotations  # so that help() shows Patterns, not all that it may be

import reprlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import nan
from typing import Any, TypeAlias, cast

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lampfast import parameters
from lampfast._engine import copies, memory, tracing
from lampfast._engine.stacks import Layers
from lampfast.parameters import Patterns

__all__ = ["wanda"]

_Geometry: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...]]  # offset, shape, strides

_PRODUCTS = {  # by operation, the position of the left one of what it multiplies
    "aten.mm": 0,
    "aten.bmm": 0,
    "aten.mv": 0,
    "aten.addmm": 1,
    "aten.baddbmm": 1,
    "aten.addmv": 1,
    "aten._addmm_activation": 1,
}
_GROUPED = {"aten._grouped_mm", "transformers.grouped_mm_fallback"}


def wanda(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    stacked: Patterns = None,
) -> dict[str, torch.Tensor]:
    """|W|·‖x‖ of every weight: its magnitude times the norm of what it is multiplied with.

    The norm is over all tokens (rows, positions) of all batches, padding too, and is taken where a
    weight meets its input: in linear, attention and recurrent layers, transformers' Conv1D, the
    experts of mixtures (over the tokens that go to each), and convolutions (over the positions that
    each weight of a kernel meets). A matrix that is tied to an embedding counts as the layer that
    it is besides. Sums are in float64; the model runs in evaluation mode, without gradients and
    autocast, and is left as it was.

    Example:
        >>> import lampfast, torch
        >>> model = torch.nn.Linear(4, 2, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, -2.0)
        >>> importance = lampfast.importance.wanda(model, [torch.tensor([[3.0, 1.0, 2.0, 5.0]])])
        >>> importance
        {'weight': tensor([[ 6.,  2.,  4., 10.],
                [ 6.,  2.,  4., 10.]])}
        >>> lampfast.prune(model, 0.5, method="uniform", stacked="weight", importance=importance)
        Report(numel=8, kept=4, sparsity=0.5000, layers=2)

    Args:
        model: What is to be pruned. It is run once for each batch.
        batches: Inputs such as the model is to be good at: each a tensor, a mapping of keyword
            arguments (transformers' BatchEncoding is one), or a tuple or list of positional ones.
        include: Glob pattern or patterns over the parameters' names: these are the layers, in the
            place of those by default.
        exclude: Glob pattern or patterns over the same names: these are left out.
        stacked: Glob pattern or patterns over the names of parameters that hold several layers, one
            in each slice along the first dimension; needed for parameters that are not
            layers otherwise.

    Returns:
        An importance for `lampfast.prune` and the others: by parameter name a tensor of its shape
        on its device, float32, or float64 for float64 weights. It takes the memory of the weights
        in that dtype; while the model runs, only norms are held, and one input at a time in
        float64.

    Raises:
        TypeError: The model is no module, a batch is nothing that it can be called with, or a layer
            is not one that is pruned.
        ValueError: No batch reached a layer, there is no batch, or an input of a layer is NaN or
            infinite; or the model or a layer is not one that is pruned.
        RuntimeError: torch is tracing or transforming the call.

    Source:
        Sun, Liu, Bair, Kolter: A Simple and Effective Pruning Approach for Large Language Models,
        ICLR 2024, arXiv 2306.11695, section 3. Wanda prunes the same fraction of every row (output)
        of a matrix, as `method="uniform"` does where `stacked=` makes every row a layer.
    """
    tracing.refuse()
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}; pass a torch.nn.Module, which can be run"
        )
    _check_batches(batches)
    found = parameters.find(model, include, exclude, stacked).layers
    weights = {view.name: cast(torch.Tensor, view.weight) for view in found.views(found.checked())}
    inputs = _Inputs(weights)
    count = 0
    with _evaluation(model, {weight.device.type for weight in weights.values()}):
        for count, batch in enumerate(batches, start=1):
            arguments, keywords = _arguments_of(batch, count - 1)
            with inputs:
                model(*arguments, **keywords)
            inputs.check(count - 1)
    if not count:
        raise ValueError("batches is empty; pass some inputs of the model")
    norms = {name: inputs.norms(name) for name in weights}
    _check_reached(found, norms)
    with torch.no_grad():
        return {
            name: norm.mul_(weights[name].to(norm.dtype)).abs_() for name, norm in norms.items()
        }


def _check_batches(batches: object) -> None:
    """Check that there are batches to go through, and not one batch."""
    if isinstance(batches, torch.Tensor | Mapping | str | bytes):
        raise TypeError(
            f"batches is a {type(batches).__name__}; pass an iterable of batches, or [batch] for "
            "just one"
        )
    if not isinstance(batches, Iterable) or isinstance(batches, type):
        raise TypeError(f"batches is a {type(batches).__name__}; pass an iterable of batches")


def _arguments_of(batch: Any, i: int) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """What the model is called with for a batch."""
    if isinstance(batch, Mapping):
        if all(isinstance(key, str) for key in batch):
            return (), batch
    elif isinstance(batch, tuple | list):
        return batch, {}
    elif isinstance(batch, torch.Tensor):
        return (batch,), {}
    raise TypeError(
        f"batches has a {type(batch).__name__} at position {i}, {reprlib.repr(batch)}; pass a "
        "tensor, a mapping of keyword arguments, or a tuple or list of arguments of the model"
    )


@contextmanager
def _evaluation(model: nn.Module, devices: Iterable[str]) -> Iterator[None]:
    """Evaluation mode, in which each weight is multiplied by itself: not as a copy, nor fused."""
    before = [(module, module.training) for module in model.modules()]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        if any(isinstance(module, nn.RNNBase) for module, _ in before):
            backends: tuple[Any, ...] = torch.backends.mkldnn, torch.backends.cudnn
            for backend in backends:
                stack.callback(setattr, backend, "enabled", backend.enabled)
                backend.enabled = False
        mha = torch.backends.mha
        stack.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
        mha.set_fastpath_enabled(False)
        stack.callback(_restore, before)
        model.eval()
        yield


def _restore(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    """Put modules back into the modes that they were in; parents come before their children."""
    for module, was_training in modes:
        if module.training != was_training:
            module.train(was_training)


class _Inputs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, sums the squares of all that weights are multiplied with.

    It looks at the operations that torch dispatches. There a weight is known by its memory, its
    transpose and its parts too, so that it does not matter how a model comes to multiply them.

    Attributes:
        sums: By parameter and view of it, tensors that broadcast to the view.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights = weights
        self.sums: dict[str, dict[_Geometry, torch.Tensor]] = {name: {} for name in weights}
        self.spans: dict[object, list[tuple[int, int, str]]] = {}
        for name, weight in weights.items():
            self.spans.setdefault(_storage(weight), []).append((*_span(weight), name))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and note the input of a weight."""
        name, keywords = str(getattr(func, "overloadpacket", func)), kwargs or {}
        if torch.is_inference_mode_enabled() and hasattr(func, "decompose"):
            with self:  # only there linear(), einsum() and others come whole
                parts = func.decompose(*args, **keywords)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **keywords)
        if (left := _PRODUCTS.get(name)) is not None:
            self.note_product(args[left], args[left + 1])
        elif name == "aten.convolution":
            self.note_convolution(output, *args)
        elif name in _GROUPED:
            self.note_grouped(*args[:3])
        return output

    def note_product(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Note a product of matrices, of batches of them, or of a matrix and a vector."""
        if not left.numel():
            return  # an expert that no token goes to
        if right.ndim == 1:
            right = right.unsqueeze(-1)
        if (name := self._name(right)) is not None:
            self._add(name, right, _squares(left, -2).unsqueeze(-1))
        if (name := self._name(left)) is not None:
            self._add(name, left, _squares(right, -1).unsqueeze(-2))

    def note_grouped(self, left: torch.Tensor, right: torch.Tensor, ends: torch.Tensor) -> None:
        """Note the products of groups of rows each with a matrix of its own."""
        if left.ndim == 2 and right.ndim == 3 and self._name(right) is not None:
            *groups, _ = left.tensor_split(ends.cpu().long())  # the last one has no matrix
            for i, rows in enumerate(groups):
                self.note_product(rows, right[i])

    def note_convolution(
        self,
        output: torch.Tensor,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *how: Any,
    ) -> None:
        """Note a convolution, of some stride, padding, dilation, direction and number of groups.

        The sum of all outputs is linear in each weight, and its gradient is the sum of what the
        weight is multiplied with: of the squares, where these are the inputs. It is the same for
        all outputs of a group, of which one is enough.
        """
        if (name := self._name(weight)) is None or not inputs.numel():
            return
        *_, is_transposed, _, groups = how
        squares = _wide(inputs).square()
        ones = squares.new_ones((output.shape[0], groups, *output.shape[2:]))
        rows, columns, *kernel = weight.shape
        one = (rows, 1, *kernel) if is_transposed else (groups, columns, *kernel)
        _, sums, _ = torch.ops.aten.convolution_backward(
            ones, squares, squares.new_empty(one), None, *how, [False, True, False]
        )
        if is_transposed:
            self._add(name, weight, sums)
        else:
            self._add(name, torch.unflatten(weight, 0, (groups, -1)), sums.unsqueeze(1))

    def _name(self, operand: torch.Tensor) -> str | None:
        """The name of the parameter that an operand is, or is a part of."""
        if type(operand) not in (torch.Tensor, nn.Parameter) or operand.layout != torch.strided:
            return None
        for start, stop, name in self.spans.get(_storage(operand), ()):
            first, last = _span(operand)
            if start <= first and last <= stop and operand.dtype == self.weights[name].dtype:
                return name
        return None

    def _add(self, name: str, operand: torch.Tensor, sums: torch.Tensor) -> None:
        """Add to the sums of a parameter what a view of it was multiplied with."""
        if operand.ndim == 3 and operand.stride(0) == 0:  # one matrix, for a batch
            operand, sums = operand[0], sums.sum(0)
        offset = operand.storage_offset() - self.weights[name].storage_offset()
        geometry = int(offset), tuple(operand.shape), operand.stride()
        of_parameter = self.sums[name]
        before = of_parameter.get(geometry)
        of_parameter[geometry] = sums if before is None else before + sums

    def check(self, i: int) -> None:
        """Check that the inputs of all layers have been finite, up to the i-th batch."""
        for name, of_parameter in self.sums.items():
            if not all(sums.isfinite().all() for sums in of_parameter.values()):
                raise ValueError(
                    f"layer {name!r} had an input with NaN, infinity or a value too large to be "
                    f"squared, at position {i} of batches; see that the model and its inputs are "
                    "right, or leave the layer out with exclude="
                )

    def norms(self, name: str) -> torch.Tensor:
        """The norm of what each weight of a parameter was multiplied with; NaN if with nothing."""
        weight = self.weights[name]
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        norms = torch.empty_strided(
            weight.shape, weight.stride(), dtype=dtype, device=weight.device
        )
        norms.fill_(nan)
        for (offset, shape, strides), sums in self.sums[name].items():
            part = norms.as_strided(shape, strides, offset)
            # A weight may be part of several views: as one of all heads and of all but the queries.
            part.nan_to_num_(0.0).hypot_(sums.sqrt().to(norms))
        return norms


def _storage(tensor: torch.Tensor) -> object:
    """What memory a tensor lies in."""
    return tensor.device, tensor.untyped_storage().data_ptr()


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The places of the lowest and the highest element in this memory."""
    first, last = memory.reach(tuple(tensor.shape), tensor.stride())
    offset = int(tensor.storage_offset())
    return offset + first, offset + last


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in float64, on the host where its device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def _squares(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """The sums of the squares along a dimension."""
    norms: torch.Tensor = torch.linalg.vector_norm(_wide(tensor), dim=dim)
    return norms.square()


def _check_reached(found: Layers, norms: Mapping[str, torch.Tensor]) -> None:
    """Check that there is a norm for every weight of every layer; warn of those that are all zero.

    Raises:
        ValueError: There is not.
    """
    unreached: list[str] = []
    idle: list[str] = []
    for name, norm in norms.items():
        if (norm > 0).all():
            continue
        stack = found.stacks.get(name)
        layers = [(name, norm)] if stack is None else stack.cut(name, norm)
        for layer, part in cast(Iterable[tuple[str, torch.Tensor]], layers):
            if part.isnan().any():
                unreached.append(layer)
            elif part.numel() and not part.any():
                idle.append(layer)
    if unreached:
        raise ValueError(
            f"no batch reached layer {_some(unreached)}: pass batches that do, or leave out what "
            "none can reach with exclude=, here and where you prune. A weight is seen where it is "
            "multiplied with its input by itself, not as a copy: experts of transformers need "
            "model.set_experts_implementation('eager') or 'grouped_mm'"
        )
    if idle:
        warnings.warn(
            f"all inputs of layer {_some(idle)} were zero, and so is the importance of all its "
            "weights, which are pruned first; pass batches for which they are not, or leave it out "
            "with exclude=",
            stacklevel=copies.frames_to_the_caller(),
        )


def _some(names: Sequence[str]) -> str:
    """The first of the names, and how many there are more."""
    shown = ", ".join(map(repr, names[:3]))
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")

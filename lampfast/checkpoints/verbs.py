"""The verbs for checkpoints: prune to a new place or in place, report, and masks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence, Set
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

import lampfast
from lampfast import _arguments, _blocks, pruning
from lampfast._blocks import Block
from lampfast._engine.scales import Scales
from lampfast.checkpoints import deciding, layers, reading, scaling, warming
from lampfast.checkpoints.deciding import Asked, Decision
from lampfast.checkpoints.layers import Choice
from lampfast.checkpoints.output import Output, Written
from lampfast.checkpoints.places import Place
from lampfast.checkpoints.reading import Checkpoint
from lampfast.checkpoints.resuming import State
from lampfast.checkpoints.zeroing import Rule
from lampfast.methods import Allocation, Method
from lampfast.parameters import Patterns
from lampfast.reports import Report

_CODES = ("F8_E4M3", "F8_E5M2")  # that may have scales beside them

PathLike: TypeAlias = str | os.PathLike[str]
Progress: TypeAlias = Callable[[str, int, int], None]  # of "reading" or "writing": done, in all


class Arguments(NamedTuple):
    """What is asked for of a checkpoint, as for `lampfast.prune`."""

    sparsity: float | None
    method: Method | Allocation = "lamp"
    include: Patterns = None
    exclude: Patterns = None
    stacked: Patterns = None
    importance: PathLike | None = None
    pattern: str | None = None
    dim: int | None = None
    block: Block | None = None

    @property
    def asked(self) -> Asked:
        """How much is to go."""
        return Asked(self.sparsity, self.method, self.pattern, self.dim, self.block)


class Outcome(NamedTuple):
    """What was done, for the command line to show.

    Attributes:
        report: What is kept.
        fingerprint: What the decision depends on.
        notices: What the user should know.
        written: What the output got.
        is_resumed: Whether an earlier run had decided.
        itemsizes: How many bytes a weight has, by layer name.
    """

    report: Report
    fingerprint: dict[str, Any]
    notices: list[str]
    written: Written
    is_resumed: bool
    itemsizes: dict[str, int]


def prune(
    path: PathLike,
    sparsity: float | None = None,
    *,
    out: PathLike | None = None,
    in_place: bool = False,
    method: Method | Allocation = "lamp",
    pattern: str | None = None,
    dim: int | None = None,
    block: Block | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    stacked: Patterns = None,
    importance: PathLike | None = None,
    dry_run: bool = False,
) -> Report:
    """Prune a checkpoint on disk, in bounded memory, to a new place or in place.

    The zeros are those of `lampfast.prune(model)` for the model that transformers loads. All else
    stays to the byte: header, metadata, the order of tensors, the other files. Each file is written
    under a temporary name and moved to its own when it is whole and on the disk, the index last. A
    run that was killed is finished by the same call.

    Example:
        >>> import lampfast.checkpoints, safetensors.torch, tempfile, torch
        >>> dense = tempfile.mkdtemp() + "/model.safetensors"
        >>> weights = {"fc.weight": torch.tensor([[3.0, 1.0], [-2.0, 4.0]])}
        >>> safetensors.torch.save_file(weights, dense)
        >>> lampfast.checkpoints.prune(dense, 1, in_place=True)
        Report(numel=4, kept=3, sparsity=0.2500, layers=1)
        >>> safetensors.torch.load_file(dense)
        {'fc.weight': tensor([[ 3.,  0.],
                [-2.,  4.]])}

    Args:
        path: Of a folder with model.safetensors or pytorch_model.bin, or with the index.json of
            either and its shards; of a folder of torch.distributed.checkpoint; of one safetensors
            file; or of a .pt, .pth or .bin file of torch. float8 tensors are ranked by their
            products with the scales beside them, in whichever file these lie; scales are never
            touched.
        sparsity: That of all layers together: a float is the fraction that is zero at the end, 0.0
            to 1.0, an int the number of weights.
        out: The new folder, or file where `path` is one. It must not be there, unless a run that
            was stopped has left it. A name that ends in .safetensors has a file of torch, or a
            folder of torch.distributed.checkpoint, written in that format, its tensors alone.
        in_place: Replace the checkpoint's own files, one by one, each as a whole.
        method: How the sparsity is shared among the layers: "lamp", "global", "uniform", "uniform+"
            or "erk"; or a mapping of layer names or patterns to sparsities of their own.
        pattern: "n:m", as "2:4", where of every m weights along a layer's inputs the n of largest
            magnitude stay; sparsity and method are left out then. Or ":m", as ":8", where each
            layer gets an n of its own by what the method leaves of it.
        dim: Another dimension along which the pattern's groups lie, for all layers.
        block: Tiles that go or stay together: (r, c) for r outputs by c inputs, "row" for whole
            outputs, "column" for whole inputs. The sparsity is then reached up to a tile.
        include: Glob pattern or patterns over the parameters' names: these are the layers, in the
            place of those by default. Names are those of the model's parameters where config.json
            names an architecture that transformers knows, else those of the tensors.
        exclude: Glob pattern or patterns over the same names: these are left out.
        stacked: Glob pattern or patterns over the names of parameters that hold several layers, one
            in each slice along the first dimension.
        importance: Path of a safetensors file with a tensor for each layer, whose magnitudes take
            the place of the weights'.
        dry_run: Decide and report, and write nothing.

    Returns:
        What was kept, overall and in every layer.

    Raises:
        TypeError: The model, a layer or an argument has a type, dtype, layout or device that is not
            taken; or there is neither `out` nor `in_place`, or both.
        ValueError: An argument is out of range, a value is NaN or infinite, a pattern matches
            nothing, or a layer cannot be pruned; or the checkpoint is not whole, its weights are
            packed or quantised, the output is there already, or another run has left it.
        OSError: A file cannot be read or written.
        ModuleNotFoundError: safetensors (the extra `safetensors`) is not installed.

    Source:
        The format: https://github.com/huggingface/safetensors; the ranking as for `lampfast.prune`.
    """
    arguments = Arguments(
        sparsity, method, include, exclude, stacked, importance, pattern, dim, block
    )
    return run(path, arguments, out=out, in_place=in_place, dry_run=dry_run).report


def report(
    path: PathLike,
    sparsity: float | None = None,
    *,
    method: Method | Allocation = "lamp",
    pattern: str | None = None,
    dim: int | None = None,
    block: Block | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    stacked: Patterns = None,
    importance: PathLike | None = None,
) -> Report:
    """The sparsity that a checkpoint has now, or what `prune` would report; changes nothing.

    Example:
        >>> import lampfast.checkpoints, safetensors.torch, tempfile, torch
        >>> path = tempfile.mkdtemp() + "/model.safetensors"
        >>> weights = {"fc.weight": torch.tensor([[3.0, 0.0], [-2.0, 4.0]])}
        >>> safetensors.torch.save_file(weights, path)
        >>> lampfast.checkpoints.report(path)
        Report(numel=4, kept=3, sparsity=0.2500, layers=1)

    Args:
        path: Of the checkpoint: a folder as Hugging Face or torch.distributed.checkpoint has it, a
            safetensors file, or a .pt, .pth or .bin file of torch.
        sparsity: That of all layers together: a float is the fraction that is zero at the end, 0.0
            to 1.0, an int the number of weights. Without it every weight that is not zero counts as
            kept.
        method: How the sparsity is shared among the layers: "lamp", "global", "uniform", "uniform+"
            or "erk"; or a mapping of layer names or patterns to sparsities of their own; of use
            only with a sparsity.
        pattern: "n:m", as "2:4", where of every m weights along a layer's inputs the n of largest
            magnitude stay; sparsity and method are left out then. Or ":m", as ":8", where each
            layer gets an n of its own by what the method leaves of it.
        dim: Another dimension along which the pattern's groups lie, for all layers.
        block: Tiles that go or stay together: (r, c) for r outputs by c inputs, "row" for whole
            outputs, "column" for whole inputs. The sparsity is then reached up to a tile.
        include: Glob pattern or patterns over the parameters' names: these are the layers, in the
            place of those by default.
        exclude: Glob pattern or patterns over the same names: these are left out.
        stacked: Glob pattern or patterns over the names of parameters that hold several layers, one
            in each slice along the first dimension.
        importance: Path of a safetensors file with a tensor for each layer, whose magnitudes take
            the place of the weights'; used only with a sparsity.

    Returns:
        What is there, or would be, overall and in every layer.

    Raises:
        TypeError: The model, a layer or an argument has a type, dtype, layout or device that is not
            taken.
        ValueError: An argument is out of range, a value is NaN or infinite, a pattern matches
            nothing, or a layer cannot be pruned; or a method or an importance is given without a
            sparsity.
        OSError: A file cannot be read.
    """
    arguments = Arguments(
        sparsity, method, include, exclude, stacked, importance, pattern, dim, block
    )
    return examine(path, arguments).report


def masks(
    path: PathLike,
    sparsity: float | None = None,
    *,
    method: Method | Allocation = "lamp",
    pattern: str | None = None,
    dim: int | None = None,
    block: Block | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    stacked: Patterns = None,
    importance: PathLike | None = None,
) -> dict[str, torch.Tensor]:
    """Which weights of a checkpoint `prune` would keep, for `lampfast.save_masks`.

    They lie in memory, a byte a weight, which is half of what a checkpoint in bfloat16 takes.

    Example:
        >>> import lampfast.checkpoints, safetensors.torch, tempfile, torch
        >>> path = tempfile.mkdtemp() + "/model.safetensors"
        >>> weights = {"fc.weight": torch.tensor([[3.0, 1.0], [-2.0, 4.0]])}
        >>> safetensors.torch.save_file(weights, path)
        >>> lampfast.checkpoints.masks(path, 1)
        {'fc.weight': tensor([[ True, False],
                [ True,  True]])}

    Args:
        path: Of the checkpoint: a folder as Hugging Face or torch.distributed.checkpoint has it, a
            safetensors file, or a .pt, .pth or .bin file of torch.
        sparsity: That of all layers together: a float is the fraction that is zero at the end, 0.0
            to 1.0, an int the number of weights.
        method: How the sparsity is shared among the layers: "lamp", "global", "uniform", "uniform+"
            or "erk"; or a mapping of layer names or patterns to sparsities of their own.
        pattern: "n:m", as "2:4", where of every m weights along a layer's inputs the n of largest
            magnitude stay; sparsity and method are left out then. Or ":m", as ":8", where each
            layer gets an n of its own by what the method leaves of it.
        dim: Another dimension along which the pattern's groups lie, for all layers.
        block: Tiles that go or stay together: (r, c) for r outputs by c inputs, "row" for whole
            outputs, "column" for whole inputs. The sparsity is then reached up to a tile.
        include: Glob pattern or patterns over the parameters' names: these are the layers, in the
            place of those by default.
        exclude: Glob pattern or patterns over the same names: these are left out.
        stacked: Glob pattern or patterns over the names of parameters that hold several layers, one
            in each slice along the first dimension.
        importance: Path of a safetensors file with a tensor for each layer, whose magnitudes take
            the place of the weights'.

    Returns:
        By parameter name, as `lampfast.masks(model)` has them, a bool tensor of its shape.

    Raises:
        TypeError: The model, a layer or an argument has a type, dtype, layout or device that is not
            taken.
        ValueError: An argument is out of range, a value is NaN or infinite, a pattern matches
            nothing, or a layer cannot be pruned.
        OSError: A file cannot be read.
    """
    arguments = Arguments(
        sparsity, method, include, exclude, stacked, importance, pattern, dim, block
    )
    _check(arguments)
    checkpoint = reading.open_checkpoint("path", path)
    choice = layers.choose(checkpoint, include, exclude, stacked)
    return deciding.masks(checkpoint, choice, arguments.asked, _importances(importance))


def examine(path: PathLike, arguments: Arguments, progress: Progress | None = None) -> Outcome:
    """What `report` and a dry run do."""
    if arguments.asked.is_nothing:
        pruning.check_asked_of_now(arguments.method, arguments.dim, arguments.importance)
    else:
        _check(arguments)
    checkpoint = reading.open_checkpoint("path", path)
    choice, report, _, notices = _decide(checkpoint, arguments, progress)
    fingerprint = _fingerprint(checkpoint, arguments)
    itemsizes = {name: pieces[0].place.itemsize for name, pieces in choice.pieces.items()}
    return Outcome(report, fingerprint, notices, Written(), False, itemsizes)


def run(
    path: PathLike,
    arguments: Arguments,
    *,
    out: PathLike | None = None,
    in_place: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """What `prune` does."""
    _check(arguments)
    for name, flag in (("in_place", in_place), ("dry_run", dry_run)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} is a {type(flag).__name__}; pass True or False")
    if dry_run:
        return examine(path, arguments, progress)
    if (out is None) == (not in_place):
        raise TypeError(
            "in_place replaces the checkpoint's own files, and out names a new place; pass one of "
            "them"
        )
    checkpoint = reading.open_checkpoint("path", path)
    output = Output(checkpoint, None if in_place else reading.as_path("out", out))
    fingerprint = _fingerprint(checkpoint, arguments)
    state = output.earlier(fingerprint)
    is_resumed, notices, choice = state is not None, list[str](), None
    if state is None:
        choice, report, decisions, notices = _decide(checkpoint, arguments, progress, output.home)
        output.check(decisions)
        state = State(output.state, fingerprint, decisions, report.to_dict())
    rule = _rule(checkpoint, arguments, state.decisions, choice, output.home)
    written = output.write(state, rule, progress)
    itemsizes = {it.layer: it.place.itemsize for it in state.decisions}
    return Outcome(state.reported(), fingerprint, notices, written, is_resumed, itemsizes)


def _check(arguments: Arguments) -> None:
    """Check what is asked for before any file is looked at."""
    pruning.check_asked(*arguments.asked)
    if arguments.sparsity is not None:
        _arguments.amount("sparsity", arguments.sparsity)


def _decide(
    checkpoint: Checkpoint,
    arguments: Arguments,
    progress: Progress | None,
    folder: Path | None = None,
) -> tuple[Choice, Report, list[Decision], list[str]]:
    """Find the layers of a checkpoint and decide what is pruned of them."""
    choice = layers.choose(checkpoint, arguments.include, arguments.exclude, arguments.stacked)
    files = layers.files_with_layers(choice.pieces.values())
    sources = [checkpoint.sources[name] for name in sorted(files)]
    with warming.reading(sources, progress):
        report, decisions, notices = deciding.decide(
            checkpoint, choice, arguments.asked, _importances(arguments.importance), folder
        )
    return choice, report, decisions, choice.notices + notices


def _importances(path: PathLike | None) -> dict[str, torch.Tensor] | None:
    """The importances in a safetensors file, by the names of layers or parameters."""
    if path is None:
        return None
    checkpoint = reading.open_checkpoint("importance", path)
    if checkpoint.chunks:
        raise ValueError(
            f"importance {os.fspath(path)!r} is a folder of torch.distributed.checkpoint; pass a "
            "safetensors or torch file"
        )
    view = checkpoint.mapped().view
    return {
        name: view(Place(tensor, 0, tensor.shape, tensor.strides))
        for name, tensor in checkpoint.tensors.items()
    }


def _rule(
    checkpoint: Checkpoint,
    arguments: Arguments,
    decisions: Sequence[Decision],
    choice: Choice | None,
    folder: Path,
) -> Callable[[Decision], Rule]:
    """What a decision means for the place that it is for, with what was compared there."""
    given = _importances(arguments.importance)
    is_scaled = given is None and any(it.place.tensor.dtype in _CODES for it in decisions)
    scales: Mapping[str, Scales] = {}
    if choice is None and (is_scaled or given is not None):
        choice = layers.choose(checkpoint, arguments.include, arguments.exclude, arguments.stacked)
    if choice is not None and given is not None:
        given = dict(choice.layers.importances(given))
    elif choice is not None and is_scaled:
        scales = scaling.of_layers(checkpoint, choice.views)
    return deciding.rules(checkpoint.mapped(), given or {}, scales, folder)


def _fingerprint(checkpoint: Checkpoint, arguments: Arguments) -> dict[str, Any]:
    """What the decision depends on, as JSON has it."""
    importance = None
    if arguments.importance is not None:
        importance = _identities(reading.open_checkpoint("importance", arguments.importance))
    config, block = checkpoint.path / "config.json", _blocks.parse(arguments.block)
    return {
        "lampfast": lampfast.__version__,
        "arguments": {
            "sparsity": repr(arguments.sparsity),
            "method": _plain(arguments.method),
            "pattern": _plain(arguments.pattern),
            "dim": None if arguments.dim is None else int(arguments.dim),
            "block": block if isinstance(block, str) or block is None else list(block),
            "include": _plain(arguments.include),
            "exclude": _plain(arguments.exclude),
            "stacked": _plain(arguments.stacked),
        },
        "importance": importance,
        "transformers": _transformers() if checkpoint.config else None,
        "config": hashlib.sha256(config.read_bytes()).hexdigest() if checkpoint.config else None,
        "files": _identities(checkpoint),
    }


def _transformers() -> str | None:
    """The version of what tells the layers by their architecture, if it is there."""
    try:
        return version("transformers")
    except PackageNotFoundError:
        return None


def _identities(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        name: {"identity": list(source.identity), "header": source.digest}
        for name, source in checkpoint.sources.items()
    }


def _plain(argument: Any) -> Any:
    """An argument as JSON gives it back."""
    if argument is None or isinstance(argument, str):
        return argument
    if isinstance(argument, Mapping):
        return {str(key): repr(value) for key, value in argument.items()}
    if isinstance(argument, Sequence | Set):
        return [str(pattern) for pattern in argument]
    return type(argument).__name__  # which the search for layers refuses

"""Pruning where Lightning trains: a callback around `lampfast.Pruner`.

Needs the extra `lightning`.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from torch import nn

from lampfast import _extras
from lampfast._training import averages
from lampfast._training.callbacks import PrunerCallback

with _extras.needed("lampfast.lightning", "lightning", "lightning", "pytorch_lightning"):
    import lightning.pytorch
    import pytorch_lightning  # comes with it: the same code once more, as classes of its own

_Trainer: TypeAlias = lightning.pytorch.Trainer | pytorch_lightning.Trainer
_Module: TypeAlias = lightning.pytorch.LightningModule | pytorch_lightning.LightningModule

_LIKE_AN_AVERAGE = re.compile(r"ema(?![a-z])|EMA|[Ss]wa|SWA|[Aa]verag|[Ss]hadow")


class PruningCallback(PrunerCallback, lightning.pytorch.Callback, pytorch_lightning.Callback):
    """Prunes a LightningModule by a schedule while it trains, and keeps its zeros in between.

    Example:
        >>> from lampfast import schedules
        >>> from lampfast.lightning import PruningCallback
        >>> from lightning.pytorch import Trainer
        >>> pruning = PruningCallback(schedules.cubic(0.9, 800), every=50)
        >>> trainer = Trainer(max_steps=1000, callbacks=[pruning], logger=False)

    It works with a Trainer of either package, `lightning.pytorch` or `pytorch_lightning`, and with
    automatic or manual optimization. What `configure_model` shards by fully_shard, as with
    ModelParallelStrategy, is pruned as in one process. Checkpoints hold plain weights with their
    zeros under the usual names, and what `fit(ckpt_path=...)` needs to go on as if it had never
    stopped. The sparsity that the model was last pruned to is logged as "sparsity".

    Args:
        schedule: Gives the sparsity, 0.0 to 1.0, at a step: one of `lampfast.schedules`, or any
            callable that never goes down. Steps are optimizer steps as the Trainer counts them
            for `max_steps`: one for all batches whose gradients are accumulated, one for each of
            several optimizers, and one too where a gradient scaler skipped it.
        every: How many steps lie between one look at the schedule and the next.
        method: How the sparsity is shared among the layers: "lamp", "global", "uniform", "uniform+"
            or "erk".
        pattern: ":m", as ":8": each layer keeps n of m, with its own n, for the sparsity that the
            schedule gives.
        dim: The dimension along which the groups of a pattern lie, if it is not that of the inputs.
        block: Tiles that go or stay together: (r, c) for r outputs by c inputs, "row" for whole
            outputs, "column" for whole inputs. The sparsity is then reached up to a tile.
        include: Glob pattern or patterns over the parameters' names: these are the layers, in the
            place of those by default.
        stacked: Glob pattern or patterns over the names of parameters that hold several layers, one
            in each slice along the first dimension.
        exclude: Glob pattern or patterns over the same names: these are left out. Several
            callbacks may each prune layers of their own.
        copies: Averages of the model, which are pruned with it; or a function that gives them when
            training starts. Those of Lightning's WeightAveraging, EMAWeightAveraging and
            StochasticWeightAveraging, and each AveragedModel or ModelEma that is there by then in
            an attribute of another callback, are pruned with it anyhow, in whichever order the
            callbacks are; a warning names what else looks like one.
        rewind: What the weights that remain go back to after each pruning, as by `lampfast.rewind`:
            "initial" for their values when the training began, or a state_dict of the model. So
            does all else in the model; the state of optimizers goes back to what it was when the
            training began, which is none for most. Learning rates go on, and so do averages.
            Checkpoints hold the initial values, but not a state_dict, which is given again, nor
            the initial values of a sharded model: to resume it, pass a state_dict.
        mask_gradients: Whether gradients of pruned weights are set to zero too, for the clipping of
            norms and for optimizers that mix gradients, such as Muon and Adafactor.

    Attributes:
        pruner: The `lampfast.Pruner` of this fit, made when training starts, or of the last one,
            whose hooks are gone; None before the first.

    Raises:
        ModuleNotFoundError: On import: Lightning is not installed.
        TypeError: When training starts or the model is pruned, as `lampfast.Pruner` does.
        ValueError: As TypeError; or a training goes on from a checkpoint without the initial values
            that are to be rewound to.
    """

    _saved: Mapping[str, Any] | None = None
    _has_looked = False  # for averages, in this fit

    @property
    def state_key(self) -> str:
        """Tells the states of several callbacks in one checkpoint apart."""
        return str(self._generate_state_key(**self._choice))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs: the Pruner's state, or what it was at the end of the fit."""
        if self._running is not None:
            return self._state(self._running)
        return dict(self._saved or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a saved state for the Pruner to come: Lightning restores before training starts."""
        self._saved = state_dict

    def remove(self) -> None:
        """Prune no more and leave no hook behind, as Lightning does itself after a fit."""
        try:
            if self._running is not None:
                self._saved = self._state(self._running)  # checkpoints may still be saved
        finally:
            super().remove()

    def on_train_start(self, trainer: _Trainer, pl_module: _Module) -> None:
        """Make the Pruner: by now all that a checkpoint holds has been restored."""
        seen = list(self._averages(trainer, pl_module))
        self._start(pl_module, trainer.optimizers, trainer.global_step, self._saved, seen)
        self._has_looked = False

    def on_train_batch_end(self, trainer: _Trainer, pl_module: _Module, *_: Any) -> None:
        """Count the batch's optimizer steps, if it had any, and prune if it is time."""
        self._advance(trainer.global_step)
        if not self._has_looked:  # by now other callbacks have made their averages
            self._has_looked = True
            self._warn_of_averages(trainer, pl_module)
        if not trainer.barebones:
            # Without a batch size, Lightning may search the batch for one.
            pl_module.log("sparsity", self._sparsity(), batch_size=1)

    def on_exception(self, trainer: _Trainer, pl_module: _Module, exception: BaseException) -> None:
        """Leave no hooks behind."""
        self.remove()

    def teardown(self, trainer: _Trainer, pl_module: _Module, stage: str) -> None:
        """Leave no hooks behind."""
        self.remove()

    def _averages(self, trainer: _Trainer, pl_module: _Module) -> Iterator[nn.Module]:
        """The averages of the model that other callbacks update."""
        for _, name, value in self._held_by_others(trainer):
            is_known = averages.is_average(value) or name == "_average_model"
            if is_known and averages.is_copy(value, pl_module, self._choice):
                yield value

    def _warn_of_averages(self, trainer: _Trainer, pl_module: _Module) -> None:
        """Warn of what looks like an average of the model and is not pruned with it."""
        if self._running is None:
            return
        followed = self._running._zeros._kept.copied()
        for callback, name, value in self._held_by_others(trainer):
            cls = type(callback).__name__
            looks_like_one = averages.is_average(value) or (
                _LIKE_AN_AVERAGE.search(f"{cls}.{name}")
                and averages.is_copy(value, pl_module, self._choice)
            )
            if looks_like_one and not averages.has_any(value, followed):
                warnings.warn(
                    f"{cls} has what looks like an average of the model in its attribute {name!r}, "
                    "which does not get the model's zeros; pass it as copies= to PruningCallback, "
                    "or a function that returns it when training starts",
                    stacklevel=2,
                )

    def _held_by_others(self, trainer: _Trainer) -> Iterator[tuple[object, str, Any]]:
        """The other callbacks, and what they have in their attributes, by name."""
        for callback in trainer.callbacks:
            if callback is not self:
                for name, value in list(vars(callback).items()):
                    yield callback, name, value

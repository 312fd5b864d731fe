"""Pruning where Lightning trains: a callback around `lampfast.Pruner`.

Needs the extra `lightning`.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

from lampfast import _extras
from lampfast._training.callbacks import PrunerCallback

with _extras.needed("lampfast.lightning", "lightning", "lightning", "pytorch_lightning"):
    import lightning.pytorch
    import pytorch_lightning  # comes with it: the same code once more, as classes of its own

_Trainer: TypeAlias = lightning.pytorch.Trainer | pytorch_lightning.Trainer
_Module: TypeAlias = lightning.pytorch.LightningModule | pytorch_lightning.LightningModule


class PruningCallback(PrunerCallback, lightning.pytorch.Callback, pytorch_lightning.Callback):
    """Prunes a LightningModule by a schedule while it trains, and keeps its zeros in between.

    Example:
        >>> from lampfast import schedules
        >>> from lampfast.lightning import PruningCallback
        >>> from lightning.pytorch import Trainer
        >>> pruning = PruningCallback(schedules.cubic(0.9, 800), every=50)
        >>> trainer = Trainer(max_steps=1000, callbacks=[pruning], logger=False)

    It goes with a Trainer of either package, `lightning.pytorch` or `pytorch_lightning`, and with
    automatic or manual optimization. Checkpoints hold plain weights with their zeros under the
    usual names, and what `fit(ckpt_path=...)` needs to go on as if it had never stopped. The
    sparsity that the model was last pruned to is logged as "sparsity".

    Args:
        schedule: Gives the sparsity, 0.0 to 1.0, at a step: one of `lampfast.schedules`, or any
            callable that never goes down. Steps are optimizer steps as the Trainer counts them
            for `max_steps`: one for all batches whose gradients are accumulated, one for each of
            several optimizers, and one too where a gradient scaler skipped it.
        every: How many steps lie between one look at the schedule and the next.
        method: As for `lampfast.prune`.
        include: As for `lampfast.prune`.
        stacked: As for `lampfast.prune`.
        exclude: As for `lampfast.prune`. Several callbacks may each prune layers of their own.

    Attributes:
        pruner: The `lampfast.Pruner` of this fit, made when training starts, or of the last one,
            whose hooks are gone; None before the first.

    Raises:
        ModuleNotFoundError: On import: Lightning is not installed.
        TypeError: When training starts or the model is pruned, as `lampfast.Pruner` does.
        ValueError: As TypeError.
    """

    _saved: Mapping[str, Any] | None = None

    @property
    def state_key(self) -> str:
        """Tells the states of several callbacks in one checkpoint apart."""
        return str(self._generate_state_key(**self._choice))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs: the Pruner's state, or what it was at the end of the fit."""
        if self._running is not None:
            return self._running.state_dict()
        return dict(self._saved or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a saved state for the Pruner to come: Lightning restores before training starts."""
        self._saved = state_dict

    def remove(self) -> None:
        """Prune no more and leave no hook behind, as Lightning does itself after a fit."""
        try:
            if self._running is not None:
                self._saved = self._running.state_dict()  # checkpoints may still be saved
        finally:
            super().remove()

    def on_train_start(self, trainer: _Trainer, pl_module: _Module) -> None:
        """Make the Pruner: by now all that a checkpoint holds has been restored."""
        self._start(pl_module, trainer.optimizers, trainer.global_step, self._saved)

    def on_train_batch_end(self, trainer: _Trainer, pl_module: _Module, *_: Any) -> None:
        """Count the batch's optimizer steps, if it had any, and prune if it is time."""
        self._advance(trainer.global_step)
        if not trainer.barebones:
            # Without a batch size, Lightning may search the batch for one.
            pl_module.log("sparsity", self._sparsity(), batch_size=1)

    def on_exception(self, trainer: _Trainer, pl_module: _Module, exception: BaseException) -> None:
        """Leave no hooks behind."""
        self.remove()

    def teardown(self, trainer: _Trainer, pl_module: _Module, stage: str) -> None:
        """Leave no hooks behind."""
        self.remove()

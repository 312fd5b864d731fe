"""Pruning where the Hugging Face Trainer trains: a callback around `lampfast.Pruner`.

Needs the extra `transformers`.
"""

from typing import Any

from torch import distributed, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lampfast import _extras
from lampfast._engine import shards
from lampfast._training.callbacks import PrunerCallback

with _extras.needed("lampfast.transformers", "transformers", "accelerate", "transformers"):
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class PruningCallback(PrunerCallback, TrainerCallback):
    """Prunes a Trainer's model by a schedule while it trains, and keeps its zeros in between.

    Example:
        >>> from lampfast import schedules
        >>> from lampfast.transformers import PruningCallback
        >>> pruning = PruningCallback(schedules.cubic(0.9, 800), every=50)
        >>> trainer = Trainer(model, args, callbacks=[pruning], ...)  # doctest: +SKIP

    Checkpoints hold plain weights with their zeros under the usual names, and in optimizer.pt what
    `train(resume_from_checkpoint=...)` needs to go on as if it had never stopped. The sparsity
    that the model was last pruned to is added to what the Trainer logs as "sparsity", on the
    console and in `trainer.state.log_history`; what `report_to` names has its copy by then.

    A model that accelerate shards by FSDP2 is pruned as in one process. Checkpoints restore the
    callback's state if they are saved with FULL_STATE_DICT. With SHARDED_STATE_DICT the Trainer
    loads only what it knows of: pruning goes on from the zeros of the weights, and the history
    begins anew. What `rewind="initial"` goes back to is in neither: pass a state_dict to resume.

    With `load_best_model_at_end` the best model comes with the zeros that it had when it was
    saved, which may be fewer than at the end; `lampfast.report(model)` counts them. A training
    that raises leaves the hooks on its optimizer, since the Trainer tells no callback: `remove()`
    takes them off, and so does the next training.

    Args:
        schedule: Gives the sparsity, 0.0 to 1.0, at a step: one of `lampfast.schedules`, or any
            callable that never goes down. Steps are optimizer steps as the Trainer counts them
            for `max_steps`: one for all batches whose gradients are accumulated, and one too
            where a gradient scaler skipped it.
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
            training begins. The Trainer tells a callback of no other one, so that none is found by
            itself.
        rewind: What the weights that remain go back to after each pruning, as by `lampfast.rewind`:
            "initial" for their values when the training began, or a state_dict of the model. So
            does all else in the model; the optimizer's state goes back to what it was when the
            training began, which is none for most, and learning rates go on. Checkpoints hold the
            initial values, in optimizer.pt, but not a state_dict, which is given again.
        mask_gradients: Whether gradients of pruned weights are set to zero too, for the clipping of
            norms and for optimizers that mix gradients, such as Muon and Adafactor.

    Attributes:
        pruner: The `lampfast.Pruner` of this training, made when it begins, or of the last one,
            whose hooks are gone; None before the first.

    Raises:
        ModuleNotFoundError: On import: transformers or accelerate is not installed.
        TypeError: When training begins or the model is pruned, as `lampfast.Pruner` does.
        ValueError: As TypeError; or a training goes on from a checkpoint without the initial values
            that are to be rewound to.
    """

    _saving: RemovableHandle | None = None

    def remove(self) -> None:
        """Prune no more and leave no hook behind; only a training that raised needs the call."""
        super().remove()
        if self._saving is not None:
            self._saving.remove()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        optimizer: Optimizer,
        **_: Any,
    ) -> None:
        """Make the Pruner: by now all that a checkpoint holds has been loaded."""
        # An AcceleratedOptimizer only wraps an optimizer: its own step and state hooks never run.
        if isinstance(optimizer, AcceleratedOptimizer):
            optimizer = optimizer.optimizer
        saved = optimizer.param_groups[0].pop(self._key, None)
        if shards.are_sharded(model.parameters()):
            saved = _of_first_rank(saved)
        self._start(model, optimizer, state.global_step, saved)
        self._saving = optimizer.register_state_dict_post_hook(self._save)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Count the optimizer step and prune if it is time, before anything is logged or saved."""
        self._advance(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **_: Any,
    ) -> None:
        """Add the sparsity to what callbacks after this one see, and to the history on disk."""
        if self._running is not None:
            logs["sparsity"] = state.log_history[-1]["sparsity"] = self._sparsity()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Leave no hooks behind; the zeros stay."""
        self.remove()

    @property
    def _key(self) -> str:
        """Tells the states of several callbacks in one checkpoint apart."""
        return f"lampfast.{type(self).__name__}{self._choice}"

    def _save(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        """Send the Pruner's state along with the optimizer's.

        A callback does not learn which checkpoint is resumed, but the optimizer has been loaded
        from it. Of what is in its state, the groups are handed through as they are.
        """
        assert self._running is not None
        state_dict["param_groups"][0][self._key] = self._state(self._running)


def _of_first_rank(saved: Any) -> Any:
    """What the first rank has loaded, of which accelerate tells others of tensors only."""
    found = [saved]
    distributed.broadcast_object_list(found, src=0)
    return found[0]

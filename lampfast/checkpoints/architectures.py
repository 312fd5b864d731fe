"""Where in its files a model's parameters lie: transformers loads the model without its weights.

The model is built on the meta device and loaded from meta tensors, one for each tensor of the
checkpoint. Whatever transformers does to names, it has then done; and a parameter whose storage is
that of a meta tensor, or was stacked, concatenated or copied from such, is known to lie there.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lampfast.checkpoints.origins import Origins
from lampfast.checkpoints.reading import Checkpoint


class Unknown(Exception):  # noqa: N818  # no error: the layers are then chosen by their names
    """Why the architecture of a checkpoint is not known."""


class Model(NamedTuple):
    """A model on the meta device, and where its parameters come from.

    Attributes:
        module: The model.
        missing: The names of what is not in the checkpoint.
        origins: What the storages of its parameters are.
    """

    module: nn.Module
    missing: frozenset[str]
    origins: Origins


def load(checkpoint: Checkpoint) -> Model:
    """Load a checkpoint's model without its weights.

    Raises:
        Unknown: Its architecture is not known.
        ValueError: Its tensors are not those that its config.json describes.
    """
    transformers, cls = _class_of(checkpoint)
    origins = Origins(checkpoint.tensors, torch.float32)
    with _quiet(transformers):
        config = _config_of(checkpoint, transformers)
        try:
            with _Recording(origins):
                module, info = cls.from_pretrained(
                    None,
                    config=config,
                    state_dict=dict(origins.state),
                    device_map="meta",
                    dtype=torch.float32,
                    output_loading_info=True,
                )
        except Exception as error:
            raise ValueError(
                f"transformers cannot load {cls.__name__} from {str(checkpoint.path)!r}: "
                f"{_first_line(error)}; repair config.json, or remove it to choose layers by name"
            ) from None
    _tie(checkpoint, module, origins)
    return Model(module, frozenset(info["missing_keys"]), origins)


def _class_of(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """transformers, and its class of the model."""
    if checkpoint.config is None:
        raise Unknown("the checkpoint has no config.json")
    names = checkpoint.config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise Unknown("config.json names no architecture")
    try:
        import transformers
    except ModuleNotFoundError:
        raise Unknown(
            f"transformers is not installed, which would tell the layers of {names[0]}, experts "
            "included (extra 'transformers')"
        ) from None
    cls = getattr(transformers, names[0], None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise Unknown(f"transformers {transformers.__version__} does not know {names[0]}")
    return transformers, cls


def _config_of(checkpoint: Checkpoint, transformers: Any) -> Any:
    """The model's configuration, as if its weights were not quantised."""
    try:
        config = transformers.AutoConfig.from_pretrained(
            os.fspath(checkpoint.path), local_files_only=True, trust_remote_code=False
        )
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # which would replace the layers by its own
    except Exception as error:
        raise Unknown(f"transformers cannot read config.json ({_first_line(error)})") from None
    return config


def _tie(checkpoint: Checkpoint, module: nn.Module, origins: Origins) -> None:
    """Tie what is stored once for each name: transformers does so only if it sees equal values."""
    for target, source in getattr(module, "all_tied_weights_keys", {}).items():
        first, second = module.get_parameter(source), module.get_parameter(target)
        ours, theirs = origins.pieces(first), origins.pieces(second)
        if first is not second and checkpoint.hold_the_same(ours, theirs):
            parent, _, name = target.rpartition(".")
            setattr(module.get_submodule(parent), name, first)


class _Recording(TorchFunctionMode):
    """Notes what is stacked, concatenated and copied."""

    def __init__(self, origins: Origins) -> None:
        super().__init__()
        self._origins = origins

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if func in (torch.stack, torch.cat, torch.concat, torch.concatenate):
            parts = args[0] if args else kwargs["tensors"]
            dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            if made.is_meta:
                self._origins.note(made, list(parts), dim, func is torch.stack)
        elif func in (torch.Tensor.contiguous, torch.Tensor.clone, torch.clone):
            source = args[0] if args else kwargs["input"]
            if made.is_meta and source.is_meta:
                self._origins.note_copy(made, source)
        return made


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers from telling of a model that nobody will use."""
    logging = transformers.utils.logging
    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()

"""Builds architectures of transformers and timm in their default configurations, without weights.

On the meta device a parameter has a shape and no memory, so that models of any size can be built.
"""

import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import nn

# The first of transformers' lists that has an architecture says what kind it is, and its model.
_HEADS = {
    "text to text": ["SEQ_TO_SEQ_CAUSAL_LM"],
    "text encoder": ["MASKED_LM"],
    "multimodal": ["IMAGE_TEXT_TO_TEXT", "DOCUMENT_QUESTION_ANSWERING"],
    "audio": [
        *("SPEECH_SEQ_2_SEQ", "CTC", "RNNT", "TDT", "TEXT_TO_SPECTROGRAM", "TEXT_TO_WAVEFORM"),
        *("AUDIO_CLASSIFICATION", "AUDIO_FRAME_CLASSIFICATION", "AUDIO_XVECTOR"),
    ],
    "vision": [
        *("IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION", "OBJECT_DETECTION"),
        *("ZERO_SHOT_OBJECT_DETECTION", "UNIVERSAL_SEGMENTATION", "SEMANTIC_SEGMENTATION"),
        *("INSTANCE_SEGMENTATION", "IMAGE_SEGMENTATION", "MASK_GENERATION", "DEPTH_ESTIMATION"),
        *("KEYPOINT_DETECTION", "KEYPOINT_MATCHING", "POSE_ESTIMATION", "IMAGE_MATTING"),
        *("IMAGE_TO_IMAGE", "MASKED_IMAGE_MODELING", "CAUSAL_IMAGE_MODELING", "IMAGE"),
        *("ZERO_SHOT_IMAGE_CLASSIFICATION", "TABLE_RECOGNITION", "TEXT_RECOGNITION", "BACKBONE"),
    ],
    "language": ["CAUSAL_LM"],
    "time series": ["TIME_SERIES_PREDICTION", "TIME_SERIES_CLASSIFICATION", "DECISION"],
    "any to any": ["MULTIMODAL_LM"],
    "other": ["PRETRAINING", "SEQUENCE_CLASSIFICATION", "TEXT_ENCODING", "RETRIEVAL"],
}


OF_TIMM = ("convnext_base", "efficientnet_b0", "resnet50", "vit_base_patch16_224")

# What some configurations lack by default.
_FORECAST = {"prediction_length": 24}
_SETTINGS: dict[str, dict[str, Any]] = {
    "autoformer": _FORECAST,
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 1, "clip_qkv": 8}},
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6},
    "esm": {"vocab_size": 33, "pad_token_id": 1},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "hunyuan_vl_text": {"head_dim": 128},
    "informer": _FORECAST,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "time_series_transformer": _FORECAST,
    "wav2vec2-bert": {"vocab_size": 32},
    "wav2vec2-conformer": {"vocab_size": 32},
}


def names_of_transformers() -> dict[str, tuple[str, str]]:
    """The class and the kind of each architecture that has a model, by its model_type."""
    from transformers.models.auto import modeling_auto

    found: dict[str, tuple[str, str]] = {}
    for kind, heads in _HEADS.items():
        for head in heads:
            mapping = getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES", {})
            for name, cls in mapping.items():
                found.setdefault(name, (_first(cls), kind))
    for name, cls in modeling_auto.MODEL_MAPPING_NAMES.items():
        found.setdefault(name, (_first(cls), "other"))
    return dict(sorted(found.items()))


def _first(names: Any) -> str:
    return names if isinstance(names, str) else str(names[0])


def of_transformers(name: str, cls: str) -> nn.Module:
    """An architecture with its default configuration."""
    import transformers
    from transformers.initialization import no_init_weights

    with _quiet(), _timm_of_transformers(), torch.device("meta"), no_init_weights():
        config = transformers.AutoConfig.for_model(name, **_SETTINGS.get(name, {}))
        model = getattr(transformers, cls)(config)
    model.tie_weights()
    return model  # type: ignore[no-any-return]


def names_of_timm() -> list[str]:
    """Of timm's models whose names are the same up to the first number, the first and those named.

    What follows are sizes, mostly.
    """
    with _torchvision():
        import timm

        names = sorted(timm.list_models())
    first = {re.split(r"\d", name)[0]: name for name in reversed(names)}
    return sorted({*first.values(), *OF_TIMM})


def of_timm(name: str) -> nn.Module:
    """An architecture with its default configuration."""
    with _torchvision(), _quiet(), torch.device("meta"):
        import timm

        model: nn.Module = timm.create_model(name)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Says nothing of what defaults lack."""
    level = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextmanager
def _timm_of_transformers() -> Iterator[None]:
    """Lets transformers use timm, where it is installed, without torchvision."""
    import transformers
    from transformers.utils import import_utils

    # Remembered from the first time that it is asked.
    if find_spec("timm") is None or import_utils.is_torchvision_available():
        yield
        return
    backends, public = import_utils.BACKENDS_MAPPING, transformers.utils.is_timm_available
    before = backends["timm"]
    backends["timm"] = (lambda: True, "")
    transformers.utils.is_timm_available = lambda: True
    try:
        with _torchvision():
            yield
    finally:
        backends["timm"], transformers.utils.is_timm_available = before, public


class _Named(type):
    """Classes that have any attribute, as enumerations have."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Stub(ModuleType):
    """A module that has a class of any name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Named(name, (nn.Module,), {})


class _Stubs:
    """Finds torchvision's modules where it is not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name.partition(".")[0] != "torchvision":
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def _torchvision() -> Iterator[None]:
    """Lets timm be imported without torchvision, of which its models need next to nothing.

    torchvision fits one build of torch, and there is not one for each.
    """
    finder: Any = _Stubs()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if type(module) is _Stub]:
            del sys.modules[name]

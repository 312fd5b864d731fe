"""Small checkpoints for the tests: sharded folders, and what they hold."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]

LAYERS = ("layers.0.up.weight", "layers.0.down.weight", "layers.1.up.weight", "head.weight")


def weights(seed: int = 0) -> Weights:
    """Layers of several dtypes with many ties, and what is no layer."""
    torch.manual_seed(seed)
    return {
        "embed.weight": torch.randn(50, 8).bfloat16(),
        "layers.0.up.weight": torch.randn(60, 40).bfloat16(),
        "layers.0.norm.weight": torch.ones(40, dtype=torch.bfloat16),
        "layers.0.down.weight": torch.randn(40, 60),
        "layers.0.empty.bias": torch.zeros(0),
        "steps": torch.tensor([3, 4, 5]),
        "layers.1.up.weight": torch.randn(70, 30).half(),
        "head.weight": torch.randint(-3, 4, (50, 40)).double(),
    }


def folder(path: Path, content: Mapping[str, torch.Tensor], shards: int = 3) -> Path:
    """A folder with an index, shards, and other files."""
    path.mkdir()
    names = list(content)
    place = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: content[name] for name in names[i::shards]}
        save_file(part, path / file, {"format": "pt", "shard": str(i)})
        place.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": 1}, "weight_map": place}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (path / "tokenizer").mkdir()
    (path / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    return path


def loaded(path: Path) -> Weights:
    """All tensors of a folder."""
    found: Weights = {}
    for file in sorted(path.glob("*.safetensors")):
        found |= load_file(file)
    return found


def digests(path: Path) -> dict[str, str]:
    """The bytes of all files of a folder, or of one file."""
    files = [path] if path.is_file() else sorted(it for it in path.rglob("*") if it.is_file())
    return {
        it.relative_to(path).as_posix(): hashlib.sha256(it.read_bytes()).hexdigest() for it in files
    }

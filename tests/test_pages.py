"""Every block of Python in docs/ runs, and shows what it says it does."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pages
import pytest
import torch
from torch import distributed

import lampfast

# What pages take as given: models, and the text for one.
_TINY = """
import lampfast, torch
from transformers import MixtralConfig, MixtralForCausalLM
sizes = dict(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1)
heads = dict(num_attention_heads=2, num_key_value_heads=2, num_local_experts=2)
model = MixtralForCausalLM(MixtralConfig(**sizes, **heads))
"""
_GIVEN = {
    "checkpoints": _TINY + "model.save_pretrained('tiny-mixtral')",
    "language-models": _TINY
    + """
texts = ["one", "two"]
def tokenizer(text, return_tensors):
    return {"input_ids": torch.arange(64).reshape(2, 32)}
""",
    "sharded": """
import lampfast, torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
model = torch.nn.Linear(16, 16)
""",
}


@pytest.fixture
def _no_group_stays() -> Iterator[None]:
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.mark.usefixtures("_no_group_stays")
@pytest.mark.filterwarnings("default")  # of other packages; what lampfast says, a page may show
@pytest.mark.parametrize("path", pages.paths(), ids=lambda path: path.stem)
def test_the_code_of_a_page_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # for the files that they write
    torch.set_num_threads(1)  # layers this small only wait for threads
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(_GIVEN.get(path.stem, ""), names)
    pages.run(path, names)


def test_the_reference_has_every_public_name() -> None:
    reference = pages.ROOT / "docs" / "reference"
    shown = set(
        re.findall(r"^::: ([\w.]+)$", "".join(it.read_text() for it in reference.iterdir()), re.M)
    )
    public = {f"lampfast.{name}" for name in lampfast.__all__ if not name.startswith("__")}
    public -= {"lampfast.importance"}  # of which there is one function
    public |= {"lampfast.importance.wanda", "lampfast.checkpoints"}
    public |= {f"lampfast.{door}.PruningCallback" for door in ("lightning", "transformers")}
    assert public <= shown
    assert lampfast.importance.__all__ == ["wanda"]


def test_results_that_are_wrong_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\none = 1\n```\n\n```pycon\n>>> one\n2\n```\n")
    with pytest.raises(AssertionError, match="Expected"):
        pages.run(page, {})


def test_what_a_comment_prepares_is_there(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- python\none = 1\n-->\n```pycon\n>>> one\n1\n```\n")
    names: dict[str, Any] = {}
    pages.run(page, names)
    assert names["one"] == 1

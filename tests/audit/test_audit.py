"""The audit of some architectures of each kind, beside what is expected of all (see audit.py)."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import architectures
import audit
import models_page
import pytest

OF_TRANSFORMERS = (
    # mixtures of experts: marked or not, stacked in three ways, and routers of each kind
    *("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "deepseek_v3", "llama4_text", "olmoe"),
    *("granitemoe", "jetmoe", "dbrx", "phimoe", "switch_transformers", "gemma3n_text"),
    # text, sound and pictures
    *("bert", "gpt2", "t5", "clip", "vit", "convnext", "whisper", "wav2vec2"),
    # states, and matrices that are bare parameters
    *("mamba", "rwkv", "recurrent_gemma", "zamba", "xlnet", "ibert", "csm"),
)
OF_TIMM = ("efficientnet_cc_b0_4e", *architectures.OF_TIMM)


def _check_version(package: str) -> None:
    try:
        found = version(package)
    except PackageNotFoundError:
        pytest.skip(f"no {package}")
    if found != (expected := audit.checked_version(package)):
        pytest.skip(f"{package} is {found}, the audit is of {expected}")


def _expected(package: str) -> dict[str, str]:
    lines = (line.partition(" || ")[0] for line in audit.expected(package))
    return {line.split(" | ")[0]: line for line in lines}


@pytest.fixture(scope="module")
def lines() -> dict[str, str]:
    _check_version("transformers")
    return _expected("transformers")


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_an_architecture_of_transformers(name: str, lines: dict[str, str]) -> None:
    cls, kind = architectures.names_of_transformers()[name]
    assert audit.of_transformers(name, kind, cls) == lines[name]


def test_every_architecture_of_transformers_has_a_line(lines: dict[str, str]) -> None:
    assert list(lines) == list(architectures.names_of_transformers())


@pytest.mark.parametrize("name", OF_TIMM)
def test_a_model_of_timm(name: str) -> None:
    _check_version("timm")
    assert audit.of_timm(name) == _expected("timm")[name]


def test_no_other_test_sees_what_stands_in_for_torchvision(lines: dict[str, str]) -> None:
    import_utils = pytest.importorskip("transformers.utils.import_utils")
    test_an_architecture_of_transformers("gemma3n_text", lines)
    is_installed = find_spec("torchvision") is not None
    assert import_utils.is_torchvision_available() == is_installed
    assert import_utils.is_timm_available() == (is_installed and find_spec("timm") is not None)


def test_what_is_covered_little_is_explained() -> None:
    rows = [row for package in audit.FILES for row in models_page.rows(audit.expected(package))]
    little = {row.name for row in rows if row.share is not None and row.share < 95}
    assert little == set(models_page.EXPLAINED)
    built = [row for row in rows if row.share is not None]
    assert len(built) > 0.9 * len(rows)
    assert sum(row.has_routers for row in built) > 60

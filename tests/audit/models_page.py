"""Writes docs/models.md: which architectures are covered, and what is left out of them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import NamedTuple

# What is left out of the architectures of which less than 95% is covered, and why.
EXPLAINED = {
    "encodec": "its convolutions are weight-normed",
    "hubert": "the convolution of its positions is weight-normed",
    "sew": "the convolution of its positions is weight-normed",
    "sew-d": "the convolution of its positions is weight-normed",
    "tvp": "the borders that it learns to lay around the frames of a video are input, not weights",
    "unispeech": "the convolution of its positions is weight-normed",
    "unispeech-sat": "the convolution of its positions is weight-normed",
    "vits": "the convolutions of its flows are weight-normed",
    "wav2vec2": "the convolution of its positions is weight-normed",
    "wavlm": "the convolution of its positions is weight-normed",
}
_KINDS = {
    "language": "Language",
    "text encoder": "Text encoders",
    "text to text": "Text to text",
    "multimodal": "Text with images, video or sound",
    "any to any": "Text with images, video or sound",
    "audio": "Audio",
    "vision": "Vision",
    "time series": "Time series",
    "other": "Parts and others",
}
_REASONS = {
    "router": "chooses experts, or mixes them",
    "computed": "weight-normed: take the norm away first, or name what it is computed from",
    "bare parameter": "learned input, tables of relative positions, states and what mixes streams",
}
_HEAD = """\
# Which models are covered

What `lampfast.prune(model, 0.9)` prunes of the {architectures} architectures of transformers
{transformers} and of {models} models of timm {timm}, one of each family, in their default
configurations. A weight is covered if its matrix is a layer by default; shares are of the weights
of all matrices except embeddings and tables of positions. `lampfast.report(model)` says what is
left out of your own model, and why; `include=`, `exclude=` and `stacked=` change the choice.

This page is written by `python tests/audit/audit.py --write`, together with
[a line for each architecture](../tests/audit/transformers.txt) and
[one for each group of timm's models with the same left out](../tests/audit/timm.txt). CI builds
about thirty of them and compares.
"""

_ADAPTERS = """\
## Adapters

Of a model with adapters of PEFT the base is pruned, and the adapters are not layers:
[LoRA and other adapters](lora.md).
"""


class Row(NamedTuple):
    """What a line says."""

    name: str
    kind: str
    share: float | None
    stacks: int
    left: str
    models: int

    @property
    def has_routers(self) -> bool:
        """Whether it chooses experts, or how it mixes streams."""
        return "router " in self.left


def rows(lines: Iterable[str]) -> Iterator[Row]:
    """Read lines of a file."""
    for line in lines:
        found, _, models = line.partition(" || ")
        name, kind, _, share, *more = found.split(" | ")
        is_built = not share.startswith("not built")
        yield Row(
            name,
            _KINDS[kind],
            float(share) if is_built else None,
            int(more[2]) if is_built else 0,
            more[4] if len(more) > 4 else "" if is_built else share,
            int((models or "1").partition(" ")[0]),
        )


def text(lines: Mapping[str, Sequence[str]]) -> str:
    """The page, for the lines of each package."""
    of_transformers, of_timm = (list(rows(lines[it])) for it in ("transformers", "timm"))
    every = [*of_transformers, *(row._replace(kind="Vision (timm)") for row in of_timm)]
    sections = [
        _HEAD.format(
            architectures=len(of_transformers),
            transformers=version("transformers"),
            models=sum(row.models for row in of_timm),
            timm=version("timm"),
        ),
        "## By kind\n",
        _by_kind(every),
        "## Mixtures of experts\n\nEach expert is a layer, and routers are not: [mixtures of "
        "experts](mixtures.md). These have routers:\n",
        _names(row for row in every if row.has_routers),
        "## What is left out\n",
        _by_reason(every),
        "Less than 95% is covered in these models:\n",
        "\n".join(
            f"- {row.name}, {row.share:.2f}%: {EXPLAINED[row.name]}"
            for row in every
            if row.share is not None and row.share < 95
        )
        + "\n",
        _ADAPTERS,
        "## Architectures\n",
        *(
            f"**{kind}**: {_names(row for row in of_transformers if row.kind == kind)}"
            for kind in dict.fromkeys(_KINDS.values())
        ),
        "Nothing is known about these, whose default configurations do not make a model or need "
        f"another package: {_names(row for row in every if row.share is None)}",
    ]
    return "\n".join(sections)


def _by_kind(every: Sequence[Row]) -> str:
    kinds = [*dict.fromkeys(_KINDS.values()), "Vision (timm)"]
    table = [
        "| | models | with routers | 99.5% or more covered | 95% to 99.5% | below 95% "
        "| not built |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind in kinds:
        those = [row for row in every if row.kind == kind]
        shares = [(row.share, row.models) for row in those]
        counts = (
            sum(row.models for row in those),
            sum(row.models for row in those if row.has_routers),
            sum(n for share, n in shares if share is not None and share >= 99.5),
            sum(n for share, n in shares if share is not None and 95 <= share < 99.5),
            sum(n for share, n in shares if share is not None and share < 95),
            sum(n for share, n in shares if share is None),
        )
        table.append(f"| {kind} | {' | '.join(f'{n or chr(45)}' for n in counts)} |")
    return "\n".join(table) + "\n"


def _by_reason(every: Sequence[Row]) -> str:
    counts: Counter[str] = Counter()
    for row in every:
        if row.share is not None:
            for part in filter(None, row.left.split("; ")):
                counts[part.partition(":")[0].rpartition(" ")[0]] += row.models
    table = ["| reason in the report | models | what it is |", "| --- | ---: | --- |"]
    table += [
        f"| {reason} | {n} | {_REASONS.get(reason, 'a class that lampfast does not know')} |"
        for reason, n in counts.most_common()
    ]
    return "\n".join(table) + "\n"


def _names(those: Iterable[Row]) -> str:
    return ", ".join(row.name for row in those) + ".\n"

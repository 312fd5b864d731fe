"""What lampfast prunes of each architecture of transformers and timm, unless asked otherwise.

    python tests/audit/audit.py            # build all of them, and compare with what is expected
    python tests/audit/audit.py --write    # write it and docs/models.md anew; read the differences
    python tests/audit/audit.py mixtral resnet50    # show some

Needs lampfast and, in the versions of constraints.txt, transformers and timm, installed with
--no-deps where no torchvision fits torch. Takes some minutes and 2 GiB.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import NamedTuple

import architectures
import models_page
from torch import nn

from lampfast import _coverage, _modules, parameters

HERE = Path(__file__).parent
FILES = ("transformers", "timm")
COLUMNS = (
    "name",
    "kind",
    "class",
    "covered, % of the matrices' weights but for embeddings",
    "weights",
    "layers",
    "parameters that hold several layers",
    "weights of embeddings and position tables",
    "what else is left out",
)


class Audit(NamedTuple):
    """What is pruned of one model.

    Attributes:
        weights: How many weights all its parameters have.
        covered: How many of them its layers have.
        layers: How many layers there are; slices count each.
        stacks: How many parameters hold several.
        embedded: How many weights embeddings and position tables have.
        left: For each other reason the weights of what is no layer by name, with * for a number.
    """

    weights: int
    covered: int
    layers: int
    stacks: int
    embedded: int
    left: dict[str, dict[str, int]]

    @property
    def share(self) -> float:
        """The part of all matrices' weights that is covered, embeddings aside."""
        rest = sum(sum(names.values()) for names in self.left.values())
        return self.covered / max(1, self.covered + rest)

    def columns(self) -> list[str]:
        """What a file says of it."""
        percent = "100" if self.share == 1 else f"{min(self.share, 0.9999):.2%}"[:-1]
        counts = _short(self.weights), str(self.layers), str(self.stacks), _short(self.embedded)
        return [percent, *counts, "; ".join(map(self._left, sorted(self.left)))]

    def _left(self, reason: str) -> str:
        weights = self.left[reason]
        names = sorted(weights, key=lambda name: (-weights[name], name))
        some = ", ".join(names[:3]) + ", …" * (len(names) > 3)
        return f"{reason} {_short(sum(weights.values()))}: {some}"


def audit(model: nn.Module) -> Audit:
    """Look at a model, of which only the shapes matter.

    Raises:
        ValueError: It has no layers.
    """
    found = parameters.find(model)
    wholes, stacks = found.layers.wholes, found.layers.stacks
    distinct = {id(whole): name for name, whole in reversed(wholes.items())}
    left: dict[str, dict[str, int]] = {}
    for it in _coverage.left_out(found):
        weights, name = left.setdefault(it.reason, {}), re.sub(r"\d+", "*", it.name)
        weights[name] = weights.get(name, 0) + it.numel
    return Audit(
        weights=sum(parameter.numel() for parameter in model.parameters()),
        covered=sum(prod(wholes[name].shape) for name in distinct.values()),
        layers=sum(len(found.layers.names(name)) for name in distinct.values()),
        stacks=len(stacks.keys() & distinct.values()),
        embedded=sum(sum(left.pop(reason, {}).values()) for reason in _modules.NOT_TOLD),
        left=left,
    )


def _short(number: int) -> str:
    """A number of weights in three digits, as 1.23M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:#.3g}".rstrip(".") + unit
    return str(number)


def of_transformers(name: str, kind: str, cls: str) -> str:
    """The line of an architecture of transformers."""
    try:
        found = audit(architectures.of_transformers(name, cls)).columns()
    except Exception as error:  # whatever a configuration of defaults leads to
        message = (str(error).strip().splitlines() or [""])[0]
        found = [f"not built: {type(error).__name__}: {message[:100].rstrip()}"]
    return " | ".join((name, kind, cls, *found)).rstrip(" |")


def of_timm(name: str) -> str:
    """The line of a model of timm, but for how many are like it."""
    model = architectures.of_timm(name)
    return " | ".join((name, "vision", type(model).__name__, *audit(model).columns())).rstrip(" |")


def everything(chosen: Sequence[str] = ()) -> dict[str, list[str]]:
    """The lines of all architectures, or of some, by package."""
    lines: dict[str, list[str]] = {"transformers": [], "timm": []}
    for name, (cls, kind) in architectures.names_of_transformers().items():
        if not chosen or name in chosen:
            lines["transformers"].append(of_transformers(name, kind, cls))
    for name in architectures.names_of_timm():
        if not chosen or name in chosen:
            lines["timm"].append(of_timm(name))
    if not chosen:
        lines["timm"] = _grouped(lines["timm"])
    return lines


def _grouped(lines: Sequence[str]) -> list[str]:
    """One line for all models of a class of which the same is left out, with their number."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for line in lines:
        _, _, cls, *_, left = [*line.split(" | "), ""][:9]
        groups.setdefault((cls, re.sub(r" [\d.]+[kMG]?:", "", left)), []).append(line)
    found = []
    for group in groups.values():
        known = [line for line in group if line.split(" | ")[0] in architectures.OF_TIMM]
        found.append(f"{(known or group)[0]} || {len(group)} such")
    return sorted(found)


def expected(package: str) -> list[str]:
    """What the file of a package says, without its head."""
    text = (HERE / f"{package}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]


def checked_version(package: str) -> str:
    """The version that the file of a package was written for."""
    head = (HERE / f"{package}.txt").read_text(encoding="utf-8").splitlines()[0]
    return head.removeprefix(f"# {package} ").partition(":")[0]


def _files() -> dict[Path, str]:
    """All that is written, by path."""
    lines = everything()
    files = {}
    for package, those in lines.items():
        command = "python tests/audit/audit.py --write"
        head = f"# {package} {version(package)}: written by {command}\n# {' | '.join(COLUMNS)}\n"
        files[HERE / f"{package}.txt"] = head + "\n".join(those) + "\n"
    files[HERE.parent.parent / "docs" / "models.md"] = models_page.text(lines)
    return files


def main() -> int:
    """Write, compare or show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    if arguments.names:
        for those in everything(arguments.names).values():
            print(*those, sep="\n")
        return 0
    differ = False
    for path, text in _files().items():
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        differ |= text != before
        sys.stdout.writelines(
            difflib.unified_diff(
                before.splitlines(True), text.splitlines(True), str(path), "now", n=0
            )
        )
        if arguments.write:
            path.write_text(text, encoding="utf-8")
    return int(differ and not arguments.write)


if __name__ == "__main__":
    sys.exit(main())

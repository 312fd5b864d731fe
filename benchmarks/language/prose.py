"""English prose that is on every machine with the pinned packages: paragraphs of their docstrings.

Nothing is downloaded, and the same versions give the same text to the letter. A part of the text
comes from packages of its own, so that no function is described in two parts.
"""

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

PARTS = {
    "calibration": ("matplotlib", "numpy"),
    "training": ("torch", "transformers"),
    "held-out": ("scipy",),
}

_LEAST_WORDS = 40
_MARKUP = re.compile(r"[|<>={}\\`_#\[\]@~+^*]|--|::| : ")  # code, formulas, lists and headings


def part(name: str) -> str:
    """A part of the text: its paragraphs, one a line, in the order of their digests.

    Args:
        name: Of the part, a key of PARTS.

    Raises:
        ModuleNotFoundError: A package is not installed.
    """
    return text(map(_folder, PARTS[name]))


def text(folders: Iterable[Path]) -> str:
    """The distinct paragraphs of prose in the docstrings of folders with Python files."""
    found = {paragraph for folder in folders for paragraph in _paragraphs(folder)}
    return "\n".join(sorted(found, key=digest)) + "\n"


def digest(text: str) -> str:
    """What tells texts apart."""
    return hashlib.sha256(text.encode()).hexdigest()


def _folder(package: str) -> Path:
    found = find_spec(package)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            f"{package} is not installed; install lampfast with its extra `language`"
        )
    return Path(found.origin).parent


def _paragraphs(folder: Path) -> Iterator[str]:
    for file in folder.rglob("*.py"):
        if any(part.startswith("test") for part in file.relative_to(folder).parts):
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # templates, and files for another Python
            continue
        for docstring in _docstrings(tree):
            for paragraph in re.split(r"\n\s*\n", docstring):
                line = " ".join(paragraph.split())
                if _is_prose(line):
                    yield line


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node) or ""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):  # not expressions
            yield from _docstrings(child)


def _is_prose(line: str) -> bool:
    long_enough = line.count(" ") + 1 >= _LEAST_WORDS
    return long_enough and line[0].isupper() and line[-1] == "." and not _MARKUP.search(line)

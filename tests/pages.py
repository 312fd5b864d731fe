"""Runs the code that the documentation shows."""

import doctest
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"^(?:```|<!-- )(python|pycon)\n(.*?)^(?:```|-->)$", re.MULTILINE | re.DOTALL)


def paths() -> list[Path]:
    """Every page of docs/ that has code in Python."""
    every = sorted((ROOT / "docs").rglob("*.md"))
    return [path for path in every if _BLOCK.search(path.read_text())]


def run(path: Path, names: dict[str, Any]) -> None:
    """Run the blocks of a page one after the other, with the names that are there.

    Blocks of `python` are executed, and those of `pycon`, which show results too, are doctests. A
    comment that begins with `<!-- python` is run as well: what a reader need not see.

    Args:
        path: The page.
        names: The namespace, in which the blocks leave what they define.
    """
    text = path.read_text()
    for block in _BLOCK.finditer(text):
        kind, code = block.groups()
        line = text.count("\n", 0, block.start(2))
        if kind == "python":
            exec(compile("\n" * line + code, str(path), "exec"), names)
        else:
            _check(code, names, path, line)


def _check(code: str, names: dict[str, Any], path: Path, line: int) -> None:
    """Compare the results that a block of `pycon` shows with those that there are."""
    test = doctest.DocTestParser().get_doctest(code, names, path.name, str(path), line)
    found: list[str] = []
    # Told, as it would else look for a -v of its own among pytest's arguments.
    doctest.DocTestRunner(verbose=False).run(test, out=found.append, clear_globs=False)
    assert not found, "".join(found)
    names |= test.globs

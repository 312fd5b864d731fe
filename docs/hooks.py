"""What mkdocs cannot do by itself: pages outside docs/, links as GitHub has them, and formulas.

The pages are written to be read on GitHub too, so their links are relative to where the files lie.
Formulas become MathML, which browsers draw without a script from elsewhere.
"""

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parent.parent
_OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/**/README.md", "benchmarks/**/*.png")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s:#]+)(#[^)]*)?\)")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_FORMULA = re.compile(r"^\$\$(.+?)\$\$$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures from outside docs/, under their paths in the repository."""
    for pattern in _OUTSIDE:
        for path in sorted(_ROOT.glob(pattern)):
            uri = path.relative_to(_ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at the site's pages, and turn formulas into MathML; code stays as it is."""
    parts, end = [], 0
    for code in _FENCED.finditer(markdown):
        parts += [_prose(markdown[end : code.start()], page, files), code.group()]
        end = code.end()
    return "".join([*parts, _prose(markdown[end:], page, files)])


def _prose(text: str, page: Page, files: Files) -> str:
    uri = page.file.src_uri
    in_repository = uri if (_ROOT / uri).exists() else f"docs/{uri}"

    def linked(found: re.Match[str]) -> str:
        picture, shown, target, anchor = found.groups()
        path = normpath(join(dirname(in_repository), target))
        for there in (path.removeprefix("docs/"), join(path, "README.md")):
            if files.get_file_from_path(there) is not None:
                return f"{picture}[{shown}]({relpath(there, dirname(uri) or '.')}{anchor or ''})"
        # A file of the repository that is no page: the site has nothing to link to.
        return shown if (_ROOT / path).exists() else found.group()

    return _FORMULA.sub(_formula, _LINK.sub(linked, text))


def _formula(found: re.Match[str]) -> str:
    return f'<div class="formula">{convert(found.group(1).strip(), display="block")}</div>'

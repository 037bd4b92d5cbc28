"""Sphinx's settings: `make site` builds these pages and the README into `build/site`, with a reference of public names.

    sphinx-build -W --keep-going docs build/site

The pages are written to be read as they lie in the repository; what only a site needs is done here. Nothing that the
built pages load comes from another host.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import ray_lora

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_ROOT = Path(__file__).parent.parent
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s]+)(#[^)]*)?\)")

project = "ray_lora"
version = release = ray_lora.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
html_theme = "furo"
html_title = f"ray_lora {release}"
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {"top_of_page_buttons": []}
default_role = "literal"  # docstrings have names between single backticks
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
myst_heading_anchors = 3
suppress_warnings = [
    "misc.highlighting_failure",  # JSON with dots where something is left out
    "myst.header",  # a part of a page that begins below the second level
]


def _plain(text: str, folder: Path) -> str:
    """Links to files that are no page of the site, as their texts alone."""

    def told(link: re.Match[str]) -> str:
        label, target = link.group(1), link.group(2)
        page = (folder / target).resolve()
        lies_here = page.suffix == ".md" and page.parent == _ROOT / "docs"
        return link.group(0) if "://" in target or lies_here else label

    return _LINK.sub(told, text)


def setup(app: Sphinx) -> None:
    def page(app: Sphinx, name: str, source: list[str]) -> None:
        source[0] = _plain(source[0], Path(app.srcdir))

    def included(app: Sphinx, path: Path, name: str, content: list[str]) -> None:
        content[0] = _plain(content[0], _ROOT)

    app.connect("source-read", page)
    app.connect("include-read", included)

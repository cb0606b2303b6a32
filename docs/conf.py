"""Sphinx settings of the documentation site: ``sphinx-build -W docs site``.

Building and reading it needs no network: fonts are the reader's own, and formulas become MathML,
which browsers draw themselves.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

from sla_ckpt import __version__

project = "sla-ckpt"
author = "The sla-ckpt authors"
project_copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource", "ignore-module-all": True}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autoclass_content = "both"
add_module_names = False
python_use_unqualified_type_names = True
default_role = "code"

html_theme = "furo"
html_title = f"sla-ckpt {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


def _inline_math(translator: Any, node: nodes.math) -> None:
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _display_math(translator: Any, node: nodes.math_block) -> None:
    formula = tex2mathml(node.astext(), as_block=True)
    translator.body.append(f'<div class="math">{formula}</div>\n')
    raise nodes.SkipNode


def _drop_absent_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """index.md names with a star the pages that not every version has."""
    if page == "index":
        lines = source[0].splitlines()
        kept = (line for line in lines if line[-1:] != "*" or any(app.srcdir.glob(f"{line}.md")))
        source[0] = "\n".join(kept)


def setup(app: Sphinx) -> None:
    app.connect("source-read", _drop_absent_pages)
    app.add_html_math_renderer("mathml", (_inline_math, None), (_display_math, None))


html_math_renderer = "mathml"

"""Settings of the documentation site; `make docs` builds it.

The source folder is the root of the repository, so that links between pages hold on the site and on GitHub alike. Navigation
comes from lists of links: docs/index.md names the sections of the site, and a page X.md has the pages of the folder X below it.
The site needs no network: formulas are MathML, and search runs in the browser.
"""

import re
from pathlib import Path

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import redistill

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"^- \[([^\]]+)\]\(([^)]+)\.md\)(?:: (.+))?$", re.MULTILINE)

project = "redistill"
author = "The redistill authors"
version = release = redistill.__version__
copyright = author

root_doc = "docs/index"
source_suffix = {".md": "markdown"}
include_patterns = ["docs/**", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nitpicky = False  # types of torch and transformers have no pages here
default_role = "code"
myst_heading_anchors = 4

autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Call", "params_style"), ("See also", "notes_style")]

html_theme = "furo"
html_title = f"redistill {release}"
html_copy_source = True  # llms.txt refers to the Markdown
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"

linkcheck_anchors = False  # many sites create their anchors by a script
linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_ignore = [r"https?://(localhost|127\.0\.0\.1)\b"]


def add_navigation(app: Sphinx, name: str, source: list[str]) -> None:
    """Append hidden tables of contents: the links of docs/index.md by section, and the folder of any other page."""
    text = source[0]
    if name == root_doc:
        for caption, section in re.findall(r"^## (.+)\n((?:.*\n)*?)(?=## |\Z)", text, re.MULTILINE):
            source[0] += _toctree([target for _, target, _ in LINK.findall(section)], caption)
    elif (ROOT / name).is_dir():
        folder = (ROOT / name).name
        listed = [target for _, target, _ in LINK.findall(text) if target.startswith(f"{folder}/")]
        others = sorted(f"{folder}/{path.stem}" for path in (ROOT / name).glob("*.md"))
        source[0] += _toctree([*listed, *(page for page in others if page not in listed)])


def _toctree(pages: list[str], caption: str = "") -> str:
    return "\n".join(["\n\n```{toctree}", ":hidden:", *([f":caption: {caption}"] if caption else []), "", *pages, "```\n"])


def write_files_of_the_root(app: Sphinx, error: Exception | None) -> None:
    """Write a redirection to the first page, and llms.txt: the pages of the navigation as Markdown, with what they are for."""
    if error or app.builder.name != "html":
        return
    out = Path(app.outdir)
    (out / "index.html").write_text('<meta http-equiv="refresh" content="0; url=docs/index.html">\n', encoding="utf-8")
    (out / ".nojekyll").touch()
    index = (ROOT / f"{root_doc}.md").read_text(encoding="utf-8")
    target = r"- [\1](_sources/docs/\2.md.txt)"
    pages = LINK.sub(lambda link: link.expand(target) + (f": {link[3]}" if link[3] else ""), index)
    title, about, rest = pages.split("\n\n", 2)
    (out / "llms.txt").write_text(
        f"{title}\n\n> {' '.join(about.split())}\n\n{rest}".replace("/docs/../", "/"), encoding="utf-8"
    )


def inline_formula(self: HTML5Translator, node: nodes.math) -> None:
    """Write a formula within a line as MathML."""
    self.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def displayed_formula(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula of its own line as MathML."""
    self.body.append(latex2mathml.converter.convert(node.astext(), display="block"))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("source-read", add_navigation)
    app.connect("build-finished", write_files_of_the_root)
    app.add_html_math_renderer("mathml", (inline_formula, None), (displayed_formula, None))

"""The book's own Sphinx extension.

What it does: shows the executed lessons, maps the lessons' fixed cell tags to the theme's, uses the
browser assets that npm fetched (if it did), derives every address from the repository's, and makes
the build fail on an image without alternative text.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util import logging

from lmc_lessons.teaching import execution

LOGGER = logging.getLogger(__name__)

#: Each vendored asset: folder inside node_modules, folder inside the site's _static, its files.
FONTS = ("*.woff", "*.woff2", "*.ttf", "*.eot", "*.svg")
ASSETS = (
    ("mathjax/es5", "vendor/mathjax", ("*",)),
    ("@jupyter-widgets/html-manager/dist", "vendor/widgets", ("embed.js", *FONTS)),
)

#: The lessons' cell tags, and how the theme shows such a code cell.
SHOWN_AS = {
    "setup": ("remove-input", ""),
    "predict": ("remove-input", ""),
    "hint": ("hide-cell", "Show the hint"),
    "solution": ("hide-cell", "Show the solution"),
}


# Addresses and assets ----------------------------------------------------------------------------


def derive_addresses(app: Sphinx, config: Config) -> None:
    """The site's address follows from the repository's, which ``_config.yml`` names once."""
    url = config.html_theme_options.get("repository_url", "")
    if not url:
        return  # an edition without links to the repository
    repository = urlparse(url)
    owner, _, name = repository.path.strip("/").partition("/")
    if repository.netloc != "github.com" or not name:
        raise ExtensionError("_config.yml: repository.url must be https://github.com/OWNER/NAME")
    config.html_baseurl = f"https://{owner.lower()}.github.io/{name}/"
    config.ogp_site_url = config.html_baseurl


def use_vendored_assets(app: Sphinx, config: Config) -> None:
    """Take MathJax and the widget manager from the site itself if npm fetched them."""
    if _modules(app).is_dir():
        # Tells lmc.js (priority 100), which comes later.
        vendored = "document.documentElement.dataset.lmcVendored = ''"
        app.add_js_file(None, body=vendored, priority=90)
        config.mathjax_path = "vendor/mathjax/tex-mml-chtml.js"
        config.nb_ipywidgets_js = {"vendor/widgets/embed.js": {}}


def copy_vendored_assets(app: Sphinx) -> None:
    """Copy the fetched assets into the site."""
    modules = _modules(app)
    if app.builder.format != "html" or not modules.is_dir():
        return
    for source, target, names in ASSETS:
        shutil.copytree(
            modules / source,
            Path(app.outdir, "_static", target),
            ignore=_all_but(names),
            dirs_exist_ok=True,
        )


def _all_but(names: tuple[str, ...]) -> Callable[[str, list[str]], set[str]]:
    """A filter for ``copytree`` that keeps the files of these names, patterns allowed."""

    def ignored(folder: str, found: list[str]) -> set[str]:
        return {name for name in found if not any(fnmatch(name, kept) for kept in names)}

    return ignored


def drop_needless_scripts(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Drop scripts that are on the page twice, and thebe's: it runs cells elsewhere, on request."""
    kept: list[Any] = []
    for script in context.get("script_files", []):
        text = f"{getattr(script, 'filename', script)} {getattr(script, 'attributes', {})}"
        if "thebe" not in text.lower() and script not in kept:
            kept.append(script)
    context["script_files"] = kept


def _modules(app: Sphinx) -> Path:
    return Path(app.srcdir, app.config.lmc_vendor, "node_modules")


# Executed lessons --------------------------------------------------------------------------------


def execute_stale_lessons(app: Sphinx) -> None:
    """Execute what is stale, unless the executed lessons come from elsewhere."""
    if app.config.lmc_executed:
        return
    failures = execution.execute(_lessons(app), jobs=2, root=Path(app.srcdir))
    if failures:
        raise ExtensionError("A lesson failed: " + "\n\n".join(failures))


def show_executed(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace a lesson's source by its executed copy; downloads keep the source."""
    path = Path(app.env.doc2path(docname))
    if path.suffix != ".ipynb":
        return
    folder = app.config.lmc_executed or str(execution.EXECUTED)
    notebook = execution.read(Path(app.srcdir, folder, path.name))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            _fold(cell)
    source[0] = nbformat.writes(notebook)


def _fold(cell: nbformat.NotebookNode) -> None:
    """Translate the lessons' tags of a code cell to the theme's."""
    tags = cell.metadata.get("tags", [])
    for tag in tags:
        if tag not in SHOWN_AS:
            continue
        shown, prompt = SHOWN_AS[tag]
        cell.metadata["tags"] = [*tags, shown]
        if prompt:
            hide = prompt.replace("Show", "Hide")
            options = cell.metadata.setdefault("mystnb", {})
            options |= {"code_prompt_show": prompt, "code_prompt_hide": hide}


def lessons_are_outdated(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Read lessons anew in every build: their outputs may have changed when they did not."""
    return [env.path2doc(str(path)) or "" for path in _lessons(app)]


def _lessons(app: Sphinx) -> list[Path]:
    return execution.notebooks(Path(app.srcdir))


# Alternative text --------------------------------------------------------------------------------


class _Images(HTMLParser):
    """Collects the images of a piece of HTML that have no alternative text."""

    def __init__(self) -> None:
        super().__init__()
        self.silent: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an image whose ``alt`` is absent or empty."""
        found = dict(attrs)
        if tag == "img" and not (found.get("alt") or "").strip():
            self.silent.append((found.get("src") or "")[:60])


def require_alternative_text(app: Sphinx, doctree: nodes.document) -> None:
    """Warn, which fails the build, about every image that a screen reader cannot tell."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            _complain(image.get("uri", ""), image)
    for raw in doctree.findall(nodes.raw):
        if "html" in raw.get("format", ""):
            parser = _Images()
            parser.feed(raw.astext())
            for source in parser.silent:
                _complain(source, raw)


def _complain(source: str, node: nodes.Node) -> None:
    LOGGER.warning(
        "image without alternative text: %s (give the figure an alt text; for a cell's output, in "
        'the cell\'s metadata "mystnb": {"image": {"alt": ...}})',
        source,
        location=node,
        type="lmc",
        subtype="alt",
    )


# API pages ---------------------------------------------------------------------------------------


def keep_colons(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Keep napoleon from reading the text before a colon as a type; annotations say the types."""
    firsts = [n + 1 for n, line in enumerate(lines) if line.strip() in ("Returns:", "Yields:")]
    if what in ("attribute", "property", "data"):
        firsts.append(0)
    for first in firsts:
        if first < len(lines) and ":" in lines[first]:
            indent = len(lines[first]) - len(lines[first].lstrip())
            lines[first] = f"{lines[first][:indent]}: {lines[first][indent:]}"


def translate_mathematics(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Let docstrings write mathematics as the lessons do, and ``*args`` as Python does."""
    text = re.sub(r"^( *)\$\$(.+?)\$\$([.,]?)$", _display, "\n".join(lines), flags=re.M | re.S)
    text = re.sub(r"(?<![\\$`])\$([^$`\n]+)\$", r":math:`\1`", text)
    text = re.sub(r"(?<=[ (,])\*(?=\w+[ ,)])", r"\\*", text)
    lines[:] = text.splitlines()


def _display(found: re.Match[str]) -> str:
    """A displayed formula as a directive of reStructuredText."""
    indent, formula = found[1], found[2] + found[3]
    body = "\n".join(f"{indent}   {line.strip()}" for line in formula.strip().splitlines())
    return f"\n{indent}.. math::\n\n{body}\n"


def link_lessons(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Turn a docstring's last line, ``Taught in: book/...``, into a link to that lesson."""
    for number, line in enumerate(lines):
        found = re.fullmatch(r"(\s*)Taught in: (book/[\w/-]+)\.?", line)
        if found and found[2] in app.env.found_docs:
            lines[number] = f"{found[1]}Taught in: :doc:`/{found[2]}`."


def keep_aliases(
    app: Sphinx, env: BuildEnvironment, node: nodes.Element, text: nodes.Element
) -> nodes.Element | None:
    """Show type variables and aliases of types as text: they have no entry to link to."""
    if node.get("refdomain") != "py":
        return None
    module, _, name = node["reftarget"].rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return None if found is None or isinstance(found, type) else text


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything above."""
    app.add_config_value("lmc_vendor", "_build/vendor", "env")
    app.add_config_value("lmc_executed", "", "env")
    app.connect("config-inited", derive_addresses)
    app.connect("config-inited", use_vendored_assets)
    app.connect("builder-inited", execute_stale_lessons)
    app.connect("builder-inited", copy_vendored_assets)
    app.connect("env-get-outdated", lessons_are_outdated)
    app.connect("source-read", show_executed)
    app.connect("html-page-context", drop_needless_scripts)
    app.connect("doctree-read", require_alternative_text)
    # Before napoleon, which has 500.
    app.connect("autodoc-process-docstring", translate_mathematics, priority=400)
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
    app.connect("autodoc-process-docstring", link_lessons)
    app.connect("missing-reference", keep_aliases)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

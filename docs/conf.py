"""Sphinx's settings: `make docs` builds build/docs/index.html, executes every page, and takes warnings for errors."""

import hashlib
import shutil
from pathlib import Path

import fastlmm_core

ROOT = Path(__file__).resolve().parent.parent


def cache() -> Path:
    """A folder for the pages' outputs that belongs to this code: pages are executed again when any of it changes."""
    digest = hashlib.sha256()
    for folder, ending in (("python", "*.py"), ("src", "*.p[yx][xd]")):
        for file in sorted((ROOT / folder).rglob(ending)):
            digest.update(file.read_bytes())
    caches = ROOT / "build" / "docs-cache"
    ours = caches / digest.hexdigest()[:16]
    for other in caches.glob("*"):
        if other != ours:
            shutil.rmtree(other)
    return ours


project = "fastlmm_core"
author = "fastlmm_core developers"
copyright = author
version = release = fastlmm_core.__version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
source_suffix = {".md": "myst-nb"}
exclude_patterns = ["_build"]
suppress_warnings = ["myst.header", "myst.xref_missing"]  # pages of the repository link to files that are not pages

nb_execution_mode = "cache"
nb_execution_cache_path = str(cache())
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings have them
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
numpydoc_xref_param_type = False

html_theme = "pydata_sphinx_theme"
html_title = "fastlmm_core"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"index": [], "start": []}

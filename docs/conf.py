"""Builds these pages as a site: `make docs` writes docs/_build/html/index.html."""

from pathlib import Path
from typing import Any, Dict

_version: Dict[str, Any] = {}
exec((Path(__file__).parents[1] / 'mmselfdistill/version.py').read_text(), _version)

project = 'mmselfdistill'
release = _version['__version__']
extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.mathjax',
    'sphinx.ext.napoleon',
]
root_doc = 'index'
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = 'mmselfdistill'
html_show_copyright = False

myst_enable_extensions = ['dollarmath']
# links to headings of other pages
myst_heading_anchors = 3

autodoc_member_order = 'bysource'
# the docstrings name the types; a signature is easier to read without
autodoc_typehints = 'none'

"""Builds these pages as a site: `sphinx-build docs docs/_build`."""

project = 'mmselfdistill'
extensions = ['myst_parser']
root_doc = 'index'
exclude_patterns = ['_build']
# links to headings of other pages
myst_heading_anchors = 3

"""How Sphinx makes the documentation: sphinx-build -W docs build/docs."""

from importlib.metadata import version as version_of

project = "amx_jax"
author = "The amx_jax authors"
copyright = f"2026, {author}"
release = version = version_of("amx-jax")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# A reader behind a firewall sees the same page: no fonts, scripts or badges from elsewhere.
html_theme = "furo"
html_title = f"amx_jax {version}"
html_copy_source = html_show_sourcelink = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# What other pages link to lies in the repository and not in the documentation.
suppress_warnings = ["myst.xref_missing"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes of dataclasses are said once, with their class

"""The documentation site: `make docs` builds it, offline, into docs/_build/html."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

from mixln.version import __version__

project = "mixln"
author = "the mixln developers"
release = version = __version__
html_title = f"mixln {release}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "notebook_cells",
    "reference_pages",
]
exclude_patterns = ["_build", "_built"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_built/pages"]  # the reports of the gallery, as they are
html_show_copyright = False
html_domain_indices = False  # one module: the index of names has it all
html_theme_options = {"navigation_with_keys": True}
copybutton_exclude = ".linenos, .gp, .go"
# comments behind a command are for the reader
copybutton_prompt_text = "$ "

myst_enable_extensions = ["attrs_block", "deflist"]
myst_heading_anchors = 4  # `page.md#a-heading`, as GitHub has it

smartquotes = False  # `--` is two dashes
# In docstrings, `x` is code.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True  # `Recipe` links to `mixln.Recipe`

nitpicky = True
# Types of other libraries: their inventories would have to be downloaded.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|transformers|tokenizers|datasets|numpy|pandas|matplotlib|collections|pathlib|typing|os)\..*"),
    ("py:.*", r"(huggingface_hub|rich)\..*"),
]

"""Settings of sphinx; the pages themselves are put together by gapkd.site.pages."""

import gapkd

project = "gapkd"
author = "the gapkd authors"
version = release = gapkd.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "gapkd.site.rendering"]

# Chapters and pages
nb_execution_mode = "off"  # the stored outputs are shown
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_ipywidgets_js = {}  # the scripts for live widgets would come from afar, and a widget without its kernel is dead
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
highlight_language = "none"
html_math_renderer = "mathml"

# Docstrings
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
default_role = "py:obj"  # `rgb_loss` leads to it
python_display_short_literal_types = True
maximum_signature_line_length = 90
add_module_names = False

# Looks
html_theme = "sphinx_book_theme"
html_title = "gapkd"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_sphinx = html_show_copyright = False
html_theme_options = {"show_toc_level": 2, "use_fullscreen_button": False, "navbar_persistent": []}
html_context = {"default_mode": "auto"}  # light or dark as the reader has it

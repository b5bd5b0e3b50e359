"""Sphinx settings: Markdown pages, one theme, nothing else."""

project = "Bequest"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "Bequest"
exclude_patterns = ["_build", "results.template.md"]
myst_heading_anchors = 3
smartquotes = False  # `--out` is two dashes

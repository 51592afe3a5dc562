"""Figures and explorers for the notebooks."""

from importlib.util import find_spec

for _name in ("matplotlib", "ipywidgets"):
    if find_spec(_name) is None:
        raise ImportError(f'figures and explorers need {_name}: pip install "gapkd[course]"')

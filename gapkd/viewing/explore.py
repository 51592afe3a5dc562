"""Sliders for notebooks: walk along directions of W, and mix two seeds, in generators side by side.

Plain ipywidgets, so that JupyterLab and Colab show them alike; the controls are ordinary Python
objects, which a cell can set as a hand would.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

import ipywidgets as widgets
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gapkd.data.images import png, to_uint8
from gapkd.metrics.editing import Directions
from gapkd.metrics.sampling import draw_latents
from gapkd.networks.base import StyleGenerator
from gapkd.networks.mapping import mix_styles
from gapkd.viewing.figures import NotebookFigure, show_grid, to_png

# Descriptions end on one line.
ROW = {"style": {"description_width": "8.5em"}, "layout": {"width": "26em"}}


class Explorer:
    """One picture a generator, all of one z; sliders walk from a seed along a direction of W, and
    give the finest layers to a second seed.

    Let a cell end with the explorer: it shows sliders where there is a kernel, and their picture on
    pages without. `direction.value` is the direction's number; of named ones, `direction.label` is
    the name.

    Args:
        generators: label -> generator, of any resolutions, all with one z_dim, w_dim and c_dim.
        directions: named `Directions`, whose strength counts in units of each one's reach, -1 to 1;
            or (K, w_dim) unit rows, such as `gapkd.sefa_directions`, whose strength is a length in
            W, -10 to 10.
        size: edge of every picture on the screen, in px; a multiple of the resolutions keeps all
            pixels alike.
    Raises ValueError, in one sentence, for generators, directions or sizes that do not fit.
    """

    def __init__(self, generators: Mapping[str, StyleGenerator], directions: Directions | Tensor,
                 size: int = 256):
        self.generators = _checked(generators)
        if not isinstance(size, int) or not 16 <= size <= 2048:
            raise ValueError(f"size is the edge of a picture in px, 16 to 2048, not {size!r}")
        first = next(iter(self.generators.values()))
        self.steps = _steps(directions, first.w_dim)
        self.size, self._busy = size, False

        self.seed = widgets.IntSlider(0, 0, 999, description="seed", continuous_update=False, **ROW)
        self.truncation = widgets.FloatSlider(0.7, min=0, max=1.2, step=0.05,
                                              description="truncation", **ROW)
        if isinstance(directions, Directions):
            most, step, unit = 1, 0.05, "reach"
            options = list(zip(directions.names, range(len(self.steps)), strict=True))
            self.direction = widgets.Dropdown(options=options, description="direction", **ROW)
        else:
            most, step, unit = 10, 0.5, "in W"
            self.direction = widgets.IntSlider(0, 0, len(self.steps) - 1, description="direction",
                                               **ROW)
        self.strength = widgets.FloatSlider(0, min=-most, max=most, step=step, **ROW,
                                            readout_format="+.2f", description=f"strength ({unit})")
        layers = max(G.num_ws for G in self.generators.values())
        self.layers = widgets.IntSlider(0, 0, layers, description="layers mixed", **ROW)
        self.other = widgets.IntSlider(2, 0, 999, description="second seed",
                                       continuous_update=False, **ROW)
        self.controls = [self.seed, self.truncation, self.direction, self.strength, self.layers,
                         self.other]
        self.category = None
        if first.c_dim:
            self.category = widgets.Dropdown(options=range(first.c_dim), description="class", **ROW)
            self.controls.append(self.category)

        self._start = [control.value for control in self.controls]
        for control in self.controls:
            control.observe(self.redraw, names="value")
        self.reset = widgets.Button(description="reset", icon="undo",
                                    layout={"width": "7em", "margin": "6px 0 0 9.3em"})
        self.reset.on_click(self._reset)
        self._arrange()
        self.redraw()

    def _arrange(self) -> None:
        """The controls in a column, the pictures beside it, or below it on a narrow page."""
        edge = f"{self.size}px"
        self.images: dict[str, widgets.Image] = {}
        cells = []
        for label in self.generators:
            layout = {"width": edge, "height": edge, "min_width": edge, "margin": "0"}
            self.images[label] = widgets.Image(format="png", width=self.size, height=self.size,
                                               layout=layout)
            text = widgets.Label(label, layout={"max_width": edge, "margin": "0"})
            cells.append(widgets.VBox([text, self.images[label]],
                                      layout={"margin": "0 12px 12px 0", "flex": "0 0 auto"}))
        pictures = widgets.Box(cells, layout={"flex_flow": "row wrap",
                                              "flex": f"1 1 {self.size + 12}px"})
        column = widgets.VBox([*self.controls, self.reset],
                              layout={"flex": "0 0 auto", "margin": "24px 24px 12px 0"})
        self.widget = widgets.HBox([column, pictures],
                                   layout={"flex_flow": "row wrap", "overflow": "hidden"})

    def w(self, G: StyleGenerator, seed: int) -> Tensor:
        """w (1, w_dim) of a seed and of the chosen class, truncated."""
        z, c = draw_latents(G, 1, seed)
        if self.category:
            c = F.one_hot(torch.tensor([self.category.value]), G.c_dim).to(z)
        return G.truncate(G.mapping(z, c), self.truncation.value)

    @torch.no_grad()
    def draw(self, G: StyleGenerator) -> Tensor:
        """The image (1, 3, R, R) that the controls ask of a generator."""
        w = self.w(G, self.seed.value)
        w = w + self.strength.value * self.steps[self.direction.value].to(w)
        coarse = max(0, G.num_ws - self.layers.value)
        return G.synthesis(mix_styles(w, self.w(G, self.other.value), coarse, G.num_ws)).image

    def redraw(self, _change: object = None) -> None:
        """Draw all pictures anew; called by every control."""
        if self._busy:
            return
        self._pictures = {label: _scaled(self.draw(G), self.size)
                          for label, G in self.generators.items()}
        for label, picture in self._pictures.items():
            self.images[label].value = png(picture)

    def _reset(self, _button: widgets.Button) -> None:
        self._busy = True  # one drawing at the end, not one a control
        for control, value in zip(self.controls, self._start, strict=True):
            control.value = value
        self._busy = False
        self.redraw()

    def sheet(self) -> NotebookFigure:
        """The same pictures without sliders, under a line that tells where these stand."""
        shown = np.stack([np.asarray(picture) for picture in self._pictures.values()])
        images = torch.from_numpy(shown).permute(0, 3, 1, 2) / 127.5 - 1  # (N, 3, size, size)
        state = [f"{c.description} {getattr(c, 'label', None) or f'{c.value:g}'}"
                 for c in self.controls]
        return show_grid(images, 4, ", ".join(state), list(self._pictures), self.size)

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, object], dict[str, object]]:
        """Sliders for a page with a kernel, and their picture for one without."""
        sheet = self.sheet()
        view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
        data = {"application/vnd.jupyter.widget-view+json": view,
                "image/png": base64.b64encode(to_png(sheet)).decode(), "text/plain": sheet.alt}
        return data, {"image/png": {"alt": sheet.alt}}


def _checked(generators: Mapping[str, StyleGenerator]) -> dict[str, StyleGenerator]:
    if not isinstance(generators, Mapping) or not generators:
        raise ValueError('give the generators with their labels, such as {"teacher": G}')
    shared = None
    for label, G in generators.items():
        if not isinstance(G, StyleGenerator):
            raise ValueError(f"{label} is a {type(G).__name__}, not a generator: load one with "
                             "gapkd.load_generator")
        own = f"z_dim {G.z_dim}, w_dim {G.w_dim} and c_dim {G.c_dim}"
        shared = shared or own
        if own != shared:
            raise ValueError(f"{label} has {own}, the first generator {shared}: all must share "
                             "them")
    return {str(label): G for label, G in generators.items()}


def _steps(directions: Directions | Tensor, w_dim: int) -> Tensor:
    """One unit of strength along each direction, (K, w_dim)."""
    named = isinstance(directions, Directions)
    vectors = directions.vectors if named else directions
    if not isinstance(vectors, Tensor) or vectors.shape[1:] != (w_dim,) or not len(vectors):
        found = getattr(vectors, "shape", type(vectors).__name__)
        raise ValueError(f"directions must be rows (K, {w_dim}), as wide as the generators' w, or "
                         f"named Directions of that width, not {found}")
    reach = directions.reach if named else torch.ones(len(vectors))
    if not vectors.isfinite().all() or not (reach.isfinite() & (reach > 0)).all():
        raise ValueError("directions and their reaches must be finite, and every reach above 0: "
                         "make them anew")
    return vectors * reach[:, None].to(vectors)


def _scaled(image: Tensor, size: int) -> Image.Image:
    """An image (1, 3, R, R) with edges of `size` px: enlarged pixel by pixel, or reduced
    smoothly."""
    smooth = image.shape[-1] > size
    how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return Image.fromarray(to_uint8(image)[0].numpy()).resize((size, size), how)

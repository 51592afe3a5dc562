"""Sliders for notebooks: walk along directions, or mix two seeds, in generators side by side.

Plain ipywidgets, so that JupyterLab and Colab show them alike; the controls are ordinary Python
objects, which a cell can set as a hand would.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import ipywidgets as widgets
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gapkd.data.images import png, to_uint8
from gapkd.metrics.editing import Directions
from gapkd.networks.base import StyleGenerator
from gapkd.networks.mapping import mix_styles
from gapkd.viewing.figures import NotebookFigure, show_grid, to_png

# Descriptions end on one line.
ROW = {"style": {"description_width": "8.5em"}, "layout": {"width": "26em"}}


def _seed(value: int, description: str) -> widgets.IntSlider:
    return widgets.IntSlider(value, 0, 999, description=description, continuous_update=False, **ROW)


class Gallery:
    """What both explorers share: seed, truncation, class, reset, and the pictures, all of one z.

    Let a cell end with the explorer: it shows sliders where there is a kernel, and `picture()` on
    pages without.

    Args:
        generators: label -> generator, of any resolutions, all with one z_dim, w_dim and c_dim.
        size: edge of every picture on the screen, in px; a multiple of the resolutions keeps all
            pixels alike.
    Raises ValueError, in one sentence, for generators, directions or sizes that do not fit.
    """

    panels: tuple[str, ...] = ("",)  # captions of the pictures of one generator

    def __init__(self, generators: Mapping[str, StyleGenerator], size: int):
        self.generators = _checked(generators)
        if not isinstance(size, int) or not 16 <= size <= 2048:
            raise ValueError(f"size is the edge of a picture in px, 16 to 2048, not {size!r}")
        self.size, self._busy = size, False
        self.seed = _seed(0, "seed")
        self.truncation = widgets.FloatSlider(0.7, min=0, max=1.2, step=0.05,
                                              description="truncation", **ROW)
        self.category = None
        if classes := next(iter(self.generators.values())).c_dim:
            self.category = widgets.Dropdown(options=range(classes), description="class", **ROW)

    def _assemble(self, *controls: widgets.ValueWidget) -> None:
        """Lay out the controls, in that order, and the pictures; draw."""
        self.controls = [*controls, self.category] if self.category else list(controls)
        self._start = [control.value for control in self.controls]
        for control in self.controls:
            control.observe(self.redraw, names="value")
        self.reset = widgets.Button(description="reset", icon="undo",
                                    layout={"width": "7em", "margin": "6px 0 0 9.3em"})
        self.reset.on_click(self._reset)
        edge = f"{self.size}px"
        self.images: dict[str, widgets.Image] = {}
        rows = []  # pictures of one generator stay together; generators wrap on a narrow page
        for label in self.generators:
            cells = []
            for caption in self._captions(label):
                layout = {"width": edge, "height": edge, "min_width": edge, "margin": "0"}
                self.images[caption] = widgets.Image(format="png", width=self.size,
                                                     height=self.size, layout=layout)
                text = widgets.Label(caption, layout={"max_width": edge, "margin": "0"})
                cells.append(widgets.VBox([text, self.images[caption]],
                                          layout={"margin": "0 12px 12px 0"}))
            rows.append(widgets.HBox(cells, layout={"flex": "0 0 auto"}))
        wide = f"1 1 {len(self.panels) * (self.size + 12)}px"
        pictures = widgets.Box(rows, layout={"flex_flow": "row wrap", "flex": wide})
        column = widgets.VBox([*self.controls, self.reset],
                              layout={"flex": "0 0 auto", "margin": "24px 24px 12px 0"})
        self.widget = widgets.HBox([column, pictures],
                                   layout={"flex_flow": "row wrap", "overflow": "hidden"})
        self.redraw()

    def _captions(self, label: str) -> list[str]:
        return [", ".join(filter(None, (label, panel))) for panel in self.panels]

    def w(self, G: StyleGenerator, seed: int) -> Tensor:
        """w (1, w_dim) of that seed and of the chosen class, truncated."""
        z = torch.randn(1, G.z_dim, generator=torch.Generator().manual_seed(seed))
        z, c = z.to(G.mapping.w_avg), None
        if self.category:
            c = F.one_hot(torch.tensor([self.category.value]), G.c_dim).to(z)
        return G.truncate(G.mapping(z, c), self.truncation.value)

    def ws(self, G: StyleGenerator) -> Tensor:
        """What the controls ask of a generator: one w, or num_ws of them, for each panel."""
        raise NotImplementedError

    @torch.no_grad()
    def draw(self, G: StyleGenerator) -> Tensor:
        """The images (panels, 3, R, R) that the controls ask of a generator."""
        training = G.training
        G.eval()  # a StyleGAN3 in training takes statistics: looking at one must not change it
        try:
            return G.synthesis(self.ws(G)).image
        finally:
            G.train(training)

    def redraw(self, _change: object = None) -> None:
        """Draw all pictures anew; called by every control."""
        if self._busy:
            return
        for label, G in self.generators.items():
            for caption, image in zip(self._captions(label), self.draw(G), strict=True):
                self.images[caption].value = png(_scaled(image, self.size))

    def _reset(self, _button: widgets.Button) -> None:
        self._busy = True  # one drawing at the end, not one a control
        for control, value in zip(self.controls, self._start, strict=True):
            control.value = value
        self._busy = False
        self.redraw()

    def sheet(self) -> NotebookFigure:
        """The same pictures without sliders, under a line that tells where these stand."""
        shown = [np.asarray(Image.open(io.BytesIO(i.value))) for i in self.images.values()]
        images = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2) / 127.5 - 1  # (N, 3, R, R)
        state = [f"{c.description} {getattr(c, 'label', None) or f'{c.value:g}'}"
                 for c in self.controls]
        columns = len(self.panels) if len(self.panels) > 1 else 4
        return show_grid(images, columns, ", ".join(state), list(self.images), self.size)

    def picture(self) -> Image.Image:
        """The sheet in pixels."""
        return Image.open(io.BytesIO(to_png(self.sheet()))).convert("RGB")

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, object], dict[str, object]]:
        """Sliders for a page with a kernel, and their picture for one without."""
        picture, words = base64.b64encode(png(self.picture())).decode(), self.sheet().alt
        data = {**_view(self.widget), "image/png": picture, "text/plain": words}
        return data, {"image/png": {"alt": words}}


class Explorer(Gallery):
    """One picture a generator; walks from a seed along a direction of W.

    `direction.value` is the direction's number; of named ones, `direction.label` is the name.

    Args:
        generators, size: as `Gallery`.
        directions: named `Directions`, whose strength counts in units of each one's reach, -1 to 1;
            or (K, w_dim) unit rows, such as `gapkd.sefa_directions`, whose strength is a length in
            W, -10 to 10.
    """

    def __init__(self, generators: Mapping[str, StyleGenerator], directions: Directions | Tensor,
                 size: int = 256):
        super().__init__(generators, size)
        named = isinstance(directions, Directions)
        vectors = directions.vectors if named else directions
        w_dim = next(iter(self.generators.values())).w_dim
        rows = isinstance(vectors, Tensor) and vectors.ndim == 2 and len(vectors) > 0
        if not rows or vectors.shape[1] != w_dim:
            found = getattr(vectors, "shape", type(vectors).__name__)
            raise ValueError(f"directions must be rows (K, {w_dim}), as wide as the generators' w, "
                             f"or named Directions of that width, not {found}")
        if not vectors.isfinite().all():
            raise ValueError("directions hold numbers that are not finite: make them anew")
        self.steps = vectors  # one unit of strength along each direction, (K, w_dim)
        most, step, unit = 10, 0.5, "in W"
        self.direction = widgets.IntSlider(0, 0, len(vectors) - 1, description="direction", **ROW)
        if named:
            reach = directions.reach
            if not (reach.isfinite() & (reach > 0)).all():
                raise ValueError(f"every direction needs a reach above 0, not {reach.tolist()}")
            self.steps = vectors * reach[:, None]
            most, step, unit = 1, 0.05, "reach"
            options = list(zip(directions.names, range(len(vectors)), strict=True))
            self.direction = widgets.Dropdown(options=options, description="direction", **ROW)
        self.strength = widgets.FloatSlider(0, min=-most, max=most, step=step, **ROW,
                                            readout_format="+.2f", description=f"strength ({unit})")
        self._assemble(self.seed, self.truncation, self.direction, self.strength)

    def ws(self, G: StyleGenerator) -> Tensor:
        w = self.w(G, self.seed.value)
        return w + self.strength.value * self.steps[self.direction.value].to(w)


class StyleMixer(Gallery):
    """Three pictures a generator: seed A, seed B, and between them the coarse layers of A with the
    fine ones of B.

    `crossover` counts the layers that are A's: at 0 the mixture is B, at the right end it is A. A
    generator with fewer layers than another stops at its own end. (StyleGAN3 is trained without
    mixing: do not expect too much of it.) Arguments as `Gallery`.
    """

    panels = ("seed A", "mixed", "seed B")

    def __init__(self, generators: Mapping[str, StyleGenerator], size: int = 128):
        super().__init__(generators, size)
        self.seed.description = "seed A"
        self.seed_b = _seed(1, "seed B")
        layers = max(G.num_ws for G in self.generators.values())
        self.crossover = widgets.IntSlider(layers // 2, 0, layers, description="layers from A",
                                           **ROW)
        self._assemble(self.seed, self.seed_b, self.crossover, self.truncation)

    def ws(self, G: StyleGenerator) -> Tensor:
        a, b = self.w(G, self.seed.value), self.w(G, self.seed_b.value)
        crossovers = (G.num_ws, min(self.crossover.value, G.num_ws), 0)
        return torch.cat([mix_styles(a, b, crossover, G.num_ws) for crossover in crossovers])


def _view(widget: widgets.DOMWidget) -> dict[str, object]:
    """What a page with a kernel shows of a widget; ipywidgets 7, as on Colab, only displays it."""
    if hasattr(widget, "_repr_mimebundle_"):
        return widget._repr_mimebundle_()
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return {"text/plain": repr(widget), "application/vnd.jupyter.widget-view+json": view}


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


def _scaled(image: Tensor, size: int) -> Image.Image:
    """An image (3, R, R) with edges of `size` px: enlarged pixel by pixel, or reduced smoothly."""
    smooth = image.shape[-1] > size
    how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return Image.fromarray(to_uint8(image[None])[0].numpy()).resize((size, size), how)

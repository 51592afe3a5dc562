"""Sliders for notebooks: walk along directions, or mix two seeds, in one generator or in several side by side.

Plain ipywidgets, so that JupyterLab and Colab show them alike; the controls are ordinary Python objects, which a cell
can set as a hand would.
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
from gapkd.distillation.pruning import AnyGenerator
from gapkd.metrics.editing import Directions
from gapkd.networks.stylegan2 import mix_styles
from gapkd.viewing.figures import show_grid

ROW = {"style": {"description_width": "8.5em"}, "layout": {"width": "26em"}}  # descriptions end on one line


class Gallery:
    """What both explorers share: seed, truncation, class and reset, and the pictures, all from the same z.

    Args:
        generators: label -> StyleGAN2 or 3, of any resolutions, all with the same z_dim, w_dim and c_dim.
        size: edge of every picture on the screen, in px; a multiple of the resolutions keeps all pixels alike.
    Use: let a cell end with the explorer. It shows sliders where there is a kernel, and `picture()` on pages without.
    Raises ValueError, in one sentence, for generators, directions or sizes that do not fit.
    """

    panels: tuple[str, ...] = ("",)  # captions of the pictures of one generator

    def __init__(self, generators: Mapping[str, AnyGenerator], size: int):
        self.generators = _checked(generators)
        if not isinstance(size, int) or not 16 <= size <= 2048:
            raise ValueError(f"size is the edge of a picture in px, 16 to 2048, not {size!r}")
        self.size, self._busy = size, False
        first = next(iter(self.generators.values()))
        self.w_dim, classes = first.w_dim, first.c_dim
        self.seed = widgets.IntSlider(0, 0, 999, description="seed", continuous_update=False, **ROW)
        self.truncation = widgets.FloatSlider(0.7, min=0, max=1.2, step=0.05, description="truncation", **ROW)
        self.category = widgets.Dropdown(options=range(classes), description="class", **ROW) if classes else None

    def _assemble(self, *controls: widgets.ValueWidget) -> None:
        """Lay out the controls, in that order, and the pictures; draw."""
        self.controls = [control for control in (*controls, self.category) if control is not None]
        self._start = [control.value for control in self.controls]
        for control in self.controls:
            control.observe(self.redraw, names="value")
        self.reset = widgets.Button(description="reset", icon="undo",
                                    layout={"width": "7em", "margin": "6px 0 0 9.3em"})
        self.reset.on_click(self._reset)
        edge = f"{self.size}px"
        self.images = {caption: widgets.Image(format="png", width=self.size, height=self.size,
                                              layout={"width": edge, "height": edge, "min_width": edge, "margin": "0"})
                       for label in self.generators for caption in self._captions(label)}
        cells = [widgets.VBox([widgets.Label(caption, layout={"max_width": edge, "margin": "0"}), image],
                              layout={"margin": "0 12px 12px 0"}) for caption, image in self.images.items()]
        n = len(self.panels)  # those of one generator stay together; generators wrap where the page is narrow
        rows = [widgets.HBox(cells[i:i + n], layout={"flex": "0 0 auto"}) for i in range(0, len(cells), n)]
        pictures = widgets.Box(rows, layout={"flex_flow": "row wrap", "flex": f"1 1 {n * (self.size + 12)}px"})
        column = widgets.VBox([*self.controls, self.reset], layout={"flex": "0 0 auto", "margin": "24px 24px 12px 0"})
        self.widget = widgets.HBox([column, pictures], layout={"flex_flow": "row wrap", "overflow": "hidden"})
        self.redraw()

    def _captions(self, label: str) -> list[str]:
        return [", ".join(filter(None, (label, panel))) for panel in self.panels]

    def w(self, G: AnyGenerator, seed: int) -> Tensor:
        """w (1, w_dim) of that seed and of the chosen class, truncated."""
        z = torch.randn(1, G.z_dim, generator=torch.Generator().manual_seed(seed)).to(G.mapping.w_avg)
        c = F.one_hot(torch.tensor([self.category.value]), G.c_dim).to(z) if self.category else None
        return G.truncate(G.mapping(z, c), self.truncation.value)

    def ws(self, G: AnyGenerator) -> Tensor:
        """What the controls ask of a generator: one w, or num_ws of them, for each panel."""
        raise NotImplementedError

    @torch.no_grad()
    def draw(self, G: AnyGenerator) -> Tensor:
        """The images (panels, 3, R, R) that the controls ask of a generator."""
        training = G.training
        G.eval()  # a StyleGAN3 in training takes statistics: looking at one must not change it
        try:
            return G.synthesis(self.ws(G)).image
        finally:
            G.train(training)

    def redraw(self, _change: object = None) -> None:
        """Draw all pictures anew; called by every control."""
        for label, G in self.generators.items() if not self._busy else ():
            for caption, image in zip(self._captions(label), self.draw(G), strict=True):
                self.images[caption].value = png(_scaled(image, self.size))

    def _reset(self, _button: widgets.Button) -> None:
        self._busy = True  # one drawing at the end, not one a control
        for control, value in zip(self.controls, self._start, strict=True):
            control.value = value
        self._busy = False
        self.redraw()

    def picture(self) -> Image.Image:
        """The same pictures without sliders, under a line that tells where these stand."""
        shown = np.stack([np.asarray(Image.open(io.BytesIO(image.value))) for image in self.images.values()])
        state = ", ".join(f"{c.description} {c.label if isinstance(c, widgets.Dropdown) else f'{c.value:g}'}"
                          for c in self.controls)
        columns, buffer = len(self.panels) if len(self.panels) > 1 else 4, io.BytesIO()
        sheet = torch.from_numpy(shown).permute(0, 3, 1, 2) / 127.5 - 1
        show_grid(sheet, columns, state, list(self.images), self.size).savefig(buffer, format="png")
        return Image.open(buffer).convert("RGB")

    def _repr_mimebundle_(self, **_: object) -> dict[str, object]:
        """Sliders for a page with a kernel, and their picture for one without."""
        return {**self.widget._repr_mimebundle_(), "image/png": base64.b64encode(png(self.picture())).decode()}


class Explorer(Gallery):
    """One picture a generator; walks from a seed along a direction of W.

    Args:
        directions: named `Directions`, whose strength counts in units of each one's reach, -1 to 1; or (K, w_dim) unit
            rows, such as `gapkd.sefa_directions`, whose strength is a length in W, -10 to 10.
    `direction.value` is the number of the direction; of named ones, `direction.label` is the name. Others as `Gallery`.
    """

    def __init__(self, generators: Mapping[str, AnyGenerator], directions: Directions | Tensor, size: int = 256):
        super().__init__(generators, size)
        named = isinstance(directions, Directions)
        vectors = directions.vectors if named else directions
        if not isinstance(vectors, Tensor) or vectors.ndim != 2 or not len(vectors) or vectors.shape[1] != self.w_dim:
            shape = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise ValueError(f"directions must be rows (K, {self.w_dim}), as wide as the generators' w, or "
                             f"named Directions of that width, not {shape}")
        if not vectors.isfinite().all():
            raise ValueError("directions hold numbers that are not finite: make them anew")
        if named and not (directions.reach.isfinite() & (directions.reach > 0)).all():
            raise ValueError(f"every direction needs a reach above 0, not {directions.reach.tolist()}")
        self.directions, self._steps = directions, vectors * directions.reach[:, None] if named else vectors
        numbers = list(zip(directions.names, range(len(vectors)), strict=True)) if named else None
        self.direction = (widgets.Dropdown(options=numbers, description="direction", **ROW) if named else
                          widgets.IntSlider(0, 0, len(vectors) - 1, description="direction", **ROW))
        most, step, unit = (1, 0.05, "reach") if named else (10, 0.5, "in W")
        self.strength = widgets.FloatSlider(0, min=-most, max=most, step=step, readout_format="+.2f",
                                            description=f"strength ({unit})", **ROW)
        self._assemble(self.seed, self.truncation, self.direction, self.strength)

    def ws(self, G: AnyGenerator) -> Tensor:
        w = self.w(G, self.seed.value)
        return w + self.strength.value * self._steps[self.direction.value].to(w)


class StyleMixer(Gallery):
    """Three pictures a generator: seed A, seed B, and between them the coarse layers of A with the fine ones of B.

    `crossover` counts the layers that are A's: at 0 the mixture is B, at the right end it is A. A generator with fewer
    layers than another stops at its own end. (StyleGAN3 is trained without mixing: do not expect too much of it.)
    Others as `Gallery`.
    """

    panels = ("seed A", "mixed", "seed B")

    def __init__(self, generators: Mapping[str, AnyGenerator], size: int = 128):
        super().__init__(generators, size)
        self.seed.description = "seed A"
        self.seed_b = widgets.IntSlider(1, 0, 999, description="seed B", continuous_update=False, **ROW)
        layers = max(G.num_ws for G in self.generators.values())
        self.crossover = widgets.IntSlider(layers // 2, 0, layers, description="layers from A", **ROW)
        self._assemble(self.seed, self.seed_b, self.crossover, self.truncation)

    def ws(self, G: AnyGenerator) -> Tensor:
        a, b = self.w(G, self.seed.value), self.w(G, self.seed_b.value)
        crossovers = (G.num_ws, min(self.crossover.value, G.num_ws), 0)
        return torch.cat([mix_styles(a, b, crossover, G.num_ws) for crossover in crossovers])


def _checked(generators: Mapping[str, AnyGenerator]) -> dict[str, AnyGenerator]:
    if not isinstance(generators, Mapping) or not generators:
        raise ValueError('give the generators with their labels, such as {"teacher": G}')
    first = next(iter(generators.values()))
    for label, G in generators.items():
        if not isinstance(G, AnyGenerator):
            raise ValueError(f"{label} is a {type(G).__name__}, not a generator: load one with gapkd.load_generator")
        if (G.z_dim, G.w_dim, G.c_dim) != (first.z_dim, first.w_dim, first.c_dim):
            raise ValueError(f"{label} has z_dim {G.z_dim}, w_dim {G.w_dim} and c_dim {G.c_dim}, the first generator "
                             f"{first.z_dim}, {first.w_dim} and {first.c_dim}: all must share them")
    return {str(label): G for label, G in generators.items()}


def _scaled(image: Tensor, size: int) -> Image.Image:
    """An image (3, R, R) as a picture of that edge: enlarged pixel by pixel, or reduced smoothly."""
    picture = Image.fromarray(to_uint8(image[None])[0].numpy())
    smaller = image.shape[-1] <= size
    return picture.resize((size, size), Image.Resampling.NEAREST if smaller else Image.Resampling.LANCZOS)



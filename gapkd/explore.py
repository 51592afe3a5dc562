"""Sliders for notebooks: walk through the latent space of one generator, or of several side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping

import ipywidgets as widgets
import torch
from torch import Tensor

from gapkd.images import tile
from gapkd.stylegan2 import Generator


class Explorer:
    """Sliders for seed, truncation, direction and strength; one picture a generator, all from the same z.

    Args:
        generators: label -> generator; all with the same z_dim and w_dim.
        directions: (K, w_dim) unit rows to walk along, such as `gapkd.sefa_directions`.
        size: edge of a picture on the screen, in px.
    Use: display `explorer.widget`; without a kernel, show `explorer.picture()`.
    """

    def __init__(self, generators: Mapping[str, Generator], directions: Tensor, size: int = 192):
        self.generators, self.directions, self.size = dict(generators), directions, size
        first = next(iter(self.generators.values()))
        for label, G in self.generators.items():
            if (G.z_dim, G.w_dim) != (first.z_dim, first.w_dim) or directions.shape[1] != G.w_dim:
                raise ValueError(f"{label} has z_dim {G.z_dim} and w_dim {G.w_dim}: all generators and the directions "
                                 "must share them")
        self.seed = widgets.IntSlider(0, 0, 999, description="seed", continuous_update=False)
        self.truncation = widgets.FloatSlider(0.7, min=0, max=1.2, step=0.05, description="truncation")
        self.direction = widgets.IntSlider(0, 0, len(directions) - 1, description="direction")
        self.strength = widgets.FloatSlider(0.0, min=-10, max=10, step=0.5, description="strength")
        self.images = {label: widgets.Image(format="png", width=size, height=size) for label in self.generators}
        for control in (self.seed, self.truncation, self.direction, self.strength):
            control.observe(self.redraw, names="value")
        pictures = [widgets.VBox([widgets.Label(label), image]) for label, image in self.images.items()]
        controls = widgets.VBox([self.seed, self.truncation, self.direction, self.strength])
        self.widget = widgets.HBox([controls, *pictures])
        self.redraw()

    @torch.no_grad()
    def draw(self, G: Generator) -> Tensor:
        """The image (1, 3, R, R) that the sliders ask of a generator."""
        device = next(G.parameters()).device
        z = torch.randn(1, G.z_dim, generator=torch.Generator().manual_seed(self.seed.value)).to(device)
        w = G.truncate(G.mapping(z), self.truncation.value)
        w = w + self.strength.value * self.directions[self.direction.value].to(device)
        return G.synthesis(w).image

    def redraw(self, _change: object = None) -> None:
        """Draw all pictures anew; called by every slider."""
        for label, G in self.generators.items():
            self.images[label].value = self._png(self.draw(G))

    def _png(self, images: Tensor) -> bytes:
        buffer = io.BytesIO()
        sheet = tile(images, columns=len(images))
        scale = max(1, self.size // images.shape[2])
        sheet.resize((sheet.width * scale, sheet.height * scale), resample=0).save(buffer, format="png")
        return buffer.getvalue()

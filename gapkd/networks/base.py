"""What every family of generators answers, whatever its layers are.

A family is one module with one subclass of `StyleGenerator`, and one line in families.py. The rest
of the package asks the methods below and never which class it has before it.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from gapkd.networks.mapping import MappingNetwork, described

Noise = str | list[Tensor]
MOST_CLASSES = 2**20  # of a network, whether data or a file ask for them
MOST_CLAMP = 1e18  # torch clamps at no whole number from 2**63 on, and at no float above 3.4e38


def check_resolution(resolution: int, least: int = 8) -> None:
    """Raise ValueError unless it is a power of two of at least `least`."""
    if type(resolution) is not int or resolution < least or resolution & (resolution - 1):
        raise ValueError(f"resolution must be an int, a power of two of at least {least}, not "
                         f"{repr(resolution)[:40]}")


def check_images(resolution: int, img_channels: int, least: int = 8) -> None:
    """Raise ValueError unless there are networks for images of that size and so many channels."""
    check_resolution(resolution, least)
    if type(img_channels) is not int or img_channels not in (1, 3, 4):
        raise ValueError("img_channels must be 3, 1 (grey) or 4 (RGBA), not "
                         f"{repr(img_channels)[:40]}")


def check_clamp(clamp: float | None) -> None:
    """Raise ValueError unless it is a number above 0 that torch can clamp at, or None."""
    if clamp is not None and not (type(clamp) in (int, float) and 0 < clamp <= MOST_CLAMP):
        raise ValueError(f"clamp must be a number above 0 and up to {MOST_CLAMP:g}, or None, not "
                         f"{repr(clamp)[:40]}")


def kept_channels(channels: int, keep: float) -> int:
    """The paper's rule: remove floor((1 - keep) c) channels. keep 0.3: 512 -> 154, 64 -> 20."""
    removed = round((1 - keep) * channels, 6)  # (1 - 0.9) 10 is 0.9999999999999998
    return max(channels - int(removed), 1)


@dataclass
class SynthesisOutput:
    """What a synthesis network makes of ws.

    image: (N, 3, R, R), float32, about [-1, 1], not clamped; 3 means 1 or 4 channels of a grey or
        RGBA generator, here and elsewhere.
    features: output of every block, (N, C_i, r_i, r_i); StyleGAN2: r_i = 4, 8, ... R.
    rgbs: the images on the way, (N, 3, r_i, r_i); the last one is `image`.
    """

    image: Tensor
    features: list[Tensor]
    rgbs: list[Tensor]


class Network(nn.Module):
    """A network that can be saved: it keeps every argument of its constructor under the same name.
    """

    def architecture(self) -> dict:
        """The constructor's arguments, as JSON can hold them: type(G)(**G.architecture()) has G's
        shape."""
        names = inspect.signature(self.__init__).parameters
        return json.loads(json.dumps({name: getattr(self, name) for name in names},
                                     default=lambda number: number.item()))


class StyledNetwork(nn.Module):
    """What synthesis networks share: one w for each of num_ws layers."""

    num_ws: int
    w_dim: int

    def expand_ws(self, ws: Tensor) -> Tensor:
        """(N, w_dim) or (N, num_ws, w_dim) -> (N, num_ws, w_dim), checked, as numbers of the
        weights' kind."""
        if isinstance(ws, Tensor) and ws.ndim == 2:
            ws = ws[:, None].expand(-1, self.num_ws, -1)
        if not isinstance(ws, Tensor) or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(f"ws must have shape (N, {self.w_dim}) or "
                             f"(N, {self.num_ws}, {self.w_dim}), not {described(ws)}")
        return ws.to(next(self.parameters()).dtype)

    def noise_layers(self) -> list[nn.Module]:
        """The layers that add noise, input side first: each has `noise_const` (1, 1, r, r) and
        `noise_strength`."""
        return []

    def draw_noise(self, n: int, generator: torch.Generator) -> list[Tensor]:
        """Fresh noise maps for n images; none where there is no noise."""
        return []


class NoisyNetwork(StyledNetwork):
    """Synthesis networks of StyleGAN2's kind: a learned constant `const`, then `blocks` of styled
    convolutions with a noise map each, at 4, 8, 8, 16, 16, ... px."""

    @property
    def convs(self) -> list[nn.Module]:
        """All styled convolutions, input side first; number l consumes ws[:, l] and noise map l."""
        return [conv for block in self.blocks for conv in block.convs]

    def noise_layers(self) -> list[nn.Module]:
        return self.convs

    def draw_noise(self, n: int, generator: torch.Generator) -> list[Tensor]:
        """Fresh noise maps (n, 1, r, r), r = 4, 8, 8, ... R, R, for teacher and student alike."""
        maps = []
        for layer in range(self.num_ws - 1):
            size = 4 * 2 ** ((layer + 1) // 2)
            drawn = torch.randn(n, 1, size, size, generator=generator, device=generator.device)
            maps.append(drawn.to(self.const.device))
        return maps

    def _noise_maps(self, noise: Noise, n: int, generator: torch.Generator | None
                    ) -> list[Tensor | None]:
        """One map for each of `convs`."""
        needed = len(self.convs)
        if noise == "const":
            return [conv.noise_const for conv in self.convs]
        if noise == "none":
            return [None] * needed
        if noise == "random":
            if generator is None:
                raise ValueError('noise="random" draws from a generator: pass '
                                 "generator=torch.Generator()")
            noise = self.draw_noise(n, generator)
        if not isinstance(noise, (list, tuple)):
            raise ValueError('noise must be "const", "none", "random" or a list of maps, not '
                             f"{repr(noise)[:40]}")
        if len(noise) not in (needed, self.num_ws - 1):
            raise ValueError(f"noise holds {len(noise)} maps, this network needs {needed}")
        return list(noise[:needed])


class StyleGenerator(Network):
    """A mapping network f: Z -> W and a synthesis network g: W -> image.

    Subclasses build `synthesis`, whose forward takes (ws, noise, generator), and answer the
    questions that are left open here.

    Args of all families:
        resolution: a power of two, at least 8 (StyleGAN3: 16).
        z_dim: width of z.
        w_dim: width of w.
        channels: widths, 4x4 first.
        mapping_layers: depth of the mapping network.
        c_dim: number of classes, 0 for none.
        img_channels: of the images: 3, 1 (grey) or 4 (RGBA).
    Shape: z (N, z_dim) -> image (N, 3, R, R), about [-1, 1], not clamped.
    """

    kind: ClassVar[str]
    """The family's name in files."""
    mixes_styles: ClassVar[bool] = True
    """Whether two latents may rule one image in training."""
    movable: ClassVar[bool] = False
    """Whether `synthesis.input.transform` shifts and turns the image (StyleGAN3)."""

    def __init__(self, mapping: MappingNetwork, synthesis: StyledNetwork):
        super().__init__()
        self.mapping, self.synthesis = mapping, synthesis
        self.z_dim, self.w_dim, self.c_dim = mapping.z_dim, mapping.w_dim, mapping.c_dim
        self.mapping_layers = len(mapping.layers)
        self.resolution, self.num_ws = synthesis.resolution, synthesis.num_ws
        self.img_channels = synthesis.img_channels

    # ------------------------------------------------------------------------------- drawing

    def truncate(self, w: Tensor, truncation: float | Tensor) -> Tensor:
        """Pull w towards its average: w_avg + psi (w - w_avg). Any shape (..., w_dim). truncation:
        psi, or one for each w, (N,)."""
        if isinstance(truncation, (int, float)):
            return w if truncation == 1.0 else self.mapping.w_avg.lerp(w, truncation)
        psi = torch.as_tensor(truncation, dtype=w.dtype, device=w.device)
        return self.mapping.w_avg.lerp(w, psi.reshape(-1, *[1] * (w.ndim - 1)))

    def forward(self, z: Tensor, c: Tensor | None = None, truncation: float = 1.0,
                noise: Noise = "const", generator: torch.Generator | None = None) -> Tensor:
        """Draw images (N, 3, R, R).

        Args:
            z: (N, z_dim), standard normal.
            c: one-hot labels (N, c_dim), for a conditional network.
            truncation: 1 none, 0 the average image; or one for each z, (N,).
            noise: "const" (the stored maps), "random" (needs `generator`), "none", or a list of
                maps.
        """
        w = self.truncate(self.mapping(z, c), truncation)
        return self.synthesis(w, noise=noise, generator=generator).image

    # ------------------------------------------------------------------------------- the hub

    # As huggingface_hub.PyTorchModelHubMixin has them, with its arguments; the package's public
    # names do the work.

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *,
                        map_location: str | torch.device = "cpu", strict: bool = True,
                        **hub: object) -> StyleGenerator:
        """`gapkd.load_generator`, of this family; always strict."""
        import gapkd

        if not strict:
            raise ValueError("strict=False is not possible: weights that do not fit are always "
                             "refused, so leave strict out")
        G = gapkd.load_generator(pretrained_model_name_or_path, **hub)
        if not isinstance(G, cls):
            raise ValueError(f"{pretrained_model_name_or_path} is a {type(G).__name__}, not a "
                             f"{cls.__name__}: load it with gapkd.load_generator")
        return G.to(map_location)

    def save_pretrained(self, save_directory: str | Path, *, repo_id: str | None = None,
                        push_to_hub: bool = False, model_card_kwargs: dict | None = None,
                        **more: object) -> str | None:
        """`gapkd.save_pretrained`; with `push_to_hub` also `push_to_hub`, to `repo_id` or under the
        folder's name. more: arguments of both; model_card_kwargs: more of them, by another name."""
        import gapkd

        card = more | (model_card_kwargs or {})
        keywords = gapkd.push_to_hub.__kwdefaults__
        upload = {name: card.pop(name) for name in keywords.keys() & card.keys()}
        folder = gapkd.save_pretrained(self, save_directory, repo_id=repo_id, **card)
        if push_to_hub:
            return gapkd.push_to_hub(self, repo_id or folder.name, **upload, **card)
        return None

    def push_to_hub(self, repo_id: str, *, model_card_kwargs: dict | None = None,
                    **more: object) -> str:
        """`gapkd.push_to_hub`; returns the commit's address."""
        import gapkd

        return gapkd.push_to_hub(self, repo_id, **more, **(model_card_kwargs or {}))

    # ------------------------------------------------------------------------------- the family

    @classmethod
    def student_of(cls, teacher: StyleGenerator, keep: float, kernel: int = 3) -> dict:
        """The constructor's arguments of a student of this family, with `keep` of the teacher's
        channels in every layer. Raises ValueError for a teacher that cannot have one."""
        raise NotImplementedError

    def feature_widths(self) -> list[int]:
        """Channels of every block's features, in the order of `SynthesisOutput.features`."""
        return list(self.channels)

    def readers(self) -> list[list[nn.Module]]:
        """For every group of channels, input side first, the layers that read it: each has `affine`
        (w -> one style a channel) and `weight` (O, C, k, k). The first one's weight scores the
        channels."""
        raise NotImplementedError

    def copy_channels(self, teacher: StyleGenerator, kept: list[Tensor]) -> None:
        """Copy the synthesis weights of a wider network of the same family and resolution: of each
        of its groups of channels (`readers`) those whose numbers are `kept`."""
        raise NotImplementedError

    @torch.no_grad()
    def copy_noise(self, teacher: StyleGenerator) -> None:
        """Take over the stored noise maps, coarse ones first, as far as both networks have them, so
        that both can be compared at the same noise."""
        for ours, theirs in zip(self.synthesis.noise_layers(), teacher.synthesis.noise_layers(),
                                strict=False):  # a MobileStyleGAN ends one resolution earlier
            ours.noise_const.copy_(theirs.noise_const)

    def silence(self) -> None:
        """Take the noise out for good. Nothing to do where there is none."""
        for layer in self.synthesis.noise_layers():
            layer.noise_strength.requires_grad_(False).zero_()

    @property
    def silent(self) -> bool:
        """Whether no noise map can be seen in its images, now or after a training."""
        return not any(layer.noise_strength.requires_grad or layer.noise_strength.item()
                       for layer in self.synthesis.noise_layers())


def copy_affine(ours: nn.Module, theirs: nn.Module, rows: Tensor) -> None:
    """The styles of the channels that stay: rows of a style affine."""
    ours.weight.copy_(theirs.weight[rows])
    ours.bias.copy_(theirs.bias[rows])

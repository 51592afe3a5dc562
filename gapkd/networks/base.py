"""What every family of generators answers, whatever its layers are.

A family is one module with one subclass of `StyleGenerator`, and one line in families.py. The rest
of the package asks the methods below and never which class it has before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from gapkd.networks.mapping import MappingNetwork

Noise = str | list[Tensor]


def check_resolution(resolution: int, least: int = 8) -> None:
    """Raise ValueError unless `resolution` is a power of two of at least `least`."""
    if resolution < least or resolution & (resolution - 1):
        raise ValueError(f"resolution must be a power of two of at least {least}, not {resolution}")


def check_clamp(clamp: float | None) -> None:
    """Raise ValueError unless it is a number above 0, or None."""
    if clamp is not None and not (type(clamp) in (int, float) and 0 < clamp < math.inf):
        raise ValueError(f"clamp must be a number above 0, or None, not {repr(clamp)[:40]}")


def check_img_channels(img_channels: int) -> None:
    """Raise ValueError unless images of so many channels are known."""
    if type(img_channels) is not int or img_channels not in (1, 3, 4):
        raise ValueError("img_channels must be 3, 1 (grey) or 4 (RGBA), not "
                         f"{repr(img_channels)[:40]}")


def kept_channels(channels: int, keep: float) -> int:
    """The paper's rule: remove floor((1 - keep) c) channels. keep 0.3: 512 -> 154, 64 -> 20."""
    removed = round((1 - keep) * channels, 6)  # (1 - 0.9) 10 is 0.9999999999999998
    return channels - int(removed)


@dataclass
class SynthesisOutput:
    """What a synthesis network makes of ws.

    image: (N, 3, R, R), float32, about [-1, 1], not clamped; 1 or 4 channels of a grey or RGBA
        generator, in all places that say 3.
    features: output of every block, (N, C_i, r_i, r_i); StyleGAN2: r_i = 4, 8, ... R, block 0 is
        the 4x4 one.
    rgbs: the images on the way, (N, 3, r_i, r_i); the last one is `image`.
    """

    image: Tensor
    features: list[Tensor]
    rgbs: list[Tensor]


class StyledNetwork(nn.Module):
    """What synthesis networks share: one w for each of num_ws layers."""

    num_ws: int
    w_dim: int
    img_channels: int

    def expand_ws(self, ws: Tensor) -> Tensor:
        """(N, w_dim) or (N, num_ws, w_dim) -> (N, num_ws, w_dim), checked."""
        if ws.ndim == 2:
            ws = ws[:, None].expand(-1, self.num_ws, -1)
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(
                f"ws must have shape (N, {self.w_dim}) or (N, {self.num_ws}, {self.w_dim}), "
                f"not {tuple(ws.shape)}")
        return ws

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
        """Fresh noise maps (n, 1, r, r) at 4, 8, 8, ... R, R px. They fit any network of the same
        resolution, so teacher and student can be given the same ones."""
        maps = []
        for size in _noise_sizes(self.resolution):
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
            return self.draw_noise(n, generator)[:needed]
        if isinstance(noise, str):
            raise ValueError('noise must be "const", "none", "random" or a list of maps, not '
                             f"{noise!r}")
        if len(noise) not in (needed, len(_noise_sizes(self.resolution))):
            raise ValueError(f"noise holds {len(noise)} maps, this network needs {needed}")
        return list(noise[:needed])


def _noise_sizes(resolution: int) -> list[int]:
    """Pixels a side of StyleGAN2's noise maps: 4, 8, 8, ... R, R."""
    sizes, size = [4], 8
    while size <= resolution:
        sizes += [size, size]
        size *= 2
    return sizes


class StyleGenerator(nn.Module):
    """A mapping network f: Z -> W and a synthesis network g: W -> image.

    Subclasses build `synthesis`, whose forward takes (ws, noise, generator), and answer the
    questions that are left open here.

    Args:
        mapping: the mapping network.
        synthesis: the synthesis network; it knows its resolution, num_ws and img_channels.
    Shape: z (N, z_dim) -> image (N, 3, R, R), about [-1, 1], not clamped.
    """

    kind: ClassVar[str]
    """The family's name in files."""
    mixes_styles: ClassVar[bool] = True
    """Whether two latents may rule one image in training."""
    grows: ClassVar[bool] = False
    """Whether it can be trained on at twice the resolution, with one more block."""
    movable: ClassVar[bool] = False
    """Whether `synthesis.input.transform` shifts and turns the image (StyleGAN3)."""

    def __init__(self, mapping: MappingNetwork, synthesis: StyledNetwork):
        super().__init__()
        self.mapping, self.synthesis = mapping, synthesis
        self.z_dim, self.w_dim, self.c_dim = mapping.z_dim, mapping.w_dim, mapping.c_dim
        self.resolution, self.num_ws = synthesis.resolution, synthesis.num_ws
        self.img_channels = synthesis.img_channels

    # ------------------------------------------------------------------------------- drawing

    def truncate(self, w: Tensor, truncation: float) -> Tensor:
        """Pull w towards its average: w_avg + psi (w - w_avg). Any shape (..., w_dim)."""
        if truncation == 1.0:
            return w
        return self.mapping.w_avg.lerp(w, truncation)

    def forward(self, z: Tensor, c: Tensor | None = None, truncation: float = 1.0,
                noise: Noise = "const", generator: torch.Generator | None = None) -> Tensor:
        """Draw images.

        Args:
            z: (N, z_dim), standard normal.
            c: one-hot labels (N, c_dim), for a conditional network.
            truncation: 1 none, 0 the average image.
            noise: "const" (the stored maps), "random" (needs `generator`), "none", or a list of
                maps.
        Returns: (N, 3, R, R), float32, about [-1, 1], not clamped.
        """
        w = self.truncate(self.mapping(z, c), truncation)
        return self.synthesis(w, noise=noise, generator=generator).image

    # ------------------------------------------------------------------------------- the hub

    # As huggingface_hub.PyTorchModelHubMixin has them; the package's public names do the work.

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *,
                        map_location: str | torch.device = "cpu", **hub: object) -> StyleGenerator:
        """Load a generator of this family, in eval mode, gradients off.

        Args:
            pretrained_model_name_or_path: a hub's repository "user/name", or whatever
                `gapkd.load_generator` takes.
            map_location: the device.
            hub: revision, token, cache_dir, force_download, local_files_only.
        """
        import gapkd

        G = gapkd.load_generator(pretrained_model_name_or_path, **hub)
        if not isinstance(G, cls):
            raise ValueError(f"{pretrained_model_name_or_path} is a {type(G).__name__}, not a "
                             f"{cls.__name__}: load it with gapkd.load_generator")
        return G.to(map_location)

    def save_pretrained(self, save_directory: str | Path, *, repo_id: str = "",
                        push_to_hub: bool = False, **card: object) -> str | None:
        """Write a new folder as `gapkd.save_pretrained` does, which says what `card` may hold; with
        `push_to_hub` upload it too, to `repo_id` or under the folder's name, and return the
        commit's address."""
        import gapkd

        folder = gapkd.save_pretrained(self, save_directory, **card)
        return gapkd.push_to_hub(folder, repo_id or folder.name) if push_to_hub else None

    def push_to_hub(self, repo_id: str, **more: object) -> str:
        """As `gapkd.push_to_hub`; returns the commit's address."""
        import gapkd

        return gapkd.push_to_hub(self, repo_id, **more)

    # ------------------------------------------------------------------------------- the family

    def architecture(self) -> dict:
        """The constructor's arguments, as JSON can hold them: type(G)(**G.architecture()) has G's
        shape."""
        raise NotImplementedError

    @classmethod
    def student_of(cls, teacher: StyleGenerator, keep: float, kernel: int = 3) -> dict:
        """The constructor's arguments of a student of this family, with `keep` of the teacher's
        channels in every layer. Raises ValueError for a teacher that cannot have one."""
        raise NotImplementedError

    def feature_widths(self) -> list[int]:
        """Channels of every block's features, in the order of `SynthesisOutput.features`."""
        raise NotImplementedError

    def readers(self) -> list[list[nn.Module]]:
        """For every group of channels, input side first, the layers that read it: each has `affine`
        (w -> one style a channel) and `weight` (O, C, k, k), and the first one's weight decides on
        the channels when they are scored."""
        raise NotImplementedError

    def copy_channels(self, teacher: StyleGenerator, kept: list[Tensor]) -> None:
        """Copy a wider network's synthesis weights, in place.

        Args:
            teacher: of the same family and resolution.
            kept: for each of its groups of channels (`readers`) the numbers of those that stay
                here.
        """
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


def if_not_rgb(img_channels: int) -> dict:
    """The argument, where images are not of three channels, as they are in files without it."""
    return if_set(img_channels=None if img_channels == 3 else img_channels)


def if_set(**arguments: object) -> dict:
    """The arguments that are not None: files that were written before one existed stay the same."""
    return {name: value for name, value in arguments.items() if value is not None}

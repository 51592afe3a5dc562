"""Start a GAN training from a finished run, at its resolution or at twice that."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gapkd.files.checkpoints import find_checkpoint, load_discriminator, load_generator
from gapkd.networks.base import StyleGenerator
from gapkd.networks.stylegan2 import Discriminator


def start_files(run: str) -> tuple[Path, Path]:
    """Generator's and discriminator's file of a finished run's folder, or of an embedded
    teacher."""
    if Path(run).is_dir():
        return Path(run) / "generator.safetensors", Path(run) / "discriminator.safetensors"
    if Path(run).is_file():
        raise ValueError(f"start_from={run} is a file: name the run's folder, which holds both "
                         "networks")
    if Path(run).name != run:
        raise ValueError(f"there is no run {run} to start from: name the folder of a finished one, "
                         "or an embedded teacher")
    return find_checkpoint(run), find_checkpoint(f"{run}_discriminator")


def start_from(G: StyleGenerator, D: Discriminator, run: str) -> None:
    """Start G and D from a finished run: all of it, or, at half the resolution, all but the new,
    finest blocks. The new block of G adds nothing to the image at first, so that G starts by
    drawing the old images, enlarged.

    Raises CheckpointError when the run has no networks, ValueError when they do not fit.
    """
    files = start_files(run)
    old_g, old_d = load_generator(files[0]), load_discriminator(files[1])
    if G.resolution not in (old_g.resolution, 2 * old_g.resolution):
        raise ValueError(f"start_from={run} holds {old_g.resolution} px networks: choose "
                         f"resolution={old_g.resolution} or {2 * old_g.resolution}, not "
                         f"{G.resolution}")
    states = [(G, old_g.state_dict()), (D, old_d.state_dict())]
    fresh: tuple[str, ...] = ()
    grown = G.resolution != old_g.resolution
    if grown:
        if not G.grows:
            raise ValueError(f"start_from={run}: only a StyleGAN2 can be grown; choose resolution="
                             f"{old_g.resolution}")
        states[1] = D, _shifted(old_d.state_dict())
        fresh = f"synthesis.blocks.{len(G.synthesis.blocks) - 1}.", "blocks.0.", "from_rgb."
    for network, state in states:
        own = network.state_dict()
        missing = [k for k in own if k not in state and not k.startswith(fresh or "-")]
        other = [k for k, v in state.items() if k not in own or own[k].shape != v.shape]
        if missing or other:
            raise ValueError(
                f"start_from={run}: {(missing + other)[0]} is missing or has another shape in one "
                "of the two; choose the same widths, z_dim, w_dim and mapping_layers as that run"
                f"{' for all blocks but the last' if grown else ''}")
        network.load_state_dict(own | state)
    if grown:
        with torch.no_grad():
            G.synthesis.blocks[-1].torgb.weight.zero_()


def _shifted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A discriminator's weights for one of twice the resolution: blocks count from the finest, so 0
    becomes 1."""
    shifted = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part == "from_rgb":
            continue
        if part == "blocks":
            number, _, rest = rest.partition(".")
            name = f"blocks.{int(number) + 1}.{rest}"
        shifted[name] = value
    return shifted

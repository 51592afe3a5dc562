"""Before the first step: start a GAN training from a run, at its resolution or at twice that, or
from another repository's file; say what cannot be trained while it costs nothing yet."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gapkd.distillation.directions import check_blocks
from gapkd.distillation.students import check_request
from gapkd.files.checkpoints import (
    CheckpointError,
    find_checkpoint,
    load_discriminator,
    load_generator,
    recognise,
)
from gapkd.files.download import is_address
from gapkd.metrics.attributes import AttributeNetwork
from gapkd.metrics.features import Distance
from gapkd.networks.base import StyleGenerator
from gapkd.networks.stylegan2 import Discriminator, Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator
from gapkd.settings import DistillConfig, TrainConfig, widths
from gapkd.training.lessons import Lessons, check_reuse
from gapkd.training.trainer import check_networks


def is_file(start: str) -> bool:
    """Whether networks to start from are those of one file: another repository's (.pkl, .pt), or a
    checkpoint of a run. Of our own files each holds one."""
    if is_address(start) or Path(start).is_file():
        return recognise(find_checkpoint(start)) == "pickle"
    return False


def networks_of_file(config: TrainConfig
                     ) -> tuple[TrainConfig, StyleGenerator, Discriminator]:
    """Generator and discriminator of one file as they are, whatever their widths, and the settings
    with those in. Without a discriminator in the file, a fresh one begins.

    Raises CheckpointError when the file holds no generator, ValueError for one that is not trained
        here, or of another resolution than was asked for.
    """
    start = config.start_from
    G = load_generator(start)
    try:
        D = load_discriminator(start)
    except CheckpointError as error:
        warnings.warn(f"a fresh discriminator begins, since there is none in {start} ({error}): "
                      "with d_first it trains alone for so many images, lest it spoils the "
                      "generator", stacklevel=4)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            D = Discriminator(G.resolution, widths(config.d_channels, G.resolution), G.c_dim,
                              img_channels=G.img_channels)
    wrong = f"start_from={start} cannot be trained further: it holds"
    if not isinstance(G, Generator | AliasFreeGenerator):
        raise ValueError(f"{wrong} a {G.kind}, which is distilled; choose a StyleGAN2 or StyleGAN3")
    if (D.resolution, D.c_dim, D.img_channels) != (G.resolution, G.c_dim, G.img_channels):
        raise ValueError(f"{wrong} a generator of {G.resolution} px, {G.c_dim} classes and "
                         f"{G.img_channels} channels, and a discriminator of {D.resolution}, "
                         f"{D.c_dim} and {D.img_channels}; choose another file")
    if config.resolution not in (G.resolution, TrainConfig.resolution):
        raise ValueError(f"start_from={start} holds {G.resolution} px networks: choose resolution="
                         f"{G.resolution}, not {config.resolution}")
    taken = settings_of(G, D)
    warnings.warn(f"start_from={start}: {G.resolution} px networks, which keep their own widths, "
                  "z_dim, w_dim and layers", stacklevel=4)
    return replace(config, **taken), G.requires_grad_(True), D.requires_grad_(True)


def settings_of(G: Generator | AliasFreeGenerator, D: Discriminator) -> dict:
    """The settings that describe two networks, as far as they can."""
    found = {"resolution": G.resolution, "z_dim": G.z_dim, "w_dim": G.w_dim,
             "mapping_layers": len(G.mapping.layers)}
    if isinstance(G, Generator):
        channels = tuple(second for _, second in G.channels)
        return found | {"architecture": "stylegan2", "channels": channels}
    return found | {"architecture": f"stylegan3-{'r' if G.radial else 't'}", "margin": G.margin,
                    "layers": len(G.channels), "channels": (max(G.channels), min(G.channels))}


def start_files(run: str) -> tuple[Path, Path]:
    """Generator's and discriminator's file of a run's folder, finished or stopped, or of an
    embedded teacher; of a file that holds both, twice that."""
    if is_file(run):
        return find_checkpoint(run), find_checkpoint(run)
    if Path(run).is_dir():
        states = sorted(Path(run).glob("checkpoints/[0-9]*.pt"))
        if states and not (Path(run) / "generator.safetensors").is_file():
            return states[-1], states[-1]
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


# ------------------------------------------------------------------------- what cannot be trained


def check_student(config: DistillConfig, teacher: StyleGenerator) -> None:
    """Raise ValueError for a student that cannot be trained so, before it costs anything."""
    check_reuse(config.reuse, teacher.silent)
    Lessons(config.reuse, config.batch, teacher.resolution)  # whether enough of them fit
    family, architecture = check_request(teacher, config.keep, config.kernel, config.mapping,
                                         config.synthesis, config.kind)
    check_networks(config, teacher)
    with torch.device("meta"):
        student = family(**architecture)
    check_networks(config, student)
    for kind in ("ld", "feature"):
        if getattr(config, f"{kind}_weight"):
            for network in (student, teacher):
                check_blocks(f"{kind}_blocks", getattr(config, f"{kind}_blocks"), network)
    if config.content and teacher.resolution < AttributeNetwork.size:
        raise ValueError(f"content={config.content} is seen at {AttributeNetwork.size} px and "
                         f"above, the teacher draws {teacher.resolution}: leave content empty")


def check_distance(config: DistillConfig, distance: Distance | None, teacher: StyleGenerator
                    ) -> None:
    """Raise ValueError for a perceptual distance that cannot see what the teacher draws."""
    if distance is None:
        return
    images = torch.zeros(2, 1, 3, teacher.resolution, teacher.resolution)
    try:
        distance(*images.to(next(teacher.parameters()).device))
    except ValueError as error:
        raise ValueError(f"perceptual={config.perceptual} cannot look at the teacher's images "
                         f"({error}): choose another, or set perceptual_weight to 0") from error

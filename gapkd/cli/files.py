"""The commands that draw with a generator or write another file of it."""

from __future__ import annotations

import io
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import tyro

from gapkd.cli import say
from gapkd.settings import MOST, shown

SHEET_PIXELS = 2**28
"""The most that a sheet of images may have."""


@dataclass(frozen=True)
class SampleConfig:
    """Draw images and save them as PNG: one sheet, or a folder of single files."""

    generator: tyro.conf.Positional[str]
    """A run's folder, a file of any format, a hub's name, or an embedded network's."""
    out: str = "runs/samples.png"
    """PNG file to write; with --separate a new folder of that name, without the ending. An existing
    one is not overwritten."""
    separate: bool = False
    """Write every image to a file of its own: 000000.png, 000001.png... in the folder `out`."""
    count: int = 64
    """How many images."""
    label: int = -1
    """Class of a conditional network's images; -1: all classes in turn."""
    truncation: float = 1.0
    """1: none; 0: the average image."""
    seed: int = 0
    """Of the latents."""
    columns: int = 8
    """Images per row of the sheet."""


@dataclass(frozen=True)
class DirectionsConfig:
    """Find directions in W with a name, for `gapkd export`, explorers and the browser."""

    generator: tyro.conf.Positional[str]
    """A run's folder, a file of any format, a hub's name, or an embedded network's."""
    out: str
    """File to write (.safetensors); an existing one is not overwritten."""
    attributes: str = "toyfaces"
    """What reads the factors of the images: "toyfaces", the embedded network, a file of
    `gapkd judge`, or "none": SeFa directions, found in the weights alone."""
    names: tuple[str, ...] = ()
    """Which factors, such as smile or "hair_style: long"; empty: all of them."""
    alone: bool = True
    """Move one factor and leave the others as they are, as far as they are linear in w."""
    samples: int = 5000
    """Images that are looked at."""
    seed: int = 0
    """Of their latents."""


@dataclass(frozen=True)
class ConvertConfig:
    """Write a generator in another format: .safetensors (gapkd) or .pt (rosinality's layout); or a
    discriminator, if that is the name of the file to write.

    SeFa, StyleKD, CAGAN and DCP-GAN read such a .pt of any widths, a student's too; scripts that
    build a network of rosinality's own widths (512, 256, ...) read only one that has these."""

    source: tyro.conf.Positional[str]
    """A run's folder, .safetensors, NVIDIA's .pkl, rosinality's .pt, or an embedded network."""
    out: tyro.conf.Positional[str]
    """File to write; its ending says which format, and "discriminator" in its name which network.
    An existing one is not overwritten."""
    drop_clamp: bool = False
    """Of a .pt, which knows none: leave the clamp of the activations out though they come near."""


def sample(config: SampleConfig) -> None:
    from gapkd.data.images import save_png
    from gapkd.files.checkpoints import load_generator
    from gapkd.files.storage import new_file, new_folder
    from gapkd.metrics.sampling import draw_sheet

    if not 0 <= config.seed < 2**63:
        raise ValueError(f"seed must lie between 0 and 2^63 - 1, not {config.seed}")
    if config.count < 1 or config.columns < 1:
        raise ValueError("count and columns must be at least 1, not "
                         f"{config.count} and {config.columns}")
    if not abs(config.truncation) <= 1000:  # nan is not either
        raise ValueError("truncation must lie between -1000 and 1000, 1 for none, not "
                         f"{config.truncation}")
    if config.separate:
        out = new_folder(config.out.removesuffix(".png").removesuffix(".PNG"))
    else:
        out = new_file(config.out, ".png", ".PNG")
    G = load_generator(config.generator)
    if config.count > (most := SHEET_PIXELS // G.resolution**2):
        raise ValueError(f"count must be at most {most:,} at {G.resolution} px, not "
                         f"{config.count:,}: draw them in several parts, each with another seed")
    if not -1 <= config.label < G.c_dim:
        mend = f"classes, 0 to {G.c_dim - 1}; -1 takes them in turn"
        has = f"{G.c_dim} {mend}" if G.c_dim else "no classes: leave it at -1"
        raise ValueError(f"label={config.label}: {config.generator} has {has}")
    images = draw_sheet(G, config.count, config.seed, config.truncation, config.label)
    if config.separate:
        for n, image in enumerate(images.split(1)):
            save_png(image, out / f"{n:06}.png", columns=1)
    else:
        save_png(images, out, min(config.columns, config.count))
    say(f"{config.count} images written to {out}")


def directions(config: DirectionsConfig) -> None:
    from gapkd.files.checkpoints import load_generator
    from gapkd.files.storage import new_file
    from gapkd.metrics.attributes import reader
    from gapkd.metrics.editing import factor_directions, save_directions, sefa
    from gapkd.training.start import images_of

    out = new_file(config.out, ".safetensors")
    for name in ("alone", "samples", "seed") if config.attributes == "none" else ():
        if getattr(config, name) != getattr(DirectionsConfig, name):
            raise ValueError(f"{name} is for directions that are found in images, and attributes="
                             f"none looks at the weights alone: leave {name} out")
    most = MOST["fid_samples"]
    if not 100 <= config.samples <= most or not 0 <= config.seed < 2**63:
        raise ValueError(f"samples must lie between 100 and {most:,}, and seed between 0 and "
                         f"2^63 - 1, not {config.samples} and {config.seed}")
    G, names = load_generator(config.generator), tuple(dict.fromkeys(config.names))
    if config.attributes == "toyfaces" != (known := images_of(config.generator)):
        warnings.warn(f"{shown(config.generator)} was trained on {known}, and its factors are read "
                      "by a network that knows rendered toy faces only: name a judge of your own "
                      "(--attributes, see gapkd judge), or \"none\" for directions without names",
                      stacklevel=2)
    if config.attributes == "none":
        found = sefa(G)
        found = found.pick(names) if names else found
    else:
        print(f"looking at {config.samples:,} images", file=sys.stderr, flush=True)
        found = factor_directions(G, reader(config.attributes), names or None, config.alone,
                                  config.samples, config.seed)
    written = save_directions(found, out)
    say(f"{len(found)} directions written to {written}: {', '.join(found.names)}")


def convert(config: ConvertConfig) -> None:
    import torch

    from gapkd.files import checkpoints
    from gapkd.files.foreign import to_rosinality
    from gapkd.files.storage import new_file, write_atomically

    out = new_file(config.out, ".safetensors", ".pt")
    is_discriminator = "discriminator" in out.stem.lower() or out.stem in ("D", "netD")
    role = "discriminator" if is_discriminator else "generator"
    if is_discriminator and out.suffix != ".safetensors":
        raise ValueError(f"{out}: discriminators are written as .safetensors, for `gapkd distill "
                         "--discriminator`; choose that ending, or another name for a generator")
    if config.drop_clamp and out.suffix != ".pt":
        raise ValueError(f"drop_clamp is for .pt files, and {out} keeps the clamp: leave it out")
    try:
        network = getattr(checkpoints, f"load_{role}")(config.source)
    except checkpoints.CheckpointError as error:
        other = "generator" if is_discriminator else "discriminator"
        if not checkpoints.read_metadata(config.source)["kind"].endswith(other):
            raise
        raise ValueError(f"{error}: the name {out.name} asks for one; \"discriminator\" in it asks "
                         "for a discriminator, any other name for a generator") from error
    if out.suffix == ".pt":
        content = io.BytesIO()
        torch.save(to_rosinality(network, config.drop_clamp), content)
        write_atomically(out, content.getvalue())
    else:
        origin = checkpoints.read_metadata(config.source)["provenance"] | {
            "file": Path(config.source).name, "sha256": checkpoints.sha256(config.source)}
        checkpoints.save_network(network, out, {"converted_from": origin})
    say(f"{role} written to {out}")

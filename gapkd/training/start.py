"""Before the first step: take both networks of a GAN training from a run or from another
repository's file; refuse what cannot be trained before any work is done."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path, PurePath

import torch

from gapkd import parallel
from gapkd.data.datasets import Dataset
from gapkd.distillation.directions import check_blocks
from gapkd.distillation.students import check_request
from gapkd.files.checkpoints import (
    CheckpointError,
    find_checkpoint,
    load_discriminator,
    load_generator,
    own_metadata,
    read_metadata,
)
from gapkd.files.download import is_address
from gapkd.metrics.attributes import AttributeNetwork
from gapkd.metrics.features import Distance
from gapkd.networks.base import StyleGenerator
from gapkd.networks.stylegan2 import Discriminator, Generator, group_size
from gapkd.networks.stylegan3 import AliasFreeGenerator
from gapkd.parallel import seeded
from gapkd.settings import DistillConfig, TrainConfig, shown, widths
from gapkd.training.lessons import Lessons
from gapkd.training.trainer import check_network


def start_files(start: str) -> tuple[Path, Path]:
    """Generator's and discriminator's file: of a run's folder, finished or stopped, or of an
    embedded teacher; of a file that may hold both (another repository's, or a checkpoint), twice
    that, or what is called discriminator.safetensors in its folder."""
    place = Path(start)
    if not (place.exists() or is_address(start)):
        if place.name != start:
            raise ValueError(f"there is no run {start} to start from: name the folder of one, or "
                             "an embedded teacher")
        return find_checkpoint(start), find_checkpoint(f"{start}_discriminator")
    file = find_checkpoint(start)
    beside = file.with_name("discriminator.safetensors")
    if own_metadata(file) is None:
        return file, beside if place.is_dir() and beside.is_file() else file
    if not place.is_dir():
        raise ValueError(f"start_from={start} is a file of one network: name the run's folder, or "
                         "one that holds this as generator.safetensors beside its "
                         "discriminator.safetensors")
    return file, beside


def networks_of_start(config: TrainConfig
                      ) -> tuple[TrainConfig, StyleGenerator, Discriminator]:
    """Generator and discriminator of a run or a file as they are, whatever their widths, and the
    settings with those in. Where there is no discriminator, a fresh one begins.

    Raises CheckpointError where there is no generator, ValueError for one that is not trained here,
        or of another resolution than was asked for.
    """
    start = config.start_from
    files = start_files(start)
    G = load_generator(files[0])
    try:
        D = load_discriminator(files[1])
    except CheckpointError as error:
        if files[0] != files[1] and files[1].exists():  # it is there, but damaged
            raise
        warnings.warn(f"a fresh discriminator begins, since there is none in {shown(start)} "
                      f"({error})", stacklevel=4)
        D = fresh_discriminator(config, G)
    if not isinstance(G, Generator | AliasFreeGenerator):
        raise ValueError(f"start_from={start} cannot be trained further: it holds a {G.kind}, "
                         "which is distilled; choose a StyleGAN2 or StyleGAN3")
    check_pair(G, D)
    found = settings_of(G)
    if config.architecture not in (found["architecture"], TrainConfig.architecture):
        raise ValueError(f"start_from={start} holds a {found['architecture']}, not a "
                         f"{config.architecture}: leave architecture out")
    if config.resolution not in (G.resolution, TrainConfig.resolution):
        raise ValueError(f"start_from={start} holds {G.resolution} px networks: choose resolution="
                         f"{G.resolution}, not {config.resolution}")
    warnings.warn(f"start_from={shown(start)}: {G.resolution} px networks, which keep their own "
                  "widths, z_dim, w_dim and layers", stacklevel=4)
    say_if_other_data(start, config.data)
    return replace(config, **found), G.requires_grad_(True), D.requires_grad_(True)


def fresh_discriminator(config: TrainConfig | DistillConfig, G: StyleGenerator) -> Discriminator:
    """One for the images of G."""
    with seeded(config.seed):
        return Discriminator(G.resolution, widths(config.d_channels, G.resolution), G.c_dim,
                             img_channels=G.img_channels)


def images_of(network: str) -> str:
    """What a network was trained on: "toyfaces", or other images as its own file calls them, or as
    they are called where it is another repository's and says nothing."""
    origin = read_metadata(network)["provenance"]
    while isinstance(origin.get("converted_from"), dict):
        origin = origin["converted_from"]
    settings = origin.get("settings")
    if isinstance(settings, dict):
        return shown(PurePath(str(settings.get("data", "toyfaces"))).name)
    return "images that its file does not name" if "source" in origin else "toyfaces"


def say_if_other_data(network: str, data: str) -> None:
    """Warn where the default toy faces meet a network that knows other images."""
    if data != "toyfaces" or not parallel.is_first():
        return
    if (known := images_of(network)) != "toyfaces":
        warnings.warn(f"{shown(network)} was trained on {known}, and here data is toyfaces: name "
                      "its images (--data), if rendered faces are not what you mean", stacklevel=3)


def say_if_never_adversarial(config: DistillConfig) -> None:
    """Warn where the discriminator's beginning lies behind the last step."""
    before = config.slimming_images
    last = before + (config.images - before - 1) // config.batch * config.batch
    if config.gan_weight and last < config.gan_from * config.images and parallel.is_first():
        warnings.warn(f"{config.images} images in batches of {config.batch} end before the "
                      f"discriminator begins (gan_from={config.gan_from}): it is never trained",
                      stacklevel=3)


def say_if_nothing_varies(config: TrainConfig | DistillConfig, D: Discriminator) -> None:
    """Warn where no group of a discriminator's divides the batch: its minibatch statistic is 0."""
    unasked = 1 not in (config.batch, D.mbstd_group) and config.gan_weight
    if unasked and group_size(config.batch, D.mbstd_group) == 1 and parallel.is_first():
        warnings.warn(f"batch={config.batch} has no groups of 2 to {D.mbstd_group} images, so the "
                      "discriminator cannot see how much they vary: choose a multiple of "
                      f"{D.mbstd_group}", stacklevel=4)


def say_if_labelled(dataset: Dataset) -> None:
    """Warn where a teacher without classes is about to learn from images that have them."""
    labels = getattr(dataset, "labels", None)
    if labels is not None and labels.ndim == 1 and parallel.is_first():
        warnings.warn(f"the classes in the dataset.json of {dataset.name} are not learnt: "
                      "--conditional asks for a network that learns them", stacklevel=3)


def say_if_other_images(data: str, network: str, figures: str) -> None:
    """Warn where figures of other images are read by the toy faces' network."""
    if network == "toyfaces" != data and parallel.is_first():
        warnings.warn(f"{figures} of {PurePath(data).name} will be read by a network that knows "
                      "rendered toy faces only: choose \"imagenet\" or a judge of your own (gapkd "
                      "judge), or read them with care", stacklevel=3)


def settings_of(G: Generator | AliasFreeGenerator) -> dict:
    """The settings that describe a generator, as far as they can."""
    found = {"resolution": G.resolution, "z_dim": G.z_dim, "w_dim": G.w_dim,
             "mapping_layers": G.mapping_layers}
    if isinstance(G, Generator):
        channels = tuple(second for _, second in G.channels)
        return found | {"architecture": "stylegan2", "channels": channels}
    return found | {"architecture": f"stylegan3-{'r' if G.radial else 't'}", "margin": G.margin,
                    "layers": len(G.channels), "channels": (max(G.channels), min(G.channels))}


def check_pair(G: StyleGenerator, D: Discriminator) -> None:
    """Raise ValueError for a discriminator that cannot judge what a generator draws."""
    ours, theirs = (f"{network.resolution} px, {network.img_channels} channels and "
                    f"{network.c_dim} classes" for network in (G, D))
    if ours != theirs:
        raise ValueError(f"the generator is one of {ours}, the discriminator one of {theirs}: "
                         "choose two of the same training")


def check_student(config: DistillConfig, teacher: StyleGenerator) -> None:
    """Raise ValueError for a student that cannot be trained with these settings."""
    Lessons(config.reuse, config.batch, teacher.resolution, teacher.silent)
    if config.reuse > 1 and teacher.c_dim and config.adversarial == "relativistic":
        raise ValueError("a relativistic loss pairs images of one class, and reuse repeats others "
                         "than the next real images': set reuse to 1")
    family, architecture = check_request(teacher, config.keep, config.kernel, config.mapping,
                                         config.synthesis, config.kind)
    with torch.device("meta"):
        student = family(**architecture)
    check_network(config, student)
    for network in (student, teacher):
        if config.ld_weight or config.feature_weight:
            check_blocks("ld_blocks", config.ld_blocks, network)
        if config.rgb_weight and config.rgb_levels == "all" and network.kind != Generator.kind:
            raise ValueError(f"a {network.kind} draws one image, not one a level: leave rgb_levels "
                             "at last")
    if config.kind == "mobile" and config.feature_weight and teacher.kind != Generator.kind:
        raise ValueError("feature_weight compares feature maps of one size, which a mobile student "
                         "shares with a StyleGAN2 alone: leave it at 0")
    if config.content and teacher.resolution < AttributeNetwork.size:
        raise ValueError(f"content={config.content} is seen at {AttributeNetwork.size} px and "
                         f"above, the teacher draws {teacher.resolution}: leave content empty")


def check_distance(config: DistillConfig, distance: Distance, teacher: StyleGenerator) -> None:
    """Raise ValueError for a perceptual distance that cannot see what the teacher draws."""
    images = torch.zeros(2, 1, 3, teacher.resolution, teacher.resolution)
    try:
        distance(*images.to(next(teacher.parameters()).device))
    except ValueError as error:
        raise ValueError(f"perceptual={config.perceptual} cannot look at the teacher's images "
                         f"({error}): choose another, or set perceptual_weight and moment_weight "
                         "to 0") from error

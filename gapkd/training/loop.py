"""Train a GAN; distil one: the same loop, with more losses.

    train_gan(TrainConfig(...))       the teacher
    distill(DistillConfig(...))       the student

The loop around trainer.py: log, sample grids, checkpoints, exact resume, a clean stop.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from gapkd import parallel
from gapkd.data.datasets import (
    CHECK_SECONDS,
    Dataset,
    ImageFiles,
    class_count,
    class_shares,
    open_dataset,
)
from gapkd.distillation.distiller import Distiller, Moments, make_regressors
from gapkd.distillation.students import make_student
from gapkd.files.checkpoints import (
    address_of,
    load_discriminator,
    load_generator,
    read_metadata,
    sha256,
)
from gapkd.files.provenance import provenance
from gapkd.metrics.attributes import head_mask, reader
from gapkd.metrics.evaluation import FidProbe
from gapkd.metrics.features import distance_for, embedding_for
from gapkd.metrics.sampling import SHEET, draw_sheet, sample_images
from gapkd.networks.base import StyleGenerator
from gapkd.networks.families import build
from gapkd.networks.stylegan2 import Discriminator, Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator, stylegan3_channels
from gapkd.parallel import choose_device, seeded
from gapkd.progress import bar as progress_bar
from gapkd.settings import (
    DISTANCES,
    DistillConfig,
    RunConfig,
    TrainConfig,
    as_word,
    from_dict,
    shown,
    to_dict,
    widths,
)
from gapkd.training import runs, start
from gapkd.training.runs import RunFolder, read_about
from gapkd.training.trainer import Trainer, TrainingDiverged, share_of_batch

Probe = Callable[[StyleGenerator], dict]
AnyConfig = TypeVar("AnyConfig", bound=RunConfig)
FIRST_TEACHER_SEED = 2_000_000
"""Added to a run's seed for its first weights: latents of that seed itself would equal the rows of
the mapping network's first layer, and their w lie twice as far out as others."""
MANY = 4000
"""Images of the teacher's that stand for all of them, in the distribution matching."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP: the state was saved before this was raised."""


class TrainingHalted(ValueError):
    """Something beside the training failed, as an image or a measurement: the state was saved."""


class OutOfMemory(RuntimeError):
    """A step did not fit into the memory of the machine or GPU."""


@dataclass
class RunResult:
    """What a training leaves."""

    generator: StyleGenerator
    """The weight average (EMA), in eval mode."""
    discriminator: Discriminator
    log: list[dict]
    """The records of log.jsonl."""
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The saved generator."""
        return self.folder / "generator.safetensors"


# -------------------------------------------------------------------------------------- the runs


@torch.inference_mode(False)  # gradients are on, whatever the caller's mode
def train_gan(config: TrainConfig, probe: Probe | None = None) -> RunResult:
    """Train a StyleGAN2 or StyleGAN3 on a dataset.

    Args:
        probe: called with the averaged generator every `probe_every` images; the numbers that it
            returns, {name: number}, join the log.
    Raises ValueError for bad settings or data, TrainingDiverged, OutOfMemory; with the state saved,
        TrainingInterrupted, and TrainingHalted where images or measurements fail on the way.
    """
    config, G, D = first_networks(_begin(config, "teacher"))
    if config.conditional and config.start_from and not G.c_dim:
        raise ValueError(f"the networks of start_from={config.start_from} know no classes, and "
                         "conditional asks for some: leave conditional out, or train from scratch, "
                         "without start_from")
    dataset, judge = _open_data(config, G)
    if config.conditional and not G.c_dim:
        G, D = fresh_networks(config, class_count(dataset))
    elif not G.c_dim:
        start.say_if_labelled(dataset)
    if not config.noise:
        G.silence()
    return fit(Trainer(config, G, D, dataset=dataset), "teacher", probe, judge)


def first_networks(config: TrainConfig) -> tuple[TrainConfig, StyleGenerator, Discriminator]:
    """Both networks before the first step, and the settings with what was taken over from the run
    that they start from."""
    if known := _known_networks(config, "G", "D"):
        G, D = known
        taken = start.settings_of(G) if config.start_from else {}
        return replace(config, **taken), G, D
    if config.start_from:
        return start.networks_of_start(config)
    return config, *fresh_networks(config)


def fresh_networks(config: TrainConfig, c_dim: int = 0) -> tuple[StyleGenerator, Discriminator]:
    """The networks that the settings ask for, for images of c_dim classes."""
    with seeded(FIRST_TEACHER_SEED + config.seed):
        G = fresh_generator(config, c_dim)
        D = Discriminator(config.resolution, widths(config.d_channels, config.resolution), c_dim)
    return G, D


def _known_networks(config: RunConfig, *names: str) -> list[nn.Module]:
    """Networks of a run that is resumed, whose weights follow; none for any other. Raises
    ValueError where settings.json describes them in a way that is not known."""
    if not config.resume:
        return []
    known = parallel.from_first(lambda: read_about(config.out).get("networks"))
    try:
        return [build(**known[name]) for name in names] if known is not None else []
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"cannot resume {config.out}: its networks cannot be made ({error!r:.200})"
                         "; another version of gapkd started it, or settings.json was edited: go "
                         "on with that version, or start anew in another folder") from error


def fresh_generator(config: TrainConfig, c_dim: int = 0) -> StyleGenerator:
    """The generator that the settings ask for, of c_dim classes."""
    common = {"z_dim": config.z_dim, "w_dim": config.w_dim, "c_dim": c_dim,
              "mapping_layers": config.mapping_layers}
    if config.architecture == "stylegan2":
        channels = widths(config.channels, config.resolution)
        return Generator(config.resolution, channels=channels, **common)
    widest, narrowest = config.channels[0], config.channels[-1]
    channels = stylegan3_channels(config.resolution, config.layers,
                                  channel_base=config.resolution * narrowest, channel_max=widest)
    rotation = config.architecture == "stylegan3-r"
    return AliasFreeGenerator(config.resolution, channels=channels, kernel=1 if rotation else 3,
                              radial=rotation, margin=config.margin, **common)


@torch.inference_mode(False)  # gradients are on, whatever the caller's mode
def distill(config: DistillConfig, probe: Probe | None = None,
            content_mask: Callable[[Tensor], Tensor] | None = None) -> RunResult:
    """Distil config.teacher into a student (sections 3 and 4 of the paper).

    Args:
        probe: as in `train_gan`.
        content_mask: maps teacher images (N, 3, R, R) to masks (N, 1, R, R) in [0, 1], in place of
            the one that config.content names; the rgb and perceptual losses then look inside the
            mask only, and "pruned-content" asks which channels matter there.
    Raises: as `train_gan`; CheckpointError for an unusable teacher.
    """
    config, started = _begin(config, "distill"), time.perf_counter()
    config = replace(config, teacher=address_of(config.teacher) or config.teacher)
    device = choose_device(config.device)
    teacher = load_generator(config.teacher).to(device)
    start.check_student(config, teacher)
    start.say_if_never_adversarial(config)
    if config.content and content_mask is None:
        content_mask = partial(head_mask, reader("toyfaces", device))
    sees = config.perceptual_weight or config.moment_weight
    perceptual = distance_for(config.perceptual, device) if sees else None
    if perceptual:
        start.check_distance(config, perceptual, teacher)
    D = first_discriminator(config, teacher)
    share_of_batch(config, D)  # raises where it cannot be shared
    start.say_if_other_data(config.teacher, config.data)
    dataset, judge = _open_data(config, teacher)
    if perceptual and config.perceptual == "toyfaces" != config.data and parallel.is_first():
        warnings.warn("the perceptual loss is that of a network which knows rendered toy faces "
                      'only: for other images choose perceptual="lpips", "imagenet" or a judge of '
                      "your own (gapkd judge), or set perceptual_weight to 0", stacklevel=2)
    shares = class_shares(dataset, teacher.c_dim) if teacher.c_dim else None
    student = first_student(config, teacher, content_mask)  # may take long: what can fail is above
    regressors = None
    if config.feature_weight:
        regressors = make_regressors(student, teacher, config.ld_blocks, config.seed).to(device)
    moments = None
    if config.moment_weight:
        embed = embedding_for(config.perceptual, device)
        moments = Moments(embed, sample_images(teacher, MANY, config.seed, shares=shares))
    distiller = Distiller(teacher, perceptual, config, content_mask, regressors, moments)
    trainer = Trainer(config, student, D, distiller, dataset)
    trainer.images = config.slimming_images
    trainer.seconds = time.perf_counter() - started
    inputs = {"teacher": sha256(config.teacher)}
    if sees and config.perceptual not in DISTANCES:
        inputs["perceptual"] = sha256(config.perceptual)
    return fit(trainer, "distill", probe, judge, inputs)


def _open_data(config: RunConfig, G: StyleGenerator) -> tuple[Dataset, FidProbe | None]:
    """The images to train on, and what measures the FID to them. Broken images are named, and so is
    an FID that cannot be measured."""
    device, judge = choose_device(config.device), None
    dataset = open_dataset(config.data, G.resolution, seed=config.seed, device=device)
    if isinstance(dataset, ImageFiles):
        dataset.check(CHECK_SECONDS)
    if config.fid_every:
        start.say_if_other_images(config.data, config.fid_features, "the FID")
        judge = FidProbe(dataset, config.fid_features, config.fid_samples, device)
        judge.try_out(G.to(device))
    return dataset, judge


def first_student(config: DistillConfig, teacher: StyleGenerator,
                  content_mask: Callable[[Tensor], Tensor] | None) -> StyleGenerator:
    """The student before its first step, the same in all processes."""
    synthesis = config.synthesis
    if config.resume or not parallel.is_first():
        synthesis = "random"  # its weights come from the checkpoint, or from the first process
    student = make_student(teacher, config.keep, config.kernel, config.mapping, synthesis,
                           config.seed, content_mask, config.slimming_images, config.kind,
                           progress=config.progress and parallel.is_first())
    weights = parallel.from_first(
        lambda: {name: value.cpu() for name, value in student.state_dict().items()})
    student.load_state_dict(weights)
    if not config.noise:  # a teacher without noise has a student without, make_student sees to it
        student.silence()
    return student


def first_discriminator(config: DistillConfig, teacher: StyleGenerator) -> Discriminator:
    """A fresh discriminator, or the one that the settings name; a resumed run asks no more."""
    if known := _known_networks(config, "D"):
        return known[0]
    if not config.discriminator:
        return start.fresh_discriminator(config, teacher)
    D = load_discriminator(config.discriminator).requires_grad_(True)
    start.check_pair(teacher, D)
    return D


def resume_run(folder: str | Path, images: int = 0, device: str = "", progress: bool = True,
               **changes: object) -> RunResult:
    """Go on with the run in a folder, under the settings that it was started with.

    Args:
        images: its new length; 0: as before.
        device: empty: as before.
        changes: other settings that do not change what the weights mean: where data or teacher are
            by now, when is measured, logged or saved.
    Raises ValueError when the folder holds no run, or cannot go on so; else as `train_gan` and
        `distill`.
    """
    folder = os.path.expanduser(folder)
    about = read_about(folder)
    kind, settings = about.get("kind"), about.get("settings")
    if kind not in KINDS or not isinstance(settings, dict):
        raise ValueError(runs.lost_settings(folder) or f"{folder} holds no run of gapkd "
                         "(settings.json is missing or not readable): name the folder of one")
    train, cls = KINDS[kind]
    if other := settings.keys() ^ {field.name for field in fields(cls)}:
        raise ValueError(f"cannot resume {folder}: another version of gapkd started it (its "
                         f"settings differ in {shown(min(other))}); go on with that version, or "
                         "start the run anew in another folder")
    if fixed := changes.keys() - ((runs.FREE | runs.KNOWN_BY_CONTENT) & settings.keys()):
        raise ValueError(f"a {kind} run cannot be resumed with another "
                         f"{sorted(fixed)[0]}: leave it out, or start the run anew in another "
                         "folder")
    if images:
        changes["images"] = images
    if device:
        changes["device"] = device
    settings |= {"out": str(folder), "resume": True, "progress": progress} | changes
    settings |= runs.find_files(settings, about.get("started_in", ""), changes)
    return train(from_dict(cls, settings))


KINDS = {"teacher": (train_gan, TrainConfig), "distill": (distill, DistillConfig)}
"""Kind of a run -> the function that trains it, and its settings."""


def _begin(config: AnyConfig, kind: str) -> AnyConfig:
    """Find the other processes, if there are any; after a restart by torchrun's agent, resume.
    Problems with the run's folder are reported here."""
    train, cls = KINDS[kind]
    if not isinstance(config, cls):
        raise ValueError(f"{train.__name__} takes a {cls.__name__}, not a {type(config).__name__}")
    parallel.join()
    if parallel.may_restart() and not config.out:
        raise ValueError("torchrun may restart this run (--max-restarts): name its folder with "
                         "out, so that it is found again")
    if parallel.may_restart() and runs.job() in ("", "none"):
        # The static rendezvous keeps the addresses of the dead.
        raise ValueError("torchrun can restart a run only when the job has a name: add "
                         "--standalone (one machine) or --rdzv-backend c10d --rdzv-id NAME "
                         "(several)")
    # A machine that has come in a dead one's place counts no restart of its own, so all are asked.
    if parallel.anyone(parallel.restarted()):
        if parallel.from_first(lambda: runs.begun_by_this_job(config.out)):
            config = replace(config, resume=True)
    parallel.check_equal("settings", json.dumps(to_dict(config)))
    parallel.from_first(RunFolder(config, kind).check)
    return config


# -------------------------------------------------------------------------------------- the loop


def fit(trainer: Trainer, kind: str, probe: Probe | None = None, judge: Probe | None = None,
        inputs: dict[str, str] | None = None) -> RunResult:
    """Run a trainer to its end: log, grids, checkpoints, probes; exact resume; a clean stop on
    Ctrl-C, SIGTERM and SIGHUP. `kind` is "teacher" or "distill"; `judge` measures the FID; `inputs`
    as in `RunFolder`."""
    start.say_if_nothing_varies(trainer.config, trainer.D)
    names = getattr(trainer.dataset, "names", ())
    if names and trainer.classes is not None:  # other classes are other data
        labels = trainer.dataset.labels.tolist()
        names = [f"{name}{runs.CLASS}{label})" for name, label in zip(names, labels, strict=True)]
    with RunFolder(trainer.config, kind, inputs, names) as folder:
        return Loop(trainer, folder, probe, judge).run()


class Loop:
    """One pass from where a trainer stands to its last image."""

    def __init__(self, trainer: Trainer, folder: RunFolder, probe: Probe | None,
                 judge: Probe | None):
        self.trainer, self.folder = trainer, folder
        self.probe, self.judge = probe, judge
        c = trainer.config
        self.origin = provenance(trainer.device) | {"processes": parallel.count()}
        if ancestor := folder.remember("started_from", lambda: _ancestor(c)):
            self.origin["started_from"] = ancestor
        self.networks = folder.remember("networks", lambda: {
            name: {"kind": network.kind, "architecture": network.architecture()}
            for name, network in (("G", trainer.G), ("D", trainer.D))})
        depth = getattr(trainer.dataset, "depth", 0)
        began = depth and parallel.from_first(lambda: folder.remember("depth", lambda: depth))
        if began != depth:
            raise ValueError(f"cannot resume {folder.path}: the largest value of its images needs "
                             f"{depth} bits by now and needed {began} when the run began, so that "
                             "all would look brighter or darker: bring the brightest ones back, or "
                             "start anew in another folder")
        self.log: list[dict] = []
        self.pending: dict = {}  # losses of a checkpoint that had not reached the log
        spent = trainer.seconds
        self.saved_at: int | None = None
        if c.resume:
            state = folder.load_state()
            trainer.load_state(state)
            self.log = parallel.from_first(lambda: folder.cut_log(trainer.images))
            spent, self.saved_at = state["seconds"], trainer.images
            self.pending = state["notes"]
        self.began = time.perf_counter() - spent
        parallel.check_equal("weights", trainer.fingerprint())

    def run(self) -> RunResult:
        trainer, c = self.trainer, self.trainer.config
        quiet = not (c.progress and parallel.is_first())
        bar = progress_bar(total=c.images, initial=trainer.images, unit="img",
                           desc=self.folder.kind, disable=quiet, smoothing=0.05)
        with _signals() as stopped, bar:
            if c.resume and not (self.log and self.log[-1]["images"] == trainer.images):
                self.look(self.pending)
            while trainer.images < c.images:
                trouble = self.fetch()
                if parallel.anyone(bool(stopped or trouble)):
                    self.halt(trouble)
                with _memory(trainer):
                    trainer.train_step()
                bar.update(c.batch)
                notes = self.take_notes()
                if self.due(c.checkpoint_every):
                    self.save(notes)
                self.look(notes)
                if notes:
                    shown = notes.keys() & {"loss_d", "loss_g"}
                    bar.set_postfix({name: f"{notes[name]:.2f}" for name in sorted(shown)})
        D = trainer.D.eval().requires_grad_(False)
        result = RunResult(trainer.G_ema, D, self.log, self.folder.path)
        self.folder.save_network(result.generator, "generator", self.card())
        self.folder.save_network(result.discriminator, "discriminator", self.card())
        return result

    @property
    def seconds(self) -> float:
        """Spent on the run, before it was stopped too."""
        return time.perf_counter() - self.began

    def due(self, period: int) -> bool:
        """Whether the last step crossed a multiple of `period` images, or ended the run."""
        images, c = self.trainer.images, self.trainer.config
        if images >= c.images:
            return True
        return bool(period) and images // period > (images - c.batch) // period

    def fetch(self) -> Exception | None:
        """Load the images of the next step; returns what is wrong with them."""
        try:
            self.trainer.fetch()
        except (ValueError, OSError) as error:
            return error
        return None

    def halt(self, trouble: Exception | None) -> None:
        """Save the state and end the run between two steps."""
        if trouble and self.trainer.images == 0:  # there is nothing to lose
            raise trouble
        if self.saved_at != self.trainer.images:
            self.save({})
        way = (f"the state is saved, and `gapkd resume {as_word(self.folder.path)}` (or "
               "resume=True) goes on from there")
        if trouble:
            raise TrainingHalted(f"{trouble}; stopped at image {self.trainer.images}, {way}"
                                 ) from trouble
        raise TrainingInterrupted(f"stopped at image {self.trainer.images}; {way}")

    def take_notes(self) -> dict:
        """The losses, where a line of the log is due."""
        if not self.due(self.trainer.config.log_every):
            return {}
        try:
            return self.trainer.take_notes()
        except TrainingDiverged as error:
            raise TrainingDiverged(f"{error}{self.last_good()}") from None

    def look(self, notes: dict) -> None:
        """Measure and draw what is due, and log it together with the losses. What fails here costs
        nothing that was trained."""
        trainer = self.trainer
        try:
            with torch.no_grad(), _memory(trainer):
                record = notes | self.measure(notes)
        except Exception as error:
            self.check_finite()  # spoilt weights cannot be measured, and are not kept
            if self.saved_at != trainer.images:
                self.folder.save_state(self.state(notes), best_record(self.log))
            if not isinstance(error, (ValueError, OSError, OutOfMemory)):
                raise
            raise TrainingHalted(
                f"{error}; the state at image {trainer.images} is saved: mend that, or leave the "
                f"measurement out (`gapkd resume {as_word(self.folder.path)} --fid-every 0 "
                "--grid-every 0`)") from error
        if record and self.write(record) and self.saved_at != trainer.images:
            self.save({})

    def measure(self, notes: dict) -> dict:
        trainer, c, record = self.trainer, self.trainer.config, {}
        for measure, period in ((self.probe, c.probe_every), (self.judge, c.fid_every)):
            if measure and self.due(period):
                record |= _numbers(measure(trainer.G_ema))
        if taken := record.keys() & {"images", "seconds", *notes}:
            raise ValueError(f"a probe may not call a number {min(taken)}, which is a name of the "
                             "log's own: give it another")
        if c.grid_every and parallel.is_first() and self.due(c.grid_every):
            self.folder.save_grid(draw_sheet(trainer.G_ema, 64, SHEET), trainer.images)
        return record

    def write(self, record: dict) -> bool:
        """Log a record; whether its FID is the lowest so far."""
        record = {"images": self.trainer.images, "seconds": round(self.seconds, 2), **record}
        self.log.append(record)
        new_best = record is best_record(self.log)
        if new_best:  # before the log knows it: a run that dies here measures again
            card = self.card() | {"measured": record}
            self.folder.put_best_aside(self.log)
            self.folder.save_network(self.trainer.G_ema, "best", card)
        self.folder.log(record)
        return new_best

    def save(self, notes: dict) -> None:
        """Write a checkpoint, with losses that are not in the log yet, unless the weights are
        spoilt."""
        trainer = self.trainer
        self.check_finite()
        parallel.check_equal("weights", trainer.fingerprint())
        trainer.share_notes()
        self.folder.save_state(self.state(notes), best_record(self.log))
        self.saved_at = trainer.images

    def check_finite(self) -> None:
        if not self.trainer.finite():
            raise TrainingDiverged(f"training diverged near image {self.trainer.images}: a weight "
                                   f"is not finite{self.last_good()}")

    def state(self, notes: dict) -> dict:
        """What a checkpoint holds: all that the run needs to go on, and all that others need to
        draw with its networks."""
        about = {"networks": self.networks, "provenance": self.card()}
        return self.trainer.state() | {"seconds": self.seconds, "notes": notes,
                                       "about": json.dumps(about)}

    def last_good(self) -> str:
        if self.saved_at is None:
            return "; no checkpoint was written yet"
        return (f"; the last good checkpoint, at image {self.saved_at}, is in "
                f"{self.folder.path / 'checkpoints'}")

    def card(self) -> dict:
        """What a saved network says of where it comes from."""
        return {"command": self.folder.kind, "settings": to_dict(self.trainer.config),
                "images": self.trainer.images, "seconds": round(self.seconds, 1), **self.origin}


def _numbers(found: object) -> dict[str, float]:
    """What a probe returned, as plain numbers. Raises ValueError."""
    if not isinstance(found, dict):
        raise ValueError("a probe must return a dictionary of numbers by their names, not "
                         f"{type(found).__name__}")
    numbers = {}
    for name, value in found.items():
        try:
            numbers[str(name)] = float(value)  # tensors and NumPy's scalars too
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"a probe's {name} must be one number, not {value!r:.80}") from error
    return numbers


def best_record(log: Sequence[dict]) -> dict | None:
    """The record with the lowest FID of a run's log; None where none was measured."""
    for record in reversed(log):
        for name in record:
            if name.startswith("fid_"):
                return min((r for r in log if name in r), key=lambda r: r[name])
    return None


def _ancestor(config: RunConfig) -> dict:
    """The provenance of the run that this one starts from; {} for a run from scratch."""
    place = getattr(config, "start_from", "")
    return read_metadata(start.start_files(place)[0])["provenance"] if place else {}


@contextmanager
def _signals():
    """Within the block, SIGINT, SIGTERM and SIGHUP (unless nohup has it ignored) are noted in the
    list that it gives (looked at between steps) instead of breaking a step; the second one of the
    first two breaks it."""
    seen, before, hangup = [], {}, getattr(signal, "SIGHUP", None)  # Windows has none

    def take(number: int, frame: object) -> None:
        if number != hangup and {*seen} - {hangup}:  # a terminal that closes may send several
            raise KeyboardInterrupt("stopped at once: the step that was on its way is lost")
        seen.append(number)

    try:
        if threading.current_thread() is threading.main_thread():  # else the caller's stay
            ignored = hangup is None or signal.getsignal(hangup) == signal.SIG_IGN
            for number in (signal.SIGINT, signal.SIGTERM, *([] if ignored else [hangup])):
                before[number] = signal.signal(number, take)
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _memory(trainer: Trainer):
    """Name the setting to lower when a step does not fit."""
    try:
        yield
    except RuntimeError as error:
        full = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not full:
            raise
        raise OutOfMemory(f"a step with batch={trainer.config.batch} at {trainer.G.resolution} px "
                          f"does not fit into the memory of {trainer.device}: "
                          f"{_way_out(trainer)}") from error


def _way_out(trainer: Trainer) -> str:
    """What helps against too little memory, for this run."""
    c, ways = trainer.config, []
    if c.batch > c.least_batch:
        begun = c.resume or trainer.images
        anew = " (in a new run: this one keeps its batch)" if begun else ""
        ways.append(f"lower batch{anew}")
    if trainer.graphs.rng is not None:
        ways.append("set cuda_graphs to False")
    if trainer.device.type == "cuda" and c.precision in ("float32", "tf32"):
        ways.append("choose precision=bf16")
    return ", or ".join([*ways, "take a machine with more free memory"])

"""Train a GAN; distil one: the same loop, with one more loss.

    train_gan(TrainConfig(...))       the teacher
    distill(DistillConfig(...))       the student

The loop around gapkd.training.trainer: log, sample grids, checkpoints, exact resume, a clean stop.
"""

from __future__ import annotations

import hashlib
import json
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from gapkd import parallel
from gapkd.distillation.distiller import Guide
from gapkd.distillation.students import make_student
from gapkd.files.checkpoints import find_checkpoint, load_discriminator, load_generator, read_metadata, sha256
from gapkd.metrics.evaluation import FidProbe
from gapkd.metrics.features import head_mask, reader
from gapkd.networks.base import StyleGenerator
from gapkd.networks.stylegan2 import Discriminator, Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator, stylegan3_channels
from gapkd.settings import DistillConfig, RunConfig, TrainConfig, from_dict, to_dict, widths
from gapkd.training.runs import RunFolder, belongs_to_this_job, job, provenance
from gapkd.training.trainer import Trainer, TrainingDiverged, choose_device, keep_memory

Probe = Callable[[StyleGenerator], dict]
AnyConfig = TypeVar("AnyConfig", bound=RunConfig)


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: the state was saved before this was raised."""


class OutOfMemory(RuntimeError):
    """A step did not fit into the memory of the machine or GPU."""


@dataclass
class RunResult:
    """generator: the weight average (EMA), eval mode. log: the records of log.jsonl. folder: where all lies."""

    generator: StyleGenerator
    discriminator: Discriminator
    log: list[dict]
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The saved generator."""
        return self.folder / "generator.safetensors"


def _every(images: int, batch: int, period: int) -> bool:
    """Whether this step crossed a multiple of `period` images."""
    return bool(period) and images // period > (images - batch) // period


def best_record(log: Sequence[dict]) -> dict | None:
    """The record with the lowest FID of a run's log; None where none was measured."""
    name = next((key for record in reversed(log) for key in record if key.startswith("fid_")), None)
    return min((r for r in log if name in r), key=lambda r: r[name], default=None)


def fit(trainer: Trainer, kind: str, probe: Probe | None = None, inputs: dict[str, str] | None = None) -> RunResult:
    """Run a trainer to its end: log, grids, checkpoints, probes; exact resume; a clean stop on Ctrl-C and SIGTERM.

    Args:
        inputs: see `gapkd.training.runs.RunFolder`.
    """
    inputs = dict(inputs or {})
    if names := getattr(trainer.dataset, "names", None):
        inputs["data"] = hashlib.sha256("\0".join(names).encode()).hexdigest()
    if trainer.device.type == "cpu":
        keep_memory()
    with RunFolder(trainer.config, kind, inputs) as folder:
        return _fit(trainer, kind, folder, probe)


def _fit(trainer: Trainer, kind: str, folder: RunFolder, probe: Probe | None) -> RunResult:
    c, origin = trainer.config, provenance()
    origin["processes"] = parallel.count()
    if ancestor := folder.remember("started_from", lambda: _ancestor(c)):
        origin["started_from"] = ancestor
    log, seconds = [], trainer.seconds
    if c.resume:
        state = folder.load_state()
        trainer.load_state(state)
        if c.images < trainer.images:
            raise ValueError(f"the run in {folder.path} is already at image {trainer.images}: give images of at least "
                             "that")
        log, seconds = parallel.from_first(lambda: folder.cut_log(trainer.images)), state["seconds"]
    parallel.check_equal("weights", trainer.fingerprint())
    judge = FidProbe(trainer.dataset, c.fid_features, c.fid_samples, trainer.device) if c.fid_every else None
    grid_z = torch.randn(64, trainer.G.z_dim, generator=torch.Generator().manual_seed(0)).to(trainer.device)
    signals: list[int] = []
    spent = time.perf_counter()
    saved_at = trainer.images if c.resume else None

    def card() -> dict:
        return {"command": kind, "settings": to_dict(c), "images": trainer.images, "seconds": round(seconds, 1),
                **origin}

    def last_good() -> str:
        if saved_at is None:
            return "; no checkpoint was written yet"
        return f"; the last good checkpoint, at image {saved_at}, is in {folder.path / 'checkpoints'}"

    def save() -> None:
        nonlocal saved_at
        if not trainer.finite():
            raise TrainingDiverged(f"training diverged near image {trainer.images}: a weight is not finite"
                                   f"{last_good()}")
        parallel.check_equal("weights", trainer.fingerprint())
        best = best_record(log)
        folder.save_state(trainer.state() | {"seconds": seconds}, c.keep_checkpoints, best and best["images"])
        saved_at = trainer.images

    def watch(images: int, done: bool) -> dict:
        """What is to be logged after this step."""
        record = {}
        if done or _every(images, c.batch, c.log_every):
            try:
                record = trainer.take_notes()
            except TrainingDiverged as error:
                raise TrainingDiverged(f"{error}{last_good()}") from None
        with torch.no_grad():
            if probe and (done or _every(images, c.batch, c.probe_every)):
                record |= probe(trainer.G_ema)
            if judge and (done or _every(images, c.batch, c.fid_every)):
                record |= judge(trainer.G_ema)
            if c.grid_every and (done or _every(images, c.batch, c.grid_every)) and parallel.is_first():
                folder.save_grid(torch.cat([trainer.G_ema(z) for z in grid_z.split(c.batch)]), images)
        return record

    with _signals(signals), tqdm(total=c.images, initial=trainer.images, unit="img", desc=kind, leave=False,
                                 disable=not (c.progress and parallel.is_first()), smoothing=0.05) as bar:
        while trainer.images < c.images:
            with _memory(trainer):
                trainer.train_step()
            bar.update(c.batch)
            images, done, stop = trainer.images, trainer.images >= c.images, parallel.anyone(bool(signals))
            with _memory(trainer):
                record, new_best = watch(images, done), False
            now = time.perf_counter()
            seconds, spent = seconds + now - spent, now
            if record:
                bar.set_postfix({k: f"{v:.2f}" for k, v in record.items() if k.startswith("loss")})
                record = {"images": images, "seconds": round(seconds, 2), **record}
                log.append(record)
                folder.log(record)
                new_best = record is best_record(log)
            if new_best:
                folder.save_network(trainer.G_ema, "best", card() | {"measured": record})
            if done or stop or new_best or _every(images, c.batch, c.checkpoint_every):
                save()
            if stop and not done:
                raise TrainingInterrupted(f"stopped at image {images}; the state is saved, and "
                                          f"`gapkd resume {folder.path}` (or resume=True) goes on from there")
    result = RunResult(trainer.G_ema, trainer.D.eval().requires_grad_(False), log, folder.path)
    folder.save_network(result.generator, "generator", card())
    folder.save_network(result.discriminator, "discriminator", card())
    return result


class _signals:
    """Within the block, SIGINT and SIGTERM append to `signals` (checked between steps) instead of breaking a step;
    the second one breaks it."""

    def __init__(self, signals: list[int]):
        self.signals, self.before = signals, {}

    def _take(self, number: int, frame: object) -> None:
        if self.signals:
            raise KeyboardInterrupt("stopped at once: the step that was on its way is lost")
        self.signals.append(number)

    def __enter__(self):
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._take)
        except ValueError:  # not in the main thread: the caller's handling stays
            pass

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)


@contextmanager
def _memory(trainer: Trainer):
    """Name the setting to lower when a step does not fit."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemory(f"a step with batch={trainer.config.batch} at {trainer.G.resolution} px does not fit into "
                          f"the memory of {trainer.device}: lower batch, or share it among more processes") from error


def _begin(config: AnyConfig) -> AnyConfig:
    """Find the other processes, if there are any; after a restart by torchrun's agent, resume."""
    parallel.join()
    if parallel.may_restart() and not config.out:
        raise ValueError("torchrun may restart this run (--max-restarts): name its folder with out, "
                         "so that it is found again")
    if parallel.may_restart() and job() in ("", "none"):  # the static rendezvous keeps the addresses of the dead
        raise ValueError("torchrun can restart a run only when the job has a name: add --standalone (one machine) "
                         "or --rdzv-backend c10d --rdzv-id NAME (several)")
    if parallel.anyone(parallel.restarted()):  # a machine that has come in its place counts no restart of its own
        if parallel.from_first(lambda: belongs_to_this_job(config.out) and any(Path(config.out).glob("checkpoints/*"))):
            config = replace(config, resume=True)
    parallel.check_equal("settings", json.dumps(to_dict(config)))
    return config


def train_gan(config: TrainConfig, probe: Probe | None = None) -> RunResult:
    """Train a StyleGAN2 or StyleGAN3 on a dataset.

    Args:
        probe: called with the averaged generator every `probe_every` images; the numbers it returns join the log.
    Raises ValueError for bad settings or data, TrainingDiverged, OutOfMemory, TrainingInterrupted (state saved).
    """
    config = _begin(config)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        G = fresh_generator(config)
        D = Discriminator(config.resolution, widths(config.d_channels, config.resolution))
    if config.start_from and not config.resume:
        start_from(G, D, config.start_from)
    if not config.noise:
        G.silence()
    return fit(Trainer(config, G, D), "teacher", probe)


def fresh_generator(config: TrainConfig) -> StyleGenerator:
    """The generator that the settings ask for."""
    common = {"z_dim": config.z_dim, "w_dim": config.w_dim, "mapping_layers": config.mapping_layers}
    if config.architecture == "stylegan2":
        return Generator(config.resolution, channels=widths(config.channels, config.resolution), **common)
    widest, narrowest = config.channels[0], config.channels[-1]
    channels = stylegan3_channels(config.resolution, config.layers, config.resolution * narrowest, widest)
    rotation = config.architecture == "stylegan3-r"
    return AliasFreeGenerator(config.resolution, channels=channels, kernel=1 if rotation else 3, radial=rotation,
                              margin=config.margin, **common)


def resume_run(folder: str | Path, images: int = 0, device: str = "", progress: bool = True) -> RunResult:
    """Go on with the run in a folder, under the settings that it was started with.

    Args:
        images: its new length; 0: as before. device: empty: as before.
    Raises ValueError when the folder holds no run; else as `train_gan` and `distill`.
    """
    try:
        about = json.loads((Path(folder) / "settings.json").read_text())
        cls, train = {"teacher": (TrainConfig, train_gan), "distill": (DistillConfig, distill)}[about["kind"]]
        settings = dict(about["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no run of gapkd (settings.json is missing or not readable): name the folder "
                         "of one") from error
    changes = {"out": str(folder), "resume": True, "progress": progress}
    changes |= {name: value for name, value in {"images": images, "device": device}.items() if value}
    return train(from_dict(cls, settings | changes))


def _ancestor(config: RunConfig) -> dict:
    """The provenance of the run that this one starts from; {} for a run from scratch."""
    start = getattr(config, "start_from", "")
    return read_metadata(start_files(start)[0])["provenance"] if start else {}


def start_files(run: str) -> tuple[Path, Path]:
    """Generator's and discriminator's file of a finished run's folder, or of an embedded teacher."""
    if Path(run).is_dir():
        return Path(run) / "generator.safetensors", Path(run) / "discriminator.safetensors"
    if not Path(run).exists() and Path(run).name != run:
        raise ValueError(f"there is no run {run} to start from: name the folder of a finished one, or an embedded "
                         "teacher")
    if Path(run).is_file():
        raise ValueError(f"start_from={run} is a file: name the run's folder, which holds both networks")
    return find_checkpoint(run), find_checkpoint(f"{run}_discriminator")


def start_from(G: Generator, D: Discriminator, run: str) -> None:
    """Start G and D from a finished run: all of it, or, at half the resolution, all but the new, finest blocks.

    The new block of G adds nothing to the image at first, so that G starts by drawing the old images, enlarged.

    Raises CheckpointError when the run has no networks, ValueError when they do not fit.
    """
    files = start_files(run)
    old_g, old_d = load_generator(files[0]), load_discriminator(files[1])
    if G.resolution not in (old_g.resolution, 2 * old_g.resolution):
        raise ValueError(f"start_from={run} holds {old_g.resolution} px networks: choose resolution="
                         f"{old_g.resolution} or {2 * old_g.resolution}, not {G.resolution}")
    grown = G.resolution != old_g.resolution
    if grown and not isinstance(G, Generator):
        raise ValueError(f"start_from={run}: only a StyleGAN2 can be grown; choose resolution={old_g.resolution}")
    for network, state in ((G, old_g.state_dict()), (D, _shifted(old_d.state_dict()) if grown else old_d.state_dict())):
        own = network.state_dict()
        finest = f"synthesis.blocks.{len(G.synthesis.blocks) - 1}.", "blocks.0.", "from_rgb."
        fresh = [k for k in own if k not in state and not (grown and k.startswith(finest))]
        wrong = fresh + [k for k, v in state.items() if k not in own or own[k].shape != v.shape]
        if wrong:
            raise ValueError(f"start_from={run}: {wrong[0]} is missing or has another shape in one of the two; choose "
                             "the same widths, z_dim, w_dim and mapping_layers as that run"
                             f"{' for all blocks but the last' if grown else ''}")
        network.load_state_dict(own | state)
    if grown:
        with torch.no_grad():
            G.synthesis.blocks[-1].torgb.conv.weight.zero_()


def _shifted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A discriminator's weights for one of twice the resolution: blocks count from the finest, so 0 becomes 1."""
    shifted = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part == "blocks":
            number, _, rest = rest.partition(".")
            name = f"blocks.{int(number) + 1}.{rest}"
        if part != "from_rgb":
            shifted[name] = value
    return shifted


def distill(config: DistillConfig, probe: Probe | None = None,
            content_mask: Callable[[Tensor], Tensor] | None = None) -> RunResult:
    """Distil config.teacher into a student (sections 3 and 4 of the paper).

    Args:
        probe: as in `train_gan`.
        content_mask: maps teacher images (N, 3, R, R) to masks (N, 1, R, R) in [0, 1], in place of the one that
            config.content names; the rgb and perceptual losses then look inside the mask only, and "pruned-content"
            asks which channels matter there.
    Raises: as `train_gan`; CheckpointError for an unusable teacher.
    """
    config, started = _begin(config), time.perf_counter()
    if config.perceptual == "toyfaces" != config.data and config.perceptual_weight and parallel.is_first():
        warnings.warn('the perceptual loss is that of a network which knows rendered toy faces only: for other images '
                      'choose perceptual="lpips" or a judge of your own (gapkd judge), or set perceptual_weight to 0',
                      stacklevel=2)
    teacher = load_generator(config.teacher).to(choose_device(config.device))
    if config.content and content_mask is None:
        content_mask = partial(head_mask, reader("toyfaces", next(teacher.parameters()).device))
    # Of several processes the first one scores channels, for all; a checkpoint holds the weights anyway.
    synthesis = "random" if config.resume or not parallel.is_first() else config.synthesis
    student = make_student(teacher, config.keep, config.kernel, config.mapping, synthesis, config.seed, content_mask,
                           config.slimming_images)
    if parallel.count() > 1:
        student.load_state_dict(parallel.from_first(lambda: {k: v.cpu() for k, v in student.state_dict().items()}))
    if not config.noise:
        student.silence()
    if config.discriminator:
        D = load_discriminator(config.discriminator).requires_grad_(True)
        if D.resolution != teacher.resolution:
            raise ValueError(f"discriminator {config.discriminator} is for {D.resolution} px, the teacher for "
                             f"{teacher.resolution} px: choose one of the same resolution")
    else:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            D = Discriminator(teacher.resolution, widths(config.d_channels, teacher.resolution))
    trainer = Trainer(config, student, D, Guide(config, teacher, content_mask, student))
    trainer.images = config.slimming_images if config.synthesis == "slimmed" else 0
    trainer.seconds = time.perf_counter() - started
    inputs = {"teacher": sha256(config.teacher)}
    if config.perceptual_weight and config.perceptual not in ("toyfaces", "lpips"):
        inputs["perceptual"] = sha256(config.perceptual)
    return fit(trainer, "distill", probe, inputs)

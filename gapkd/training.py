"""Train a GAN; distil one: the same loop, with one more loss.

    train_gan(TrainConfig(...))       the teacher
    distill(DistillConfig(...))       the student

Every random draw comes from one generator with a seed, and data are addressed by position, so that a run can be
stopped and resumed exactly.
"""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from gapkd import losses
from gapkd.checkpoints import load_discriminator, load_generator, save_network
from gapkd.datasets import flip, open_dataset, ordered_indices
from gapkd.distillation import Guide
from gapkd.runs import RunFolder, provenance
from gapkd.settings import DistillConfig, RunConfig, TrainConfig, to_dict
from gapkd.students import make_student
from gapkd.stylegan2 import Discriminator, Generator, mix_styles

Probe = Callable[[Generator], dict]


class TrainingDiverged(RuntimeError):
    """A loss or a weight is no longer finite, or the logits have run away."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: the state was saved before this was raised."""


@dataclass
class RunResult:
    """generator: the weight average (EMA), eval mode. log: the records of log.jsonl. folder: where all lies."""

    generator: Generator
    discriminator: Discriminator
    log: list[dict]
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The saved generator."""
        return self.folder / "generator.safetensors"


def choose_device(name: str) -> torch.device:
    """"auto" takes a GPU when there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not usable here ({str(error).splitlines()[0]}): "
                         "use auto or cpu") from error
    return device


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to autocast to bfloat16; "auto" does where the processor multiplies it natively."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        capabilities = torch.cpu.get_capabilities()
    except AttributeError:  # torch < 2.13
        return False
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def lazy_adam(parameters, lr: float, every: int) -> torch.optim.Adam:
    """Adam with beta1 = 0 whose step and memory make up for the extra regularisation steps (StyleGAN2, appendix B).

    Args:
        every: steps between two regularisation steps; 0: there are none.
    """
    ratio = every / (every + 1) if every else 1.0
    return torch.optim.Adam([p for p in parameters if p.requires_grad], lr=lr * ratio, betas=(0.0, 0.99**ratio),
                            eps=1e-8, fused=True)


class Trainer:
    """The state of a run and its four steps: discriminator, R1, generator, path length."""

    def __init__(self, config: RunConfig, G: Generator, D: Discriminator, guide: Guide | None = None):
        self.config, self.device = config, choose_device(config.device)
        self.G, self.D = G.to(self.device).train(), D.to(self.device).train()
        self.G_ema = copy.deepcopy(self.G).eval().requires_grad_(False)
        self.trained = [(e, p) for e, p in zip(self.G_ema.parameters(), self.G.parameters(), strict=True)]
        self.guide = guide
        self.dataset = open_dataset(config.data, G.resolution, seed=config.seed)
        self.opt_g = lazy_adam(self.G.parameters(), config.lr, config.path_every if config.path_weight else 0)
        self.opt_d = lazy_adam(self.D.parameters(), config.lr, config.r1_every if config.r1_gamma else 0)
        self.rng = torch.Generator(self.device).manual_seed(config.seed)
        self.bf16 = use_bf16(config.precision, self.device)
        self.step, self.images = 0, 0
        self.path_mean = torch.zeros((), device=self.device)
        self.sums: dict[str, list] = {}

    # ------------------------------------------------------------------------------------------- drawing

    def autocast(self):
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def real_batch(self) -> Tensor:
        """The next real images (N, 3, R, R)."""
        indices = ordered_indices(self.dataset.size, self.images, self.config.batch, self.config.seed)
        reals = self.dataset.load(indices).to(self.device)
        return flip(reals, self.rng) if self.config.flip else reals

    def draw_latents(self, n: int) -> tuple[Tensor, Tensor, int]:
        """Two z a sample and the layer from which the second one rules (num_ws: no mixing)."""
        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=self.rng, device=self.device)

        mixed, place = torch.rand(2, generator=self.rng, device=self.device).tolist()
        last = self.G.num_ws
        crossover = 1 + int(place * (last - 1)) if mixed < self.config.style_mixing else last
        return draw(n, self.G.z_dim), draw(n, self.G.z_dim), crossover

    @staticmethod
    def to_ws(G: Generator, latents: tuple[Tensor, Tensor, int]) -> Tensor:
        """(N, num_ws, w_dim) of drawn latents under a network's own mapping."""
        z_a, z_b, crossover = latents
        w_a = G.mapping(z_a)
        return mix_styles(w_a, w_a if crossover == G.num_ws else G.mapping(z_b), crossover, G.num_ws)

    # ------------------------------------------------------------------------------------------- steps

    def discriminator_step(self, reals: Tensor) -> None:
        n = len(reals)
        with torch.no_grad(), self.autocast():
            ws = self.to_ws(self.G, self.draw_latents(n))
            fakes = self.G.synthesis(ws, noise="random", generator=self.rng).image
        self.D.requires_grad_(True)
        with self.autocast():
            real_logits, fake_logits = self.D(reals), self.D(fakes)
        loss = losses.discriminator_loss(real_logits, fake_logits)
        self.update(self.opt_d, loss)
        self.note(loss_d=loss, real_logit=real_logits.mean(), fake_logit=fake_logits.mean())

    def r1_step(self, reals: Tensor) -> None:
        """In float32: it differentiates twice and squares."""
        reals = reals.detach().requires_grad_(True)
        penalty = losses.r1_penalty(self.D(reals), reals)
        self.update(self.opt_d, penalty * (self.config.r1_gamma / 2 * self.config.r1_every))
        self.note(r1=penalty)

    def generator_step(self) -> None:
        n, guide = self.config.batch, self.guide
        latents = self.draw_latents(n)
        self.D.requires_grad_(False)
        with self.autocast():
            ws = self.to_ws(self.G, latents)
            self.G.mapping.track(ws[:, 0])
            noise = self.G.synthesis.draw_noise(n, self.rng)
            total, parts = ws.new_zeros(()), {}
            if guide is None:
                image = self.G.synthesis(ws, noise=noise).image
            else:
                teacher_ws = self.to_ws(guide.teacher, latents).detach()
                image, total, parts = guide.compare(self.G, ws, teacher_ws, noise, self.rng)
            if guide is None or guide.gan_weight:
                parts["gan"] = losses.generator_loss(self.D(image))
                total = total + (parts["gan"] if guide is None else guide.gan_weight * parts["gan"])
        self.update(self.opt_g, total)
        self.note(loss_g=total, **parts)

    def path_step(self) -> None:
        """Path-length regularisation, in float32, on a smaller batch."""
        n = max(1, self.config.batch // self.config.path_batch_shrink)
        ws = self.to_ws(self.G, self.draw_latents(n))
        if not ws.requires_grad:  # a frozen mapping network
            ws = ws.detach().requires_grad_(True)
        image = self.G.synthesis(ws, noise="random", generator=self.rng).image
        direction = torch.randn(image.shape, generator=self.rng, device=self.device)
        lengths = losses.path_lengths(image, ws, direction)
        self.path_mean = self.path_mean.lerp(lengths.mean().detach(), 0.01)
        penalty = losses.path_penalty(lengths, self.path_mean)
        self.update(self.opt_g, penalty * (self.config.path_weight * self.config.path_every))
        self.note(path=penalty, path_length=lengths.mean())

    @staticmethod
    def update(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    @torch.no_grad()
    def average_weights(self) -> None:
        """EMA with ramp-up: early on the average forgets fast, so that it does not drag the first noise along."""
        c = self.config
        half_life = min(c.ema_half_life, self.images * c.ema_rampup) if c.ema_rampup else c.ema_half_life
        decay = 0.5 ** (c.batch / max(half_life, 1e-8))
        averages, values = zip(*self.trained, strict=True)
        torch._foreach_lerp_(list(averages), list(values), 1 - decay)
        for average, value in zip(self.G_ema.buffers(), self.G.buffers(), strict=True):
            average.copy_(value)

    def train_step(self) -> None:
        c = self.config
        reals = self.real_batch()
        if self.guide is None or self.guide.gan_weight:
            self.discriminator_step(reals)
            if c.r1_gamma and self.step % c.r1_every == 0:
                self.r1_step(reals)
        self.generator_step()
        if c.path_weight and self.step % c.path_every == 0:
            self.path_step()
        self.step += 1
        self.images += c.batch
        self.average_weights()

    # ------------------------------------------------------------------------------------------- bookkeeping

    def note(self, **values: Tensor) -> None:
        """Collect losses; they are read (and the device waited for) only when a line is logged."""
        for name, value in values.items():
            self.sums.setdefault(name, []).append(value.detach())

    def take_notes(self) -> dict[str, float]:
        """Mean of what was collected since the last call. Raises TrainingDiverged."""
        means = {name: torch.stack(values).float().mean().item() for name, values in self.sums.items()}
        self.sums.clear()
        bad = [name for name, value in means.items() if not math.isfinite(value) or abs(value) > 1e6]
        if bad:
            raise TrainingDiverged(f"training diverged near image {self.images}: {bad[0]} = {means[bad[0]]:.3g}; "
                                   "lower lr, raise r1_gamma, or set precision to float32")
        return means

    def state(self) -> dict:
        return {"G": self.G.state_dict(), "D": self.D.state_dict(), "G_ema": self.G_ema.state_dict(),
                "opt_g": self.opt_g.state_dict(), "opt_d": self.opt_d.state_dict(), "rng": self.rng.get_state(),
                "path_mean": self.path_mean, "step": self.step, "images": self.images}

    def load_state(self, state: dict) -> None:
        for name in ("G", "D", "G_ema", "opt_g", "opt_d"):
            getattr(self, name).load_state_dict(state[name])
        self.rng.set_state(state["rng"].cpu())
        self.path_mean = state["path_mean"].to(self.device)
        self.step, self.images = state["step"], state["images"]

    def finite(self) -> bool:
        return all(bool(p.isfinite().all()) for p in [*self.G.parameters(), *self.D.parameters()])


def _every(images: int, batch: int, period: int) -> bool:
    """Whether this step crossed a multiple of `period` images."""
    return bool(period) and images // period > (images - batch) // period


def fit(trainer: Trainer, kind: str, probe: Probe | None = None) -> RunResult:
    """Run a trainer to its end: log, grids, checkpoints, probe; exact resume; a clean stop on Ctrl-C and SIGTERM."""
    c, folder, origin = trainer.config, RunFolder(trainer.config, kind), provenance()
    log: list[dict] = []
    if c.resume:
        trainer.load_state(folder.load_state())
        log = folder.cut_log(trainer.images)
    grid_z = torch.randn(64, trainer.G.z_dim, generator=torch.Generator().manual_seed(0)).to(trainer.device)
    stop: list[int] = []
    spent, seconds = time.perf_counter(), (log[-1]["seconds"] if log else 0.0)
    saved_at = trainer.images if c.resume else None

    def last_good() -> str:
        if saved_at is None:
            return "; no checkpoint was written yet"
        return f"; the last good checkpoint, at image {saved_at}, is {folder.checkpoint}"

    def save() -> None:
        nonlocal saved_at
        if not trainer.finite():
            raise TrainingDiverged(f"training diverged near image {trainer.images}: a weight is not finite"
                                   f"{last_good()}")
        folder.save_state(trainer.state())
        saved_at = trainer.images

    with _signals(stop), tqdm(total=c.images, initial=trainer.images, unit="img", desc=kind, disable=not c.progress,
                              leave=False, smoothing=0.05) as bar:
        while trainer.images < c.images:
            trainer.train_step()
            bar.update(c.batch)
            due, done = trainer.images, trainer.images >= c.images
            record = {}
            if done or _every(due, c.batch, c.log_every):
                try:
                    record = trainer.take_notes()
                except TrainingDiverged as error:
                    raise TrainingDiverged(f"{error}{last_good()}") from None
                bar.set_postfix({k: f"{v:.2f}" for k, v in record.items() if k.startswith("loss")})
            if probe and (done or _every(due, c.batch, c.probe_every)):
                with torch.no_grad():
                    record |= probe(trainer.G_ema)
            if record:
                now = time.perf_counter()
                seconds, spent = seconds + now - spent, now
                record = {"images": due, "seconds": round(seconds, 2), **record}
                log.append(record)
                folder.log(record)
            if done or _every(due, c.batch, c.grid_every):
                if c.grid_every:
                    with torch.no_grad():
                        folder.save_grid(trainer.G_ema(grid_z), due)
            if done or stop or _every(due, c.batch, c.checkpoint_every):
                save()
            if stop and not done:
                raise TrainingInterrupted(f"stopped at image {due}; the state is saved in {folder.path}, "
                                          "resume=True goes on from there")
    card = {"command": kind, "settings": to_dict(c), "images": trainer.images, "seconds": round(seconds, 1), **origin}
    result = RunResult(trainer.G_ema, trainer.D.eval().requires_grad_(False), log, folder.path)
    save_network(result.generator, result.checkpoint, card)
    save_network(result.discriminator, folder.path / "discriminator.safetensors", card)
    return result


class _signals:
    """Within the block, SIGINT and SIGTERM append to `stop` (checked between steps) instead of breaking a step."""

    def __init__(self, stop: list[int]):
        self.stop, self.before = stop, {}

    def __enter__(self):
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, lambda n, frame: self.stop.append(n))
        except ValueError:  # not in the main thread: the caller's handling stays
            pass

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def train_gan(config: TrainConfig, probe: Probe | None = None) -> RunResult:
    """Train a StyleGAN2 on a dataset.

    Args:
        probe: called with the averaged generator every `probe_every` images; the numbers it returns join the log.
    Raises ValueError for bad settings or data, TrainingDiverged, TrainingInterrupted (state saved).
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        G = Generator(config.resolution, config.z_dim, config.w_dim, _widths(config.channels),
                      mapping_layers=config.mapping_layers)
        D = Discriminator(config.resolution, _widths(config.d_channels))
    if config.grow and not config.resume:
        grow(G, D, Path(config.grow))
    return fit(Trainer(config, G, D), "teacher", probe)


def grow(G: Generator, D: Discriminator, folder: Path) -> None:
    """Start G and D from a finished run at half their resolution: only the new, finest blocks stay fresh.

    Raises ValueError when the run's networks do not fit.
    """
    small_g = load_generator(folder / "generator.safetensors")
    small_d = load_discriminator(folder / "discriminator.safetensors")
    if small_g.resolution * 2 != G.resolution:
        raise ValueError(f"grow={folder} holds {small_g.resolution} px networks, but {G.resolution // 2} px are needed "
                         f"for resolution={G.resolution}")
    shifted = {}  # the discriminator counts its blocks from the finest one: the small one's 0 becomes the new 1
    for name, value in small_d.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "blocks":
            number, _, rest = rest.partition(".")
            name = f"blocks.{int(number) + 1}.{rest}"
        if part != "from_rgb":
            shifted[name] = value
    for network, state in ((G, small_g.state_dict()), (D, shifted)):
        own = network.state_dict()
        wrong = [k for k, v in state.items() if k not in own or own[k].shape != v.shape]
        if wrong:
            raise ValueError(f"grow={folder}: {wrong[0]} has another shape there; choose the same widths, z_dim, w_dim "
                             "and mapping_layers as that run for all blocks but the last")
        network.load_state_dict(own | state)


def distill(config: DistillConfig, probe: Probe | None = None,
            content_mask: Callable[[Tensor], Tensor] | None = None) -> RunResult:
    """Distil config.teacher into a student (sections 3 and 4 of the paper).

    Args:
        probe: as in `train_gan`.
        content_mask: maps teacher images (N, 3, R, R) to masks (N, 1, R, R) in [0, 1]; the rgb and perceptual losses
            then look inside the mask only.
    Raises: as `train_gan`; CheckpointError for an unusable teacher.
    """
    teacher = load_generator(config.teacher)
    student = make_student(teacher, config.keep, config.kernel, config.mapping, config.synthesis, config.seed)
    if config.discriminator:
        D = load_discriminator(config.discriminator).requires_grad_(True)
        if D.resolution != teacher.resolution:
            raise ValueError(f"discriminator {config.discriminator} is for {D.resolution} px, the teacher for "
                             f"{teacher.resolution} px: choose one of the same resolution")
    else:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            D = Discriminator(teacher.resolution, _widths(config.d_channels))
    guide = Guide(config, teacher.to(choose_device(config.device)), content_mask)
    return fit(Trainer(config, student, D, guide), "distill", probe)


def _widths(channels: tuple[int, ...]) -> int | list[int]:
    return channels[0] if len(channels) == 1 else list(channels)

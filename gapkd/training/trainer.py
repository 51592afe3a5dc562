"""One adversarial training: its networks, optimisers and random draws, and its four steps.

Every random draw comes from a generator with a seed (on a GPU there is a second one, on the CPU, for the numbers that
steer), and data are addressed by position, so that the state of a run is a handful of tensors and a run can be stopped
and resumed exactly. Where several processes train together, each draws for the whole batch and keeps its own rows
(gapkd.parallel).
"""

from __future__ import annotations

import copy
import ctypes
import math
import platform
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from gapkd import parallel
from gapkd.data.datasets import Ahead, flip, open_dataset, ordered_indices
from gapkd.distillation import losses
from gapkd.distillation.distiller import Guide
from gapkd.files.checkpoints import CheckpointError
from gapkd.networks.stylegan2 import Discriminator, Generator, mix_styles
from gapkd.parallel import autocast_dtype, choose_device
from gapkd.settings import RunConfig

Rows = Tensor | slice


class TrainingDiverged(RuntimeError):
    """A loss or a weight is no longer finite, or the logits have run away."""


def keep_memory() -> None:
    """Let the C library keep what is freed for the next step. By default it hands every large tensor back to the
    system, which clears the pages before they are used again: a tenth to a third of a training step on a CPU."""
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4  # names of malloc.h
        library = ctypes.CDLL(None)
        library.mallopt(mmap_max, 0)
        library.mallopt(trim_threshold, 2**31 - 1)


def lazy_adam(parts: dict[torch.nn.Module, float], every: int) -> torch.optim.Adam:
    """Adam with beta1 = 0 whose step and memory make up for the extra regularisation steps (StyleGAN2, appendix B).

    Args:
        parts: learning rate of each part of a network.
        every: steps between two regularisation steps; 0: there are none.
    """
    ratio = every / (every + 1) if every else 1.0
    groups = [{"params": [p for p in part.parameters() if p.requires_grad], "lr": lr * ratio}
              for part, lr in parts.items()]
    return torch.optim.Adam([g for g in groups if g["params"]], betas=(0.0, 0.99**ratio), eps=1e-8, fused=True)


def _precision(dtype: object) -> str:
    return str(dtype).removeprefix("torch.").replace("None", "float32")


class Trainer:
    """The state of a run and its four steps: discriminator, R1, generator, path length."""

    def __init__(self, config: RunConfig, G: Generator, D: Discriminator, guide: Guide | None = None):
        self.config, self.device = config, choose_device(config.device)
        if G.c_dim:
            raise ValueError(f"the network is conditional, with {G.c_dim} classes: trainings here have none; choose "
                             "another teacher")
        if config.path_weight and not G.mixes_styles:
            raise ValueError("StyleGAN3 is trained without path-length regularisation: leave path_weight at 0")
        self.G, self.D = G.to(self.device).train(), D.to(self.device).train()
        self.G_ema = copy.deepcopy(self.G).eval().requires_grad_(False)
        self.trained = [(e, p) for e, p in zip(self.G_ema.parameters(), self.G.parameters(), strict=True)]
        self.guide = guide
        self.dataset = open_dataset(config.data, G.resolution, seed=config.seed)
        regressors = guide.regressors if guide else torch.nn.ModuleList()
        self.opt_g = lazy_adam({self.G.mapping: config.lr * config.mapping_lr, self.G.synthesis: config.lr,
                                regressors: config.lr},
                               config.path_every if config.path_weight else 0)
        self.opt_d = lazy_adam({self.D: config.lr}, config.r1_every if config.r1_gamma else 0)
        # A GPU need not wait for images; on a CPU a second thread would take from the training what it gives.
        self.reals = Ahead(self.load_reals, in_background=self.device.type == "cuda")
        self.rng = torch.Generator(self.device).manual_seed(config.seed)
        on_cpu = self.device.type == "cpu"  # numbers that steer are read at once: a GPU would have to be waited for
        self.dice = self.rng if on_cpu else torch.Generator().manual_seed(config.seed)
        self.rates = [(group, group["lr"]) for opt in (self.opt_g, self.opt_d) for group in opt.param_groups]
        self.mine = parallel.rows(config.batch, D.mbstd_group)
        self.dtype = autocast_dtype(config.precision, self.device)
        # float16 has few exponents: gradients are scaled up, and steps that overflow are left out.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
        self.step, self.images, self.seconds = 0, 0, 0.0  # the last: spent before the first step
        self.d_first = getattr(config, "d_first", 0)
        self.path_mean = torch.zeros((), device=self.device)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    # ------------------------------------------------------------------------------------------- drawing

    def autocast(self):
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def real_batch(self) -> Tensor:
        """The next real images (N, 3, R, R)."""
        reals = self.reals(self.images, self.images + self.config.batch).to(self.device, non_blocking=True)
        return flip(reals, self.draw(self.config.batch, kind=torch.rand)[self.mine]) if self.config.flip else reals

    def load_reals(self, position: int) -> Tensor:
        """This process's share of the batch at a position of the data's stream, on the CPU."""
        indices = ordered_indices(self.dataset.size, position, self.config.batch, self.config.seed)[self.mine]
        reals = self.dataset.load(indices)
        return reals.pin_memory() if self.device.type == "cuda" else reals

    def draw(self, *shape: int, kind: Callable[..., Tensor] = torch.randn) -> Tensor:
        return kind(*shape, generator=self.rng, device=self.device)

    def draw_latents(self, n: int, mine: Rows) -> tuple[Tensor, Tensor, int]:
        """Two z a sample and the layer from which the second one rules (num_ws: no mixing).

        Args: n: samples of the whole batch. mine: the rows of it to keep.
        """
        mixed, place = torch.rand(2, generator=self.dice).tolist()
        last = self.G.num_ws
        probability = self.config.style_mixing if self.G.mixes_styles else 0.0
        crossover = 1 + int(place * (last - 1)) if mixed < probability else last
        return self.draw(n, self.G.z_dim)[mine], self.draw(n, self.G.z_dim)[mine], crossover

    def draw_noise(self, n: int, mine: Rows) -> list[Tensor]:
        """Fresh noise maps for `mine` of n samples."""
        return [m[mine] for m in self.G.synthesis.draw_noise(n, self.rng)]

    @staticmethod
    def to_ws(G: Generator, latents: tuple[Tensor, Tensor, int]) -> Tensor:
        """(N, num_ws, w_dim) of drawn latents under a network's own mapping."""
        z_a, z_b, crossover = latents
        w_a = G.mapping(z_a)
        return mix_styles(w_a, w_a if crossover == G.num_ws else G.mapping(z_b), crossover, G.num_ws)

    # ------------------------------------------------------------------------------------------- steps

    def faded(self, end: float) -> float:
        """Factor of what falls along half a cosine from 1 to `end`."""
        done = min(self.images / self.config.images, 1.0)
        return end + (1 - end) * (1 + math.cos(math.pi * done)) / 2

    @property
    def relativistic(self) -> bool:
        return self.config.adversarial == "relativistic"

    def draw_fakes(self) -> Tensor:
        """This process's share of a batch of images (N, 3, R, R), without gradients."""
        n = self.config.batch
        with torch.no_grad(), self.autocast():
            ws = self.to_ws(self.G, self.draw_latents(n, self.mine))
            return self.G.synthesis(ws, noise=self.draw_noise(n, self.mine)).image

    def discriminator_step(self, reals: Tensor) -> None:
        fakes = self.draw_fakes()
        self.D.requires_grad_(True)
        with self.autocast():
            real_logits, fake_logits = self.D(reals), self.D(fakes)
        if self.relativistic:
            loss = losses.relativistic_loss(real_logits, fake_logits)
        else:
            loss = losses.discriminator_loss(real_logits, fake_logits)
        self.update(self.opt_d, loss)
        self.note(loss_d=loss, real_logit=real_logits.mean(), fake_logit=fake_logits.mean())

    def r1_step(self, reals: Tensor) -> None:
        """In float32: it differentiates twice and squares."""
        reals = reals.detach().requires_grad_(True)
        penalty = losses.r1_penalty(self.D(reals), reals)
        self.note(r1=penalty)
        if self.relativistic:  # the same on drawn images (R2)
            fakes = self.draw_fakes().float().requires_grad_(True)
            r2 = losses.r1_penalty(self.D(fakes), fakes)
            self.note(r2=r2)
            penalty = penalty + r2
        gamma = self.config.r1_gamma * self.faded(self.config.r1_end)
        self.update(self.opt_d, penalty * (gamma / 2 * self.config.r1_every))

    def generator_step(self, reals: Tensor) -> None:
        n, guide = self.config.batch, self.guide
        latents, noise = self.draw_latents(n, self.mine), self.draw_noise(n, self.mine)
        self.D.requires_grad_(False)
        with self.autocast():
            ws = self.to_ws(self.G, latents)
            self.G.mapping.track(parallel.gather(ws[:, 0].detach()))
            total, parts = ws.new_zeros(()), {}
            if guide is None:
                image = self.G.synthesis(ws, noise=noise).image
            else:
                teacher_ws = self.to_ws(guide.teacher, latents).detach()
                offsets = guide.draw_offsets(n, self.rng)
                image, total, parts = guide.compare(self.G, ws, teacher_ws, noise,
                                                    None if offsets is None else offsets[self.mine])
            if guide is None or guide.gan_weight:
                if self.relativistic:
                    with torch.no_grad():
                        real_logits = self.D(reals)
                    parts["gan"] = losses.relativistic_loss(self.D(image), real_logits)
                else:
                    parts["gan"] = losses.generator_loss(self.D(image))
                total = total + (parts["gan"] if guide is None else guide.gan_weight * parts["gan"])
        self.update(self.opt_g, total)
        self.note(loss_g=total, **parts)

    def path_step(self) -> None:
        """Path-length regularisation, in float32, on a smaller batch."""
        together = parallel.count()
        n = together * max(1, self.config.batch // self.config.path_batch_shrink // together)
        mine = parallel.rows(n)
        ws = self.to_ws(self.G, self.draw_latents(n, mine))
        if not ws.requires_grad:  # a frozen mapping network
            ws = ws.detach().requires_grad_(True)
        image = self.G.synthesis(ws, noise=self.draw_noise(n, mine)).image
        direction = self.draw(n, *image.shape[1:])[mine]
        lengths = losses.path_lengths(image, ws, direction)
        self.path_mean = self.path_mean.lerp(parallel.mean(lengths.mean()), 0.01)
        penalty = losses.path_penalty(lengths, self.path_mean)
        self.update(self.opt_g, penalty * (self.config.path_weight * self.config.path_every))
        self.note(path=penalty, path_length=lengths.mean())

    def update(self, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        parallel.average_([p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None])
        self.scaler.step(optimiser)  # with fused Adam no word from the GPU is waited for
        self.scaler.update()

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
        for group, rate in self.rates:
            group["lr"] = rate * self.faded(c.lr_end)
        reals = self.real_batch()
        if self.guide is None or self.guide.gan_weight:
            self.discriminator_step(reals)
            if c.r1_gamma and self.step % c.r1_every == 0:
                self.r1_step(reals)
        if self.images >= self.d_first:
            self.generator_step(reals)
        if c.path_weight and self.images >= self.d_first and self.step % c.path_every == 0:
            self.path_step()
        self.step += 1
        self.images += c.batch
        self.average_weights()

    # ------------------------------------------------------------------------------------------- bookkeeping

    def note(self, **values: Tensor) -> None:
        """Collect losses; they are read (and the device waited for) only when a line is logged."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float()
            self.counts[name] = self.counts.get(name, 0) + 1

    def take_notes(self) -> dict[str, float]:
        """Mean of what was collected since the last call, over all processes. Raises TrainingDiverged."""
        if not self.sums:
            return {}
        values = parallel.mean(torch.stack([total / self.counts[name] for name, total in self.sums.items()])).tolist()
        means = dict(zip(self.sums, values, strict=True))
        self.sums.clear()
        self.counts.clear()
        bad = [name for name, value in means.items() if not math.isfinite(value) or abs(value) > 1e6]
        if bad:
            raise TrainingDiverged(f"training diverged near image {self.images}: {bad[0]} = {means[bad[0]]:.3g}; "
                                   "lower lr, raise r1_gamma, or set precision to float32")
        return means

    def state(self) -> dict:
        guide = {}
        if self.guide and self.guide.regressors:
            guide["regressors"] = self.guide.regressors.state_dict()
        if self.guide and self.guide.queue:
            guide["queue"] = list(self.guide.queue)
        return {"G": self.G.state_dict(), "D": self.D.state_dict(), "G_ema": self.G_ema.state_dict(), **guide,
                "opt_g": self.opt_g.state_dict(), "opt_d": self.opt_d.state_dict(), "rng": self.rng.get_state(),
                "dice": self.dice.get_state(), "path_mean": self.path_mean, "sums": dict(self.sums),
                "counts": dict(self.counts), "scaler": self.scaler.state_dict(), "step": self.step,
                "images": self.images, "device": self.device.type, "processes": parallel.count(),
                "dtype": str(self.dtype)}

    def load_state(self, state: dict) -> None:
        """Take over what `state` returned. Raises CheckpointError for the state of other networks or another device."""
        if isinstance(state, dict) and state.get("device", self.device.type) != self.device.type:
            raise CheckpointError(f"the run was trained on {state['device']}, whose random numbers {self.device.type} "
                                  f"cannot continue: resume with device={state['device']}")
        try:
            for name in ("G", "D", "G_ema", "opt_g", "opt_d", "scaler"):
                getattr(self, name).load_state_dict(state[name])
            if self.guide and self.guide.regressors:
                self.guide.regressors.load_state_dict(state["regressors"])
            if "queue" in state:
                self.guide.queue.extend([tuple(f.to(self.device) for f in pair) for pair in batch]
                                        for batch in state["queue"])
            self.rng.set_state(state["rng"].cpu())
            self.dice.set_state(state["dice"].cpu())
            self.path_mean = state["path_mean"].to(self.device)
            self.sums = {name: total.to(self.device) for name, total in state["sums"].items()}
            self.counts = dict(state["counts"])
            self.step, self.images = state["step"], state["images"]
            processes, dtype = state["processes"], state["dtype"]
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError("the run's checkpoint does not hold the networks that its settings.json names: it "
                                  "was edited, exchanged or written by another version; start the run anew in another "
                                  "folder") from error
        if processes != parallel.count():
            warnings.warn(f"the run was trained by {processes} process(es) and goes on with {parallel.count()}: the "
                          "same numbers summed in another order, so equal up to rounding, not bit for bit",
                          stacklevel=2)
        if dtype != str(self.dtype):
            warnings.warn(f"the run computed in {_precision(dtype)} so far and goes on in {_precision(self.dtype)}, "
                          "which is what precision=auto means on this machine: not bit for bit", stacklevel=2)

    def fingerprint(self) -> str:
        """A number that the weights of all processes must share."""
        return str(sum(p.double().sum().item() for p in [*self.G.parameters(), *self.D.parameters()]))

    def finite(self) -> bool:
        return all(bool(p.isfinite().all()) for p in [*self.G.parameters(), *self.D.parameters()])

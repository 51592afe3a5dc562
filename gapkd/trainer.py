"""One adversarial training: its networks, optimisers and random draws, and its four steps.

Every random draw comes from one generator with a seed, and data are addressed by position, so that the state of a run
is a handful of tensors and a run can be stopped and resumed exactly.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from gapkd import losses
from gapkd.checkpoints import CheckpointError
from gapkd.datasets import flip, open_dataset, ordered_indices
from gapkd.distillation import Guide
from gapkd.settings import RunConfig
from gapkd.stylegan2 import Discriminator, Generator, mix_styles


class TrainingDiverged(RuntimeError):
    """A loss or a weight is no longer finite, or the logits have run away."""


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


class Trainer:
    """The state of a run and its four steps: discriminator, R1, generator, path length."""

    def __init__(self, config: RunConfig, G: Generator, D: Discriminator, guide: Guide | None = None):
        self.config, self.device = config, choose_device(config.device)
        self.G, self.D = G.to(self.device).train(), D.to(self.device).train()
        self.G_ema = copy.deepcopy(self.G).eval().requires_grad_(False)
        self.trained = [(e, p) for e, p in zip(self.G_ema.parameters(), self.G.parameters(), strict=True)]
        self.guide = guide
        self.dataset = open_dataset(config.data, G.resolution, seed=config.seed)
        self.opt_g = lazy_adam({self.G.mapping: config.lr * config.mapping_lr, self.G.synthesis: config.lr},
                               config.path_every if config.path_weight else 0)
        self.opt_d = lazy_adam({self.D: config.lr}, config.r1_every if config.r1_gamma else 0)
        self.rng = torch.Generator(self.device).manual_seed(config.seed)
        self.bf16 = use_bf16(config.precision, self.device)
        self.step, self.images = 0, 0
        self.d_first = getattr(config, "d_first", 0)
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
        if self.images >= self.d_first:
            self.generator_step()
        if c.path_weight and self.images >= self.d_first and self.step % c.path_every == 0:
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
                "path_mean": self.path_mean, "step": self.step, "images": self.images, "device": self.device.type}

    def load_state(self, state: dict) -> None:
        """Take over what `state` returned. Raises CheckpointError for the state of other networks or another device."""
        if isinstance(state, dict) and state.get("device", self.device.type) != self.device.type:
            raise CheckpointError(f"the run was trained on {state['device']}, whose random numbers {self.device.type} "
                                  f"cannot continue: resume with device={state['device']}")
        try:
            for name in ("G", "D", "G_ema", "opt_g", "opt_d"):
                getattr(self, name).load_state_dict(state[name])
            self.rng.set_state(state["rng"].cpu())
            self.path_mean = state["path_mean"].to(self.device)
            self.step, self.images = state["step"], state["images"]
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError("the run's checkpoint.pt does not hold the networks that its settings.json names: it "
                                  "was edited, exchanged or written by another version; start the run anew in another "
                                  "folder") from error

    def finite(self) -> bool:
        return all(bool(p.isfinite().all()) for p in [*self.G.parameters(), *self.D.parameters()])

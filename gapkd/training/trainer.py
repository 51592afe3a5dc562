"""One adversarial training: its networks, optimisers and random draws, and its four steps.

Every random draw comes from a generator with a seed (on a GPU there is a second one, on the CPU,
for the numbers that steer), and data are addressed by position, so that the state of a run is a
handful of tensors and a run can be stopped and resumed exactly. Where several processes train
together, each draws for the whole batch and keeps its own rows (gapkd.parallel).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from gapkd import parallel
from gapkd.data.datasets import (
    Dataset,
    Prefetcher,
    class_shares,
    flip,
    open_dataset,
    ordered_indices,
)
from gapkd.data.images import with_channels
from gapkd.distillation.directions import check_blocks
from gapkd.distillation.distiller import Distiller, two_views
from gapkd.files.checkpoints import CheckpointError
from gapkd.networks.base import Noise, StyleGenerator, SynthesisOutput
from gapkd.networks.mapping import mix_styles
from gapkd.networks.stylegan2 import Discriminator
from gapkd.parallel import autocast_dtype, choose_device
from gapkd.settings import RunConfig
from gapkd.training import adversarial
from gapkd.training.graphs import StepGraphs
from gapkd.training.lessons import Lesson, Lessons

Rows = Tensor | slice
Notes = dict[str, Tensor]
Latents = tuple[Tensor, Tensor, int | None, Tensor | None]
"""Two z per sample, (N, z_dim) each, the first layer that takes the second (None: no layer), and
one-hot labels (N, c_dim) (None: the networks know no classes)."""


R1_EVERY, PATH_EVERY = 16, 4
"""Steps between two R1 steps, and between two path-length steps (StyleGAN2)."""
STATEFUL = ("G", "D", "G_ema", "regressors", "opt_g", "opt_d", "scaler")
PATH_BATCH_SHRINK = 2
"""The path-length step takes a batch divided by this (StyleGAN2)."""


class TrainingDiverged(RuntimeError):
    """A loss or a weight is no longer finite, or the logits have run away."""


def lazy_adam(parts: dict[torch.nn.Module, float], every: int) -> torch.optim.Adam:
    """Adam with beta1 = 0 for parts of a network, each with its rate, whose step and memory make up
    for an extra regularisation step in `every` steps (0: in none; StyleGAN2, appendix B)."""
    ratio = every / (every + 1) if every else 1.0
    groups = []
    for part, lr in parts.items():
        trained = [p for p in part.parameters() if p.requires_grad]
        if trained:
            groups.append({"params": trained, "lr": lr * ratio})
    return torch.optim.Adam(groups, betas=(0.0, 0.99**ratio), eps=1e-8, fused=True)


class Trainer:
    """The state of a run and its four steps: discriminator, R1, generator, path length.

    Args:
        G: the generator, or the student.
        distiller: the teacher and its losses; None where a GAN is trained from scratch.
        dataset: the one that the settings name, where it is open already.
    Raises ValueError for networks that cannot be trained so.
    """

    def __init__(self, config: RunConfig, G: StyleGenerator, D: Discriminator,
                 distiller: Distiller | None = None, dataset: Dataset | None = None):
        self.config, self.device = config, choose_device(config.device)
        check_network(config, G)
        if distiller and distiller.weights["ld"]:  # a student may have fewer blocks
            check_blocks("ld_blocks", config.ld_blocks, G)
        self.G, self.D = G.to(self.device).train(), D.to(self.device).train()
        self.G_ema = copy.deepcopy(self.G).eval().requires_grad_(False)
        self.distiller = distiller
        together = [G] if distiller is None else [G, distiller.teacher]
        self.mixes = all(network.mixes_styles for network in together)
        self.silent = all(network.silent for network in together)
        self.regressors = distiller.regressors if distiller else torch.nn.ModuleList()
        on_cpu = self.device.type == "cpu"
        self.lessons = Lessons(config.reuse, config.batch, G.resolution, self.silent)
        replay = (config.cuda_graphs and self.device.type == "cuda" and parallel.count() == 1
                  and config.reuse == 1 and not G.c_dim and G.img_channels == 3
                  and not (distiller and distiller.content_mask))
        self.opt_g = lazy_adam({self.G.mapping: config.lr * config.mapping_lr,
                                self.G.synthesis: config.lr, self.regressors: config.lr},
                               PATH_EVERY if config.path_weight else 0)
        self.opt_d = lazy_adam({self.D: config.lr}, R1_EVERY if config.r1_gamma else 0)
        self.rates = [group["lr"] for group in self.groups()]

        self.dataset = dataset or open_dataset(config.data, G.resolution, seed=config.seed,
                                               device=self.device)
        self.classes = None
        if G.c_dim:
            self.classes = class_shares(self.dataset, G.c_dim).to(self.device)  # (c_dim,)
        # A GPU need not wait for images; on a CPU a second thread would take from the training.
        drawn = getattr(self.dataset, "device", None) == self.device
        self.reals = Prefetcher(in_background=not (on_cpu or drawn))
        self.fetched: Tensor | None = None
        self.rng = torch.Generator(self.device).manual_seed(config.seed)
        self.graphs = StepGraphs(self.rng if replay else None)
        # Numbers that steer are read at once: a GPU would have to be waited for.
        self.dice = self.rng if on_cpu else torch.Generator().manual_seed(config.seed)
        self.mine = share_of_batch(config, D)
        self.dtype = autocast_dtype(config.precision, self.device)
        # float16 has few exponents: gradients are scaled up, and steps that overflow are left out.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

        self.step, self.images = 0, 0
        self.seconds = 0.0  # spent before the first step
        self.path_mean = torch.zeros((), device=self.device)
        # What changes from step to step is a tensor, so that a step can be replayed.
        self.r1_weight = torch.zeros((), dtype=torch.float64, device=self.device)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    # ---------------------------------------------------------------------------------- drawing

    def autocast(self):
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def draw(self, *shape: int, kind: Callable[..., Tensor] = torch.randn) -> Tensor:
        return kind(*shape, generator=self.rng, device=self.device)

    def fetch(self) -> None:
        """Load the real images of the next step, if it looks at some. ValueError names a broken
        one."""
        if self.adversarial_now and self.fetched is None:
            here, following = self.images, self.images + self.config.batch
            self.fetched = self.reals(self.load_reals, here, following)

    def real_batch(self) -> Tensor:
        """The next real images (N, 3, R, R)."""
        self.fetch()
        n, reals = self.config.batch, self.fetched.to(self.device, non_blocking=True)
        self.fetched = None
        if self.config.flip:
            reals = flip(reals, self.draw(n, kind=torch.rand)[self.mine])
        return reals

    def real_indices(self, position: int) -> Tensor:
        """This process's share of the data's stream at a position."""
        c = self.config
        return ordered_indices(self.dataset.size, position, c.batch, c.seed)[self.mine]

    def real_labels(self) -> Tensor | None:
        """One-hot labels (N, c_dim) of the next real images."""
        if self.classes is None:
            return None
        labels = self.dataset.labels[self.real_indices(self.images)]
        return one_hot(labels, self.G.c_dim).float().to(self.device)

    def load_reals(self, position: int) -> Tensor:
        """This process's share of the batch at a position of the data's stream."""
        reals = self.dataset.load(self.real_indices(position))
        reals = with_channels(reals, self.D.img_channels)
        return reals.pin_memory() if self.device.type == "cuda" and not reals.is_cuda else reals

    def draw_crossover(self) -> int | None:
        """The layer from which a second style rules; None: this batch mixes none."""
        mixed, place = torch.rand(2, generator=self.dice).tolist()
        if self.mixes and mixed < self.config.style_mixing:
            return 1 + int(place * (self.G.num_ws - 1))
        return None

    def draw_latents(self, n: int, mine: Rows, crossover: int | None, paired: bool = False
                     ) -> Latents:
        """Two z for each of `mine` of n samples, where the second one takes over, and labels: as
        frequent as in the data; or `paired`, those of the real images (R3GAN)."""
        z_a, z_b = self.draw(n, self.G.z_dim)[mine], self.draw(n, self.G.z_dim)[mine]
        c = self.real_labels() if paired else None
        if self.classes is not None and not paired:
            drawn = torch.multinomial(self.classes, n, replacement=True, generator=self.rng)
            c = one_hot(drawn, self.G.c_dim).float()[mine]
        return z_a, z_b, crossover, c

    def draw_noise(self, n: int, mine: Rows) -> Noise:
        """Fresh noise maps for `mine` of n samples; they fit the teacher too. None are drawn where
        they would not be seen."""
        if self.silent:
            return "none"
        return [m[mine] for m in self.G.synthesis.draw_noise(n, self.rng)]

    @staticmethod
    def to_ws(G: StyleGenerator, latents: Latents) -> Tensor:
        """(N, num_ws, w_dim) of drawn latents under a network's own mapping."""
        z_a, z_b, crossover, c = latents
        w_a = G.mapping(z_a, c)
        if crossover is None:
            return w_a[:, None].repeat(1, G.num_ws, 1)
        return mix_styles(w_a, G.mapping(z_b, c), crossover, G.num_ws)

    def draw_fakes(self, crossover: int | None) -> tuple[Tensor, Tensor | None]:
        """This process's share of a batch of images (N, 3, R, R) without gradients, and their
        labels."""
        n = self.config.batch
        with torch.no_grad(), self.autocast():
            latents = self.draw_latents(n, self.mine, crossover, self.relativistic)
            ws = self.to_ws(self.G, latents)
            return self.G.synthesis(ws, noise=self.draw_noise(n, self.mine)).image, latents[3]

    # ---------------------------------------------------------------------------------- steps

    def train_step(self) -> None:
        c = self.config
        # Beside half precision, what is left in float32 is the regularisers.
        with parallel.tensor_cores(c.precision == "tf32", c.precision != "float32"):
            self.set_rates()
            reals = self.real_batch() if self.adversarial_now else None
            if self.adversarial_now:
                self.do(self.discriminator_step, reals, self.draw_crossover())
                if c.r1_gamma and self.step % R1_EVERY == 0:
                    crossover = self.draw_crossover() if self.relativistic else None
                    self.do(self.r1_step, reals, crossover)
            self.do(self.generator_step, reals, self.draw_crossover())
            if c.path_weight and self.step % PATH_EVERY == 0:
                self.do(self.path_step, reals, self.draw_crossover())
            self.step += 1
            self.images += c.batch
            self.average_weights()

    def do(self, step: Callable[[Tensor | None, int | None], Notes], reals: Tensor | None,
           crossover: int | None) -> None:
        kind = step.__name__, crossover, self.adversarial_now  # what a step's course depends on
        self.note(**self.graphs.run(kind, step, reals, crossover))

    @property
    def adversarial_now(self) -> bool:
        """Whether the discriminator takes part at this point of the run."""
        c = self.config
        return bool(c.gan_weight) and self.images >= c.gan_from * c.images

    def set_rates(self) -> None:
        """The learning rates and R1's weight for where the run stands."""
        c = self.config
        for group, rate in zip(self.groups(), self.rates, strict=True):
            self.graphs.set_rate(group, rate * self.faded(c.lr_end))
        self.r1_weight.fill_(c.r1_gamma * self.faded(c.r1_end) / 2 * R1_EVERY)

    def groups(self) -> list[dict]:
        return self.opt_g.param_groups + self.opt_d.param_groups

    def faded(self, end: float) -> float:
        """Factor of a quantity that falls along half a cosine from 1 to `end`."""
        done = min(self.images / self.config.images, 1.0)
        return end + (1 - end) * (1 + math.cos(math.pi * done)) / 2

    @property
    def relativistic(self) -> bool:
        return self.config.adversarial == "relativistic"

    def discriminator_step(self, reals: Tensor, crossover: int | None = None) -> Notes:
        self.D.requires_grad_(True)
        fakes, c = self.draw_fakes(crossover)
        with self.autocast():
            real_logits, fake_logits = self.D(reals, self.real_labels()), self.D(fakes, c)
        if self.relativistic:
            loss = adversarial.relativistic_loss(real_logits, fake_logits)
        else:
            loss = adversarial.discriminator_loss(real_logits, fake_logits)
        self.update(self.opt_d, loss)
        return {"loss_d": loss, "real_logit": real_logits.mean(), "fake_logit": fake_logits.mean()}

    def r1_step(self, reals: Tensor, crossover: int | None = None) -> Notes:
        """In float32, since it differentiates twice and squares; a GPU's convolutions have TF32
        unless precision is float32."""
        self.D.requires_grad_(True)
        penalties = {"r1": self.gradient_penalty(reals, self.real_labels())}
        if self.relativistic:  # the same on drawn images
            fakes, c = self.draw_fakes(crossover)
            penalties["r2"] = self.gradient_penalty(fakes.float(), c)
        self.update(self.opt_d, sum(penalties.values()) * self.r1_weight)
        return penalties

    def gradient_penalty(self, images: Tensor, c: Tensor | None) -> Tensor:
        images = images.detach().requires_grad_(True)
        return adversarial.gradient_penalty(self.D(images, c), images)

    def generator_step(self, reals: Tensor, crossover: int | None = None) -> Notes:
        """The path of z through a step: draw, both mapping networks, both synthesis networks,
        losses, sum."""
        self.D.requires_grad_(False)
        n = self.config.batch
        lesson = self.lessons.next(
            lambda: self.draw_latents(n, self.mine, crossover, self.relativistic), self.dice)
        noise = self.draw_noise(n, self.mine)
        with self.autocast():
            ws = self.to_ws(self.G, lesson.latents)
            if ws.requires_grad:  # a frozen mapping network keeps its teacher's average
                self.G.mapping.track(parallel.gather(ws[:, 0].detach()))
            out, parts = self.compare(ws, lesson, noise)
            total = self.distiller.total(parts) if parts else 0.0
            if self.adversarial_now:  # the discriminator meets the images of w, not of w + offset
                fakes, c = out.image[:len(ws)], lesson.latents[3]
                parts["gan"] = self.adversarial_loss(fakes, c, reals)
                total = total + self.config.gan_weight * parts["gan"]
        self.update(self.opt_g, total)
        return {"loss_g": total} | {f"loss_{name}": loss for name, loss in parts.items()}

    def compare(self, ws: Tensor, lesson: Lesson, noise: Noise
                ) -> tuple[SynthesisOutput, dict[str, Tensor]]:
        """Student and teacher side by side, each with its own mapping, both with the same noise
        maps: what the student drew of its ws (N, num_ws, w_dim), and the losses by name; none
        where nothing is compared."""
        distiller = self.distiller
        if not (distiller and distiller.compares):
            return self.G.synthesis(ws, noise=noise), {}
        offsets = distiller.draw_offsets(self.config.batch, self.rng)
        if offsets is not None:  # the same steps for both networks, under the same noise
            offsets = offsets[self.mine]
            noise = noise if noise == "none" else [torch.cat([m, m]) for m in noise]
        out = self.G.synthesis(two_views(ws, offsets), noise=noise)
        if lesson.teacher:
            return out, distiller(out, lesson.teacher)
        with torch.no_grad():
            teacher_ws = self.to_ws(distiller.teacher, lesson.latents)
            target = distiller.teacher.synthesis(two_views(teacher_ws, offsets), noise=noise)
        if self.config.reuse > 1:  # of all that it made, the image is kept
            lesson.teacher = SynthesisOutput(target.image, [], [target.image])
        return out, distiller(out, target)

    def adversarial_loss(self, images: Tensor, c: Tensor | None, reals: Tensor) -> Tensor:
        logits = self.D(images, c)
        if not self.relativistic:
            return adversarial.generator_loss(logits)
        with torch.no_grad():
            real_logits = self.D(reals, self.real_labels())
        return adversarial.relativistic_loss(logits, real_logits)

    def path_step(self, reals: Tensor, crossover: int | None = None) -> Notes:
        """Path-length regularisation, in float32 as R1, on half the batch."""
        c, together = self.config, parallel.count()
        n = together * max(1, c.batch // PATH_BATCH_SHRINK // together)
        mine = parallel.rows(n)
        ws = self.to_ws(self.G, self.draw_latents(n, mine, crossover))
        if not ws.requires_grad:  # a frozen mapping network
            ws = ws.detach().requires_grad_(True)
        image = self.G.synthesis(ws, noise=self.draw_noise(n, mine)).image
        direction = self.draw(n, *image.shape[1:])[mine]
        lengths = adversarial.path_lengths(image, ws, direction)
        with torch.no_grad():
            self.path_mean.lerp_(parallel.mean(lengths.mean()), 0.01)
        penalty = adversarial.path_penalty(lengths, self.path_mean)
        self.update(self.opt_g, penalty * (c.path_weight * PATH_EVERY))
        return {"path": penalty, "path_length": lengths.mean()}

    def update(self, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        trained = [p for group in optimiser.param_groups for p in group["params"]]
        parallel.average_([p.grad for p in trained if p.grad is not None])
        self.scaler.step(optimiser)  # with fused Adam no word from the GPU is waited for
        self.scaler.update()

    @torch.no_grad()
    def average_weights(self) -> None:
        """EMA with ramp-up: early on the average forgets fast, so that it does not drag the first
        noise along."""
        c = self.config
        half_life = min(c.ema_half_life, self.images * c.ema_rampup or math.inf)
        decay = 0.5 ** (c.batch / max(half_life, 1e-8))
        torch._foreach_lerp_(list(self.G_ema.parameters()), list(self.G.parameters()), 1 - decay)
        torch._foreach_copy_(list(self.G_ema.buffers()), list(self.G.buffers()))

    # ---------------------------------------------------------------------------------- bookkeeping

    def note(self, **values: Tensor) -> None:
        """Collect losses; they are read (and the device waited for) only when a line is logged."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float()
            self.counts[name] = self.counts.get(name, 0) + 1

    def take_notes(self) -> dict[str, float]:
        """Mean of what was collected since the last call, over all processes. Raises
        TrainingDiverged."""
        if not self.sums:
            return {}
        means = torch.stack([total / self.counts[name] for name, total in self.sums.items()])
        means = dict(zip(self.sums, parallel.mean(means).tolist(), strict=True))
        self.sums.clear()
        self.counts.clear()
        for name, value in means.items():
            if not math.isfinite(value) or abs(value) > 1e6:
                raise TrainingDiverged(
                    f"training diverged near image {self.images}: {name} = {value:.3g}; lower lr, "
                    "raise r1_gamma, or set precision to float32")
        return means

    def share_notes(self) -> None:
        """Every process goes on from the mean over all of what was collected: a checkpoint keeps
        the first one's."""
        if self.sums:
            means = parallel.mean(torch.stack([*self.sums.values()]))
            self.sums = dict(zip(self.sums, means, strict=True))

    def state(self) -> dict:
        """All that the next step depends on, as tensors and plain values."""
        networks = {name: getattr(self, name).state_dict() for name in STATEFUL}
        return {**networks, "rng": self.rng.get_state(), "dice": self.dice.get_state(),
                "path_mean": self.path_mean, "lessons": self.lessons.state(),
                "sums": dict(self.sums), "counts": dict(self.counts), "step": self.step,
                "images": self.images, "device": self.device.type,
                "processes": parallel.count(), "dtype": str(self.dtype)}

    def load_state(self, state: dict) -> None:
        """Take over what `state` returned.

        Raises CheckpointError for the state of other networks, or of another device unless this one
        was asked for by name.
        """
        before = state.get("device", self.device.type)
        moved = before != self.device.type
        if moved and self.config.device == "auto":
            raise CheckpointError(
                f"the run was trained on {before}, whose random numbers {self.device.type} cannot "
                f"continue: resume with device={before}, or, to go on with others, with "
                f"device={self.device.type}")
        state = {"regressors": {}} | state  # older ones hold them only where there are some
        try:
            for name in STATEFUL:
                if name != "scaler" or state[name]:  # of a precision without one it is empty
                    getattr(self, name).load_state_dict(state[name])
            self.dice.set_state(state["dice"].cpu())
            if moved:  # on a CPU both are one
                self.rng.manual_seed(self.config.seed + state["images"])
            else:
                self.rng.set_state(state["rng"].cpu())
            self.path_mean.copy_(state["path_mean"])
            self.lessons.load_state(state["lessons"], self.device)
            self.sums = {name: total.to(self.device) for name, total in state["sums"].items()}
            self.counts = dict(state["counts"])
            self.step, self.images = state["step"], state["images"]
            processes, dtype = state["processes"], state["dtype"]
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                "the run's checkpoint does not hold the networks that its settings.json names: it "
                "was edited or exchanged; start the run anew in another folder") from error
        changes = []
        if processes != parallel.count():
            changes.append(f"was trained by {processes} process(es) and goes on with "
                           f"{parallel.count()}: equal up to rounding")
        if dtype != str(self.dtype):
            changes.append(f"computed in {_precision(dtype)} so far and goes on in "
                           f"{_precision(self.dtype)}, which is what precision="
                           f"{self.config.precision} means on this machine")
        if moved:
            changes.append(f"was trained on {before}, and {self.device.type} goes on with other "
                           "random numbers")
        for change in changes:
            warnings.warn(f"the run {change}, not bit for bit", stacklevel=2)

    def fingerprint(self) -> str:
        """A number that the weights of all processes must share."""
        return str(sum(p.double().sum().item() for p in self._weights()))

    def finite(self) -> bool:
        return all(bool(p.isfinite().all()) for p in self._weights())

    def _weights(self) -> list[Tensor]:
        return [*self.G.parameters(), *self.D.parameters()]


def check_network(config: RunConfig, G: StyleGenerator) -> None:
    """Raise ValueError for a network that cannot be trained so."""
    if config.path_weight and not G.mixes_styles:
        raise ValueError("StyleGAN3 is trained without path-length regularisation: leave "
                         "path_weight at 0")


def share_of_batch(config: RunConfig, D: Discriminator) -> Rows:
    """This process's rows of a batch. Raises ValueError where the discriminator's minibatch
    statistic does not let it be shared."""
    if D.mbstd_group is None and parallel.count() > 1:
        raise ValueError("this discriminator takes the spread of the whole batch, which several "
                         "processes cannot share: train with one process")
    return parallel.rows(config.batch, D.mbstd_group or 1)


def _precision(dtype: object) -> str:
    return str(dtype).removeprefix("torch.").replace("None", "float32")

"""How a training puts its parts together: whole steps against the same steps written out.

`ByHand` repeats what the trainer does with elementary operations: the same random numbers in the
same order, every loss from its formula, Adam without torch.optim. In float64 the weights of the two
must agree after several steps. The networks are perturbed, so that nothing is zero by chance: noise
strengths, biases and w_avg of an untrained network would hide which noise or which w it was given.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny import config, distill_config, perturb
from torch import Tensor

from gapkd.distillation.distiller import Distiller
from gapkd.distillation.students import make_student
from gapkd.files.checkpoints import load_generator
from gapkd.metrics.sampling import draw_w
from gapkd.networks.stylegan2 import Discriminator, Generator
from gapkd.settings import RunConfig, TrainConfig
from gapkd.training.loop import RunResult, distill, fresh_networks, train_gan
from gapkd.training.trainer import Trainer

R1_EVERY, PATH_EVERY = 2, 3


class Images:
    """Image i is noise of seed i; it stands for a data set, in float64 and without end."""

    size = None

    def load(self, indices: Tensor) -> Tensor:
        seeds = [torch.Generator().manual_seed(int(i)) for i in indices]
        return torch.stack([0.5 * torch.randn(3, 16, 16, generator=g) for g in seeds])


def distance(a: Tensor, b: Tensor) -> Tensor:
    """In place of a perceptual network: (N, 3, R, R) twice -> (N,). It knows which one is first."""
    return ((a - b).square() * (1 + b.square())).mean(dim=(1, 2, 3))


def mask(images: Tensor) -> Tensor:
    """In place of the content of interest: (N, 3, R, R) -> (N, 1, R, R)."""
    return images.mean(dim=1, keepdim=True).sigmoid()


def trained(settings: RunConfig, steps: int, student: Generator, D: Discriminator,
            teacher: Generator | None = None) -> dict[str, Tensor]:
    """All numbers after some steps of the package. Only here do these tests know its insides."""
    distiller = None
    if teacher is not None:
        distiller = Distiller(teacher, distance, settings, mask if settings.content else None)
    run = Trainer(settings, student, D, distiller)
    run.dataset = Images()
    for _ in range(steps):
        run.train_step()
    state = run.state()
    found = {"path_mean": state["path_mean"]}
    for network in ("G", "D", "G_ema"):
        found |= {f"{network}.{name}": value for name, value in state[network].items()}
    return found


class Adam:
    """With beta1 = 0: every parameter p moves by -lr g / (sqrt(v) + eps), v the mean of g^2."""

    def __init__(self, rates: dict[Tensor, float], every: int):
        # One more step every `every` steps (StyleGAN2, appendix B); 0: there are none.
        ratio = every / (every + 1) if every else 1.0
        self.rates = {p: ratio * lr for p, lr in rates.items() if p.requires_grad}
        self.beta = 0.99**ratio
        self.squares = {p: torch.zeros_like(p) for p in self.rates}
        self.times = dict.fromkeys(self.rates, 0)

    def step(self, loss: Tensor, factor: float) -> None:
        gradients = torch.autograd.grad(loss, list(self.rates), allow_unused=True)
        for (p, lr), g in zip(self.rates.items(), gradients, strict=True):
            if g is None:
                continue
            self.times[p] += 1
            self.squares[p] = self.beta * self.squares[p] + (1 - self.beta) * g**2
            v = self.squares[p] / (1 - self.beta**self.times[p])
            p.data -= factor * lr * g / (v.sqrt() + 1e-8)


def softplus(x: Tensor) -> Tensor:
    return (1 + x.exp()).log()


def squared_gradient(D: Discriminator, images: Tensor) -> Tensor:
    """Of the logits at images (N, 3, R, R), averaged over N."""
    images = images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(D(images).sum(), images, create_graph=True)
    return (gradient**2).sum() / len(images)


def sefa(G: Generator, blocks: tuple[int, ...], together: bool) -> Tensor:
    """Of each of the blocks 1 to the last one compared, or of all together: 5 directions a block,
    those that the style affines amplify most. (K, w_dim)"""
    stacks = []
    for block in G.synthesis.blocks[1:max(blocks) + 1]:
        rows = torch.cat([conv.affine.weight.detach() for conv in (block.conv0, block.conv1)])
        stacks.append(rows / rows.norm(dim=1, keepdim=True))
    count = 5
    if together:
        stacks, count = [torch.cat(stacks)], 5 * len(stacks)
    found = []
    for rows in stacks:
        vectors = torch.linalg.eigh(rows.t() @ rows).eigenvectors.t()  # the smallest one first
        found += list(vectors.flip(0)[:count])
    return torch.stack(found)


def relations(rows: Tensor, columns: Tensor) -> Tensor:
    """Cosines of features (N, C, r, r) of every image with those of every other. (N, N)"""
    rows, columns = rows.flatten(1), columns.flatten(1)
    return (rows @ columns.t()) / rows.norm(dim=1)[:, None] / columns.norm(dim=1)[None]


class ByHand:
    """The same training, written out."""

    def __init__(self, settings: RunConfig, G: Generator, D: Discriminator,
                 teacher: Generator | None = None):
        self.c, self.teacher = settings, teacher
        self.G, self.D, self.average = (copy.deepcopy(network) for network in (G, D, G))
        self.rng = torch.Generator().manual_seed(settings.seed)
        rates = dict.fromkeys(self.G.mapping.parameters(), settings.lr * settings.mapping_lr)
        rates |= dict.fromkeys(self.G.synthesis.parameters(), settings.lr)
        self.adam_g = Adam(rates, PATH_EVERY if settings.path_weight else 0)
        self.adam_d = Adam(dict.fromkeys(self.D.parameters(), settings.lr),
                           R1_EVERY if settings.r1_gamma else 0)
        self.steps, self.images, self.path_mean = 0, 0, torch.zeros(())

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.rng)

    def latents(self, n: int) -> tuple[Tensor, Tensor, int]:
        """z twice, and the first layer that the second one rules."""
        mixed, place = torch.rand(2, generator=self.rng).tolist()
        layers = self.G.num_ws
        crossover = layers
        if mixed < self.c.style_mixing:
            crossover = 1 + math.floor(place * (layers - 1))  # 1 ... layers - 1
        return self.normal(n, self.G.z_dim), self.normal(n, self.G.z_dim), crossover

    def noise(self, n: int) -> list[Tensor]:
        """One map at 4x4, then two for every resolution."""
        return [self.normal(n, 1, r, r) for r in (4, 8, 8, 16, 16)]

    @staticmethod
    def ws(G: Generator, latents: tuple[Tensor, Tensor, int]) -> Tensor:
        """(N, num_ws, w_dim)"""
        first, second = G.mapping(latents[0]), G.mapping(latents[1])
        rule = [first if layer < latents[2] else second for layer in range(G.num_ws)]
        return torch.stack(rule, dim=1)

    def fakes(self) -> Tensor:
        ws = self.ws(self.G, self.latents(self.c.batch))
        return self.G.synthesis(ws, noise=self.noise(self.c.batch)).image.detach()

    def fallen(self, end: float) -> float:
        angle = math.pi * self.images / self.c.images
        return end + (1 - end) * 0.5 * (1 + math.cos(angle))

    def step(self) -> None:
        c = self.c
        relativistic = c.adversarial == "relativistic"
        gan_weight = c.gan_weight if self.images >= c.gan_from * c.images else 0
        rate = self.fallen(c.lr_end)
        reals = Images().load(torch.arange(self.images, self.images + c.batch))
        if c.flip and gan_weight:  # without a discriminator nobody looks at them
            coins = torch.rand(c.batch, generator=self.rng)
            pairs = zip(reals, coins, strict=True)
            reals = torch.stack([x.flip(2) if coin < 0.5 else x for x, coin in pairs])

        if gan_weight:  # the discriminator, then R1 (and R2)
            fakes = self.fakes()
            on_reals, on_fakes = self.D(reals), self.D(fakes)
            loss = softplus(-on_reals).mean() + softplus(on_fakes).mean()
            if relativistic:
                loss = softplus(on_fakes - on_reals).mean()
            self.adam_d.step(loss, rate)
            if c.r1_gamma and self.steps % R1_EVERY == 0:
                penalty = squared_gradient(self.D, reals)
                if relativistic:
                    penalty = penalty + squared_gradient(self.D, self.fakes())
                gamma = c.r1_gamma * self.fallen(c.r1_end)
                self.adam_d.step(gamma / 2 * penalty * R1_EVERY, rate)

        latents, noise = self.latents(c.batch), self.noise(c.batch)
        ws = self.ws(self.G, latents)
        w_avg = self.G.mapping.w_avg
        if any(p.requires_grad for p in self.G.mapping.parameters()):
            w_avg += 0.005 * (self.G.mapping(latents[0]).detach().mean(dim=0) - w_avg)
        ours = self.G.synthesis(ws, noise=noise)
        total = self.compared(ours, ws, latents, noise) if self.teacher else 0
        logits = self.D(ours.image)
        gan = softplus(-logits).mean()
        if relativistic:
            gan = softplus(self.D(reals).detach() - logits).mean()
        self.adam_g.step(total + gan_weight * gan, rate)

        if c.path_weight and self.steps % PATH_EVERY == 0:
            self.adam_g.step(c.path_weight * self.path_penalty() * PATH_EVERY, rate)
        self.steps += 1
        self.images += c.batch
        half_life = c.ema_half_life
        if c.ema_rampup:
            half_life = min(half_life, c.ema_rampup * self.images)
        decay = 0.5 ** (c.batch / half_life)
        for average, p in zip(self.average.parameters(), self.G.parameters(), strict=True):
            average.data = decay * average.data + (1 - decay) * p.data
        self.average.mapping.w_avg.copy_(w_avg)

    def compared(self, ours, ws: Tensor, latents: tuple, noise: list[Tensor]) -> Tensor:
        """The paper's L_rgb, L_lpips and L_ld, weighted."""
        c, T = self.c, self.teacher
        with torch.no_grad():
            teacher_ws = self.ws(T, latents)
            theirs = T.synthesis(teacher_ws, noise=noise)
        ours_moved, theirs_moved = ours, theirs
        if c.ld_offsets != "none":
            if c.ld_offsets == "random":
                unit = self.normal(c.batch, T.w_dim)
                unit = unit / unit.norm(dim=1, keepdim=True)
            else:
                directions = sefa(T, c.ld_blocks, together=c.ld_offsets == "global")
                chosen = torch.randint(len(directions), (c.batch,), generator=self.rng)
                unit = directions[chosen]
            step = (unit * self.normal(c.batch, 1) * c.ld_strength)[:, None]  # (N, 1, w_dim)
            ours_moved = self.G.synthesis(ws + step, noise=noise)
            theirs_moved = T.synthesis(teacher_ws + step, noise=noise)

        seen = mask(theirs.image) if c.content else torch.ones_like(theirs.image[:, :1])
        rgb = (seen * (ours.image - theirs.image)).abs().mean()
        if c.rgb_levels == "all":
            for a, b in zip(ours.rgbs[:-1], theirs.rgbs[:-1], strict=True):
                rgb = rgb + (a - b).abs().mean()
        perceptual = distance(seen * ours.image, seen * theirs.image).mean()
        ld = 0
        for b in c.ld_blocks:
            s = relations(ours.features[b], ours_moved.features[b])
            t = relations(theirs.features[b], theirs_moved.features[b]).detach()
            q, p = s.softmax(dim=1), t.softmax(dim=1)
            ld = ld + (p * (p / q).log()).sum(dim=1).mean()
        return c.rgb_weight * rgb + c.perceptual_weight * perceptual + c.ld_weight * ld

    def path_penalty(self) -> Tensor:
        n = self.c.batch // 2
        ws = self.ws(self.G, self.latents(n))
        if not ws.requires_grad:  # a frozen mapping network
            ws.requires_grad_(True)
        image = self.G.synthesis(ws, noise=self.noise(n)).image
        y = self.normal(*image.shape) / 16
        (gradient,) = torch.autograd.grad((image * y).sum(), ws, create_graph=True)
        lengths = (gradient**2).sum(dim=2).mean(dim=1).sqrt()
        self.path_mean = self.path_mean + 0.01 * (lengths.mean().detach() - self.path_mean)
        return ((lengths - self.path_mean)**2).mean()

    def numbers(self) -> dict[str, Tensor]:
        found = {"path_mean": self.path_mean}
        for name, network in (("G", self.G), ("D", self.D), ("G_ema", self.average)):
            found |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
        return found


@pytest.fixture
def double(monkeypatch):
    """Everything is drawn and computed in float64, also where the package asks for float32; the
    regularisers come often."""
    monkeypatch.setattr("gapkd.training.trainer.R1_EVERY", R1_EVERY)
    monkeypatch.setattr("gapkd.training.trainer.PATH_EVERY", PATH_EVERY)
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    yield
    torch.set_default_dtype(torch.float32)


def networks(mapping: str) -> tuple[Generator, Generator, Discriminator]:
    """A student, its teacher and a discriminator, in which no number is trivial."""
    torch.manual_seed(3)
    teacher = perturb(Generator(16, 7, 6, [(6, 5), (6, 4), (4, 5)], mapping_layers=2))
    student = perturb(make_student(teacher, 0.5, mapping=mapping))
    return student, teacher.eval().requires_grad_(False), perturb(Discriminator(16, [5, 4, 4]))


# Unequal weights and periods; the two half-lives meet after image 8.
SETTINGS = {"batch": 4, "images": 24, "seed": 11, "lr": 0.01, "mapping_lr": 3.0,
            "style_mixing": 0.6, "r1_gamma": 2.0, "path_weight": 0.5, "ema_half_life": 8.0}
DISTILLING = {"gan_weight": 0.7, "rgb_weight": 3.0, "perceptual_weight": 2.0, "ld_weight": 30.0,
              "ld_blocks": (1, 2), "ld_strength": 2.5}
STEPS = 4


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9,
                                   msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("mapping, changes", [
    ("random", {}), ("random", {"lr_end": 0.1}), ("random", {"gan_weight": 0.0, "flip": False}),
    ("random", {"gan_from": 0.3, "adversarial": "relativistic"}),
    ("random", {"ld_blocks": (2,), "ld_offsets": "global", "rgb_levels": "all"}),
    ("random", {"ld_offsets": "none", "content": "toyfaces"}), ("random", {"ld_offsets": "random"}),
    ("inherit", {"style_mixing": 0.0}), ("inherit-frozen", {"style_mixing": 1.0})])
def test_steps_of_a_distillation(tmp_path, double, mapping, changes):
    settings = distill_config(tmp_path, "teacher", **SETTINGS | DISTILLING | changes)
    student, teacher, D = networks(mapping)
    hand = ByHand(settings, student, D, teacher)
    for _ in range(STEPS):
        hand.step()
    assert_alike(trained(settings, STEPS, student, D, teacher), hand.numbers())


@pytest.mark.parametrize("changes", [
    {}, {"adversarial": "relativistic", "lr_end": 0.1, "r1_end": 0.2},
    {"flip": False, "batch": 8}, {"r1_gamma": 0.0}, {"path_weight": 0.0}, {"ema_rampup": 0.0}])
def test_steps_of_a_gan_training(tmp_path, double, changes):
    settings = config(tmp_path, **SETTINGS | {"resolution": 16, "ema_rampup": 0.8} | changes)
    G, _, D = networks("random")
    hand = ByHand(settings, G, D)
    for _ in range(STEPS):
        hand.step()
    assert_alike(trained(settings, STEPS, G, D), hand.numbers())


def assert_unmoved(result: RunResult, G: Generator, D: Discriminator) -> None:
    """At a learning rate of next to nothing networks stay what they were at first."""
    for found, expected in ((result.generator, G), (result.discriminator, D)):
        for a, b in zip(found.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_run_of_a_student_starts_from_what_its_settings_ask_for(tmp_path, teacher_file):
    settings = distill_config(tmp_path / "run", teacher_file, images=4, lr=1e-12, seed=5, keep=0.25,
                              kernel=1, mapping="random", perceptual_weight=0.0, d_channels=(4, 3),
                              content="toyfaces")  # the mask that is given below wins
    result = distill(settings, content_mask=lambda images: torch.zeros_like(images[:, :1]))
    assert result.log[-1]["loss_rgb"] == 0 < result.log[-1]["loss_ld"]  # teacher and mask are used
    student = make_student(load_generator(teacher_file), 0.25, 1, "random", "random", seed=5)
    torch.manual_seed(5)
    D = Discriminator(32, [4, 4, 4, 3])
    assert_unmoved(result, student, D)


def test_a_run_of_a_teacher_starts_from_its_seed(tmp_path):
    result = train_gan(config(tmp_path / "run", images=4, lr=1e-12, seed=5, d_channels=(6,)))
    torch.manual_seed(2_000_005)
    assert_unmoved(result, Generator(8, 8, 8, 8, mapping_layers=2), Discriminator(8, 6))


def test_latents_of_a_runs_seed_are_as_any_others_to_its_networks():
    """Drawn from one seed, latents equal the rows of the mapping network's first layer, and their w
    lie twice as far out."""
    settings = TrainConfig(resolution=8, z_dim=64, w_dim=64, channels=(4,), d_channels=(4,), seed=5)
    G, _ = fresh_networks(settings)
    student = make_student(G, 0.5, mapping="random", seed=5)
    for network in (G, student):
        own, others = (draw_w(network, 64, seed).norm(dim=1).mean() for seed in (5, 6))
        assert 0.9 < own / others < 1.1


def test_a_student_does_not_draw_the_weights_its_teacher_began_with():
    """At keep=1 the two have one shape, and a common seed would give them one mapping network."""
    torch.manual_seed(5)
    teacher = Generator(8, 8, 8, 8, mapping_layers=2)
    student = make_student(teacher, 1.0, mapping="random", seed=5)
    for name, weight in teacher.named_parameters():
        if weight.ndim > 1:  # biases and noise strengths are constants
            assert not torch.equal(student.get_parameter(name), weight), name
    torch.manual_seed(1_000_005)
    fresh = Generator(8, 8, 8, 8, mapping_layers=2)
    assert torch.equal(student.mapping.layers[0].weight, fresh.mapping.layers[0].weight)

"""Editing: directions in W with a name, what a step along them does to the image, and what it should have left alone.

A student that has inherited the teacher's mapping network shares its W, so a direction that is found on one should work
on the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from gapkd.distillation.directions import sefa_directions
from gapkd.distillation.pruning import AnyGenerator
from gapkd.files.checkpoints import write_atomically
from gapkd.metrics.evaluation import draw_latents
from gapkd.metrics.features import AttributeNetwork

Readings = tuple[Tensor, dict[str, Tensor]]  # w (N, w_dim), and what is read off the images drawn from them


@dataclass(frozen=True)
class Directions:
    """Named directions in W.

    Args:
        names: one a direction, such as "smile".
        vectors: (K, w_dim), unit rows.
        reach: (K,), a step that changes the image plainly, either way: how far sliders should go. An extrapolation:
            along most directions w itself varies far less.
        origin: (16, w_dim), w of sixteen fixed z, which tells whose W they belong to (`w_of_fixed_z`); None: not known.
    """

    names: tuple[str, ...]
    vectors: Tensor
    reach: Tensor
    origin: Tensor | None = None

    def __post_init__(self):
        if self.vectors.ndim != 2 or not len(self.names) == len(self.vectors) == len(self.reach) > 0:
            raise ValueError(f"{len(self.names)} names, vectors of shape {tuple(self.vectors.shape)} and "
                             f"{len(self.reach)} reaches do not belong together")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> Tensor:
        """The unit vector (w_dim,) of that name."""
        return self.vectors[self.index(name)]

    def index(self, name: str) -> int:
        """Number of the direction of that name; raises ValueError that lists the names."""
        if name not in self.names:
            raise ValueError(f"there is no direction {name!r}; there are: {', '.join(self.names)}")
        return self.names.index(name)

    def pick(self, names: list[str] | tuple[str, ...]) -> Directions:
        """Those directions, in that order."""
        rows = [self.index(name) for name in names]
        return Directions(tuple(names), self.vectors[rows], self.reach[rows], self.origin)

    def belong_to(self, G: AnyGenerator) -> bool:
        """Whether G's W is the one that they were found in, or near it, as that of a student which inherited the
        mapping network; True where that is not known."""
        if self.origin is None:
            return True
        if self.vectors.shape[1] != G.w_dim:
            return False
        ours, theirs = (w - w.mean(dim=0) for w in (w_of_fixed_z(G), self.origin))
        return bool((ours * theirs).sum() > 0.9 * ours.norm() * theirs.norm())


def save_directions(directions: Directions, path: str | Path) -> Path:
    """Save as safetensors, the names in the metadata."""
    tensors = {"vectors": directions.vectors, "reach": directions.reach}
    tensors |= {} if directions.origin is None else {"origin": directions.origin}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    return write_atomically(path, to_bytes(tensors, {"gapkd": "1", "kind": "directions",
                                                     "names": json.dumps(directions.names)}))


def load_directions(path: str | Path) -> Directions:
    """Load what `save_directions` wrote. Raises ValueError for anything else."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file of directions {path}: write one with `gapkd directions`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != "directions":
                raise ValueError(f"{path} holds no directions: write such a file with `gapkd directions`")
            names = tuple(map(str, json.loads(metadata["names"])))
            origin = file.get_tensor("origin").float() if "origin" in file.keys() else None  # noqa: SIM118
            return Directions(names, file.get_tensor("vectors").float(), file.get_tensor("reach").float(), origin)
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged or no file of directions ({error}): write it anew with "
                         "`gapkd directions`") from error


# -- finding directions --------------------------------------------------------------------------------------


@torch.no_grad()
def reach_of(G: AnyGenerator, samples: int = 4000, seed: int = 0) -> float:
    """Radius of W, the root mean square distance of w from its mean: a long step, since it lies along one direction
    what w spreads over all of them."""
    w = _draw_w(G, samples, seed)
    return (w - w.mean(dim=0)).square().sum(dim=1).mean().sqrt().item()


def sefa(G: AnyGenerator, count: int = 6) -> Directions:
    """The leading SeFa directions of all layers together, which need no data and have no meaning for a name."""
    vectors = sefa_directions(G, range(len(G.synthesis.blocks)), "global", per_block=count)[:count]
    return Directions(tuple(f"SeFa {i + 1}" for i in range(len(vectors))), vectors,
                      torch.full((len(vectors),), reach_of(G)), w_of_fixed_z(G))


@torch.no_grad()
def read_factors(G: AnyGenerator, net: AttributeNetwork, samples: int = 5000, seed: int = 0, batch: int = 100
                 ) -> Readings:
    """w (samples, w_dim) and what the attribute network reads off the images drawn from them, on the CPU.

    Returns: factor -> (samples,) values if continuous, class numbers if categorical.
    """
    w, found = _draw_w(G, samples, seed), []
    for part in w.split(batch):
        found.append(_read(net, G.synthesis(part).image))
    return w.cpu(), {name: torch.cat([f[name] for f in found]).cpu() for name in found[0]}


def factor_directions(G: AnyGenerator, net: AttributeNetwork, wanted: Sequence[str] | None = None,
                      alone: bool = True, samples: int = 5000, seed: int = 0, readings: Readings | None = None
                      ) -> Directions:
    """One direction in W for every factor that the attribute network reads.

    Each factor is explained by a linear function of w: a continuous one by ridge regression, a category by logistic
    regression, one class against the rest. The gradient of that function is where the factor grows quickest (the normal
    of Shen et al., *InterFaceGAN*, CVPR 2020), but other factors move along with it. So, if `alone`, the direction is
    the shortest step that raises this function and leaves those of all other factors as they are: a column of the
    pseudo-inverse of all gradients together.

    Args:
        wanted: names as in `direction_names`; None: all of them.
        alone: False for the plain gradient.
        samples: images that are looked at. readings: of `read_factors`, if those are there already.
    Returns: directions whose reach is the radius of W (`reach_of`).
    """
    names = direction_names(net)
    unknown = [name for name in wanted or () if name not in names]
    if unknown:
        raise ValueError(f"there is no factor {unknown[0]!r}; there are: {', '.join(names)}")
    w, factors = readings or read_factors(G, net, samples, seed)
    centred = (w - w.mean(dim=0)).double()
    gradients: dict[str, Tensor] = {}
    for name in names if alone or not wanted else wanted:
        target = _shown(net, factors, name).double()
        if target.std() < 1e-6:
            continue  # the same in all images: there is nothing to learn
        continuous = name in net.continuous
        fit = _least_squares if continuous else _logistic
        gradients[name] = fit(centred, (target - target.mean()) / target.std() if continuous else target)
    missing = [name for name in wanted or () if name not in gradients]
    if missing:
        raise ValueError(f"{missing[0]!r} is the same in all {len(w)} images: there is nothing to learn it from")
    found = torch.stack(list(gradients.values()))                                    # (F, w_dim)
    if alone:
        found = torch.linalg.pinv(found).t()
    unit = torch.nn.functional.normalize(found, dim=1).float()
    directions = Directions(tuple(gradients), unit, torch.full((len(unit),), reach_of(G)), w_of_fixed_z(G))
    return directions.pick(wanted) if wanted else directions


def linear_fit(net: AttributeNetwork, readings: Readings) -> dict[str, float]:
    """How far each factor is a linear function of w at all: the share of its variance that the fit explains on a fifth
    of the samples, which it has not seen; for a category, of the variance of showing the class. Readings: of
    `read_factors`."""
    w, factors = readings
    w, known = (w - w.mean(dim=0)).double(), len(w) - len(w) // 5
    explained = {}
    for name in direction_names(net):
        y = _shown(net, factors, name).double()
        y = y - y[:known].mean()
        fit = w[known:] @ _least_squares(w[:known], y[:known])
        explained[name] = 1 - ((y[known:] - fit).square().mean() / y[known:].var().clamp(min=1e-12)).item()
    return explained


def direction_names(net: AttributeNetwork) -> list[str]:
    """A name for each direction: the factor's, or "factor: class" where it has more than two classes."""
    names = []
    for factor, classes in net.categorical.items():
        names += [factor] if len(classes) == 2 else [f"{factor}: {label}" for label in classes]
    return names + list(net.continuous)


def _shown(net: AttributeNetwork, factors: Mapping[str, Tensor], name: str) -> Tensor:
    """What a direction's name stands for, (N,): a continuous factor, or 1 where the image shows the class."""
    factor, _, label = name.partition(": ")
    if factor in net.continuous:
        return factors[factor]
    classes = net.categorical[factor]
    return (factors[factor] == (classes.index(label) if label else len(classes) - 1)).float()


def _least_squares(x: Tensor, y: Tensor, ridge: float = 0.3) -> Tensor:
    """Gradient of the linear function of x (N, D) that explains y (N,).

    Args:
        ridge: in units of the mean variance of x. Many dimensions of W hardly vary; without a ridge they take over.
    """
    penalty = ridge * x.square().mean() * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(x.t() @ x / len(x) + penalty, x.t() @ y / len(x))


def _logistic(x: Tensor, y: Tensor, ridge: float = 0.03, steps: int = 30) -> Tensor:
    """Gradient of the log-odds of y = 1 as a linear function of x (N, D), by Newton's method."""
    x, width = torch.cat([x, x.new_ones(len(x), 1)], dim=1), x.shape[1]
    penalty = ridge * x[:, :width].square().mean() * torch.ones(width + 1, dtype=x.dtype)
    penalty[width] = 1e-9  # the constant is free
    b = torch.zeros_like(penalty)
    b[width] = torch.logit(y.mean())
    for _ in range(steps):
        p = torch.sigmoid(x @ b)
        curvature = (x * (p * (1 - p))[:, None]).t() @ x / len(x) + torch.diag(penalty)
        step = torch.linalg.solve(curvature, x.t() @ (p - y) / len(x) + penalty * b)
        b = b - step
        if step.abs().max() < 1e-8:
            break
    return b[:width]


# -- measuring edits -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EditEffect:
    """What steps along one direction do to the images of one generator, over many latents.

    name: of the direction.
    moved: change of the factor that it is named after from one end to the other: in standard deviations of that factor
        if it is continuous, in share of the images that show the class if it is a category.
    kept: share of the other categories that stay as they were at the middle, at both ends; the mean over them.
    drift: mean change of the other continuous factors, in absolute value, in their standard deviations.
    """

    name: str
    moved: float
    kept: float
    drift: float


@torch.no_grad()
def measure_edits(G: AnyGenerator, net: AttributeNetwork, directions: Directions, share: float = 0.5,
                  samples: int = 300, seed: int = 1, batch: int = 100, w: Tensor | None = None) -> list[EditEffect]:
    """Move many w's by -share and +share of every direction's reach, and read what became of the images.

    Args:
        directions: named as `direction_names` does, found on this generator or on another.
        w: (N, w_dim), or ws (N, num_ws, w_dim), to be moved; None: those of `samples` random z.
    """
    effects = []
    w = _draw_w(G, samples, seed) if w is None else w
    for name, low, middle, high in _walk(G, net, directions, share, w, batch):
        factor = name.partition(": ")[0]
        spread = {other: middle[other].std().clamp(min=1e-6) for other in net.continuous}
        moved = (_shown(net, high, name) - _shown(net, low, name)).mean() / spread.get(factor, 1.0)
        kept = [(end[other] == middle[other]).float().mean() for end in (low, high) for other in net.categorical
                if other != factor]
        drift = [(end[other] - middle[other]).abs().mean() / spread[other] for end in (low, high)
                 for other in net.continuous if other != factor]
        effects.append(EditEffect(name, moved.item(), *(torch.stack(part).mean().item() for part in (kept, drift))))
    return effects


@torch.no_grad()
def factor_changes(G: AnyGenerator, net: AttributeNetwork, directions: Directions, share: float = 0.5,
                   samples: int = 300, seed: int = 1, batch: int = 100) -> Tensor:
    """What steps along each direction do to every factor, on average over many latents, whatever its name says.

    Returns: (K, F), factors as in `direction_names`: change from one end to the other, in standard deviations of the
        factor if it is continuous, in share of the images if it is a class.
    """
    rows = []
    for _, low, middle, high in _walk(G, net, directions, share, _draw_w(G, samples, seed), batch):
        rows.append([((_shown(net, high, name) - _shown(net, low, name)).mean()
                      / (middle[name].std().clamp(min=1e-6) if name in net.continuous else 1.0)).item()
                     for name in direction_names(net)])
    return torch.tensor(rows)


class EditAgreement:
    """Whether a student does with the teacher's directions what the teacher does.

    Called with a student, it returns the correlation, over all directions (SeFa's first, and one for every factor) and
    all factors, of what a step does to the factor in the teacher and in the student. 1: the same up to scale; 0:
    nothing of the teacher's directions is left. Factors are the continuous ones of the attribute network, or its
    classes where it knows no others.
    """

    def __init__(self, teacher: AnyGenerator, net: AttributeNetwork, samples: int = 200, looked_at: int = 5000):
        self.net, self.samples = net, samples
        names = direction_names(net)
        self.factors = [i for i, name in enumerate(names) if name in net.continuous] or list(range(len(names)))
        first, named = sefa(teacher), factor_directions(teacher, net, samples=looked_at)
        named = named.pick([names[i] for i in self.factors if names[i] in named.names] or named.names)
        vectors = torch.cat([first.vectors.to(named.vectors), named.vectors])
        self.directions = Directions(first.names + named.names, vectors, torch.cat([first.reach, named.reach]))
        self.wanted = self._changes(teacher)

    def _changes(self, G: AnyGenerator) -> Tensor:
        return factor_changes(G, self.net, self.directions, samples=self.samples)[:, self.factors].flatten()

    def __call__(self, student: AnyGenerator) -> float:
        both = torch.stack([self.wanted, self._changes(student)])
        return torch.corrcoef(both)[0, 1].item() if (both.std(dim=1) > 0).all() else 0.0


def _walk(G: AnyGenerator, net: AttributeNetwork, directions: Directions, share: float, w: Tensor, batch: int
          ) -> Iterator[tuple[str, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]]:
    """For every direction its name, and what is read at -share, 0 and +share of its reach."""
    middle = _read_all(G, net, w, batch)
    for name, vector, reach in zip(directions.names, directions.vectors, directions.reach, strict=True):
        step = share * reach * vector.to(w)
        yield name, _read_all(G, net, w - step, batch), middle, _read_all(G, net, w + step, batch)


def _read_all(G: AnyGenerator, net: AttributeNetwork, w: Tensor, batch: int) -> dict[str, Tensor]:
    found = [_read(net, G.synthesis(part).image) for part in w.split(batch)]
    return {name: torch.cat([f[name] for f in found]) for name in found[0]}


def _read(net: AttributeNetwork, images: Tensor) -> dict[str, Tensor]:
    """Factor -> (N,) value, or number of the class."""
    read = net.factors(images.clamp(-1, 1))
    return {name: read[name].argmax(dim=1) if name in net.categorical else read[name]
            for name in (*net.categorical, *net.continuous)}


def w_of_fixed_z(G: AnyGenerator) -> Tensor:
    """w (16, w_dim) of sixteen z that are always the same, on the CPU: what tells one W from another."""
    return _draw_w(G, 16, seed=0).cpu()


@torch.no_grad()
def _draw_w(G: AnyGenerator, samples: int, seed: int) -> Tensor:
    z, c = draw_latents(G, samples, seed)
    return G.mapping(z.to(_device(G)), None if c is None else c.to(_device(G)))


def _device(G: AnyGenerator) -> torch.device:
    return next(G.parameters()).device

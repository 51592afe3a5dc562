"""Editing: directions in W with a name, and what a step along them does to the image.

A student that has inherited the teacher's mapping network shares its W, so a direction that is
found on one should work on the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from gapkd.distillation.directions import sefa_directions
from gapkd.files.storage import at_home, check_utf8, write_atomically
from gapkd.metrics import agreement
from gapkd.metrics.agreement import Reading
from gapkd.metrics.attributes import AttributeNetwork
from gapkd.metrics.sampling import draw_w
from gapkd.networks.base import StyleGenerator
from gapkd.parallel import exactly

Readings = tuple[Tensor, Reading]  # w (N, w_dim), and what is read off the images drawn from them


@dataclass(frozen=True)
class Directions:
    """Named directions in W.

    Args:
        names: one per direction, such as "smile".
        vectors: (K, w_dim), unit rows.
        reach: (K,), a step that changes the image plainly, either way: how far sliders should go.
            An extrapolation: along most directions w itself varies far less.
        origin: (16, w_dim), `w_of_fixed_z` of the generator to whose W they belong, if known.
    """

    names: tuple[str, ...]
    vectors: Tensor
    reach: Tensor
    origin: Tensor | None = None

    def __post_init__(self):
        shape, reaches = tuple(self.vectors.shape), tuple(self.reach.shape)
        if len(shape) != 2 or not len(self.names) == shape[0] > 0 or reaches != shape[:1]:
            raise ValueError(f"{len(self.names)} names, vectors of shape {shape} and reaches of "
                             f"shape {reaches} do not belong together")
        if not (self.reach.isfinite() & (self.reach >= 0)).all():
            raise ValueError(f"a reach must be finite and not negative: {self.reach.tolist()}")
        if self.origin is not None and self.origin.shape != (16, shape[1]):
            raise ValueError(f"origin must have shape (16, {shape[1]}), 16 w of the vectors' "
                             f"width, not {tuple(self.origin.shape)}")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> Tensor:
        """The unit vector (w_dim,) of that name."""
        return self.pick([name]).vectors[0]

    def pick(self, names: Sequence[str]) -> Directions:
        """Those directions, in that order. Raises ValueError that lists the names."""
        names = [names] if isinstance(names, str) else names
        for name in names:
            if name not in self.names:
                raise ValueError(f"there is no direction {name!r}; there are: "
                                 f"{', '.join(self.names)}")
        rows = [self.names.index(name) for name in names]
        return Directions(tuple(names), self.vectors[rows], self.reach[rows], self.origin)

    def belong_to(self, G: StyleGenerator) -> bool:
        """Whether they were found in G's W, or near it, as in that of a teacher whose mapping it
        inherited; True where that is not known."""
        if self.origin is None:
            return True
        if self.vectors.shape[1] != G.w_dim:
            return False
        ours, theirs = (w - w.mean(dim=0) for w in (w_of_fixed_z(G), self.origin))
        return bool((ours * theirs).sum() > 0.9 * ours.norm() * theirs.norm())


def save_directions(directions: Directions, path: str | Path) -> Path:
    """Save as safetensors, the names in the metadata."""
    parts = {name: getattr(directions, name) for name in ("vectors", "reach", "origin")}
    tensors = {name: part.cpu().contiguous() for name, part in parts.items() if part is not None}
    metadata = {"gapkd": "1", "kind": "directions", "names": json.dumps(directions.names)}
    return write_atomically(path, to_bytes(tensors, metadata))


def load_directions(path: str | Path) -> Directions:
    """Load what `save_directions` wrote. Raises ValueError for anything else."""
    path, mend = at_home(path), "with `gapkd directions`"
    if not path.is_file():
        raise ValueError(f"there is no file of directions {path}: write one {mend}")
    check_utf8(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("kind") == "directions":
            tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
            names = tuple(map(str, json.loads(metadata["names"])))
            if not all(tensor.isfinite().all() for tensor in tensors.values()):
                raise ValueError("some numbers in it are not finite")
            return Directions(names, tensors["vectors"], tensors["reach"], tensors.get("origin"))
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no file of directions ({error}): write it anew "
                         f"{mend}") from error
    raise ValueError(f"{path} holds no directions: write such a file {mend}")


# -- finding directions --------------------------------------------------------------------------


def w_of_fixed_z(G: StyleGenerator) -> Tensor:
    """w (16, w_dim) of always the same z, on the CPU: what tells one W from another."""
    return draw_w(G, 16, seed=0).cpu()


def reach_of(G: StyleGenerator) -> float:
    """Radius of W, the root mean square distance of w from its mean: a long step, since it lies
    along one direction what w spreads over all of them."""
    w = draw_w(G, 4000, seed=0)
    return (w - w.mean(dim=0)).square().sum(dim=1).mean().sqrt().item()


def _directions_in(G: StyleGenerator, names: Sequence[str], vectors: Tensor) -> Directions:
    """As far as W is wide, and marked as G's."""
    reach = torch.full((len(vectors),), reach_of(G))
    return Directions(tuple(names), vectors, reach, w_of_fixed_z(G))


def sefa(G: StyleGenerator, count: int = 6) -> Directions:
    """The leading SeFa directions of all layers together, which need no data and bear no names."""
    blocks = range(len(G.synthesis.blocks))
    vectors = sefa_directions(G, blocks, "global", per_block=count)[:count]
    return _directions_in(G, [f"SeFa {i + 1}" for i in range(len(vectors))], vectors)


def draw_readings(G: StyleGenerator, net: AttributeNetwork, samples: int = 5000, seed: int = 0
                  ) -> Readings:
    """w (samples, w_dim) and what the attribute network reads off the images drawn from them, on
    the CPU: factor -> (samples,) values if continuous, class numbers if categorical."""
    w = draw_w(G, samples, seed)
    return w.cpu(), _read(G, net, w)


def _read(G: StyleGenerator, net: AttributeNetwork, w: Tensor) -> Reading:
    return agreement.read_factors(
        net, (G.synthesis(part).image.clamp(-1, 1) for part in w.split(100)))


def factor_directions(G: StyleGenerator, net: AttributeNetwork, wanted: Sequence[str] | None = None,
                      alone: bool = True, samples: int = 5000, seed: int = 0,
                      readings: Readings | None = None) -> Directions:
    """One direction in W for every factor that the attribute network reads.

    Each factor is explained by a linear function of w: a continuous one by ridge regression, a
    category by logistic regression, one class against the rest. The gradient of that function is
    where the factor grows quickest (the normal of Shen et al., *InterFaceGAN*, CVPR 2020), but
    other factors move along with it. So, if `alone`, the direction is the shortest step that raises
    this function and leaves those of all other factors as they are: a column of the pseudo-inverse
    of all gradients together.

    Args:
        wanted: names as in `direction_names`; None: all of them.
        alone: False for the plain gradient.
        readings: of `draw_readings`, if those are there already; else `samples` images are read.
    Returns: directions whose reach is the radius of W (`reach_of`).
    """
    names = direction_names(net)
    wanted = [wanted] if isinstance(wanted, str) else wanted
    for name in wanted or ():
        if name not in names:
            raise ValueError(f"there is no factor {name!r}; there are: {', '.join(names)}")
    w, read = readings or draw_readings(G, net, samples, seed)
    w = (w - w.mean(dim=0)).double()
    gradients: dict[str, Tensor] = {}
    for name, target in zip(names, _shown(net, read).double().unbind(dim=1), strict=True):
        asked = alone or not wanted or name in wanted
        if asked and target.std() > 1e-6:  # else all images are the same: nothing to learn
            scaled = (target - target.mean()) / target.std()
            continuous = name in net.continuous
            gradients[name] = _least_squares(w, scaled) if continuous else _logistic(w, target)
    for name in wanted or ():
        if name not in gradients:
            raise ValueError(f"{name!r} is the same in all {len(w)} images: there is nothing to "
                             "learn it from")
    if not gradients:
        raise ValueError(f"all {len(w)} images look the same: there is nothing to learn from")
    found = torch.stack(list(gradients.values()))                                    # (F, w_dim)
    if alone:
        found = torch.linalg.pinv(found).t()
    unit = torch.nn.functional.normalize(found, dim=1).float()
    directions = _directions_in(G, list(gradients), unit)
    return directions.pick(wanted) if wanted else directions


def linear_fit(net: AttributeNetwork, readings: Readings) -> dict[str, float]:
    """How far each factor is a linear function of w at all: the share of its variance (of a
    category, that of showing the class) that the fit explains on a fifth of the samples, which it
    has not seen. Readings: of `draw_readings`."""
    w, read = readings
    w, known = (w - w.mean(dim=0)).double(), len(w) - len(w) // 5
    y = _shown(net, read).double()                                                   # (N, F)
    y = y - y[:known].mean(dim=0)
    error = y[known:] - w[known:] @ _least_squares(w[:known], y[:known])
    share = error.square().mean(dim=0) / y[known:].var(dim=0).clamp(min=1e-12)
    return dict(zip(direction_names(net), (1 - share).tolist(), strict=True))


def direction_names(net: AttributeNetwork) -> list[str]:
    """A name for each direction: the factor's, or "factor: class" where it has more than two."""
    names = []
    for factor, classes in net.categorical.items():
        names += [factor] if len(classes) == 2 else [f"{factor}: {label}" for label in classes]
    return names + list(net.continuous)


def _shown(net: AttributeNetwork, read: Reading) -> Tensor:
    """A column for each of `direction_names`, (N, F): the values of a continuous factor, or 1 where
    the image shows the class."""
    columns = []
    for factor, classes in net.categorical.items():
        shown = torch.nn.functional.one_hot(read[factor], len(classes)).float()
        columns.append(shown[:, 1:] if len(classes) == 2 else shown)
    return torch.cat([*columns, *(read[factor][:, None] for factor in net.continuous)], dim=1)


def _least_squares(x: Tensor, y: Tensor, ridge: float = 0.3) -> Tensor:
    """Gradient (D,) or (D, F) of the linear function of x (N, D) that explains y (N,) or (N, F).
    The ridge is in units of x's mean variance: without it the many dimensions of W that hardly vary
    take over."""
    penalty = ridge * x.square().mean() * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(x.t() @ x / len(x) + penalty, x.t() @ y / len(x))


def _logistic(x: Tensor, y: Tensor, ridge: float = 0.03) -> Tensor:
    """Gradient of the log-odds of y = 1 as a linear function of x (N, D), by Newton's method."""
    x, width = torch.cat([x, x.new_ones(len(x), 1)], dim=1), x.shape[1]
    penalty = ridge * x[:, :width].square().mean() * torch.ones(width + 1, dtype=x.dtype)
    penalty[width] = 1e-9  # the constant is free
    b = torch.zeros_like(penalty)
    b[width] = torch.logit(y.mean())
    for _ in range(30):  # at most
        p = torch.sigmoid(x @ b)
        curvature = (x * (p * (1 - p))[:, None]).t() @ x / len(x) + torch.diag(penalty)
        step = torch.linalg.solve(curvature, x.t() @ (p - y) / len(x) + penalty * b)
        b = b - step
        if step.abs().max() < 1e-8:
            break
    return b[:width]


# -- measuring edits -----------------------------------------------------------------------------


class EditEffect(NamedTuple):
    """What steps along one direction do to the images of one generator, over many latents.

    name: of the direction.
    moved: change of the factor that it is named after from one end to the other: in its standard
        deviations if it is continuous, in share of the images that show the class if not.
    drift: mean absolute change of the other continuous factors, in their standard deviations.
    """

    name: str
    moved: float
    drift: float


def measure_edits(G: StyleGenerator, net: AttributeNetwork, directions: Directions,
                  share: float = 0.5, samples: int = 300, seed: int = 5) -> list[EditEffect]:
    """Move many w's by -share and +share of every direction's reach, and read what became of the
    images. The directions are named as `direction_names` does."""
    names, effects = direction_names(net), []
    for name in directions.names:
        if name not in names:
            raise ValueError(f"there is no factor {name!r} that could be measured: factor_changes "
                             "takes directions of any name")
    walk = _walk(G, net, directions, share, samples, seed)
    for name, (low, middle, high) in zip(directions.names, walk, strict=True):
        units, own = _units(net, middle), names.index(name)
        moved = (high - low).mean(dim=0) / units
        drift = (torch.stack([low, high]) - middle).abs().mean(dim=1) / units        # (2, F)
        rest = [n for n, other in enumerate(names) if other in net.continuous and n != own]
        effects.append(EditEffect(name, moved[own].item(), drift[:, rest].mean().item()))
    return effects


def factor_changes(G: StyleGenerator, net: AttributeNetwork, directions: Directions,
                   share: float = 0.5, samples: int = 300, seed: int = 5) -> Tensor:
    """What steps along each direction do to every factor, on average over many latents, whatever
    its name says.

    Args:
        seed: of the latents; another one than a network's first weights were drawn with, whose
            latents give it extreme images.
    Returns: (K, F), factors as in `direction_names`: change from one end to the other, in standard
        deviations of the factor if it is continuous, in share of the images if it is a class.
    """
    rows = []
    for low, middle, high in _walk(G, net, directions, share, samples, seed):
        rows.append((high - low).mean(dim=0) / _units(net, middle))
    return torch.stack(rows)


class EditAgreement:
    """Whether a student does with the teacher's directions what the teacher does.

    Of a student, the correlation, over all directions (SeFa's first, and one for every factor) and
    all factors, of what a step does to the factor in both networks. 1: the same up to scale; 0:
    nothing of the teacher's directions is left. Factors are the continuous ones of the attribute
    network, or its classes where it knows no others.
    """

    def __init__(self, teacher: StyleGenerator, net: AttributeNetwork, samples: int = 200,
                 looked_at: int = 5000):
        self.net, self.samples = net, samples
        names = direction_names(net)
        asked = [name for name in names if name in net.continuous] or names
        self.factors = [names.index(name) for name in asked]
        first, named = sefa(teacher), factor_directions(teacher, net, samples=looked_at)
        named = named.pick([name for name in asked if name in named.names] or named.names)
        vectors = torch.cat([first.vectors.to(named.vectors), named.vectors])
        reach = torch.cat([first.reach, named.reach])
        self.directions = Directions(first.names + named.names, vectors, reach)
        self.wanted = self._changes(teacher)

    @exactly()
    def _changes(self, G: StyleGenerator) -> Tensor:
        # The seed of all records, although to the embedded 64 px teacher half of it is extreme.
        changes = factor_changes(G, self.net, self.directions, samples=self.samples, seed=1)
        return changes[:, self.factors].flatten()

    def __call__(self, student: StyleGenerator) -> float:
        both = torch.stack([self.wanted, self._changes(student)])
        return torch.corrcoef(both)[0, 1].item() if (both.std(dim=1) > 0).all() else 0.0


def _walk(G: StyleGenerator, net: AttributeNetwork, directions: Directions, share: float,
          samples: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For every direction what is shown at -share, 0 and +share of its reach, (N, F) each."""
    w = draw_w(G, samples, seed)
    middle = _shown(net, _read(G, net, w))
    for vector, reach in zip(directions.vectors, directions.reach, strict=True):
        step = share * reach * vector.to(w)
        low, high = (_shown(net, _read(G, net, moved)) for moved in (w - step, w + step))
        yield low, middle, high


def _units(net: AttributeNetwork, shown: Tensor) -> Tensor:
    """What changes are counted in, (F,): a continuous factor's deviation, 1 for a class."""
    classes = shown.shape[1] - len(net.continuous)
    return torch.cat([torch.ones(classes), shown[:, classes:].std(dim=0).clamp(min=1e-6)])

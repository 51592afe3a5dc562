"""The mapping network f: Z -> W, which every family shares: it decides the semantics of the image,
and the paper's student inherits it whole (section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gapkd.networks.layers import EqualLinear, full_precision


def described(given: object) -> str:
    """What stands where a tensor of some shape should, for a message."""
    if isinstance(given, Tensor):
        return str(tuple(given.shape))
    return "None" if given is None else f"a {type(given).__name__} (torch.tensor makes one of it)"


def normalise(x: Tensor) -> Tensor:
    """Scale each row to unit mean square. (N, C) -> (N, C)."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class MappingNetwork(nn.Module):
    """An MLP whose layers learn at a hundredth of the rate.

    Args:
        z_dim: width of z; 0 for a network fed by the label alone (in a conditional discriminator).
        w_dim: width of w.
        layers: depth.
        c_dim: number of classes, 0 for none.
    Shape: z (N, z_dim), one-hot labels c (N, c_dim) -> w (N, w_dim).
    """

    def __init__(self, z_dim: int, w_dim: int, layers: int = 8, c_dim: int = 0):
        super().__init__()
        self.z_dim, self.w_dim, self.c_dim = z_dim, w_dim, c_dim
        self.embed = EqualLinear(c_dim, w_dim) if c_dim else None
        widths = [z_dim + (w_dim if c_dim else 0)] + [w_dim] * layers
        self.layers = nn.ModuleList(
            EqualLinear(i, o, lr_multiplier=0.01, activate=True)
            for i, o in zip(widths, widths[1:], strict=False))
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z: Tensor | None, c: Tensor | None = None) -> Tensor:
        parts = []
        if self.z_dim:
            z = self._rows("z must have shape", z, self.z_dim)
            parts.append(normalise(z))
        if self.embed is not None:
            c = self._rows("this network is conditional: give one-hot labels c of shape", c,
                           self.c_dim)
            if parts and c.shape[0] != z.shape[0]:
                raise ValueError(f"c must have {z.shape[0]} rows, one for each z, not {c.shape[0]}")
        with full_precision(c if z is None else z):  # small and sensitive: always full precision
            if self.embed is not None:
                parts.append(normalise(self.embed(c)))
            x = torch.cat(parts, dim=1)  # (N, z_dim [+ w_dim])
            for layer in self.layers:
                x = layer(x)
        return x  # (N, w_dim)

    def _rows(self, message: str, given: Tensor | None, width: int) -> Tensor:
        """z or c in the weights' dtype. Raises ValueError for another shape."""
        if not isinstance(given, Tensor) or given.ndim != 2 or given.shape[1] != width:
            raise ValueError(f"{message} (N, {width}), not {described(given)}")
        return given.to(self.w_avg.dtype)

    @torch.no_grad()
    def track(self, w: Tensor) -> None:
        """Move the running average w_avg towards the mean of w (N, w_dim), half a percent of the
        way; once a training step. An average that is still zero begins with that mean, so that
        short trainings have one."""
        mean = w.detach().float().mean(dim=0)
        begun = self.w_avg.any()  # stays on the device: a step is replayed as a CUDA graph
        self.w_avg.lerp_(mean, torch.where(begun, 0.005, 1.0).to(mean))


def mix_styles(w_a: Tensor, w_b: Tensor, crossover: int, num_ws: int) -> Tensor:
    """Coarse layers from w_a, layers `crossover` and finer from w_b.

    Shape: (N, w_dim) twice -> (N, num_ws, w_dim).
    """
    if not 0 <= crossover <= num_ws:
        raise ValueError(f"crossover must lie between 0 and num_ws = {num_ws}, not {crossover}")
    coarse = w_a[:, None].expand(-1, crossover, -1)
    fine = w_b[:, None].expand(-1, num_ws - crossover, -1)
    return torch.cat([coarse, fine], dim=1)

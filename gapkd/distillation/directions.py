"""Latent directions of a generator, and the offsets drawn along them (section 4.1).

Directions are SeFa's (Shen and Zhou, *Closed-Form Factorization of Latent Semantics in GANs*, CVPR
2021): the unit vectors in W that the style affines of a block amplify most, found in closed form
from the weights alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gapkd.networks.base import StyleGenerator


def style_weight(G: StyleGenerator, block: int) -> Tensor:
    """The style-affine weights of a block's convolutions, stacked, every row of unit length:
    (sum of their input channels, w_dim)."""
    weight = torch.cat([conv.affine.weight.detach() for conv in G.synthesis.blocks[block].convs])
    return normalize(weight, dim=1)


def leading_eigenvectors(weight: Tensor, count: int) -> Tensor:
    """Unit eigenvectors of A^T A for its largest eigenvalues, largest first:
    A (rows, w_dim) -> (count, w_dim)."""
    weight = weight.double()
    # A symmetric matrix: eigh sorts the eigenvalues, smallest first; a general solver does not.
    _, vectors = torch.linalg.eigh(weight.t() @ weight)  # columns
    return vectors.flip(1)[:, :count].t()


def sefa_directions(G: StyleGenerator, blocks: Sequence[int], mode: str = "split",
                    per_block: int = 5) -> Tensor:
    """SeFa directions of the given blocks (1 = 8x8, of a StyleGAN3 layer 1; the
    paper uses 1..max(mimic layers)).

    Args:
        mode: "split", `per_block` directions of every block, pooled; "global", all blocks stacked
            first, then `per_block` x blocks directions.
    Returns: (per_block x blocks, w_dim), of G's dtype; in "global" mode w_dim rows at most.
    Raises ValueError for another mode, or blocks that G lacks.
    Source: section 4.1; Shen and Zhou 2021.
    """
    check_blocks("blocks", blocks, G, first=0)
    weights = [style_weight(G, b) for b in blocks]
    if mode == "split":
        directions = torch.cat([leading_eigenvectors(weight, per_block) for weight in weights])
    elif mode == "global":
        directions = leading_eigenvectors(torch.cat(weights), per_block * len(blocks))
    else:
        raise ValueError(f'mode must be "split" or "global", not {mode!r}')
    return directions.to(weights[0].dtype)


def check_blocks(name: str, blocks: Sequence[int], G: StyleGenerator, first: int = 1) -> None:
    """Raise ValueError unless there are blocks, and G has them."""
    last = len(G.synthesis.blocks) - 1
    if not blocks or not all(first <= b <= last for b in blocks):
        raise ValueError(f"{name} must name blocks {first} to {last} of the {G.resolution} px "
                         f"{G.kind}, not {list(blocks)}")


def draw_offsets(n: int, w_dim: int, strength: float, generator: torch.Generator,
                 directions: Tensor | None = None) -> Tensor:
    """One offset per sample: a random direction times N(0, 1) times strength.

    Args:
        strength: the paper's 5.0 belongs to 512 dimensions; choose yours by the spread of your W.
        directions: (K, w_dim), unit rows to choose from; None for a uniformly random direction.
    Returns: (n, w_dim).
    """
    by = {"generator": generator, "device": generator.device}
    if directions is None:
        drawn = normalize(torch.randn(n, w_dim, **by), dim=1)
    else:
        drawn = directions.to(generator.device)[torch.randint(len(directions), (n,), **by)]
    return drawn * torch.randn(n, 1, **by) * strength

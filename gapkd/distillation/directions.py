"""Latent directions of a generator and the offsets drawn along them.

Directions are SeFa's (Shen and Zhou, *Closed-Form Factorization of Latent Semantics in GANs*, CVPR 2021): the unit
vectors in W that the style affines of a block amplify most, found in closed form from the weights alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gapkd.networks.stylegan2 import Generator


def style_weight(G: Generator, block: int) -> Tensor:
    """The style-affine weights of a block's convolutions, stacked, every row of unit length. (rows, w_dim)

    A block has two convolutions, so rows = the sum of their input channels; the 4x4 block (0) has one.
    """
    weight = torch.cat([conv.affine.weight.detach() for conv in G.synthesis.blocks[block].convs])
    return torch.nn.functional.normalize(weight, dim=1)


def leading_eigenvectors(weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues of W^T W, largest first, and their eigenvectors. (rows, w_dim) -> (count,) and
    (count, w_dim), unit rows.

    W^T W is symmetric, so the symmetric solver applies; it returns ascending eigenvalues (a general solver returns
    them in no order, and its first columns are not the leading ones).
    """
    weight = weight.double()
    values, vectors = torch.linalg.eigh(weight.t() @ weight)
    return values.flip(0)[:count], vectors.flip(1)[:, :count].t()


def sefa_directions(G: Generator, blocks: Sequence[int], mode: str = "split", per_block: int = 5,
                    weighted: bool = False) -> Tensor:
    """SeFa directions of the given blocks.

    Args:
        G: the teacher.
        blocks: block numbers, 1 = 8x8 (the paper uses 1..max(mimic layers)).
        mode: "split", `per_block` directions of every block, pooled; "global", all blocks stacked first, then
            `per_block` x blocks directions.
        weighted: give every direction the length of the root of its eigenvalue a row: how much the affines, with rows
            of length 1, amplify it, on average over the styles. All are divided by their root mean square. By default
            all have length 1, as in the paper.
    Returns: (per_block x blocks, w_dim), the dtype of G's weights; fewer rows in "global" mode when that is more than
        w_dim.
    """
    blocks = list(blocks)
    known = len(G.synthesis.blocks)
    wrong = [b for b in blocks if not 0 <= b < known]
    if wrong or not blocks:
        raise ValueError(f"blocks must name blocks 0 to {known - 1} of this {G.resolution} px network, not {blocks}")
    weights = [style_weight(G, b) for b in blocks]
    if mode == "split":
        stacked, count = weights, per_block
    elif mode == "global":
        stacked, count = [torch.cat(weights)], per_block * len(blocks)
    else:
        raise ValueError(f'mode must be "split" or "global", not {mode!r}')
    values, vectors = zip(*(leading_eigenvectors(w, count) for w in stacked), strict=True)
    directions = torch.cat(vectors)
    if weighted:
        gains = torch.cat([v.clamp(min=0) / len(w) for v, w in zip(values, stacked, strict=True)])
        directions = directions * (gains / gains.mean()).sqrt()[:, None]
    return directions.to(weights[0].dtype)


def draw_offsets(n: int, w_dim: int, strength: float, generator: torch.Generator,
                 directions: Tensor | None = None) -> Tensor:
    """One offset a sample: a random direction times strength times N(0, 1). (n, w_dim)

    Args:
        strength: the paper's 5.0 belongs to a 512-dimensional W; compare it with the spread of your W.
        directions: (K, w_dim) rows to choose from ("main" offsets), of length 1 unless weighted; None for a uniformly
            random direction.
    """
    device = generator.device
    if directions is None:
        drawn = torch.nn.functional.normalize(torch.randn(n, w_dim, generator=generator, device=device), dim=1)
    else:
        drawn = directions.to(device)[torch.randint(len(directions), (n,), generator=generator, device=device)]
    return drawn * torch.randn(n, 1, generator=generator, device=device) * strength

"""Every loss of the project: adversarial, its two regularisers, and the terms that compare student and teacher.

Each is a function from tensors to a scalar. The teacher's side is detached inside, so that no gradient reaches it.
Equation numbers refer to Xu et al., *Mind the Gap in Distilling StyleGANs* (ECCV 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gapkd.networks.layers import full_precision

# ---------------------------------------------------------------------------------------------- adversarial


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Logistic loss of the discriminator: softplus(-D(x)) + softplus(D(G(z))). Logits (N, 1)."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating loss of the generator: softplus(-D(G(z))). Logits (N, 1)."""
    return F.softplus(-fake_logits).mean()


def relativistic_loss(better: Tensor, worse: Tensor) -> Tensor:
    """How far each image of a pair still is from being taken for the better one: softplus(D(worse) - D(better)).
    The discriminator wants the real image to be better, the generator its own. Logits (N, 1).

    Source: R3GAN (Huang et al. 2024), equation 1, after Jolicoeur-Martineau 2018.
    """
    return F.softplus(worse - better).mean()


def r1_penalty(real_logits: Tensor, real_images: Tensor) -> Tensor:
    """Mean squared gradient norm of D on real images (Mescheder et al. 2018), without its gamma / 2.

    Args:
        real_logits: D(real_images), (N, 1), computed with real_images.requires_grad.
        real_images: (N, 3, R, R).
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real_images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def path_lengths(images: Tensor, ws: Tensor, noise: Tensor) -> Tensor:
    """Length of J^T y for a random image direction y: how far the image moves for a step in W. (N,)

    Args:
        images: (N, 3, R, R), a function of ws.
        ws: (N, num_ws, w_dim) with requires_grad.
        noise: standard normal, the shape of images; scaled here by 1 / R.
    Source: StyleGAN2, section 3.2.
    """
    direction = noise / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * direction).sum(), ws, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()


def path_penalty(lengths: Tensor, target: Tensor | float) -> Tensor:
    """Mean squared deviation of path lengths (N,) from their running mean."""
    return (lengths - target).square().mean()


# ---------------------------------------------------------------------------------------------- image pairs


def rgb_loss(student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor],
             mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference of images, summed over levels where several are given.

    Args:
        student, teacher: (N, 3, R, R), or lists of such, one a level ("intermediate" mode: every toRGB output).
        mask: (N, 1, R, R) in [0, 1], the content of interest of the *teacher* image; both images are multiplied
            by it, reduced to each level's size by area averaging.
    """
    students = [student] if isinstance(student, Tensor) else list(student)
    teachers = [teacher] if isinstance(teacher, Tensor) else list(teacher)
    if len(students) != len(teachers):
        raise ValueError(f"student has {len(students)} levels, teacher has {len(teachers)}: "
                         "give the same levels of both")
    total = students[0].new_zeros(())
    for s, t in zip(students, teachers, strict=True):
        difference = s - t.detach()
        if mask is not None:
            difference = difference * F.interpolate(mask, size=s.shape[2:], mode="area")
        total = total + difference.abs().mean()
    return total


def perceptual_loss(distance: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor,
                    mask: Tensor | None = None) -> Tensor:
    """Mean perceptual distance of image pairs (N, 3, R, R).

    Args:
        distance: maps two image batches to (N,), for example LPIPS or gapkd.metrics.features.perceptual_distance.
        mask: as in `rgb_loss`; masked pixels are set to mid-grey in both images.
    """
    teacher = teacher.detach()
    if mask is not None:
        student, teacher = student * mask, teacher * mask
    return distance(student, teacher).mean()


# ---------------------------------------------------------------------------------------------- features


def feature_loss(guesses: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    """Feature regression (Romero et al., *FitNets*, 2015): squared error of the teacher's features as guessed from the
    student's, over the teacher's mean square, summed over blocks. Guesses of 0 give 1 a block.

    Args:
        guesses, teacher_features: one tensor (N, C, r, r) a block, the same shapes on either side.
    """
    total = guesses[0].new_zeros((), dtype=torch.float32)
    for guess, features in zip(guesses, teacher_features, strict=True):
        features = features.detach().float()
        total = total + (guess.float() - features).square().mean() / features.square().mean().clamp(min=1e-8)
    return total


# ---------------------------------------------------------------------------------------------- latent directions


def relation_matrix(rows: Tensor, columns: Tensor) -> Tensor:
    """S[i, j] = cosine of the flattened features of row image i and column image j. (N, ...) twice -> (N, N).

    N images give N x N relations whatever the width of the features: this is what makes two networks with other
    channel counts comparable (section 4.2).
    """
    with full_precision(rows):
        dtype = torch.promote_types(rows.dtype, torch.float32)
        # A cosine does not depend on the order of the entries: the channels-last one needs no copy.
        rows, columns = (f.movedim(1, -1).flatten(1).to(dtype) for f in (rows, columns))
        norms = torch.outer(torch.linalg.vector_norm(rows, dim=1), torch.linalg.vector_norm(columns, dim=1))
        return rows @ columns.t() / norms.clamp(min=1e-8)


def latent_direction_loss(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor],
                          kind: str = "kl", views: int = 2,
                          gather: Callable[[Tensor], Tensor] = lambda x: x,
                          earlier: Sequence[Sequence[tuple[Tensor, ...]]] = ()) -> Tensor:
    """Compare how the features of two networks relate across a batch moved along latent directions (section 4.2).

    Args:
        student_features, teacher_features: one tensor a block, the same blocks of both networks. With two views each
            holds 2N images: N for w, then N for w + offset, in the same order; with one view N images.
            Shapes (2N, C, r, r); C and r may differ between student and teacher.
        kind: "kl", sum over blocks of KL(softmax(S_teacher) || softmax(S_student)) over each row, batch mean,
            temperature 1; or "mse", the mean squared difference of the matrices.
        views: 2 relates w_i to w_j + o_j; 1 relates the w among themselves.
        gather: where several processes hold a batch together, gives the rows of all: relations then reach across.
        earlier: batches of images, to which the rows are related as well: for every block the student's and the
            teacher's features, (M, C, r, r). No gradient reaches them.
    Returns: a scalar; 0 where the relations are equal.
    """
    if kind not in ("kl", "mse"):
        raise ValueError(f'kind must be "kl" or "mse", not {kind!r}')
    if views not in (1, 2):
        raise ValueError(f"views must be 1 or 2, not {views!r}")
    if len(student_features) != len(teacher_features) or not student_features:
        raise ValueError(f"student has {len(student_features)} blocks of features, teacher has "
                         f"{len(teacher_features)}: give the same blocks of both, at least one")
    total = student_features[0].new_zeros((), dtype=torch.promote_types(student_features[0].dtype, torch.float32))
    for b, (s, t) in enumerate(zip(student_features, teacher_features, strict=True)):
        if len(s) != len(t) or len(s) % views:
            raise ValueError(f"features hold {len(s)} (student) and {len(t)} (teacher) images: "
                             f"both must hold the same multiple of {views}")
        n = len(s) // views
        t = t.detach()
        columns = [(gather(s[-n:]), gather(t[-n:])), *(tuple(f.detach() for f in batch[b]) for batch in earlier)]
        relation_s, relation_t = (torch.cat([relation_matrix(rows[:n], pair[net]) for pair in columns], dim=1)
                                  for net, rows in enumerate((s, t)))
        if kind == "kl":
            term = F.kl_div(relation_s.log_softmax(dim=1), relation_t.softmax(dim=1), reduction="batchmean")
        else:
            term = F.mse_loss(relation_s, relation_t)
        total = total + term
    return total


def balance(loss: Tensor, reference: Tensor, at: Sequence[Tensor], mean: Callable[[Tensor], Tensor] = lambda x: x,
            most: float = 1e4) -> Tensor:
    """The factor that makes a loss pull at some features as strongly as another one does: the ratio of the norms of the
    two gradients, a scalar without gradient. (As Esser et al., *Taming Transformers*, CVPR 2021, weigh a GAN's loss.)

    Args:
        at: tensors that both losses depend on.
        mean: where several processes hold a batch together, averages over them.
        most: upper bound, for a loss whose gradient all but vanishes.
    """
    scale = 2.0**14  # without it float16 would round small gradients to 0
    gradients = [torch.autograd.grad(scale * x, at, retain_graph=True) for x in (reference, loss)]
    reference_square, square = mean(torch.stack([sum(g.float().square().sum() for g in found) for found in gradients]))
    return (reference_square / square.clamp(min=1e-30)).sqrt().clamp(max=most)

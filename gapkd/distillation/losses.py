"""The terms that compare student and teacher (section 4 of Xu et al., *Mind the Gap in Distilling
StyleGANs*, ECCV 2022). Each is a function from tensors to a scalar; the teacher's side is detached,
so that no gradient reaches it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gapkd.networks.layers import full_precision


def rgb_loss(student: Sequence[Tensor], teacher: Sequence[Tensor],
             mask: Tensor | None = None) -> Tensor:
    """L_rgb: mean absolute difference of images, summed over levels.

    Args:
        student, teacher: one (N, 3, r, r) a level: the output image alone, or every toRGB output
            (the "intermediate" mode of the released code).
        mask: (N, 1, R, R) in [0, 1], the content of the *teacher* image: a factor of both images,
            reduced to each level's size by area averaging.
    """
    if len(student) != len(teacher):
        raise ValueError(f"student has {len(student)} levels, teacher has {len(teacher)}: give the "
                         "same levels of both")
    total = student[0].new_zeros(())
    for s, t in zip(student, teacher, strict=True):
        difference = s - t.detach()
        if mask is not None:
            difference = difference * F.interpolate(mask, size=s.shape[2:], mode="area")
        total = total + difference.abs().mean()
    return total


def perceptual_loss(distance: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor,
                    mask: Tensor | None = None) -> Tensor:
    """L_lpips: mean perceptual distance of image pairs (N, 3, R, R).

    Args:
        distance: maps two image batches to (N,), for example LPIPS.
        mask: as in `rgb_loss`; pixels outside it are set to mid-grey in both images.
    """
    teacher = teacher.detach()
    if mask is not None:
        student, teacher = student * mask, teacher * mask
    return distance(student, teacher).mean()


def feature_loss(guesses: Sequence[Tensor], teacher_features: Sequence[Tensor],
                 mean: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """Feature regression (Romero et al., *FitNets*, 2015), a baseline: mean squared error of the
    teacher's features (N, C, r, r), predicted from the student's, divided by the teacher's mean
    square; summed over blocks. `mean` averages over processes that share a batch."""
    total = guesses[0].new_zeros((), dtype=torch.float32)
    for guess, features in zip(guesses, teacher_features, strict=True):
        features = features.detach().float()
        error = (guess.float() - features).square().mean()
        total = total + error / mean(features.square().mean()).clamp(min=1e-8)
    return total


def moment_loss(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Distribution matching after DiME (Yeo et al., *Nickel and Diming Your GAN*, ECCV 2024), whose
    maximum mean discrepancy is reduced to two moments: how far those of a batch's features (N, F)
    lie from those of very many images of the teacher, mean and standard deviation (F,). In units of
    the latter, absolute, averaged over features. No image is compared with another one."""
    standard = (features - mean) / std.clamp(min=1e-8)
    first, second = standard.mean(dim=0), standard.square().mean(dim=0) - 1
    return first.abs().mean() + second.abs().mean()


def relation_matrix(rows: Tensor, columns: Tensor) -> Tensor:
    """S[i, j] = cosine of the flattened features of row image i and column image j:
    (N, C, r, r) and (M, C, r, r) -> (N, M), float32.

    N images give N x N relations whatever the width of the features: networks with other channel
    counts become comparable (section 4.2).
    """
    with full_precision(rows):
        dtype = torch.promote_types(rows.dtype, torch.float32)
        # A cosine does not depend on the order of the entries: the channels-last one needs no copy.
        rows = rows.movedim(1, -1).flatten(1).to(dtype)  # (N, r r C)
        columns = columns.movedim(1, -1).flatten(1).to(dtype)
        lengths = torch.outer(rows.norm(dim=1), columns.norm(dim=1))  # (N, M)
        return rows @ columns.t() / lengths.clamp(min=1e-8)


def latent_direction_loss(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor],
                          kind: str = "kl", views: int = 2) -> Tensor:
    """L_ld: do the features of both networks relate alike across a batch that was moved along
    latent directions? (Section 4.2.)

    Args:
        student_features, teacher_features: one (2N, C, r, r) a block, the same blocks of both: N
            images of w, then N of w + offset, in the same order. C and r may differ between the
            networks.
        kind: "kl", KL(softmax(S_teacher) || softmax(S_student)) of each row, batch mean; or "mse",
            the mean squared difference of the matrices (`distill` uses "kl"). Summed over blocks.
        views: 2 relates w_i to w_j + offset_j; 1 relates N images of w among themselves.
    Raises ValueError for features that do not fit together, or of one image alone.
    """
    _check_features(student_features, teacher_features, kind, views)
    total = 0.0
    for s, t in zip(student_features, teacher_features, strict=True):
        n = len(s) // views
        ours = relation_matrix(s[:n], s[-n:])  # (N, N)
        theirs = relation_matrix(t[:n].detach(), t[-n:].detach())
        if kind == "kl":
            log_ours, theirs = ours.log_softmax(dim=1), theirs.softmax(dim=1)
            total = total + F.kl_div(log_ours, theirs, reduction="batchmean")
        else:
            total = total + F.mse_loss(ours, theirs)
    return total


def _check_features(student: Sequence[Tensor], teacher: Sequence[Tensor], kind: str, views: int):
    if kind not in ("kl", "mse") or views not in (1, 2):
        raise ValueError(f'kind must be "kl" or "mse", views 1 or 2, not {kind!r} and {views!r}')
    if len(student) != len(teacher) or not student:
        raise ValueError(f"student has {len(student)} blocks of features, teacher has "
                         f"{len(teacher)}: give the same blocks of both, at least one")
    for s, t in zip(student, teacher, strict=True):
        if len(s) != len(t) or len(s) % views or len(s) == views:
            raise ValueError(f"features hold {len(s)} (student) and {len(t)} (teacher) images: "
                             f"both must hold the same multiple of {views}, and of one image alone "
                             "the loss is always 0: give at least 2")

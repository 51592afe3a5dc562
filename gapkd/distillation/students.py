"""A narrower network of the same kind, and what it inherits from its teacher."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gapkd.distillation.pruning import SCORES, AnyGenerator
from gapkd.distillation.slimming import slim
from gapkd.networks.stylegan2 import Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator

MAPPINGS = ("inherit", "inherit-frozen", "random")
SYNTHESES = ("random", *SCORES, "slimmed")
# Students draw from seeds of their own: with the teacher's seed, a "random" mapping network of the same shape would be
# the one the teacher started from, and at its small learning rate (multiplier 0.01) that is nearly the trained one.
FIRST_STUDENT_SEED = 1_000_000


def kept_channels(channels: int, keep: float) -> int:
    """The paper's rule: remove floor((1 - keep) c) channels. keep 0.3: 512 -> 154, 256 -> 77, 64 -> 20."""
    return channels - math.floor(round((1 - keep) * channels, 6))


def check_request(teacher: AnyGenerator, keep: float, kernel: int, mapping: str, synthesis: str) -> None:
    """Raise the ValueError that `make_student` would raise."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep must lie in (0, 1], not {keep}: it is the fraction of channels that stay")
    if mapping not in MAPPINGS:
        raise ValueError(f"mapping must be one of {', '.join(MAPPINGS)}, not {mapping!r}")
    if synthesis not in SYNTHESES:
        raise ValueError(f"synthesis must be one of {', '.join(SYNTHESES)}, not {synthesis!r}")
    alias_free = isinstance(teacher, AliasFreeGenerator)
    if alias_free and kernel not in (3, teacher.kernel):
        raise ValueError(f"a StyleGAN3 student has its teacher's kernel {teacher.kernel}: leave kernel at its default")
    if synthesis != "random" and not alias_free and kernel != teacher.kernel:
        raise ValueError(f'synthesis="{synthesis}" copies weights, so kernel must be the teacher\'s '
                         f"{teacher.kernel}, not {kernel}")


def make_student(teacher: AnyGenerator, keep: float = 0.3, kernel: int = 3, mapping: str = "inherit",
                 synthesis: str = "random", seed: int = 0, content: Callable[[Tensor], Tensor] | None = None,
                 slimming_images: int = 20_000) -> AnyGenerator:
    """A student for `teacher`: `keep` of its channels in every layer, and its mapping network if you want it.

    Args:
        teacher: the network to shrink; not changed.
        keep: fraction of channels kept in every layer, in (0, 1].
        kernel: kernel of every block's second convolution; 1 is the paper's heterogeneous student. (A StyleGAN3
            student has its teacher's kernels.)
        mapping: "inherit", the teacher's mapping network, weights and all (the paper's finding); "inherit-frozen",
            the same, not trained further; "random", the same architecture with fresh weights.
        synthesis: "random", fresh weights (the paper); or the teacher's weights of the channels with the highest score
            (gapkd.distillation.pruning): "pruned", by magnitude; "pruned-content" (CAGAN); "pruned-diversity"
            (DCP-GAN); or "slimmed", those of a copy of the teacher whose channels learned to do without
            (gapkd.distillation.slimming).
        seed: of the fresh weights; the caller's random state is left alone.
        content: for "pruned-content", maps images (N, 3, R, R) to masks (N, 1, R, R) in [0, 1] of what matters.
        slimming_images: for "slimmed", length of that training.
    Returns: a network of the teacher's kind in train mode. Constant noise maps are the teacher's, so that both
        networks can be compared at the same noise.
    """
    check_request(teacher, keep, kernel, mapping, synthesis)
    alias_free = isinstance(teacher, AliasFreeGenerator)
    if alias_free:
        changes = {"channels": [kept_channels(c, keep) for c in teacher.channels]}
    else:
        changes = {"channels": [[kept_channels(c, keep) for c in pair] for pair in teacher.channels], "kernel": kernel}
    device = next(teacher.parameters()).device
    with torch.random.fork_rng():
        torch.manual_seed(FIRST_STUDENT_SEED + seed)
        student = type(teacher)(**teacher.architecture() | changes).to(device)
    if mapping != "random":
        student.mapping.load_state_dict(copy.deepcopy(teacher.mapping.state_dict()))
        student.mapping.requires_grad_(mapping == "inherit")
    if not alias_free:
        for ours, theirs in zip(student.synthesis.convs, teacher.synthesis.convs, strict=True):
            ours.noise_const.copy_(theirs.noise_const)
    if synthesis != "random":
        source = teacher
        if synthesis == "slimmed":
            source, scores = slim(teacher, slimming_images, seed=seed)
        else:
            scores = SCORES[synthesis](teacher, **({"content": content} if synthesis == "pruned-content" else {}))
        (copy_pruned_alias_free if alias_free else copy_pruned)(student, source, scores)
    return student


@torch.no_grad()
def copy_pruned(student: Generator, teacher: Generator, scores: list[Tensor]) -> None:
    """Copy the teacher's weights of the highest-scored channels into the student, in place.

    Args:
        student: narrower than its teacher: weights (O', C', k, k) where the teacher's are (O, C, k, k).
        scores: one (C,) for each of the teacher's `pruning.readers`; the C' highest of each layer stay.
    """
    ours, theirs = student.synthesis.convs, teacher.synthesis.convs
    widths = [conv.conv.weight.shape[1] for conv in ours] + [student.synthesis.blocks[-1].torgb.conv.weight.shape[1]]
    kept = [score.topk(width).indices.sort().values for score, width in zip(scores, widths, strict=True)]

    student.synthesis.const.copy_(teacher.synthesis.const[:, kept[0]])
    for layer, (s, t) in enumerate(zip(ours, theirs, strict=True)):
        rows, columns = kept[layer + 1], kept[layer]  # what leaves this convolution enters the next
        s.conv.weight.copy_(t.conv.weight[rows][:, columns])
        s.bias.copy_(t.bias[rows])
        s.noise_strength.copy_(t.noise_strength)
        _copy_affine(s.affine, t.affine, columns)
    after = 0  # a block's toRGB reads what its second convolution wrote
    for s_block, t_block in zip(student.synthesis.blocks, teacher.synthesis.blocks, strict=True):
        after += len(s_block.convs)
        columns = kept[after]
        s_rgb, t_rgb = s_block.torgb.conv, t_block.torgb.conv
        # toRGB is not demodulated, so its equalised gain 1 / sqrt(fan-in) counts: copy the weight as used.
        s_rgb.weight.copy_(t_rgb.weight[:, columns] * (t_rgb.scale / s_rgb.scale))
        s_block.torgb.bias.copy_(t_block.torgb.bias)
        _copy_affine(s_block.torgb.affine, t_block.torgb.affine, columns)


@torch.no_grad()
def copy_pruned_alias_free(student: AliasFreeGenerator, teacher: AliasFreeGenerator, scores: list[Tensor]) -> None:
    """As `copy_pruned`, for StyleGAN3: the Fourier features of the kept input channels are copied with them."""
    ours, theirs = student.synthesis.layers, teacher.synthesis.layers
    kept = [score.topk(layer.weight.shape[1]).indices.sort().values for score, layer in zip(scores, ours, strict=True)]
    # The input mixes its sines by a square matrix: with channel c the sine of the same number is kept. Like toRGB it is
    # not demodulated, so its gain 1 / sqrt(width) counts: copy the weight as used.
    s, t, rows = student.synthesis.input, teacher.synthesis.input, kept[0]
    s.freqs.copy_(t.freqs[rows])
    s.phases.copy_(t.phases[rows])
    s.weight.copy_(t.weight[rows][:, rows] * math.sqrt(len(rows) / len(t.weight)))
    s.affine.load_state_dict(t.affine.state_dict())
    for layer, (s, t) in enumerate(zip(ours, theirs, strict=True)):
        columns = kept[layer]
        rows = slice(None) if t.plan.torgb else kept[layer + 1]
        weight = t.weight[rows][:, columns]
        s.weight.copy_(weight * math.sqrt(weight[0].numel() / t.weight[0].numel()) if t.plan.torgb else weight)
        s.bias.copy_(t.bias[rows])
        s.magnitude_ema.copy_(t.magnitude_ema)
        _copy_affine(s.affine, t.affine, columns)


def _copy_affine(ours: nn.Module, theirs: nn.Module, rows: Tensor) -> None:
    ours.weight.copy_(theirs.weight[rows])
    ours.bias.copy_(theirs.bias[rows])

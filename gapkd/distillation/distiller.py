"""What the teacher adds to the generator's step: the three comparisons of the paper's total loss (section 4), and the
feature regression that they are compared with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gapkd import parallel
from gapkd.distillation import losses
from gapkd.distillation.directions import draw_offsets, sefa_directions
from gapkd.files.checkpoints import load_discriminator, read_metadata
from gapkd.metrics import features
from gapkd.networks.base import StyleGenerator
from gapkd.settings import DistillConfig


def distance_for(name: str, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """The perceptual distance of that name, as of `DistillConfig.perceptual`: (N, 3, R, R) twice -> (N,)."""
    if name == "lpips":
        return features.lpips_distance(device)
    judged = name == "toyfaces" or read_metadata(name)["kind"] == features.KIND
    network = (features.reader(name) if judged else load_discriminator(name)).to(device)
    return lambda a, b: features.perceptual_distance(network, a, b)


def make_regressors(student: StyleGenerator, teacher: StyleGenerator, blocks: Sequence[int],
                    seed: int) -> nn.ModuleList:
    """One 1x1 convolution a block, from the student's feature channels to the teacher's (FitNets). They are trained
    with the student and not kept."""
    ours, theirs = student.feature_widths(), teacher.feature_widths()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.ModuleList(nn.Conv2d(ours[b], theirs[b], 1) for b in blocks)


class Guide:
    """A frozen teacher and the comparisons with it.

    Args:
        config: weights and options of the losses.
        teacher: on the device of the training.
        content_mask: see `gapkd.distill`.
        student: for the regressors of `feature_weight`, which fit no other one.
    """

    def __init__(self, config: DistillConfig, teacher: StyleGenerator, content_mask: Callable | None = None,
                 student: StyleGenerator | None = None):
        self.config, self.gan_weight, self.content_mask = config, config.gan_weight, content_mask
        self.teacher = teacher.eval().requires_grad_(False)
        last = len(teacher.synthesis.blocks) - 1
        for kind, used in (("feature", config.feature_weight), ("ld", config.compares_directions)):
            blocks = getattr(config, f"{kind}_blocks")
            if used and not all(1 <= b <= last for b in blocks):
                raise ValueError(f"{kind}_blocks must name blocks 1 to {last} of the {teacher.resolution} px teacher, "
                                 f"not {list(blocks)}")
        device = next(teacher.parameters()).device
        self.distance = distance_for(config.perceptual, device) if config.perceptual_weight else None
        self.regressors = nn.ModuleList()
        if config.feature_weight:
            if student is None:
                raise ValueError("feature_weight needs the student, whose features its regressors must fit: "
                                 "Guide(config, teacher, student=student)")
            self.regressors = make_regressors(student, teacher, config.feature_blocks, config.seed).to(device)
        self.directions = None
        if config.compares_directions and config.ld_offsets != "random":
            self.directions = sefa_directions(teacher, range(1, max(config.ld_blocks) + 1), config.ld_offsets,
                                              weighted=config.ld_eigenvalues)
        self.queue: deque[list[tuple[Tensor, ...]]] = deque(maxlen=config.ld_queue)
        """Features of earlier batches: student's and teacher's, one pair a block."""

    def draw_offsets(self, n: int, rng: torch.Generator) -> Tensor | None:
        """Steps in W that the second view takes, (n, w_dim); None where there is no second view."""
        c = self.config
        if not c.compares_directions or c.ld_views == 1:
            return None
        return draw_offsets(n, self.teacher.w_dim, c.ld_strength, rng, self.directions)

    def compare(self, student: StyleGenerator, ws: Tensor, teacher_ws: Tensor, noise: list[Tensor],
                offsets: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Run both networks on the same latents and noise maps.

        Args:
            ws, teacher_ws: (N, num_ws, w_dim), each network's own.
            noise: maps (N, 1, r, r), given to both.
            offsets: (N, w_dim), from `draw_offsets`.
        Returns: student images (N, 3, R, R) for the discriminator, weighted sum of the losses, the losses by name.
        Raises ValueError for a student of another w_dim or resolution.
        """
        if (student.w_dim, student.resolution) != (self.teacher.w_dim, self.teacher.resolution):
            raise ValueError(f"student (w_dim {student.w_dim}, {student.resolution} px) and teacher (w_dim "
                             f"{self.teacher.w_dim}, {self.teacher.resolution} px) cannot be compared: "
                             "make the student with make_student(teacher)")
        c, n = self.config, len(ws)
        if offsets is not None:  # 2N rows: w, then w + offset under the same noise
            steps = offsets[:, None]
            ws, teacher_ws = torch.cat([ws, ws + steps]), torch.cat([teacher_ws, teacher_ws + steps])
            noise = [torch.cat([m, m]) for m in noise]
        ours = student.synthesis(ws, noise=noise)
        image, total, parts = ours.image[:n], ws.new_zeros(()), {}
        if not (c.rgb_weight or c.perceptual_weight or c.feature_weight or c.compares_directions):
            return image, total, parts
        with torch.no_grad():
            theirs = self.teacher.synthesis(teacher_ws, noise=noise)
            mask = self.content_mask(theirs.image[:n]) if self.content_mask else None
        if c.rgb_weight:
            levels = slice(-1, None) if c.rgb_levels == "last" else slice(None)
            parts["rgb"] = losses.rgb_loss([r[:n] for r in ours.rgbs[levels]],
                                           [r[:n] for r in theirs.rgbs[levels]], mask)
            total = total + c.rgb_weight * parts["rgb"]
        if c.perceptual_weight:
            parts["perceptual"] = losses.perceptual_loss(self.distance, image, theirs.image[:n], mask)
            total = total + c.perceptual_weight * parts["perceptual"]
        if c.feature_weight:
            guesses = [regress(ours.features[b][:n])
                       for regress, b in zip(self.regressors, c.feature_blocks, strict=True)]
            parts["feature"] = losses.feature_loss(guesses, [theirs.features[b][:n] for b in c.feature_blocks])
            total = total + c.feature_weight * parts["feature"]
        if c.compares_directions:
            ours_ld, theirs_ld = ([out.features[b] for b in c.ld_blocks] for out in (ours, theirs))
            parts["ld"] = losses.latent_direction_loss(ours_ld, theirs_ld, c.ld_kind, c.ld_views, parallel.gather,
                                                       self.queue)
            weight = c.ld_weight
            if c.ld_balance:
                weight = parts["ld_weight"] = c.ld_balance * losses.balance(
                    parts["ld"], c.rgb_weight * parts["rgb"], ours_ld, parallel.mean)
            total = total + weight * parts["ld"]
            if c.ld_queue:
                self.queue.append([tuple(parallel.gather(f[-n:].detach().clone()) for f in pair)
                                   for pair in zip(ours_ld, theirs_ld, strict=True)])
        return image, total, parts

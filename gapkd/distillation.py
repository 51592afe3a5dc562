"""What the teacher adds to the generator's step: the three comparisons of the paper's total loss (section 4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gapkd import losses, parallel
from gapkd.directions import draw_offsets, sefa_directions
from gapkd.settings import DistillConfig
from gapkd.stylegan2 import Generator


def distance_for(name: str, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """The perceptual distance of that name: (N, 3, R, R) twice -> (N,)."""
    from gapkd import features

    if name == "lpips":
        return features.lpips_distance(device)
    network = features.reader(name, device)
    return lambda a, b: features.perceptual_distance(network, a, b)


class Guide:
    """A frozen teacher and the comparisons with it.

    Args:
        config: weights and options of the losses.
        teacher: on the device of the training.
        content_mask: see `gapkd.distill`.
    """

    def __init__(self, config: DistillConfig, teacher: Generator, content_mask: Callable | None = None):
        self.config, self.gan_weight, self.content_mask = config, config.gan_weight, content_mask
        self.teacher = teacher.eval().requires_grad_(False)
        last = len(teacher.synthesis.blocks) - 1
        if config.ld_weight and not all(1 <= b <= last for b in config.ld_blocks):
            raise ValueError(f"ld_blocks must name blocks 1 to {last} of the {teacher.resolution} px teacher, "
                             f"not {list(config.ld_blocks)}")
        device = next(teacher.parameters()).device
        self.distance = distance_for(config.perceptual, device) if config.perceptual_weight else None
        self.directions = None
        if config.ld_weight and config.ld_offsets != "random":
            self.directions = sefa_directions(teacher, range(1, max(config.ld_blocks) + 1), config.ld_offsets)

    def draw_offsets(self, n: int, rng: torch.Generator) -> Tensor | None:
        """Steps in W that the second view takes, (n, w_dim); None where there is no second view."""
        c = self.config
        if not c.ld_weight or c.ld_views == 1:
            return None
        return draw_offsets(n, self.teacher.w_dim, c.ld_strength, rng, self.directions)

    def compare(self, student: Generator, ws: Tensor, teacher_ws: Tensor, noise: list[Tensor],
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
        if not (c.rgb_weight or c.perceptual_weight or c.ld_weight):
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
        if c.ld_weight:
            parts["ld"] = losses.latent_direction_loss([ours.features[b] for b in c.ld_blocks],
                                                       [theirs.features[b] for b in c.ld_blocks], c.ld_kind, c.ld_views,
                                                       parallel.gather)
            total = total + c.ld_weight * parts["ld"]
        return image, total, parts

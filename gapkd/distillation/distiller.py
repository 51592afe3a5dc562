"""The paper's total loss (section 4): how a frozen teacher judges what its student draws.

    total = L_gan + 3 L_rgb + 3 L_lpips + 30 L_ld

L_gan is the training's (training/adversarial.py); here are the other three, and those of two
baselines: feature regression, and distribution matching.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from gapkd import parallel
from gapkd.distillation import losses
from gapkd.distillation.directions import check_blocks, draw_offsets, sefa_directions
from gapkd.networks.base import StyleGenerator, SynthesisOutput
from gapkd.parallel import seeded
from gapkd.settings import DistillConfig


class Distiller:
    """Compares what a student and its teacher made of the same latents and the same noise maps.

        offsets = distiller.draw_offsets(n, rng)        # (N, w_dim): steps along latent directions
        ... both networks draw N images of w, then N of w + offset ...
        losses = distiller(student_out, teacher_out)    # {"rgb": ..., "perceptual": ..., "ld": ...}
        loss = distiller.total(losses)

    Args:
        teacher: on the device of the training; frozen here.
        perceptual: distance of image batches (N, 3, R, R) twice -> (N,); None: no perceptual loss.
        config: weights and options of the losses; a loss of weight 0 is not computed.
        content_mask: maps teacher images to masks (N, 1, R, R) in [0, 1], the only region that the
            rgb and perceptual losses compare.
        regressors: for the feature regression, see `make_regressors`.
        moments: for the distribution matching.
    Raises ValueError for blocks that the teacher does not have.
    """

    def __init__(self, teacher: StyleGenerator,
                 perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
                 config: DistillConfig | None = None,
                 content_mask: Callable[[Tensor], Tensor] | None = None,
                 regressors: nn.ModuleList | None = None, moments: Moments | None = None):
        self.config = c = config or DistillConfig()
        self.teacher = teacher.eval().requires_grad_(False)
        if c.feature_weight and not regressors:
            raise ValueError("feature_weight needs regressors: give those of make_regressors")
        if c.moment_weight and not moments:
            raise ValueError("moment_weight needs moments: give those of the teacher's images")
        self.perceptual, self.content_mask = perceptual, content_mask
        self.regressors, self.moments = regressors or nn.ModuleList(), moments
        self.weights = {"rgb": c.rgb_weight, "ld": c.ld_weight, "feature": c.feature_weight,
                        "moment": c.moment_weight,
                        "perceptual": c.perceptual_weight if perceptual else 0.0}
        self.compares = any(self.weights.values())  # whether any loss needs the teacher
        if self.weights["ld"]:
            check_blocks("ld_blocks", c.ld_blocks, teacher)
        self.views = 2 if self.weights["ld"] and c.ld_offsets != "none" else 1
        self.directions = None
        if self.views == 2 and c.ld_offsets != "random":
            blocks = range(1, max(c.ld_blocks) + 1)  # the paper's: 8x8 to the last one compared
            self.directions = sefa_directions(teacher, blocks, c.ld_offsets)

    def draw_offsets(self, n: int, rng: torch.Generator) -> Tensor | None:
        """The steps in W that lead to the second view, (n, w_dim); None where there is none."""
        if self.views == 1:
            return None
        return draw_offsets(n, self.teacher.w_dim, self.config.ld_strength, rng, self.directions)

    def __call__(self, student: SynthesisOutput, teacher: SynthesisOutput) -> dict[str, Tensor]:
        """The losses by name, without their weights.

        Both are of N latents w and, with two views, N of w + offset; the images of w alone meet
        the rgb and perceptual losses.
        """
        if student.image.shape != teacher.image.shape:
            raise ValueError(f"student and teacher drew images of {tuple(student.image.shape)} and "
                             f"{tuple(teacher.image.shape)}: make the student with "
                             "make_student(teacher)")
        c, n = self.config, len(student.image) // self.views
        image, target = student.image[:n], teacher.image[:n]
        with torch.no_grad():
            mask = self.content_mask(target) if self.content_mask else None
        found = {}
        if self.weights["rgb"]:
            levels = slice(None) if c.rgb_levels == "all" else slice(-1, None)
            ours, theirs = ([x[:n] for x in out.rgbs[levels]] for out in (student, teacher))
            found["rgb"] = losses.rgb_loss(ours, theirs, mask)
        if self.weights["perceptual"]:
            found["perceptual"] = losses.perceptual_loss(self.perceptual, image, target, mask)
        if self.weights["feature"]:
            features = [student.features[b][:n] for b in c.ld_blocks]
            guesses = [guess(f) for guess, f in zip(self.regressors, features, strict=True)]
            targets = [teacher.features[b][:n] for b in c.ld_blocks]
            found["feature"] = losses.feature_loss(guesses, targets, parallel.mean)
        if self.weights["moment"]:
            found["moment"] = self.moments.loss(image)
        if self.weights["ld"]:
            ours, theirs = self.gathered(student), self.gathered(teacher)
            found["ld"] = losses.latent_direction_loss(ours, theirs, views=self.views)
        return found

    def gathered(self, out: SynthesisOutput) -> list[Tensor]:
        """The blocks' features of both views, of all processes: relations reach across them."""
        features = [out.features[b] for b in self.config.ld_blocks]
        if parallel.count() == 1:
            return features
        views = [[parallel.gather(view) for view in f.chunk(self.views)] for f in features]
        return [torch.cat(both) for both in views]

    def total(self, found: dict[str, Tensor]) -> Tensor:
        """The weighted sum of named losses."""
        return sum(self.weights[name] * loss for name, loss in found.items())


class Moments:
    """What an embedding sees in very many images of the teacher, for the distribution matching.

    Args:
        embed: images (N, 3, R, R) -> features (N, F).
        images: batches of the teacher's images.
    """

    def __init__(self, embed: Callable[[Tensor], Tensor], images: Iterable[Tensor]):
        self.embed = embed
        with torch.no_grad():
            seen = torch.cat([embed(batch) for batch in images])
        self.std, self.mean = torch.std_mean(seen, dim=0)  # (F,)

    def loss(self, images: Tensor) -> Tensor:
        """`moment_loss` of a batch that may be spread over processes."""
        return losses.moment_loss(parallel.gather(self.embed(images)), self.mean, self.std)


def two_views(ws: Tensor, offsets: Tensor | None) -> Tensor:
    """w, then w + offset: (N, num_ws, w_dim) and (N, w_dim) -> (2N, num_ws, w_dim)."""
    return ws if offsets is None else torch.cat([ws, ws + offsets[:, None]])


def make_regressors(student: StyleGenerator, teacher: StyleGenerator, blocks: Sequence[int],
                    seed: int) -> nn.ModuleList:
    """One 1x1 convolution a block, from the student's feature channels to the teacher's (FitNets).
    They are trained with the student and not kept."""
    for G in (teacher, student):
        check_blocks("ld_blocks", blocks, G)
    ours, theirs = student.feature_widths(), teacher.feature_widths()
    with seeded(seed):
        return nn.ModuleList(nn.Conv2d(ours[b], theirs[b], 1) for b in blocks)

"""Who inherits what (section 3): a smaller network, and what it takes over from its teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gapkd.distillation.pruning import SCORES, slim
from gapkd.networks.base import StyleGenerator
from gapkd.networks.families import STUDENT_KINDS
from gapkd.parallel import seeded

MAPPINGS = ("inherit", "inherit-frozen", "random")
SYNTHESES = ("random", *SCORES, "slimmed")
# With the teacher's seed, a "random" mapping network of the same shape would be the one the teacher
# started from, and at its small learning rate (multiplier 0.01) that is nearly the trained one.
FIRST_STUDENT_SEED = 1_000_000


@torch.inference_mode(False)  # gradients are on, whatever the caller's mode
def make_student(teacher: StyleGenerator, keep: float = 0.3, kernel: int = 3,
                 mapping: str = "inherit", synthesis: str = "random", seed: int = 0,
                 content: Callable[[Tensor], Tensor] | None = None, slimming_images: int = 20_000,
                 kind: str = "same", progress: bool = False) -> StyleGenerator:
    """A student for `teacher`: `keep` of its channels in every layer, and its mapping network.

    Args:
        keep: fraction of channels kept in every layer, in (0, 1].
        kernel: of every block's second convolution; 1 is the paper's heterogeneous student.
        mapping: "inherit", the teacher's mapping network, weights and all (the paper's finding);
            "inherit-frozen", the same, not trained further; "random", fresh weights.
        synthesis: "random", fresh weights (the paper); or the teacher's weights of the channels
            with the highest score (pruning.py): "pruned", "pruned-content", "pruned-diversity",
            or "slimmed".
        seed: of fresh weights and of slimming (scored channels do not depend on it); the caller's
            random state is left alone.
        content: for "pruned-content", maps images (N, 3, R, R) to masks (N, 1, R, R) in [0, 1] of
            what matters.
        slimming_images: for "slimmed", length of that training.
        kind: "same", the teacher's family; "mobile", MobileStyleGAN's wavelet-domain network.
        progress: show a bar while channels are scored or slimmed, which may take minutes.
    Returns: a network in eval mode, with the teacher's constant noise maps; without noise where
        the teacher has none. The teacher stays as it is. Raises ValueError for a student that
        cannot be.
    """
    family, architecture = check_request(teacher, keep, kernel, mapping, synthesis, kind)
    if not -2**63 <= seed < 2**63:
        raise ValueError(f"seed must be below 2^63, not {seed}")
    device = next(teacher.parameters()).device
    with seeded(FIRST_STUDENT_SEED + seed):
        student = family(**architecture).to(device)
    if mapping != "random":
        student.mapping.load_state_dict(teacher.mapping.state_dict())
        student.mapping.requires_grad_(mapping == "inherit")
    student.copy_noise(teacher)
    if teacher.silent:
        student.silence()
    if synthesis == "slimmed":
        copy_pruned(student, *slim(teacher, slimming_images, seed=seed, progress=progress))
    elif synthesis != "random":
        options = {} if synthesis == "pruned" else {"progress": progress}
        if synthesis == "pruned-content":
            options["content"] = content
        copy_pruned(student, teacher, SCORES[synthesis](teacher, **options))
    return student.eval()


def check_request(teacher: StyleGenerator, keep: float, kernel: int, mapping: str, synthesis: str,
                  kind: str = "same") -> tuple[type[StyleGenerator], dict]:
    """The student's family and architecture. Raises the ValueError that `make_student` would."""
    if not isinstance(teacher, StyleGenerator):
        raise ValueError(f"teacher must be a generator, not a {type(teacher).__name__}: "
                         "gapkd.load_generator gives one for a file or name")
    if not 0 < keep <= 1:
        raise ValueError(f"keep must lie in (0, 1], not {keep}: it is the fraction of channels "
                         "that stay")
    for name, value, known in (("mapping", mapping, MAPPINGS), ("kind", kind, STUDENT_KINDS),
                               ("synthesis", synthesis, SYNTHESES)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
    family = STUDENT_KINDS[kind] or type(teacher)
    if family is not type(teacher) and synthesis != "random":
        raise ValueError(f'synthesis="{synthesis}" copies weights, which a student of another '
                         'family cannot take over: choose synthesis="random", or kind="same"')
    architecture = family.student_of(teacher, keep, kernel)
    own = teacher.architecture()
    if synthesis != "random" and architecture.get("kernel") != own.get("kernel"):
        raise ValueError(f'synthesis="{synthesis}" copies weights, so kernel must be the '
                         f"teacher's {own['kernel']}, not {kernel}")
    return family, architecture


def copy_pruned(student: StyleGenerator, teacher: StyleGenerator, scores: list[Tensor]) -> None:
    """Copy the teacher's weights of the highest-scored channels into a narrower student of its
    family, in place. Scores: one (C,) for each of the teacher's `readers`."""
    kept = []
    for score, readers in zip(scores, student.readers(), strict=True):
        width = readers[0].weight.shape[1]
        kept.append(score.topk(width).indices.sort().values)
    student.copy_channels(teacher, kept)

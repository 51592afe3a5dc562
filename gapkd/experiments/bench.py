"""Where runs are measured: the same teacher, real images and judges for all of them."""

from __future__ import annotations

import sys

import torch

from gapkd.data.datasets import open_dataset, ordered_indices
from gapkd.files.checkpoints import load_generator
from gapkd.files.provenance import provenance
from gapkd.metrics.agreement import agreement_probe
from gapkd.metrics.attributes import reader
from gapkd.metrics.editing import EditAgreement
from gapkd.metrics.equivariance import equivariance
from gapkd.metrics.evaluation import (
    evaluate_generator,
    evaluation_table,
    measure_latent_space,
    real_features,
    shares_for,
)
from gapkd.networks.base import StyleGenerator
from gapkd.settings import DistillConfig, shareable, to_dict
from gapkd.training.loop import distill

PROBED = ("l1", "perceptual", "agree_mean_accuracy", "agree_mean_correlation")
"""What is measured while a student trains, beside the FID; a record's curve keeps it."""
SECOND = ("fid_", "agree_mean", "perceptual")
"""What the second judge is asked for; the names begin with second_."""
LATENTS, REAL = 20_000, 99
"""Seeds of the students' latents and of the real images."""
PROJECTED = 64
"""Images that are looked for in the latent space."""


class Bench:
    """Trains and measures.

    Args:
        teacher, data: as in DistillConfig.
        judge: what reads faces: "toyfaces", or a file that `gapkd judge` wrote.
        samples: images of the last evaluation.
        second_judge: another one, that was no student's perceptual loss: a method may please the
            first without having come nearer. Empty: none.
    """

    def __init__(self, teacher: str, judge: str, data: str, samples: int, second_judge: str,
                 device: torch.device):
        self.device, self.samples = device, samples
        self.teacher = load_generator(teacher).to(self.device)
        self.dataset = open_dataset(data, self.teacher.resolution, seed=REAL)
        self.net = reader(judge, self.device)
        self.judges = {"": self.net}
        if second_judge:
            self.judges["second_"] = reader(second_judge, self.device)
        self.real = {prefix: real_features(judge, self.dataset, samples, seed=REAL)
                     for prefix, judge in self.judges.items()}
        self.edits = EditAgreement(self.teacher, self.net)
        self.marks = {}
        if data != "toyfaces":
            self.marks["listing_sha256"] = self.dataset.checksum()
        # Toy faces of this seed are new to every run; of a folder, these were trained on.
        self.targets = self.dataset.load(ordered_indices(self.dataset.size, 0, PROJECTED, 98))

    def train(self, settings: DistillConfig) -> dict:
        """Distil, measure on the way and at the end: a run's record."""
        result, curve = distill(settings, agreement_probe(self.teacher, self.net)), []
        print(f"{settings.out}: trained, is being measured", file=sys.stderr, flush=True)
        for line in result.log:
            point = {name: value for name, value in line.items()
                     if name in PROBED or name.startswith("fid_")}
            if point:
                curve.append({"images": line["images"], **point})
        return {"seed": settings.seed, "settings": shareable(to_dict(settings)),
                "images": settings.images, "seconds": result.log[-1]["seconds"],
                **provenance(self.device), **self.marks, "curve": curve,
                "final": self.measure(result.generator)}

    def measure(self, G: StyleGenerator) -> dict[str, float]:
        """All figures of a trained student."""
        G = G.to(self.device)
        final = {}
        for prefix, judge in self.judges.items():
            found = evaluate_generator(G, judge, self.samples, LATENTS, self.teacher,
                                       self.real[prefix], shares=shares_for(G, self.dataset))
            final |= _named(found, prefix)
        return final | {"agree_edits": self.edits(G)} | self._of_the_network(G)

    def references(self) -> dict[str, dict[str, float]]:
        """What gives the figures their scale: {"real": real images against others, "teacher"}."""
        references = {"real": {}, "teacher": {}}
        for prefix, judge in self.judges.items():
            rows = evaluation_table({}, judge, self.dataset, self.teacher, self.samples, REAL)
            for row in rows:
                references[row.pop("name")] |= _named(row, prefix)
        references["teacher"] |= self._of_the_network(self.teacher)
        return references

    def _of_the_network(self, G: StyleGenerator) -> dict[str, float]:
        """Figures that need no other network: the latent space and, in dB, equivariance."""
        found = measure_latent_space(G, self.net, self.targets)
        if G.movable:
            found |= {"eq_t": equivariance(G, "translation"), "eq_r": equivariance(G, "rotation")}
        return found


def _named(figures: dict[str, float], prefix: str) -> dict[str, float]:
    """All figures of the first judge; those of SECOND of the second one, with its prefix."""
    if not prefix:
        return figures
    return {prefix + name: value for name, value in figures.items() if name.startswith(SECOND)}

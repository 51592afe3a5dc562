"""The longer runs behind the chapters: arms x seeds, same data, same budget, one record a run.

Each arm is a DistillConfig with a few fields changed, trained by `gapkd.distill`; what is already in the results file
is skipped, so that a study can be stopped and taken up again, and extended by another seed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gapkd.data.datasets import open_dataset, ordered_indices
from gapkd.distillation.pruning import AnyGenerator
from gapkd.files.checkpoints import load_generator, read_metadata, sha256, write_atomically
from gapkd.metrics.distribution import same_z_distance, semantic_agreement
from gapkd.metrics.editing import EditAgreement
from gapkd.metrics.equivariance import equivariance
from gapkd.metrics.evaluation import (
    evaluate_generator,
    evaluation_table,
    measure_latent_space,
    real_features,
    sample_images,
)
from gapkd.metrics.features import AttributeNetwork, reader
from gapkd.metrics.judge import JudgeConfig
from gapkd.networks.stylegan2 import Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator
from gapkd.settings import DistillConfig, TrainConfig, command_line, from_dict, shareable, to_dict
from gapkd.training.loop import Probe, choose_device, distill
from gapkd.training.runs import provenance
from gapkd.viewing import figures

ARMS: dict[str, dict] = {
    "alone": {"mapping": "random", "rgb_weight": 0.0, "perceptual_weight": 0.0, "ld_weight": 0.0},
    "random": {"mapping": "random", "ld_weight": 0.0},
    "inherit": {"ld_weight": 0.0},
    "inherit-frozen": {"mapping": "inherit-frozen", "ld_weight": 0.0},
    "pruned": {"synthesis": "pruned", "ld_weight": 0.0},
    "full": {},
    "pruned-full": {"synthesis": "pruned", "noise": False},
}
"""What each arm changes in DistillConfig: "full" is the paper's method, the ones before it leave something out, and the
last one is what chapter 04 trains: pruned weights to start from, and no noise, so that minutes suffice."""


CURVE = ("images", "l1", "perceptual", "agree_mean_accuracy", "agree_mean_correlation", "ld_weight")
"""What a record keeps of the figures that were measured while it trained; ld_weight where ld_balance finds it."""


@dataclass(frozen=True)
class StudyConfig:
    """Train every arm with every seed and collect the figures in one JSON file."""

    arms: tuple[str, ...] = tuple(ARMS)
    """Which arms, in this order within a seed."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run of every arm for each."""
    teacher: str = "toyfaces32"
    """The teacher's file, or the name of an embedded one."""
    data: str = "toyfaces"
    """"toyfaces", or the path of a folder or zip of images."""
    judge: str = "toyfaces"
    """The network behind perceptual loss, FID and agreement: the embedded one, or a file that `gapkd judge` wrote."""
    ld_blocks: tuple[int, ...] = DistillConfig.ld_blocks
    """Blocks whose features the latent-direction loss compares; a StyleGAN3's are its layers."""
    images: int = 100_000
    """Length of every run."""
    samples: int = 5000
    """Images of the last evaluation."""
    results: str = "runs/study/results.json"
    """The file that collects the records; runs that it holds are skipped."""
    folder: str = "runs/study"
    """Where the runs themselves go; an interrupted one is resumed."""
    story: str = ""
    """PNG to draw at the end: the teacher's faces above those of the first seed's students; empty: none."""
    device: str = "auto"
    """Where the students are trained and measured."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self):
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown:
            raise ValueError(f"there is no arm {unknown[0]}: choose from {', '.join(ARMS)}")


def agreement_probe(teacher: Generator, net: AttributeNetwork, samples: int = 1000, seed: int = 10_000) -> Probe:
    """A probe for `distill`: distance to and agreement with the teacher on fixed latents, constant noise.

    Returns a function of a generator that gives l1, perceptual, agree_mean_accuracy and agree_mean_correlation (as far
    as the network reads factors of both kinds), and the chance level of each as l1_chance and so on.
    """
    reference = torch.cat(list(sample_images(teacher, samples, seed)))

    def probe(G: Generator) -> dict[str, float]:
        images = torch.cat([part.to(reference.device) for part in sample_images(G, samples, seed)])
        numbers = same_z_distance(images, reference, net)
        agreement = semantic_agreement(net, images, reference)
        for name in agreement.keys() & {"mean_accuracy", "mean_correlation"}:
            numbers[f"agree_{name}"], numbers[f"agree_{name}_chance"] = agreement[name].value, agreement[name].chance
        return numbers

    return probe


def run_study(config: StudyConfig) -> list[dict]:
    """Train what is missing and return all records; the file is rewritten after every run.

    Raises ValueError when the results file belongs to another study: another teacher, sample count or setting.
    """
    file, net, digest = Path(config.results), reader(config.judge), sha256(config.teacher)
    stored = json.loads(file.read_text()) if file.exists() else {}
    study = {"teacher": Path(config.teacher).name, "teacher_sha256": digest, "samples": config.samples}
    if config.data != "toyfaces":
        study["data"] = Path(config.data).name
    # A network that nobody else has: say how it came about.
    if Path(config.teacher).exists():
        study["teacher_origin"] = _origin(config.teacher)
    if config.judge != "toyfaces":
        study["judge"] = Path(config.judge).name
        study["judge_sha256"], study["judge_origin"] = sha256(config.judge), _origin(config.judge)
    for name, value in study.items():
        if stored and stored.get(name) != value:
            raise ValueError(f"{file} holds a study with {name}={stored.get(name)}, not {value}: "
                             "choose another results file")
    records: list[dict] = stored.get("runs", [])
    runs = {(arm, seed): _settings(config, arm, seed) for seed in config.seeds for arm in config.arms}
    for settings, record in ((s, r) for s in runs.values() for r in records):
        _refuse_another_study(file, shareable(to_dict(settings)), record)
    for record in records:
        runs.pop((record["arm"], record["seed"]), None)
    if runs:
        bench = Bench(config.teacher, net, config.data, config.samples, device=choose_device(config.device))
        references = stored.get("references") or bench.references()
    for (arm, _), settings in runs.items():
        records.append({"arm": arm, **bench.train(settings)})
        write_atomically(file, json.dumps({**study, "references": references, "runs": records}, indent=1).encode())
        print(in_a_line(records[-1]), flush=True)
    if config.story:
        rows = story_rows(config)
        title = f"The same twelve latents: a teacher and its students after {config.images:,} images"
        write_atomically(config.story, figures.to_png(figures.compare_rows(rows, title, ncols=12)))
    return records


class Bench:
    """Where runs are measured: the same teacher, real images and judge for all of them.

    Args:
        teacher: its file, or the name of an embedded one.
        net: the judge. data: the real images. samples: images of the last evaluation.
        second: another judge, that was no student's perceptual loss: a method may please the first without having
            come nearer. Its FID, agreement and distance are named second_....
        projected: images that are looked for in the latent space.
        device: where everything is measured.
    """

    def __init__(self, teacher: str, net: AttributeNetwork, data: str, samples: int,
                 second: AttributeNetwork | None = None, projected: int = 64, device: str | torch.device = "cpu"):
        self.device, self.samples = torch.device(device), samples
        self.teacher, self.net = load_generator(teacher).to(device), net.to(device)
        self.dataset = open_dataset(data, self.teacher.resolution, seed=99)
        self.real = real_features(net, self.dataset, samples, seed=99)
        self.second = second and second.to(device)
        self.second_real = real_features(second, self.dataset, samples, seed=99) if second else None
        self.edits = EditAgreement(self.teacher, net)
        # Toy faces of this seed are new to every run; of a folder, these are images that were trained on.
        self.targets = self.dataset.load(ordered_indices(self.dataset.size, 0, projected, 98))

    def train(self, settings: DistillConfig) -> dict:
        """Distil, measure on the way and at the end: a run's record."""
        result = distill(settings, agreement_probe(self.teacher, self.net))
        curve = [{k: v for k, v in r.items() if k in CURVE or k.startswith("fid_")} for r in result.log
                 if "l1" in r or any(k.startswith("fid_") for k in r)]
        return {"seed": settings.seed, "settings": shareable(to_dict(settings)), "images": settings.images,
                "seconds": result.log[-1]["seconds"], "samples": self.samples, **provenance(), "curve": curve,
                "final": self.measure(result.generator)}

    def measure(self, G: AnyGenerator) -> dict[str, float]:
        """All figures of a trained student, which is moved to the bench's device."""
        G = G.to(self.device)
        final = evaluate_generator(G, self.net, self.samples, 20_000, self.teacher, self.real)
        if self.second:
            found = evaluate_generator(G, self.second, self.samples, 20_000, self.teacher, self.second_real)
            final |= {f"second_{name}": value for name, value in found.items()
                      if name.startswith(("fid_", "agree_mean", "perceptual"))}
        final["agree_edits"] = self.edits(G)
        return final | measure_latent_space(G, self.net, self.targets) | _equivariances(G)

    def references(self) -> list[dict]:
        """The rows that give the figures their scale: real images against real ones, and the teacher."""
        rows = evaluation_table({}, self.net, self.dataset, self.teacher, self.samples, 99)
        if self.second:
            again = evaluation_table({}, self.second, self.dataset, self.teacher, self.samples, 99)
            for row, found in zip(rows, again, strict=True):
                row |= {f"second_{name}": value for name, value in found.items() if name.startswith("fid_")}
        rows[-1] |= measure_latent_space(self.teacher, self.net, self.targets) | _equivariances(self.teacher)
        return rows


def in_a_line(record: dict) -> str:
    """A run's record in a few words."""
    final = record["final"]
    return f"{record['arm']} seed {record['seed']}: " + ", ".join(
        f"{k} {v:.3f}" for k, v in final.items() if k in CURVE or k.startswith("fid_"))


def _equivariances(G: Generator | AliasFreeGenerator) -> dict[str, float]:
    """EQ-T and EQ-R in dB of a StyleGAN3; nothing for a StyleGAN2, whose input cannot be moved."""
    if not isinstance(G, AliasFreeGenerator):
        return {}
    return {"eq_t": equivariance(G, "translation"), "eq_r": equivariance(G, "rotation")}


def _settings(config: StudyConfig, arm: str, seed: int) -> DistillConfig:
    out = Path(config.folder) / f"{arm}-{seed}-{config.images}"
    return from_dict(DistillConfig, {
        "teacher": config.teacher, "data": config.data, "perceptual": config.judge, "images": config.images,
        "ld_blocks": config.ld_blocks, "seed": seed, "out": str(out), "device": config.device,
        "progress": config.progress, "resume": any(out.glob("checkpoints/*.pt")), **ARMS[arm]})


def _refuse_another_study(file: Path, settings: dict, record: dict) -> None:
    """All runs of a study share every setting but the seed and what the arms change."""
    free = {"seed", "teacher"}.union(*ARMS.values())
    for name, value in settings.items():
        if name not in free and record["settings"].get(name, value) != value:
            raise ValueError(f"{file} holds runs with {name}={record['settings'][name]}, not {value}: "
                             "choose another results file")


def summary(records: Sequence[dict], arm: str, name: str) -> tuple[float, float, int]:
    """Mean, standard deviation over seeds (0 for one), and number of seeds of a figure of `final`."""
    found = [r["final"] for r in records if r["arm"] == arm]
    values = torch.tensor([final[name] for final in found if name in final], dtype=torch.float64)
    if found and not len(values):
        raise ValueError(f"no run of arm {arm} has the figure {name}: measure its students again, with "
                         "gapkd sweep --remeasure")
    if not len(values):
        raise ValueError(f"no run of arm {arm} is recorded: known are {', '.join(sorted({r['arm'] for r in records}))}")
    return values.mean().item(), values.std().item() if len(values) > 1 else 0.0, len(values)


COLUMNS = {"l1": "L1 ↓", "perceptual": "perceptual ↓", "agree_mean_accuracy": "same class ↑",
           "agree_mean_correlation": "correlation ↑", "agree_edits": "edits ↑",
           "fid_(?!to_teacher_).+": "FID to real ↓",
           "fid_to_teacher_.+": "FID to teacher ↓", "eq_t": "EQ-T, dB ↑", "eq_r": "EQ-R, dB ↑"}
SET_COLUMNS = {"fid_(?!to_teacher_).+": "FID ↓", "kid_.+": "KID × 10³ ↓", "precision_.+": "precision",
               "recall_.+": "recall", "density_.+": "density", "coverage_.+": "coverage ↑", "ppl_.+": "PPL ↓",
               "projection_psnr": "projection, PSNR dB ↑", "projection_perceptual": "projection, perceptual ↓"}
"""Figures of a results table and their titles. A figure is a pattern of the name that it has in a record: those of
Frechet distances hold the feature space and the sample count. "FID to teacher" compares images of the same z.
Precision, recall and density have no better side: they ought to be as high as those of other real images."""


def difference(records: Sequence[dict], arm: str, other: str, name: str) -> tuple[float, float]:
    """By how much the mean of an arm lies above that of another one, and the standard error of that (Welch's, from the
    spread over the seeds of both; nan where one has a single seed)."""
    (a, spread_a, n_a), (b, spread_b, n_b) = (summary(records, x, name) for x in (arm, other))
    error = (spread_a**2 / n_a + spread_b**2 / n_b) ** 0.5 if min(n_a, n_b) > 1 else float("nan")
    return a - b, error


def welch_p(records: Sequence[dict], arm: str, other: str, name: str) -> float:
    """How often luck alone, of the seeds, would set the means of two arms so far apart: two-sided p of Welch's t-test,
    whose degrees of freedom are few with few seeds. nan where an arm has a single seed or neither has any spread."""
    from scipy.stats import t as student_t  # takes a second to import, which few commands need

    (_, spread_a, n_a), (_, spread_b, n_b) = (summary(records, x, name) for x in (arm, other))
    gain, error = difference(records, arm, other, name)
    if not error > 0:
        return float("nan")
    freedom = error**4 / ((spread_a**2 / n_a) ** 2 / (n_a - 1) + (spread_b**2 / n_b) ** 2 / (n_b - 1))
    return float(2 * student_t.sf(abs(gain) / error, freedom))


def results_table(records: Sequence[dict], references: Sequence[dict] = (),
                  columns: Mapping[str, str] | None = None, arms: Sequence[str] = ()) -> str:
    """Markdown: two rows for scale, then one an arm, mean ± standard deviation over its seeds.

    In brackets the chance level of that arm: what its images would score if they were paired with other ones of the
    teacher's. It differs from arm to arm, since blurred images are near to everything.

    Args:
        references: the rows of `evaluation_table` for real images and the teacher.
        columns: as COLUMNS, which is the default.
        arms: which ones, in this order; by default all, those of ARMS first.
    Raises ValueError for records that do not belong into one table: runs of different length, or judged in different
        feature spaces or on different numbers of images.
    """
    if not records:
        return "_No longer runs are recorded yet._"
    images = records[0]["images"]
    if any(r["images"] != images for r in records):
        raise ValueError(f"runs of {', '.join(map(str, sorted({r['images'] for r in records})))} images do not belong "
                         "into one table")
    known = dict.fromkeys(key for r in records for key in r["final"])
    keys: dict[str, str] = {}
    for key in known:
        for title in (title for pattern, title in (columns or COLUMNS).items() if re.fullmatch(pattern, key)):
            if title in keys:
                raise ValueError(f"some of the runs were judged by {keys[title]}, others by {key}: these do not belong "
                                 "into one column")
            keys[title] = key
    keys = {title: keys[title] for title in (columns or COLUMNS).values() if title in keys}
    fid = next(key for key in records[0]["final"] if re.fullmatch("fid_(?!to_teacher_).+", key))
    judged = fid.rsplit("_", 1)[1]  # the metric's name ends with its sample count
    lines = [f"| {images:,} images each, judged on {judged} | seeds | " + " | ".join(keys) + " |",
             "|---|--:|" + "--:|" * len(keys)]
    for row in references:
        cells = [f"{_times(title) * row[key]:.3f}" if key in row else "-" for title, key in keys.items()]
        lines.append(f"| {'real, against other real' if row['name'] == 'real' else row['name']} | | "
                     + " | ".join(cells) + " |")
    present = dict.fromkeys(r["arm"] for r in records)
    for arm in arms or sorted(present, key=lambda a: list(ARMS).index(a) if a in ARMS else len(ARMS)):
        cells = []
        for title, key in keys.items():
            if not any(r["arm"] == arm and key in r["final"] for r in records):
                cells.append("-")
                continue
            mean, spread, measured = summary(records, arm, key)
            mean, spread = _times(title) * mean, _times(title) * spread
            cell = f"{mean:.3f} ± {spread:.3f}" if measured > 1 else f"{mean:.3f}"
            if measured < sum(r["arm"] == arm for r in records):
                cell += f", of {measured}"
            chance = f"{key}_chance"
            has_chance = any(r["arm"] == arm and chance in r["final"] for r in records)
            cells.append(f"{cell} ({summary(records, arm, chance)[0]:.3f})" if has_chance else cell)
        lines.append(f"| {arm} | {sum(r['arm'] == arm for r in records)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _times(title: str) -> float:
    """What a column's title says that its figures are multiplied by."""
    return 1e3 if "× 10³" in title else 1.0


def results_note(study: dict) -> str:
    """One sentence: the command, seeds and machine behind a results file, as its records have them."""
    records = study["runs"]
    if not records:
        return ""

    def all_of(name: str) -> str:
        return ", ".join(sorted({str(r[name]) for r in records}))

    arms_of: dict[tuple[int, ...], list[str]] = {}  # runs may have come arm by arm
    for arm in dict.fromkeys(r["arm"] for r in records):
        arms_of.setdefault(tuple(r["seed"] for r in records if r["arm"] == arm), []).append(arm)
    seeds = [", ".join(map(str, seeds)) + (f" ({', '.join(arms)})" if len(arms_of) > 1 else " of every arm")
             for seeds, arms in arms_of.items()]
    hours = sum(r["seconds"] for r in records) / 3600
    arms = [arm for arm in ARMS if any(r["arm"] == arm for r in records)]
    values = {**study, "arms": arms, **{k: records[0]["settings"][k] for k in ("ld_blocks", "images")}}
    if len(arms_of) == 1:
        values["seeds"] = next(iter(arms_of))
    return (f"Made with `{command_line('gapkd study', StudyConfig, values)}`: seeds {'; '.join(seeds)}; commit "
            f"{all_of('commit')}, {all_of('hardware')}, threads a run: {all_of('threads')}, {hours:.1f} hours for all "
            f"{len(records)} runs, {all_of('date')}." + _teacher_note(study.get("teacher_origin"))
            + _judge_note(study.get("judge_origin")))


def _origin(file: str) -> dict:
    """The provenance of a network's file, without paths."""
    origin = read_metadata(file)["provenance"]
    return origin | {"settings": shareable(origin["settings"])} if "settings" in origin else origin


def _where(origin: dict) -> str:
    return f"commit {origin['commit']}, {origin['hardware']}, threads {origin['threads']}, {origin['date']}"


def _teacher_note(origin: dict | None) -> str:
    if origin is None or origin.get("command") != "teacher":
        return ""
    settings = origin["settings"]
    return (f" The teacher: `{command_line('gapkd teacher', TrainConfig, settings)}`, seed {settings['seed']}, "
            f"{origin['seconds'] / 3600:.1f} hours, {_where(origin)}.")


def _judge_note(origin: dict | None) -> str:
    if origin is None:
        return ""
    held_out = origin["held_out"]
    scores = ", ".join(f"{name} {value:.3f}" for name, value in held_out["scores"].items())
    return (f" The judge: `{command_line('gapkd judge', JudgeConfig, origin | {'held_out': JudgeConfig.held_out})}`, "
            f"seed {origin['seed']}, {_where(origin)}; on {held_out['images']:,} images held out: {scores}.")


def story_rows(config: StudyConfig, count: int = 12) -> dict[str, Tensor]:
    """The teacher's faces and, under each, what the students of the first seed make of the same latent.

    Returns: name -> images (count, 3, R, R), for `gapkd.viewing.figures.compare_rows`.
    """
    names = {"alone": "student\nalone", "random": "own\nmapping", "inherit": "teacher's\nmapping",
             "full": "full\nmethod", "pruned": "mapping and\npruned weights"}
    rows = {"teacher": next(sample_images(load_generator(config.teacher), count, 7))}
    for arm in (a for a in names if a in config.arms):
        run = Path(config.folder) / f"{arm}-{config.seeds[0]}-{config.images}"
        rows[names[arm]] = next(sample_images(load_generator(run / "generator.safetensors"), count, 7))
    return rows

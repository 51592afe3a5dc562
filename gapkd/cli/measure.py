"""The commands that measure or count, and the network that they measure with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from gapkd import parallel
from gapkd.cli import say
from gapkd.data.datasets import open_dataset
from gapkd.experiments.sweep import SweepConfig, run_sweep
from gapkd.files.checkpoints import load_generator
from gapkd.files.provenance import provenance
from gapkd.files.storage import new_file, write_atomically
from gapkd.metrics.attributes import AttributeConfig, AttributeNetwork, reader
from gapkd.metrics.attributes import train_attribute_network as train_judge
from gapkd.metrics.evaluation import FEWEST, evaluation_table, format_table
from gapkd.metrics.features import feature_network
from gapkd.parallel import choose_device
from gapkd.settings import MOST
from gapkd.training import start
from gapkd.training.plan import PlanConfig, make_plan


@dataclass(frozen=True)
class EvaluateConfig:
    """Compare a generator with real images and, if given, with its teacher; print a table."""

    generator: tyro.conf.Positional[str]
    """A run's folder, a file of any format, a hub's name, or an embedded network's."""
    teacher: str = ""
    """Teacher to compare with at the same z; empty: none."""
    data: str = "toyfaces"
    """Real images: "toyfaces", or the path of a folder or zip."""
    features: str = "toyfaces"
    """Feature space of FID, KID, precision and recall: "toyfaces", the embedded attribute network;
    "inception" (extra `metrics`); "imagenet", EfficientNet-Lite0 (extra `imagenet`, no download);
    or a file that `gapkd judge` wrote, which then judges agreement too."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1"..."""
    samples: int = 5000
    """Images a set."""
    seed: int = 0
    """Of latents and real images."""
    out: str = ""
    """JSON file to write the numbers to; an existing one is not overwritten; empty: none."""
    progress: bool = True
    """Show progress bars."""


def evaluate(config: EvaluateConfig) -> None:
    parallel.join()
    if config.out and parallel.is_first():  # to complain before it measures, not after
        new_file(config.out, ".json")
    record = measure(config)
    say(format_table(record["rows"]))
    if config.out and parallel.is_first():
        written = write_atomically(config.out, json.dumps(record, indent=1).encode())
        say(f"written to {written}")


def measure(config: EvaluateConfig) -> dict:
    """The table's rows, and what they were measured with, where and when."""
    most = MOST["fid_samples"]
    if not FEWEST <= config.samples <= most or not 0 <= config.seed < 2**63:
        raise ValueError(f"samples must lie between {FEWEST} and {most:,}, and seed between 0 and "
                         f"2^63 - 1, not {config.samples} and {config.seed}")
    parallel.join()
    start.say_if_other_data(config.teacher or config.generator, config.data)
    device = choose_device(config.device)
    G = load_generator(config.generator).to(device)
    teacher = load_generator(config.teacher).to(device) if config.teacher else None
    dataset = open_dataset(config.data, G.resolution, seed=config.seed)
    start.say_if_other_images(config.data, config.features, "every figure")
    net, space = feature_network(config.features, device), None
    if not isinstance(net, AttributeNetwork):  # it cannot say what a face shows
        net, space = reader("toyfaces", device), net
        if teacher:
            start.say_if_other_images(config.data, "toyfaces", "agreement and perceptual distance")
    generators = {Path(config.generator).absolute().name: G}
    rows = evaluation_table(generators, net, dataset, teacher, config.samples, config.seed,
                            space=space, progress=config.progress and parallel.is_first())
    asked = ("generator", "teacher", "data", "features", "samples", "seed")
    return {"rows": rows} | {name: getattr(config, name) for name in asked} | provenance(device)


def sweep(config: SweepConfig) -> None:
    parallel.keep_memory()
    run_sweep(config)


def judge(config: AttributeConfig) -> None:
    scores = train_judge(config)
    listed = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
    say(f"on images held out: {listed}\njudge written to {config.out}")


def plan(config: PlanConfig) -> None:
    lines = [f"| {name} | {figure} |" for name, figure in make_plan(config)]
    say("\n".join(["| what | figure |\n|---|--:|", *lines]))

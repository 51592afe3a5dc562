"""The command line, `gapkd COMMAND`: each command is a settings dataclass and a few lines here.

Every option is a field of a settings dataclass, so that names, types, defaults and help stand in one place.
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gapkd import parallel
from gapkd.benchmark import BenchmarkConfig
from gapkd.card import EmbedConfig
from gapkd.experiments.study import StudyConfig
from gapkd.experiments.sweep import SweepConfig
from gapkd.metrics.judge import JudgeConfig
from gapkd.report import ReportConfig
from gapkd.settings import RECIPES, DistillConfig, TrainConfig
from gapkd.sharing.export import ExportConfig
from gapkd.sharing.web import DemoConfig
from gapkd.training.plan import GrowthConfig, PlanConfig


@dataclass(frozen=True)
class EvaluateConfig:
    """Compare a generator with real images and, if given, with its teacher; print a table."""

    generator: str
    """Its file, or the name of an embedded one."""
    teacher: str = ""
    """Teacher to compare with at the same z; empty: none."""
    data: str = "toyfaces"
    """Real images: "toyfaces", or the path of a folder or zip."""
    features: str = "toyfaces"
    """Feature space of FID, KID, precision and recall: "toyfaces", the embedded attribute network; "inception" (extra
    `metrics`); or a file that `gapkd judge` wrote, which then judges agreement too."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1"..."""
    samples: int = 5000
    """Images a set."""
    seed: int = 0
    """Of latents and real images."""
    out: str = ""
    """JSON file to write the numbers to; empty: none."""


@dataclass(frozen=True)
class SampleConfig:
    """Draw a sheet of images and save it as PNG."""

    generator: str
    """Its file, or the name of an embedded one."""
    out: str = "runs/samples.png"
    """PNG file to write; an existing one is not overwritten."""
    count: int = 64
    """How many images."""
    label: int = -1
    """Class of a conditional network's images; -1: all classes in turn."""
    truncation: float = 1.0
    """1: none; 0: the average image."""
    seed: int = 0
    """Of the latents."""
    columns: int = 8
    """Images a row."""


@dataclass(frozen=True)
class ResumeConfig:
    """Go on with a run that was stopped, under the settings that it was started with."""

    run: tyro.conf.Positional[str]
    """Its folder."""
    images: int = 0
    """New length of the run in images; 0: as before."""
    device: str = ""
    """"auto", "cpu", "cuda"...; empty: as before."""
    progress: bool = True
    """Show a progress bar."""


@dataclass(frozen=True)
class ConvertConfig:
    """Write a generator in another format: .safetensors (gapkd) or .pt (rosinality's layout, which SeFa, StyleKD, CAGAN
    and projection scripts read)."""

    source: tyro.conf.Positional[str]
    """File of the generator: .safetensors, NVIDIA's .pkl or rosinality's .pt."""
    out: tyro.conf.Positional[str]
    """File to write; its ending says which format. An existing one is not overwritten."""


@dataclass(frozen=True)
class DirectionsConfig:
    """Find directions in W with a name, for `gapkd export`, explorers and the browser."""

    generator: tyro.conf.Positional[str]
    """Its file, or the name of an embedded one."""
    out: str
    """File to write (.safetensors); an existing one is not overwritten."""
    attributes: str = "toyfaces"
    """What reads the factors of the images: "toyfaces", the embedded network, a file of `gapkd judge`, or "none": SeFa
    directions, found in the weights alone."""
    names: tuple[str, ...] = ()
    """Which factors, such as smile or "hair_style: long"; empty: all of them."""
    alone: bool = True
    """Move one factor and leave the others as they are, as far as they are linear in w."""
    samples: int = 5000
    """Images that are looked at."""
    seed: int = 0
    """Of their latents."""


@dataclass(frozen=True)
class ShareConfig:
    """Write a generator as a folder that can be uploaded to a model hub: weights, config.json, model card, samples.
    Wherever a network is named, such a folder can be named too."""

    generator: tyro.conf.Positional[str]
    """Its file, a folder of this kind, or the name of an embedded one."""
    out: str
    """Folder to write; an existing one is not overwritten."""
    license: str = ""
    """Licence of the weights: "mit", "cc-by-nc-4.0"...; empty: what their file says, if it does."""
    name: str = ""
    """Title of the card; empty: the folder's name."""
    teacher: str = ""
    """Teacher to compare with, in cost and, with --evaluate, at the same z; empty: none."""
    evaluate: bool = False
    """Measure it first, as `gapkd evaluate` does, and put the figures on the card."""
    samples: int = 5000
    """With --evaluate: images a set."""
    data: str = "toyfaces"
    """With --evaluate: real images, "toyfaces", or the path of a folder or zip."""
    features: str = "toyfaces"
    """With --evaluate: feature space, as of `gapkd evaluate`."""
    seed: int = 0
    """With --evaluate: of latents and real images."""
    device: str = "auto"
    """With --evaluate: "auto", "cpu", "cuda", "cuda:1"..."""
    truncation: float = 1.0
    """Of the sheet of samples; 1: none."""


@dataclass(frozen=True)
class ChapterConfig:
    """Run a chapter's notebook with papermill, with other parameters if you like."""

    notebook: tyro.conf.Positional[str] = "04_full_distillation"
    """Name of the chapter, or its number."""
    parameters: tuple[str, ...] = ()
    """name=value pairs for the notebook's parameters cell."""
    out: str = ""
    """Folder of the executed notebook; empty: the next free runs/<chapter>-NNN."""


def evaluate(config: EvaluateConfig) -> None:
    from gapkd.files.checkpoints import write_atomically
    from gapkd.metrics.evaluation import format_table

    record = measure(config)
    _say(format_table(record["rows"]))
    if config.out and parallel.is_first():
        print(f"written to {write_atomically(config.out, json.dumps(record, indent=1).encode())}")


def measure(config: EvaluateConfig) -> dict:
    """The table's rows, and what they were measured with, where and when."""
    from gapkd.data.datasets import open_dataset
    from gapkd.files.checkpoints import load_generator
    from gapkd.metrics.evaluation import evaluation_table
    from gapkd.metrics.features import InceptionNetwork, reader
    from gapkd.training.runs import provenance
    from gapkd.training.trainer import choose_device

    if config.samples < 2 or config.seed < 0:
        raise ValueError(f"samples must be at least 2 and seed at least 0, not {config.samples} and {config.seed}")
    parallel.join()
    device = choose_device(config.device)
    G = load_generator(config.generator).to(device)
    teacher = load_generator(config.teacher).to(device) if config.teacher else None
    dataset = open_dataset(config.data, G.resolution, seed=config.seed)
    official = config.features == "inception"
    net = reader("toyfaces" if official else config.features, device)
    space = InceptionNetwork(device) if official else None
    rows = evaluation_table({Path(config.generator).absolute().name: G}, net, dataset, teacher, config.samples,
                            config.seed, space=space)
    return {"rows": rows, "generator": config.generator, "teacher": config.teacher, "data": config.data,
            "features": config.features, "samples": config.samples, "seed": config.seed, **provenance()}


def sample(config: SampleConfig) -> None:
    from gapkd.data.images import save_png
    from gapkd.files.checkpoints import load_generator
    from gapkd.metrics.evaluation import draw_sheet

    if not 0 <= config.seed < 2**63:
        raise ValueError(f"seed must lie between 0 and 2^63 - 1, not {config.seed}")
    if Path(config.out).suffix.lower() != ".png":
        raise ValueError(f"{config.out} must end in .png: that is what is written")
    if config.count < 1 or config.columns < 1:
        raise ValueError(f"count and columns must be at least 1, not {config.count} and {config.columns}")
    if not math.isfinite(config.truncation):
        raise ValueError(f"truncation must be a number, 1 for none, not {config.truncation}")
    if Path(config.out).exists():
        raise ValueError(f"{config.out} exists already: remove it or choose another out")
    G = load_generator(config.generator)
    if not -1 <= config.label < max(G.c_dim, 0):
        raise ValueError(f"label={config.label}: {config.generator} has {G.c_dim or 'no'} classes"
                         + (f", 0 to {G.c_dim - 1}; -1 takes them in turn" if G.c_dim else ": leave it at -1"))
    images = draw_sheet(G, config.count, config.seed, config.truncation, config.label)
    print(f"{config.count} images written to {save_png(images, config.out, config.columns)}")


def convert(config: ConvertConfig) -> None:
    import io

    import torch

    from gapkd.files.checkpoints import load_generator, read_metadata, save_network, sha256, write_atomically
    from gapkd.files.foreign import to_rosinality

    out = Path(config.out)
    if out.suffix not in (".safetensors", ".pt"):
        raise ValueError(f"{out} must end in .safetensors or .pt, the formats that can be written")
    if out.exists():
        raise ValueError(f"{out} exists already: remove it or choose another out")
    G = load_generator(config.source)
    if out.suffix == ".pt":
        content = io.BytesIO()
        torch.save(to_rosinality(G), content)
        write_atomically(out, content.getvalue())
    else:
        origin = read_metadata(config.source)["provenance"] | {"file": Path(config.source).name,
                                                              "sha256": sha256(config.source)}
        save_network(G, out, {"converted_from": origin})
    print(f"written to {out}")


def directions(config: DirectionsConfig) -> None:
    from gapkd.files.checkpoints import load_generator
    from gapkd.metrics.editing import factor_directions, save_directions, sefa
    from gapkd.metrics.features import reader

    out = Path(config.out)
    if out.suffix != ".safetensors":
        raise ValueError(f"{out} must end in .safetensors: that is what is written")
    if out.exists():
        raise ValueError(f"{out} exists already: remove it or choose another out")
    if config.samples < 100 or config.seed < 0:
        raise ValueError(f"samples must be at least 100 and seed at least 0, not {config.samples} and {config.seed}")
    G = load_generator(config.generator)
    if config.attributes == "none":
        found = sefa(G)
        found = found.pick(config.names) if config.names else found
    else:
        found = factor_directions(G, reader(config.attributes), config.names or None, config.alone, config.samples,
                                  config.seed)
    print(f"{len(found)} directions written to {save_directions(found, out)}: {', '.join(found.names)}")


def export(config: ExportConfig) -> None:
    from gapkd.sharing.export import export

    print("\n".join(map(str, export(config))))


def share(config: ShareConfig) -> None:
    import shlex

    from gapkd.files.checkpoints import load_generator
    from gapkd.sharing.hub import ready, save_pretrained
    from gapkd.sharing.origins import provenance_of

    measuring = {name: getattr(config, name) for name in ("samples", "data", "features", "seed", "device")}
    for name, value in measuring.items():
        if not config.evaluate and value != getattr(ShareConfig, name):
            raise ValueError(f"{name} says how to measure: add --evaluate, or leave {name} out")
    ready(config.out, config.name, config.license, config.truncation)  # to complain before it measures, not after
    G = load_generator(config.generator)
    teacher = load_generator(config.teacher) if config.teacher else None
    record = measure(EvaluateConfig(config.generator, config.teacher, **measuring)) if config.evaluate else None
    provenance = provenance_of(config.generator)
    folder = save_pretrained(G, config.out, provenance, name=config.name, license=config.license, evaluation=record,
                             teacher=teacher, truncation=config.truncation)
    print(f"written to {folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")
    print(f"read {folder / 'README.md'} before you show it to anybody; to publish it, with your hub's client: "
          f"hf upload YOUR-NAME/{shlex.quote(folder.absolute().name)} {shlex.quote(str(folder))}")


def demo(config: DemoConfig) -> None:
    from gapkd.sharing.web import write_demo

    out = write_demo(config)
    print(f"written to {out}: run python -m http.server --directory {out}, and open the address that it prints")


def teacher(config: TrainConfig) -> None:
    from gapkd.training.loop import train_gan

    _say(f"teacher written to {train_gan(config).checkpoint}")


def distill(config: DistillConfig) -> None:
    from gapkd.training.loop import distill as run

    _say(f"student written to {run(config).checkpoint}")


def resume(config: ResumeConfig) -> None:
    from gapkd.training.loop import resume_run

    _say(f"written to {resume_run(config.run, config.images, config.device, config.progress).checkpoint}")


def _say(text: str) -> None:
    if parallel.is_first():
        print(text)


def judge(config: JudgeConfig) -> None:
    from gapkd.metrics.judge import train_judge

    scores = train_judge(config)
    print("on images held out: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    print(f"judge written to {config.out}")


def study(config: StudyConfig) -> None:
    from gapkd.experiments.study import run_study

    print(f"{len(run_study(config))} runs in {config.results}")


def sweep(config: SweepConfig) -> None:
    from gapkd.experiments.sweep import run_sweep

    run_sweep(config)


def benchmark(config: BenchmarkConfig) -> None:
    from gapkd.benchmark import run_benchmark, show_benchmark

    print("\n\n".join(show_benchmark(run_benchmark(config))))


def report(config: ReportConfig) -> None:
    from gapkd.report import write_report

    print(f"written to {write_report(config)}")


def plan(config: PlanConfig) -> None:
    from gapkd.benchmark import show
    from gapkd.training.plan import make_plan

    print(show(make_plan(config)))


def growth(config: GrowthConfig) -> None:
    from gapkd.training.plan import measure_growth, show_growth

    print(show_growth(measure_growth(config)))


def embed(config: EmbedConfig) -> None:
    from gapkd import card

    card.embed(config)
    print("data/SHA256SUMS and data/README.md are written")


def chapter(config: ChapterConfig) -> None:
    from gapkd.chapters import run_chapter

    run_chapter(config.notebook, config.parameters, config.out)


def distill_command(arguments: Sequence[str]) -> object:
    """The type of `gapkd distill`, whose defaults are those of the recipe that is asked for."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    recipe = words[words.index("--recipe") + 1] if "--recipe" in words[:-1] else "paper"
    default = DistillConfig(recipe=recipe if recipe in RECIPES else "paper")
    return Annotated[DistillConfig, tyro.conf.subcommand("distill", default=default,
                                                         description="Distil a teacher into a student.")]


OTHERS = (
    Annotated[TrainConfig, tyro.conf.subcommand("teacher", description="Train a StyleGAN2 or StyleGAN3 from scratch.")]
    | Annotated[ResumeConfig, tyro.conf.subcommand("resume")]
    | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate")]
    | Annotated[SampleConfig, tyro.conf.subcommand("sample")]
    | Annotated[JudgeConfig, tyro.conf.subcommand("judge")]
    | Annotated[StudyConfig, tyro.conf.subcommand("study")]
    | Annotated[SweepConfig, tyro.conf.subcommand("sweep")]
    | Annotated[ConvertConfig, tyro.conf.subcommand("convert")]
    | Annotated[DirectionsConfig, tyro.conf.subcommand("directions")]
    | Annotated[ExportConfig, tyro.conf.subcommand("export")]
    | Annotated[ShareConfig, tyro.conf.subcommand("share")]
    | Annotated[DemoConfig, tyro.conf.subcommand("demo")]
    | Annotated[ReportConfig, tyro.conf.subcommand("report")]
    | Annotated[BenchmarkConfig, tyro.conf.subcommand("benchmark")]
    | Annotated[GrowthConfig, tyro.conf.subcommand("growth")]
    | Annotated[PlanConfig, tyro.conf.subcommand("plan")]
    | Annotated[EmbedConfig, tyro.conf.subcommand("embed")]
    | Annotated[ChapterConfig, tyro.conf.subcommand("chapter")]
)
RUN = {TrainConfig: teacher, DistillConfig: distill, ResumeConfig: resume, EvaluateConfig: evaluate,
       SampleConfig: sample, ConvertConfig: convert, ShareConfig: share, ReportConfig: report, PlanConfig: plan,
       ChapterConfig: chapter, JudgeConfig: judge, StudyConfig: study, SweepConfig: sweep, BenchmarkConfig: benchmark,
       GrowthConfig: growth, EmbedConfig: embed, DirectionsConfig: directions, ExportConfig: export,
       DemoConfig: demo}

TOGETHER = (TrainConfig, DistillConfig, ResumeConfig, EvaluateConfig)  # what several processes can do


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 2 for bad input, 130 when interrupted."""
    try:
        command = OTHERS | distill_command(sys.argv[1:] if arguments is None else arguments)
        config = tyro.cli(command, prog="gapkd", args=arguments, config=(tyro.conf.OmitArgPrefixes,))
        if parallel.expected() > 1 and type(config) not in TOGETHER:
            raise ValueError("torchrun is for teacher, distill, resume and evaluate: start this command without it")
        with warnings.catch_warnings():
            warnings.showwarning = _note
            RUN[type(config)](config)
    except KeyboardInterrupt as error:
        _complain(error or "interrupted")
        return 130
    except BrokenPipeError:  # whoever reads our lines has seen enough (| head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what a shell says of a program that a closed pipe has ended
    except (ValueError, OSError, RuntimeError) as error:
        if type(error) is RuntimeError:  # a fault of ours, not of the input: show where
            raise
        _complain(error)
        return 2
    return 0


def _note(message: Warning, category: type, *where: object, **more: object) -> None:
    """A warning of ours as one line, without the place in the code."""
    print(f"gapkd: {message}" if category is UserWarning else f"{category.__name__}: {message}", file=sys.stderr)


def _complain(error: BaseException | str) -> None:
    number = int(os.environ.get("RANK", 0))
    if number and isinstance(error, KeyboardInterrupt):
        return  # process 0 says the same
    print(f"gapkd{f' (process {number})' if number else ''}: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

"""How fast this machine runs what the project runs. Tables, no pass or fail.

Absolute figures depend on the machine and on what else it does; compare ratios within one table. Two questions:
what a reader waits for (`chapter_rows`), and how networks and training steps compare with the textbook's arithmetic
(gapkd.textbook) and with what the machine can do at best (`compare`; `compare_alias_free` for StyleGAN3).
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gapkd.data.toyfaces import toy_faces
from gapkd.distillation.distiller import Guide
from gapkd.distillation.students import make_student
from gapkd.files.checkpoints import load_generator, write_atomically
from gapkd.metrics.cost import macs, seconds, speed_ratio
from gapkd.networks.stylegan2 import Discriminator, Generator, config_f, config_f_channels
from gapkd.networks.stylegan3 import AliasFreeGenerator, AliasFreeLayer, plan_layers, stylegan3_channels
from gapkd.settings import DistillConfig, TrainConfig, shareable, widths
from gapkd.textbook import textbook
from gapkd.training.runs import provenance
from gapkd.training.trainer import Trainer, choose_device, keep_memory

Rows = list[tuple[str, str]]
Case = Literal["teacher", "student", "training", "distillation"]
CASES: tuple[Case, ...] = ("teacher", "student", "training", "distillation")
Part = Literal["chapters", "comparison", "stylegan3"]
PARTS: tuple[Part, ...] = ("chapters", "comparison", "stylegan3")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Time the parts that a chapter waits for, and compare networks and steps with the textbook's arithmetic."""

    parts: tuple[Part, ...] = PARTS
    """What a reader waits for; StyleGAN2 against the textbook; StyleGAN3 against the textbook."""
    teacher: str = "toyfaces32"
    """The teacher's file, or the name of an embedded one."""
    steps: int = 48
    """Timed training steps of each kind: three R1 periods."""
    resolutions: tuple[int, ...] = (32, 64, 256)
    """Sizes of the comparison: toy networks of 64 channels, from 256 px on StyleGAN2's own widths (config f)."""
    largest_step: int = 64
    """Largest of them at which training steps are compared too: on a CPU, one of 256 px takes minutes."""
    repeats: int = 5
    """Timed runs of each form of a comparison, in turn."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1"..."""
    threads: int = 0
    """CPU threads; 0: as they are."""
    out: str = ""
    """JSON file to write the tables to, with commit and hardware; empty: none."""

    def __post_init__(self):
        for name in ("steps", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not all(r >= 32 and r & (r - 1) == 0 for r in self.resolutions):
            raise ValueError(f"resolutions must be powers of two from 32 on, not {list(self.resolutions)}")


def run_benchmark(config: BenchmarkConfig) -> dict:
    """{part: what was measured} for the parts asked for, and where; written to `out` too."""
    if config.threads:
        torch.set_num_threads(config.threads)
    if choose_device(config.device).type == "cpu":
        keep_memory()  # as a training does
    measure = {"chapters": chapter_rows, "comparison": compare, "stylegan3": compare_alias_free}
    record = {part: measure[part](config) for part in config.parts}
    record |= {"teacher": config.teacher, "settings": shareable(asdict(config)), **provenance()}
    if config.out:
        write_atomically(config.out, json.dumps(record, indent=1).encode())
    return record


def show_benchmark(record: dict) -> list[str]:
    """Its tables as Markdown."""
    show_part = {"chapters": show, "comparison": show_comparison, "stylegan3": show_alias_free}
    return [show_part[part](record[part]) for part in PARTS if part in record]


# ------------------------------------------------------------------------------------------- what a reader waits for


def _rate(run: Callable[[], object], images: int, repeats: int, device: torch.device) -> float:
    """Images a second: `images` over the mean of `repeats` calls, after one that does not count."""
    seconds(run, device)
    return images * repeats / seconds(lambda: [run() for _ in range(repeats)], device)


def chapter_rows(config: BenchmarkConfig) -> Rows:
    """(what, figure) of the embedded teacher, its training and its students."""
    device = choose_device(config.device)
    teacher = load_generator(config.teacher).to(device)
    if not isinstance(teacher, Generator) or teacher.c_dim:
        raise ValueError(f"{config.teacher} is not a StyleGAN2 without classes, and only those are timed: name one")
    student = make_student(teacher).eval().to(device)
    r = teacher.resolution
    rows = [("threads", str(torch.get_num_threads())), ("device", device.type)]
    rows.append((f"toy faces rendered, {r} px", f"{_rate(lambda: toy_faces(256, r), 256, 10, device):.0f} images/s"))

    with tempfile.TemporaryDirectory() as folder:
        train = TrainConfig(out=folder, resolution=r, device=config.device, progress=False)
        fresh = Generator(**teacher.architecture())
        trainer = Trainer(train, fresh, Discriminator(r, widths(train.d_channels, r)))
        rate = _rate(trainer.train_step, train.batch, config.steps, device)
        rows.append((f"GAN training, {r} px teacher", f"{rate:.0f} images/s"))
        for name, changes in {"distillation, total loss": {}, "distillation without L_ld": {"ld_weight": 0.0},
                              "distillation without L_gan": {"gan_weight": 0.0}}.items():
            settings = DistillConfig(out=folder, teacher=config.teacher, device=config.device, progress=False,
                                     **changes)
            guide = Guide(settings, load_generator(config.teacher).to(device))
            guided = Trainer(settings, make_student(teacher), Discriminator(r, widths(settings.d_channels, r)), guide)
            rate = _rate(guided.train_step, settings.batch, config.steps, device)
            rows.append((name, f"{rate:.0f} images/s"))
    for batch in (1, 16):
        ratios = [speed_ratio(student, teacher, batch=batch) for _ in range(3)]
        rows.append((f"forward, student over teacher, batch {batch}", f"{statistics.median(ratios):.1f} times"))
    rows.append(("MACs, teacher over student", f"{macs(teacher) / macs(student):.1f} times"))
    return rows


def show(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table."""
    return "\n".join(["| what | figure |", "|---|--:|", *(f"| {name} | {figure} |" for name, figure in rows)])


# ------------------------------------------------------------------------------------------- against the textbook


def conv_peak(device: torch.device, repeats: int = 5) -> float:
    """Multiply-accumulates a second of the friendliest convolution: 3x3, 256 to 256 channels, float32, 64 px."""
    x = torch.randn(4, 256, 64, 64, device=device).to(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, device=device).to(memory_format=torch.channels_last)
    run = lambda: F.conv2d(x, weight, padding=1)  # noqa: E731
    run()
    return x.numel() * 256 * 9 / min(seconds(run, device) for _ in range(repeats))


def matmul_peak(device: torch.device, size: int = 2048, repeats: int = 5) -> float:
    """Multiply-accumulates a second of a product of two square float32 matrices."""
    a, b = torch.randn(2, size, size, device=device)
    run = lambda: a @ b  # noqa: E731
    run()
    return size**3 / min(seconds(run, device) for _ in range(repeats))


def networks(resolution: int, channels: int = 0) -> tuple[Generator, Discriminator]:
    """The teacher-sized pair that is timed: of `channels` everywhere; 0: 64, but configuration f from 256 px on."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if resolution >= 256 and not channels:
            return config_f(resolution), Discriminator(resolution, config_f_channels(resolution))
        return Generator(resolution, 128, 128, channels or 64), Discriminator(resolution, channels or 64)


def batch_of(case: Case, resolution: int, device: torch.device) -> int:
    """Images a call: 16, or 4 where a CPU would take minutes."""
    return 4 if resolution >= 256 and device.type == "cpu" else 16


def prepare(case: Case, resolution: int, batch: int, device: torch.device, by_the_book: bool = False,
            channels: int = 0) -> dict[str, Callable[[], object]]:
    """What is timed: {"run": a forward pass or a training step} and for training {"r1": its regularisation step}.

    The networks are those of `networks`; student and distillation take 30 % of the channels.
    """
    form = textbook if by_the_book else lambda network: network
    G, D = networks(resolution, channels)
    if case in ("teacher", "student"):
        G = form((G if case == "teacher" else make_student(G)).eval().requires_grad_(False).to(device))
        z = torch.randn(batch, G.z_dim, generator=torch.Generator().manual_seed(0)).to(device)
        return {"run": lambda: G(z)}
    common = {"batch": batch, "device": str(device), "progress": False, "precision": "float32"}
    if case == "training":
        trainer = Trainer(TrainConfig(resolution=resolution, **common), form(G), form(D))
    else:
        settings = DistillConfig(ld_blocks=(2, 3) if resolution < 128 else (2, 3, 4, 5), **common)
        guide = Guide(settings, form(G).to(device))
        trainer = Trainer(settings, form(make_student(G)), form(D), guide)
    reals = trainer.real_batch()

    def step() -> None:
        trainer.discriminator_step(reals)
        trainer.generator_step(reals)
        trainer.average_weights()

    return {"run": step, "r1": lambda: trainer.r1_step(reals)}


def compare(config: BenchmarkConfig) -> dict:
    """{"peaks": MACs a second, "rows": one a case and resolution}. A row holds images a second, how many times the
    textbook's that is, peak memory an image of both forms in MB, and for a forward pass its share of the peak."""
    device = choose_device(config.device)
    peaks = {"convolution": conv_peak(device), "matrix product": matmul_peak(device)}
    rows = []
    for resolution in config.resolutions:
        for case in CASES if resolution <= config.largest_step else CASES[:2]:
            batch = batch_of(case, resolution, device)
            times = alternate([prepare(case, resolution, batch, device, book) for book in (False, True)], device,
                               config.repeats)
            ours, theirs = map(step_seconds, times)
            row = {"case": case, "resolution": resolution, "batch": batch, "images_per_second": batch / ours,
                   "times_textbook": theirs / ours}
            if case in ("teacher", "student"):
                G = networks(resolution, 0)[0]
                work = macs(G if case == "teacher" else make_student(G).eval())
                row["of_peak"] = work * batch / ours / peaks["convolution"]
            for name, book in (("memory", False), ("memory_textbook", True)):
                row[name] = peak_memory(prepare, device, case, resolution, batch, device, book) / batch / 2**20
            rows.append(row)
            print(f"measured: {case}, {resolution} px", file=sys.stderr, flush=True)
    return {"peaks": peaks, "rows": rows}


def alias_free_cases(device: torch.device) -> dict[str, tuple[torch.nn.Module, Tensor | None, int]]:
    """name -> network or filtered non-linearity, its input (None: latents), images a call.

    A generator of the size of the embedded teachers, and a layer of a 256 px one of the published widths.
    """
    cases: dict[str, tuple[torch.nn.Module, Tensor | None, int]] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in ("T", "R"):
            rotation = name == "R"
            kernel, widths_32 = 1 if rotation else 3, stylegan3_channels(32, 10, 32 * 64, 64)
            G = AliasFreeGenerator(32, 128, 128, widths_32, kernel, rotation)
            cases[f"generator, configuration {name}, 32 px"] = G, None, 16
            for resolution, channels, batch in ((32, 64, 16), (256, 128, 2)):
                plan = plan_layers(resolution, [channels] * 14)[-4]  # the last one before the critical layers
                layer = AliasFreeLayer(plan, 1, kernel, rotation).activation
                x = torch.randn(batch, channels, layer.size, layer.size, device=device)
                cases[f"filtered non-linearity, {name}, {resolution} px, {channels} channels"] = layer, x, batch
    return cases


def prepare_alias_free(name: str, device: torch.device, backward: bool, by_the_book: bool
                       ) -> dict[str, Callable[[], object]]:
    """What is timed of one of `alias_free_cases`: {"run": a forward pass, with the gradients if asked for}."""
    module, x, batch = alias_free_cases(device)[name]
    module = (textbook(module) if by_the_book else module).to(device).eval()
    if x is None:
        inputs: tuple[Tensor, ...] = (torch.randn(batch, module.z_dim, device=device),)
    else:  # in the order in which a network of this form would hand it on
        order = torch.contiguous_format if by_the_book else torch.channels_last
        inputs = (x.contiguous(memory_format=order).requires_grad_(backward), torch.zeros(x.shape[1], device=device))

    def run() -> None:
        with torch.set_grad_enabled(backward):
            y = module(*inputs)
            if backward:
                y.backward(torch.ones_like(y))

    return {"run": run}


def compare_alias_free(config: BenchmarkConfig) -> list[dict]:
    """Rows of {"case", "batch", "pass", "images_per_second", "times_textbook", "memory", "memory_textbook"}: StyleGAN3
    against zero insertion, padding and convolution, forward, and forward with the gradients of weights and inputs."""
    device = choose_device(config.device)
    rows = []
    for name, (_, _, batch) in alias_free_cases(device).items():
        for backward in (False, True):
            forms = [prepare_alias_free(name, device, backward, book) for book in (False, True)]
            ours, theirs = map(step_seconds, alternate(forms, device, config.repeats))
            row = {"case": name, "batch": batch, "pass": "forward and backward" if backward else "forward",
                   "images_per_second": batch / ours, "times_textbook": theirs / ours}
            for column, book in (("memory", False), ("memory_textbook", True)):
                row[column] = peak_memory(prepare_alias_free, device, name, device, backward, book) / batch / 2**20
            rows.append(row)
        print(f"measured: {name}", file=sys.stderr, flush=True)
    return rows


def step_seconds(times: dict[str, list[float]]) -> float:
    """Median time of a step with its share of an R1 step."""
    return sum(statistics.median(t) / (TrainConfig.r1_every if name == "r1" else 1) for name, t in times.items())


def alternate(forms: list[dict[str, Callable[[], object]]], device: torch.device, repeats: int
               ) -> list[dict[str, list[float]]]:
    """Seconds of every call of every form, the forms in turn, so that another program slows them all."""
    context = torch.enable_grad() if "r1" in forms[0] else torch.no_grad()
    with context:
        for form in forms:
            for run in form.values():
                run()
        times = [{name: [] for name in form} for form in forms]
        for _ in range(repeats):
            for form, record in zip(forms, times, strict=True):
                for name, run in form.items():
                    record[name].append(seconds(run, device))
    return times


def peak_memory(make: Callable[..., dict[str, Callable[[], object]]], device: torch.device, *arguments: object) -> int:
    """Bytes that one call of what make(*arguments) prepares takes beyond what was there before it; on a CPU in a
    process of its own."""
    if device.type == "cuda":
        return _memory(make, device, *arguments)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_memory, (make, device, *arguments))


def _memory(make: Callable[..., dict[str, Callable[[], object]]], place: torch.device, *arguments: object) -> int:
    runs = make(*arguments)
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
        before = torch.cuda.memory_allocated(place)
    else:
        before = _most_so_far(forget=True)
    with torch.enable_grad() if "r1" in runs else torch.no_grad():
        for run in runs.values():
            run()
    return (torch.cuda.max_memory_allocated(place) if place.type == "cuda" else _most_so_far()) - before


def _most_so_far(forget: bool = False) -> int:
    """The most memory that this process has held, in bytes; on Linux it can be made to forget what was before."""
    status = Path("/proc/self/status")
    if status.exists():
        if forget:
            Path("/proc/self/clear_refs").write_text("5")
        (most,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(most) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


NAMES = {"teacher": "forward, teacher", "student": "forward, 30 % student", "training": "GAN training step",
         "distillation": "distillation step"}


def show_comparison(comparison: dict) -> str:
    """The comparison as Markdown."""
    peaks = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in comparison["peaks"].items())
    lines = ["| float32 | batch | images/s | times the textbook | of the peak | MB an image | textbook |",
             "|---|--:|--:|--:|--:|--:|--:|"]
    for row in comparison["rows"]:
        share = f"{row['of_peak']:.0%}" if "of_peak" in row else ""
        speed = f"{row['images_per_second']:.{0 if row['images_per_second'] >= 10 else 2}f}"
        lines.append(f"| {NAMES[row['case']]}, {row['resolution']} px | {row['batch']} | {speed} | "
                     f"{row['times_textbook']:.1f} | {share} | {row['memory']:.1f} | {row['memory_textbook']:.1f} |")
    return "\n".join([*lines, "", f"Peaks of this machine, in 10^9 multiply-accumulates a second: {peaks}."])


def show_alias_free(rows: Sequence[dict]) -> str:
    """StyleGAN3's comparison as Markdown."""
    lines = ["| StyleGAN3, float32 | batch | pass | images/s | times the textbook | MB an image | textbook |",
             "|---|--:|---|--:|--:|--:|--:|"]
    lines += [f"| {row['case']} | {row['batch']} | {row['pass']} | {row['images_per_second']:.3g} | "
              f"{row['times_textbook']:.1f} | {row['memory']:.1f} | {row['memory_textbook']:.1f} |" for row in rows]
    return "\n".join(lines)

"""How fast this machine runs what the project runs. Tables, no pass or fail.

    python -m tools.benchmark --parts chapters comparison --out data/results/benchmark.json
    python -m tools.benchmark --parts stylegan3 --out data/results/stylegan3_speed.json
    python -m tools.benchmark --parts exports --out data/results/exports.json

Absolute figures depend on the machine and on what else it does; compare ratios within one table.
Three questions: what a reader waits for (`chapter_rows`), how networks and training steps compare
with the textbook's arithmetic (tools.textbook) and with what the machine can do at best (`compare`;
`compare_alias_free` for StyleGAN3), and what a network gains where it is exported to
(`compare_exports`).
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from gapkd import parallel
from gapkd.data.toyfaces import toy_faces
from gapkd.distillation.distiller import Distiller
from gapkd.distillation.students import make_student
from gapkd.files.checkpoints import load_generator
from gapkd.files.provenance import provenance
from gapkd.files.storage import write_atomically
from gapkd.metrics.cost import macs, seconds, speed_ratio
from gapkd.metrics.features import distance_for
from gapkd.networks.stylegan2 import Discriminator, Generator, config_f, config_f_channels
from gapkd.networks.stylegan3 import (
    AliasFreeGenerator,
    AliasFreeLayer,
    plan_layers,
    stylegan3_channels,
)
from gapkd.parallel import choose_device, seeded
from gapkd.settings import DistillConfig, TrainConfig, shareable, widths
from gapkd.sharing.export import LIMITS, drawn_by, to_onnx
from gapkd.training.trainer import R1_EVERY, Trainer
from tools.textbook import textbook

Runs = dict[str, Callable[[], object]]
"""What is timed: "run", a forward pass or a training step, and "r1", a regularisation step."""
Part = Literal["chapters", "comparison", "stylegan3", "exports"]
TEACHER = "toyfaces32"
BATCHES = (1, 16)  # images a call of the exports
LARGEST_STEP = 64  # px up to which training steps are compared: of 256 px, one takes minutes
CASES = {"teacher": "forward, teacher", "student": "forward, 30 % student",
         "training": "GAN training step", "distillation": "distillation step"}
"""What is compared, and its name in the table."""
NETWORKS = ("teacher", "student")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Time what a chapter waits for; compare networks and steps with the textbook's arithmetic."""

    parts: tuple[Part, ...] = get_args(Part)
    """What a reader waits for; StyleGAN2 and StyleGAN3 against the textbook; PyTorch, compiled or
    not, against ONNX files."""
    steps: int = 48
    """Timed training steps of each kind: three R1 periods."""
    resolutions: tuple[int, ...] = (32, 64, 256)
    """Sizes of the comparison: toy networks of 64 channels, from 256 px on config f's widths."""
    repeats: int = 5
    """Timed runs of each form of a comparison, in turn."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1"..."""
    out: str = ""
    """JSON file to write the tables to, with commit and hardware; empty: none."""


def run_benchmark(config: BenchmarkConfig) -> dict:
    """{part: what was measured} for the parts asked for, and where; written to `out` too."""
    if choose_device(config.device).type == "cpu":
        parallel.keep_memory()  # as a training does
    record = {part: PARTS[part][0](config) for part in config.parts}
    return store(record | {"teacher": TEACHER}, config)


def store(record: dict, config: Any) -> dict:
    """The record with a tool's settings, commit and hardware; written to their `out`, if any."""
    record = record | {"settings": shareable(asdict(config)), **provenance()}
    if config.out:
        write_atomically(config.out, json.dumps(record, indent=1).encode())
    return record


def show_benchmark(record: dict) -> str:
    """Its tables as Markdown."""
    shown = [show(record[part]) for part, (_, show) in PARTS.items() if part in record]
    return "\n\n".join(shown)


# ----------------------------------------------------------------------- what a reader waits for


def chapter_rows(config: BenchmarkConfig) -> list[tuple[str, str]]:
    """(what, figure) of the embedded teacher, its training and its students."""
    device = choose_device(config.device)
    teacher = load_generator(TEACHER).to(device)
    student = make_student(teacher).eval().to(device)
    r = teacher.resolution
    faces = _rate(lambda: toy_faces(256, r), 256, 10, device)
    rows = [("threads", str(torch.get_num_threads())), ("device", device.type),
            (f"toy faces rendered, {r} px", f"{faces:.0f} images/s")]
    with tempfile.TemporaryDirectory() as folder:
        for name, trainer in _trainers(config, teacher, folder):
            rate = _rate(trainer.train_step, trainer.config.batch, config.steps, device)
            rows.append((name, f"{rate:.0f} images/s"))
    for batch in (1, 16):
        ratio = statistics.median(speed_ratio(student, teacher, batch=batch) for _ in range(3))
        rows.append((f"forward, student over teacher, batch {batch}", f"{ratio:.1f} times"))
    rows.append(("MACs, teacher over student", f"{macs(teacher) / macs(student):.1f} times"))
    return rows


def _trainers(config: BenchmarkConfig, teacher: Generator, folder: str
              ) -> Iterator[tuple[str, Trainer]]:
    """Of a GAN training, and of distillation with and without parts of its loss."""
    r, device = teacher.resolution, choose_device(config.device)
    common = {"out": folder, "device": config.device, "progress": False}
    train = TrainConfig(resolution=r, **common)
    D = Discriminator(r, widths(train.d_channels, r))
    yield f"GAN training, {r} px teacher", Trainer(train, Generator(**teacher.architecture()), D)
    for name, changes in {"distillation, total loss": {},
                          "distillation without L_ld": {"ld_weight": 0.0},
                          "distillation without L_gan": {"gan_weight": 0.0}}.items():
        settings = DistillConfig(teacher=TEACHER, **common, **changes)
        distance = distance_for(settings.perceptual, device)
        distiller = Distiller(load_generator(TEACHER).to(device), distance, settings)
        D = Discriminator(r, widths(settings.d_channels, r))
        yield name, Trainer(settings, make_student(teacher), D, distiller)


def _rate(run: Callable[[], object], images: int, repeats: int, device: torch.device) -> float:
    """Images a second: `images` over the mean of `repeats` calls, after one that does not count."""
    seconds(run, device)
    return images * repeats / seconds(lambda: [run() for _ in range(repeats)], device)


# --------------------------------------------------------------------------- against the textbook


def compare(config: BenchmarkConfig) -> dict:
    """StyleGAN2's networks and training steps.

    Returns: {"peaks": multiply-accumulates a second, "rows": one a case and resolution}; a row is
    that of `against_textbook`, and for a network's forward pass its share of the peak.
    """
    device = choose_device(config.device)
    peak = machine_peak(device)
    rows = []
    for resolution in config.resolutions:
        batch = 4 if resolution >= 256 and device.type == "cpu" else 16
        for case in CASES if resolution <= LARGEST_STEP else NETWORKS:
            make = partial(prepare, case, resolution, batch, device)
            row = {"case": case, "resolution": resolution, "batch": batch}
            row |= against_textbook(make, batch, device, config.repeats)
            if case in NETWORKS:
                work = macs(network_of(case, resolution)) * row["images_per_second"]
                row["of_peak"] = work / peak
            rows.append(row)
            print(f"measured: {case}, {resolution} px", file=sys.stderr, flush=True)
    return {"peaks": {"convolution": peak}, "rows": rows}


def machine_peak(device: torch.device) -> float:
    """Multiply-accumulates a second at best: of a 3x3 convolution, 256 to 256 channels at 64 px,
    float32."""
    x = torch.randn(4, 256, 64, 64, device=device).to(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, device=device).to(memory_format=torch.channels_last)
    times = [seconds(lambda: F.conv2d(x, weight, padding=1), device) for _ in range(6)]
    return x.numel() * 256 * 9 / min(times)


def networks(resolution: int, channels: int = 0) -> tuple[Generator, Discriminator]:
    """The pair that is timed: `channels` wide; 0: 64, but configuration f from 256 px on."""
    with seeded(0):
        if resolution >= 256 and not channels:
            return config_f(resolution), Discriminator(resolution, config_f_channels(resolution))
        G = Generator(resolution, 128, 128, channels or 64)
        return G, Discriminator(resolution, channels or 64)


def network_of(case: str, resolution: int, channels: int = 0) -> Generator:
    """The teacher or its student of 30 % of the channels."""
    G, _ = networks(resolution, channels)
    return (G if case == "teacher" else make_student(G)).eval()


def prepare(case: str, resolution: int, batch: int, device: torch.device,
            by_the_book: bool = False, channels: int = 0) -> Runs:
    """What is timed of a case: a forward pass, or a training step and its regularisation."""
    form = textbook if by_the_book else lambda network: network
    if case in NETWORKS:
        G = form(network_of(case, resolution, channels).requires_grad_(False).to(device))
        z = torch.randn(batch, G.z_dim, generator=torch.Generator().manual_seed(0)).to(device)
        return {"run": lambda: G(z)}
    G, D = networks(resolution, channels)
    common = {"batch": batch, "device": str(device), "progress": False, "precision": "float32"}
    if case == "training":
        trainer = Trainer(TrainConfig(resolution=resolution, **common), form(G), form(D))
    else:
        blocks = (2, 3) if resolution < 128 else (2, 3, 4, 5)
        settings = DistillConfig(ld_blocks=blocks, **common)
        distance = distance_for(settings.perceptual, device)
        distiller = Distiller(form(G).to(device), distance, settings)
        trainer = Trainer(settings, form(make_student(G)), form(D), distiller)
    reals = trainer.real_batch()

    def step() -> None:
        trainer.discriminator_step(reals)
        trainer.generator_step(reals)
        trainer.average_weights()

    return {"run": step, "r1": lambda: trainer.r1_step(reals)}


def compare_alias_free(config: BenchmarkConfig) -> list[dict]:
    """StyleGAN3 against zero insertion, padding and convolution: rows of `against_textbook`, for a
    forward pass and for one with the gradients of weights and inputs."""
    device = choose_device(config.device)
    rows = []
    for case, (_, _, batch) in alias_free_cases(device).items():
        for name, backward in (("forward", False), ("forward and backward", True)):
            make = partial(prepare_alias_free, case, device, backward)
            found = against_textbook(make, batch, device, config.repeats)
            rows.append({"case": case, "batch": batch, "pass": name, **found})
        print(f"measured: {case}", file=sys.stderr, flush=True)
    return rows


def alias_free_cases(device: torch.device) -> dict[str, tuple[nn.Module, Tensor | None, int]]:
    """name -> network or filtered non-linearity, its input (None: latents), images a call.

    A generator of the size of the embedded teachers, a layer of it, and a layer of a 256 px one of
    the published widths.
    """
    cases: dict[str, tuple[nn.Module, Tensor | None, int]] = {}
    with seeded(0):
        for name, rotation, kernel in (("T", False, 3), ("R", True, 1)):
            widths_32 = stylegan3_channels(32, 10, 32 * 64, 64)
            G = AliasFreeGenerator(32, 128, 128, widths_32, kernel, rotation)
            cases[f"generator, configuration {name}, 32 px"] = G, None, 16
            for resolution, channels, batch in ((32, 64, 16), (256, 128, 2)):
                plan = plan_layers(resolution, [channels] * 14)[-4]  # before the critical layers
                layer = AliasFreeLayer(plan, 1, kernel, rotation).activation
                x = torch.randn(batch, channels, layer.size, layer.size, device=device)
                title = f"filtered non-linearity, {name}, {resolution} px, {channels} channels"
                cases[title] = layer, x, batch
    return cases


def prepare_alias_free(case: str, device: torch.device, backward: bool,
                       by_the_book: bool = False) -> Runs:
    """What is timed of one of `alias_free_cases`: a forward pass, with gradients if asked for."""
    module, x, batch = alias_free_cases(device)[case]
    module = (textbook(module) if by_the_book else module).to(device).eval()
    if x is None:
        inputs: tuple[Tensor, ...] = (torch.randn(batch, module.z_dim, device=device),)
    else:  # in the order in which a network of this form would hand it on
        order = torch.contiguous_format if by_the_book else torch.channels_last
        x = x.contiguous(memory_format=order).requires_grad_(backward)
        inputs = x, torch.zeros(x.shape[1], device=device)

    def run() -> None:
        with torch.set_grad_enabled(backward):
            y = module(*inputs)
            if backward:
                y.backward(torch.ones_like(y))

    return {"run": run}


# ------------------------------------------------------------------------------------------ exports


def compare_exports(config: BenchmarkConfig) -> dict:
    """Teacher and student in all forms in which they can be run, on the CPU, by turns.

    Returns: {"rows"}; a row has each network's images a second and share of the peak, and how many
        times as fast the student is, the median over neighbouring calls.
    """
    device, rows = torch.device("cpu"), []
    peak = machine_peak(device)
    for resolution in config.resolutions:
        pair = {case: network_of(case, resolution).requires_grad_(False) for case in NETWORKS}
        torch.compiler.reset()  # it runs what it has compiled eight times as it is written
        forms = {case: forms_of(G) for case, G in pair.items()}
        for batch in BATCHES:
            z = torch.randn(batch, pair["teacher"].z_dim,
                            generator=torch.Generator().manual_seed(0))
            runs = [{case: partial(forms[case][form], z) for case in NETWORKS}
                    for form in forms["teacher"]]
            found = alternate(runs, device, config.repeats)
            for form, times in zip(forms["teacher"], found, strict=True):
                row = {"form": form, "resolution": resolution, "batch": batch}
                for case, G in pair.items():
                    row[case] = batch / statistics.median(times[case])
                    row[f"{case}_of_peak"] = macs(G) * row[case] / peak
                ratios = [slow / fast for slow, fast in zip(*times.values(), strict=True)]
                rows.append(row | {"times": statistics.median(ratios)})
            print(f"measured: {resolution} px, batch {batch}", file=sys.stderr, flush=True)
    return {"rows": rows}


def forms_of(G: Generator) -> dict[str, Callable[[Tensor], object]]:
    """Form -> drawing of z. torch.compile needs a compiler for C++."""
    forms = {"PyTorch": G, "torch.compile": torch.compile(G, dynamic=False)}
    for precision in LIMITS:
        draw = drawn_by(to_onnx(G, precision))
        forms[f"ONNX, {precision}"] = lambda z, draw=draw: draw({"z": z})
    return forms


# ---------------------------------------------------------------------------------------- measuring


def against_textbook(make: Callable[..., Runs], batch: int, device: torch.device,
                     repeats: int) -> dict[str, float]:
    """Images a second, how many times the textbook's that is, and both forms' peak memory an image
    in MB. `make` takes by_the_book."""
    forms = [make(by_the_book=False), make(by_the_book=True)]
    ours, theirs = map(step_seconds, alternate(forms, device, repeats))
    memory, memory_textbook = (peak_memory(partial(make, by_the_book=book), device) / batch / 2**20
                               for book in (False, True))
    return {"images_per_second": batch / ours, "times_textbook": theirs / ours, "memory": memory,
            "memory_textbook": memory_textbook}


def step_seconds(times: dict[str, list[float]]) -> float:
    """Median time of a step with its share of an R1 step."""
    regularising = statistics.median(times.get("r1", [0.0])) / R1_EVERY
    return statistics.median(times["run"]) + regularising


def alternate(forms: list[Runs], device: torch.device, repeats: int
              ) -> list[dict[str, list[float]]]:
    """Seconds of every call of every form, the forms in turn, so that another program slows all."""
    with torch.set_grad_enabled("r1" in forms[0]):
        for form in forms:
            for run in form.values():
                run()
        times = [{name: [] for name in form} for form in forms]
        for _ in range(repeats):
            for form, record in zip(forms, times, strict=True):
                for name, run in form.items():
                    record[name].append(seconds(run, device))
    return times


def peak_memory(make: Callable[[], Runs], device: torch.device) -> int:
    """Bytes that one call of what `make` prepares takes beyond what was there before it; on a CPU
    in a process of its own."""
    if device.type == "cuda":
        return _memory(make, device)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_memory, (make, device))


def _memory(make: Callable[[], Runs], device: torch.device) -> int:
    runs = make()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if on_gpu else _most_so_far(forget=True)
    with torch.set_grad_enabled("r1" in runs):
        for run in runs.values():
            run()
    return (torch.cuda.max_memory_allocated(device) if on_gpu else _most_so_far()) - before


def _most_so_far(forget: bool = False) -> int:
    """The most memory that this process has held, in bytes; on Linux it can forget what was."""
    status = Path("/proc/self/status")
    if status.exists():
        if forget:
            Path("/proc/self/clear_refs").write_text("5")
        lines = status.read_text().splitlines()
        (most,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
        return int(most) * 1024
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# ------------------------------------------------------------------------------------------- tables


def show_rows(rows: Sequence[Sequence[str]]) -> str:
    """(what, figure) rows as a Markdown table."""
    lines = [f"| {name} | {figure} |" for name, figure in rows]
    return "\n".join(["| what | figure |", "|---|--:|", *lines])


def show_comparison(comparison: dict) -> str:
    """The comparison as Markdown."""
    lines = ["| float32 | batch | images/s | times the textbook | of the peak | MB an image "
             "| textbook |", "|---|--:|--:|--:|--:|--:|--:|"]
    for row in comparison["rows"]:
        rate = row["images_per_second"]
        share = f"{row['of_peak']:.0%}" if "of_peak" in row else ""
        lines.append(f"| {CASES[row['case']]}, {row['resolution']} px | {row['batch']} | "
                     f"{rate:.{0 if rate >= 10 else 2}f} | {row['times_textbook']:.1f} | {share} | "
                     f"{row['memory']:.1f} | {row['memory_textbook']:.1f} |")
    peaks = [f"{name} {value / 1e9:.0f}" for name, value in comparison["peaks"].items()]
    return "\n".join([*lines, "", "Peaks of this machine, in 10^9 multiply-accumulates a second: "
                      f"{', '.join(peaks)}."])


def show_alias_free(rows: Sequence[dict]) -> str:
    """StyleGAN3's comparison as Markdown."""
    lines = ["| StyleGAN3, float32 | batch | pass | images/s | times the textbook | MB an image "
             "| textbook |", "|---|--:|---|--:|--:|--:|--:|"]
    for row in rows:
        lines.append(f"| {row['case']} | {row['batch']} | {row['pass']} | "
                     f"{row['images_per_second']:.3g} | {row['times_textbook']:.1f} | "
                     f"{row['memory']:.1f} | {row['memory_textbook']:.1f} |")
    return "\n".join(lines)


def show_exports(found: dict) -> str:
    """The table of `compare_exports` as Markdown."""
    lines = ["| on the CPU | px | batch | teacher, images/s | of the peak | student, images/s "
             "| of the peak | times as fast |", "|---|--:|--:|--:|--:|--:|--:|--:|"]
    for row in found["rows"]:
        rates = [f"{row[case]:.{0 if row[case] >= 10 else 2}f} | {row[f'{case}_of_peak']:.0%}"
                 for case in NETWORKS]
        lines.append(f"| {row['form']} | {row['resolution']} | {row['batch']} | "
                     f"{' | '.join(rates)} | {row['times']:.1f} |")
    return "\n".join(lines)


PARTS: dict[Part, tuple[Callable, Callable]] = {
    "chapters": (chapter_rows, show_rows),
    "comparison": (compare, show_comparison),
    "stylegan3": (compare_alias_free, show_alias_free),
    "exports": (compare_exports, show_exports),
}
"""What measures a part, and what makes a table of it."""


if __name__ == "__main__":
    asked = tyro.cli(BenchmarkConfig, prog="python -m tools.benchmark")
    print(show_benchmark(run_benchmark(asked)))

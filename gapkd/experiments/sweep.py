"""Methods x seeds from a table: what is missing is trained, what is there is left alone, one JSON line a run.

    gapkd sweep sweeps/table.yml                           one run after the other
    gapkd sweep sweeps/table.yml --jobs 2                  two at a time, sharing the cores; on GPUs, one process each
    gapkd sweep sweeps/table.yml --arms dcp --seeds 0      one row of the table
    gapkd sweep sweeps/table.yml --results runs/mine.jsonl the same again, beside what is there

Workers claim runs by locks in the sweep's folder, so the same command may be started as often as there are cores, GPUs
or machines that see the folder: `sbatch --array=1-8 --gres=gpu:1 --wrap "gapkd sweep sweeps/table.yml"` spreads a sweep
over a cluster with Slurm. An interrupted run is resumed by whoever comes next.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
import yaml
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor

from gapkd.data.images import save_png, untile
from gapkd.distillation.pruning import AnyGenerator
from gapkd.distillation.students import check_request
from gapkd.experiments.study import Bench, in_a_line
from gapkd.files.checkpoints import load_generator, sha256, write_atomically
from gapkd.metrics.evaluation import sample_images
from gapkd.metrics.features import reader
from gapkd.settings import DistillConfig, command_line, from_dict, shareable, to_dict
from gapkd.training.loop import OutOfMemory
from gapkd.training.runs import provenance
from gapkd.training.trainer import TrainingDiverged, choose_device

MEASURING = ("probe_every", "fid_every", "fid_samples", "fid_features")
"""Settings that decide when is measured, not what is trained."""
MINE = ("seed", "out", "resume", "device", "progress")
"""Settings that the sweep chooses."""
BENCH = ("judge_sha256", "second_judge_sha256", "samples")
"""Entries of a record that say what measured it."""
FEWEST = 10
"""Fewest images that a run may be judged on: enough to compute every figure, far too few to trust one."""
REFERENCES = ("real", "teacher")
"""Rows of the results that give the figures their scale: real images against other real ones, and the teacher."""


@dataclass(frozen=True)
class SweepConfig:
    """Train and measure all methods of a table with all seeds; runs that its results file holds are skipped."""

    table: Annotated[str, tyro.conf.Positional]
    """YAML file: results, folder, seeds, samples, judge, second_judge, settings (of every run) and arms (name: changed
    settings)."""
    arms: tuple[str, ...] = ()
    """Only these; empty: all."""
    seeds: tuple[int, ...] = ()
    """Only these; empty: those of the table."""
    results: str = ""
    """Another file for the results than the table names, to make rows again; the runs then go into the folder beside it
    that has its name."""
    jobs: int = 0
    """Runs at a time; 0: one, or one for every GPU."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1"..."""
    dry_run: bool = False
    """Only say what is done and what is missing."""
    remeasure: bool = False
    """Train nothing: measure the students in the sweep's folder again, where there are new metrics."""
    progress: bool = False
    """Show progress bars."""

    def __post_init__(self):
        if self.jobs < 0:
            raise ValueError(f"jobs must not be negative, but is {self.jobs}")
        if self.results and not self.results.endswith(".jsonl"):
            raise ValueError(f"results must name a .jsonl file, not {self.results}")


@dataclass(frozen=True)
class Table:
    """A sweep as its file describes it."""

    arms: dict[str, dict[str, Any]]
    """Name of the method -> settings in which it differs from the others; null: none."""
    results: str
    """The JSON-lines file that collects the records."""
    folder: str
    """Where the runs themselves go."""
    seeds: tuple[int, ...] = (0, 1, 2)
    settings: dict[str, Any] | None = None
    """Of every run, DistillConfig's fields; seed, out, resume and the like belong to the sweep."""
    samples: int = 5000
    """Images of the last evaluation."""
    judge: str = "toyfaces"
    """The network behind agreement and FID: the embedded one, or a file that `gapkd judge` wrote."""
    second_judge: str = ""
    """Another one, that no student was trained with: file or embedded name; empty: none."""

    def config(self, arm: str, seed: int) -> DistillConfig:
        """The settings of one run. Raises ValueError, naming the arm."""
        try:
            return from_dict(DistillConfig, {**(self.settings or {}), **(self.arms[arm] or {}), "seed": seed})
        except (ValueError, TypeError) as error:
            raise ValueError(f"arm {arm}: {error}") from error


def read_table(path: str | Path) -> Table:
    """Read and check a table. Raises ValueError that names the file and the place."""
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"the table {path} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    known = [f.name for f in fields(Table)]
    if not isinstance(content, dict) or not content.get("arms"):
        raise ValueError(f"{path} must name its methods under `arms`; it may hold {', '.join(known)}")
    for name in content:
        if name not in known:
            raise ValueError(f"{path} has an entry {name}: known are {', '.join(known)}")
    stem = Path(path).stem
    arms, settings, seeds = content["arms"], content.get("settings") or {}, content.get("seeds", [0, 1, 2])
    if not isinstance(arms, dict) or not all(isinstance(a, dict) for a in (settings, *filter(None, arms.values()))):
        raise ValueError(f"{path}: `settings` and every one of `arms` must be a list of `setting: value`")
    for name, kind in (("samples", int), ("results", str), ("folder", str), ("judge", str), ("second_judge", str)):
        if type(content.get(name, kind())) is not kind:
            raise ValueError(f"{path}: `{name}` must be {'a whole number' if kind is int else 'text'}, not "
                             f"{content[name]!r}")
    if not isinstance(seeds, list) or not seeds or not all(type(s) is int and s >= 0 for s in seeds):
        raise ValueError(f"{path}: `seeds` must be a list of whole numbers from 0 on, not {seeds!r}")
    if content.get("samples", FEWEST) < FEWEST:
        raise ValueError(f"{path}: `samples` must be at least {FEWEST}, not {content['samples']}")
    mine = [name for values in (settings, *filter(None, arms.values())) for name in values if name in MINE]
    if mine:
        raise ValueError(f"{path}: {mine[0]} is for the sweep to choose: leave it out")
    for arm, changes in arms.items():
        if not str(arm).strip() or Path(str(arm)).name != str(arm):
            raise ValueError(f"{path}: the arm {arm!r} cannot name a folder: choose another name")
        if arm in REFERENCES or {"teacher", "data"} & (changes or {}).keys():
            raise ValueError(f"{path}, arm {arm}: one teacher and one set of data, named under `settings`, serve all "
                             f"arms, and {' and '.join(REFERENCES)} are the names of their rows")
    table = Table(**{"results": f"runs/{stem}.jsonl", "folder": f"runs/{stem}", **content,
                     "arms": {str(name): changes or {} for name, changes in arms.items()}, "seeds": tuple(seeds)})
    for arm in table.arms:
        try:
            table.config(arm, seeds[0])
        except ValueError as error:
            raise ValueError(f"{path}, {error}") from error
    return table


def read_results(path: str | Path, mixed: bool = False) -> list[dict]:
    """The records of a results file, none if it is not there yet.

    Raises ValueError for a line that is no record and, unless `mixed`, for records that different judges, or one on
    different numbers of images, have measured.
    """
    file, records = Path(path), []
    for number, line in enumerate(file.read_text().splitlines() if file.exists() else [], 1):
        try:
            record = json.loads(line)
            record["arm"], record["final"]
            if record["arm"] not in REFERENCES:
                record["seed"], record["settings"], record["images"], record["seconds"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}, line {number}, is not the record of a run: take the line out; its student, if "
                             "the folder still has it, is then measured again") from error
        records.append(record)
    for name in () if mixed else BENCH:
        if len({record.get(name) for record in records}) > 1:
            raise ValueError(f"{file} holds figures that cannot be compared, of different {name}: measure all again, "
                             "with gapkd sweep --remeasure, or take lines out")
    return records


def _same_run(record: dict, config: DistillConfig) -> bool:
    """Whether a record is that of a run with these settings; settings that are newer than it have their defaults."""
    defaults = shareable(to_dict(DistillConfig()))
    asked = shareable(to_dict(config))
    return all(record["settings"].get(name, defaults[name]) == value for name, value in asked.items()
               if name not in MEASURING)


def missing(table: Table, arms: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """Arm and seed of the runs that the results do not hold, the first seed of all arms first.

    Raises ValueError where they hold one of that name with other settings or another teacher.
    """
    records = {(r["arm"], r.get("seed")): r for r in read_results(table.results)}
    todo, bench = [], _bench_of(table)
    for seed in seeds:
        for arm in arms:
            record, config = records.get((arm, seed)), table.config(arm, seed)
            if record is None:
                todo.append((arm, seed))
            elif any(record.get(name) != bench.get(name) for name in BENCH):
                raise ValueError(f"{table.results} holds a run of {arm}, seed {seed}, that another judge has measured, "
                                 "or on another number of images: measure all of them again, with --remeasure, or name "
                                 "that judge and number")
            elif not _same_run(record, config) or record.get("teacher_sha256") != bench["teacher_sha256"]:
                raise ValueError(f"{table.results} holds a run of {arm}, seed {seed}, with other settings or another "
                                 "teacher: give the arm another name, or take out that line and the folder "
                                 f"{Path(table.folder) / f'{arm}-{seed}'}")
    return todo


def run_sweep(config: SweepConfig) -> list[dict]:
    """Train what is missing; returns all records of the results file.

    Raises ValueError for a table or results file that does not fit; RuntimeError when runs failed (the others are
    made nevertheless); TrainingInterrupted.
    """
    table = read_table(config.table)
    if config.results:
        table = replace(table, results=config.results, folder=str(faces_folder(config.results)))
    for arm in config.arms:
        if arm not in table.arms:
            raise ValueError(f"{config.table} has no arm {arm}: choose from {', '.join(table.arms)}")
    arms, seeds = config.arms or tuple(table.arms), config.seeds or table.seeds
    if config.remeasure:
        _remeasure(table, arms, seeds, config.device)
        return read_results(table.results)
    home = Path(table.results).parent
    if not home.is_dir() and home not in Path(table.folder).parents:
        raise ValueError(f"there is no folder {home} for the results: start the command in the folder that the paths "
                         f"of {config.table} count from, or make it")
    todo = missing(table, arms, seeds)
    print(f"{len(arms) * len(seeds) - len(todo)} of {len(arms) * len(seeds)} runs are in {table.results}")
    if config.dry_run:
        for arm, seed in todo:
            print(f"missing: {arm} seed {seed}: {row_command(table.config(arm, seed))}")
        return read_results(table.results)
    gpus = torch.cuda.device_count() if config.device in ("auto", "cuda") else 0
    jobs = min(config.jobs or max(1, gpus), max(1, len(todo)))
    if jobs > 1:
        _spread(config, jobs, gpus)
    else:
        _work(config, table, arms, seeds)
    return read_results(table.results)


def row_command(config: DistillConfig) -> str:
    """The command that trains one run alone."""
    return command_line("gapkd distill", DistillConfig, to_dict(config))


def _spread(config: SweepConfig, jobs: int, gpus: int) -> None:
    """Start workers, each this command with one job, and wait for them."""
    workers = []
    for number in range(jobs):
        device = f"cuda:{number % gpus}" if gpus else config.device
        command = [sys.executable, "-m", "gapkd", "sweep", config.table, "--jobs", "1", "--device", device]
        for name in ("arms", "seeds"):
            if values := getattr(config, name):
                command += [f"--{name}", *map(str, values)]
        command += ["--results", config.results] if config.results else []
        command += ["--progress"] if config.progress else []
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        workers.append(subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": threads}))
    try:
        failed = [worker.wait() for worker in workers]
    except KeyboardInterrupt:  # Ctrl-C reaches the workers too: they save their states
        for worker in workers:
            worker.wait()
        raise
    if any(failed):
        raise ChildFailed(f"{sum(map(bool, failed))} of {jobs} workers met a run that failed: see above")


class ChildFailed(RuntimeError):
    """A run of the sweep failed; the others are made nevertheless."""


def _claims(table: Table, runs: Sequence[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """The runs that nobody else is at, one after the other, each ours until the next is asked for."""
    folder = Path(table.folder)
    folder.mkdir(parents=True, exist_ok=True)
    for arm, seed in runs:
        lock = FileLock(folder / f".{arm}-{seed}.claim")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        try:
            if not any((r["arm"], r.get("seed")) == (arm, seed) for r in read_results(table.results)):
                yield arm, seed
        finally:
            lock.release()


def _work(config: SweepConfig, table: Table, arms: Sequence[str], seeds: Sequence[int]) -> None:
    todo, failed = missing(table, arms, seeds), []
    if not todo:
        return
    bench = _bench(table, config.device)
    for arm in arms:
        asked = table.config(arm, 0)
        try:
            check_request(bench.teacher, asked.keep, asked.kernel, asked.mapping, asked.synthesis)
        except ValueError as error:
            raise ValueError(f"{config.table}, arm {arm}: {error}") from error
    for arm, seed in _claims(table, todo):
        out = Path(table.folder) / f"{arm}-{seed}"
        settings = from_dict(DistillConfig, to_dict(table.config(arm, seed)) | {
            "out": str(out), "device": config.device, "progress": config.progress,
            "resume": any(out.glob("checkpoints/*.pt"))})
        try:
            record = {"arm": arm, **bench.train(settings), **_bench_of(table)}
        except (TrainingDiverged, OutOfMemory, ValueError) as error:
            failed.append(arm)
            print(f"{arm} seed {seed} failed: {error}", file=sys.stderr, flush=True)
            continue
        _write(table.results, [record])
        _draw_faces(table, arm, seed, load_generator(out / "generator.safetensors"))
        print(f"{in_a_line(record)}, {record['seconds']:.0f} s", flush=True)
    if failed:
        raise ChildFailed(f"{len(failed)} run(s) failed: {', '.join(failed)}; the others are in {table.results}")


def _common(table: Table) -> DistillConfig:
    """The settings of the first arm: all arms share teacher and data."""
    return table.config(next(iter(table.arms)), table.seeds[0])


def _bench_of(table: Table) -> dict[str, str | int]:
    """What the figures of a record rest on: checksums of the networks, and the number of images."""
    judge = "attributes" if table.judge == "toyfaces" else table.judge
    second = {"second_judge_sha256": sha256(table.second_judge)} if table.second_judge else {}
    return {"teacher_sha256": sha256(_common(table).teacher), "judge_sha256": sha256(judge), **second,
            "samples": table.samples}


def _bench(table: Table, device: str, again: bool = False) -> Bench:
    """Where all runs are measured; sees to it that the results hold the rows of real images and teacher."""
    common = _common(table)
    bench = Bench(common.teacher, reader(table.judge), common.data, table.samples,
                  reader(table.second_judge) if table.second_judge else None, device=choose_device(device))
    Path(table.folder).mkdir(parents=True, exist_ok=True)
    with FileLock(Path(table.folder) / ".references.claim"):  # the first worker measures them, the others wait
        if again or not any(record["arm"] in REFERENCES for record in read_results(table.results, mixed=True)):
            _write(table.results, [{"arm": row.pop("name"), "final": row, **provenance(), **_bench_of(table)}
                                   for row in bench.references()])
            _draw_faces(table, "teacher", table.seeds[0], bench.teacher)
    return bench


def _draw_faces(table: Table, arm: str, seed: int, G: AnyGenerator, count: int = 16) -> None:
    """Keep what the first seed's networks make of the same latents, side by side, one PNG an arm."""
    if seed == table.seeds[0]:
        save_png(next(sample_images(G, count, 7)), faces_folder(table.results) / f"{arm}.png", columns=count)


def faces_folder(results: str | Path) -> Path:
    """Where the faces beside a results file lie: table.jsonl, table/."""
    return Path(results).with_suffix("")


def read_faces(results: str | Path, arms: Sequence[str]) -> dict[str, Tensor]:
    """The faces that the first seed's networks drew from the same latents: arm -> (N, 3, R, R) in [-1, 1]; arms that
    have none are missing."""
    found = {}
    for arm in arms:
        file = faces_folder(results) / f"{arm}.png"
        if file.is_file():
            with Image.open(file) as picture:
                pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
            found[arm] = untile(pixels).float() / 127.5 - 1
    return found


def _remeasure(table: Table, arms: Sequence[str], seeds: Sequence[int], device: str) -> None:
    bench = _bench(table, device, again=True)
    for record in read_results(table.results, mixed=True):
        file = Path(table.folder) / f"{record['arm']}-{record.get('seed')}" / "generator.safetensors"
        if record["arm"] not in arms or record.get("seed") not in seeds:
            continue
        if not file.is_file():
            print(f"{record['arm']} seed {record['seed']} stays as it is: {file} is not there", flush=True)
            continue
        G = load_generator(file)
        record |= {"final": bench.measure(G), "measured": provenance(), **_bench_of(table)}
        _write(table.results, [record])
        _draw_faces(table, record["arm"], record["seed"], G)
        print(in_a_line(record), flush=True)


def _write(results: str | Path, records: Sequence[dict]) -> None:
    """Put records into the results file, in place of older ones of the same name, whole or not at all, whoever else
    writes."""
    file = Path(results)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        rows = {(r["arm"], r.get("seed")): r for r in [*read_results(file, mixed=True), *records]}
        write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows.values()).encode())


def sweep_note(file: str, records: Sequence[dict]) -> str:
    """In sentences: the commands, commits and machines behind the results of a table."""
    def all_of(name: str, rows: Sequence[dict] = records) -> str:
        return ", ".join(sorted({str(r[name]) for r in rows}))

    hours = sum(r["seconds"] for r in records) / 3600
    text = (f"Made with `gapkd sweep {file}`: commit {all_of('commit')}, {all_of('hardware')}, threads a run: "
            f"{all_of('threads')}, {hours:.1f} hours for all {len(records)} runs, {all_of('date')}.")
    if older := [r for r in records if "command" in r]:
        arms = ", ".join(dict.fromkeys(r["arm"] for r in older))
        text += f" {len(older)} of them ({arms}) were trained by `{all_of('command', older)}`, with the same settings."
    if again := [r["measured"] for r in records if "measured" in r]:
        text += f" {len(again)} students were measured again later, at commit {all_of('commit', again)}."
    for name in dict.fromkeys(name for r in records for name in r.get("added", {})):
        later = [r["added"][name] for r in records if name in r.get("added", {})]
        text += f" {name} was added to {len(later)} of them, at commit {all_of('commit', later)}."
    return text

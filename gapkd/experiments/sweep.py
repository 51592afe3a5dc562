"""Methods x seeds from a table: what is missing is trained, what is there is left alone.

    gapkd sweep tools/sweeps/table.yml                      one run after the other
    gapkd sweep tools/sweeps/table.yml --jobs 2             two at a time; on GPUs, one process each
    gapkd sweep tools/sweeps/table.yml --arms dcp --seeds 0 one row of the table
    gapkd sweep tools/sweeps/table.yml                      once more: the finished table alone
    gapkd sweep tools/sweeps/table.yml --results runs/mine.jsonl     again, beside what is there

Workers claim runs by locks in the sweep's folder, so the same command may be started as often as
there are cores, GPUs or machines that see the folder. An interrupted run is resumed by whoever
comes next. Every run becomes one JSON line (gapkd.experiments.results).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
import yaml
from filelock import Timeout

from gapkd.data.images import save_png
from gapkd.experiments.bench import PROBED, Bench
from gapkd.experiments.results import (
    BENCH,
    REFERENCES,
    faces_folder,
    read_results,
    results_table,
)
from gapkd.files.checkpoints import load_generator, read_metadata, sha256, states_of
from gapkd.files.provenance import provenance
from gapkd.files.storage import INSTALLED, ROOT, check_place, locked, write_atomically
from gapkd.metrics.sampling import sample_images
from gapkd.networks.base import StyleGenerator
from gapkd.parallel import choose_device
from gapkd.progress import show
from gapkd.settings import (
    MOST,
    DistillConfig,
    as_kind,
    command_line,
    from_dict,
    in_brief,
    read_yaml,
    shareable,
    shown,
    to_dict,
)
from gapkd.training.loop import OutOfMemory
from gapkd.training.runs import differences, read_about
from gapkd.training.start import check_student
from gapkd.training.trainer import TrainingDiverged

MEASURING = ("probe_every", "fid_every", "fid_samples", "fid_features")
"""Settings that decide when is measured, not what is trained."""
CHOSEN = ("seed", "out", "resume", "device", "progress")
"""Settings that the sweep chooses."""
SWEEPS = ROOT / "tools" / "sweeps"
"""The tables of the course."""
LONGEST = 200
"""Bytes of an arm's name at most: a file's has 255, and there are such as .NAME-0.claim."""
FEWEST = 10
"""Images that a run must be judged on at least: every figure can be computed, none be trusted."""


@dataclass(frozen=True)
class SweepConfig:
    """Train and measure all methods of a table with all seeds; runs that its results file holds are
    skipped."""

    table: Annotated[str, tyro.conf.Positional]
    """YAML file: results, folder, seeds, samples, judge, second_judge, settings (of every run) and
    arms (name: changed settings); or the name of one of the course's tables, such as "table"."""
    arms: tuple[str, ...] = ()
    """Only these; empty: all."""
    seeds: tuple[int, ...] = ()
    """Only these; empty: those of the table."""
    results: str = ""
    """Another file for the results than the table names, to make rows again; the runs then go into
    the folder beside it that has its name. (The course's tables, where gapkd comes from a wheel:
    runs/<table>.jsonl.)"""
    jobs: int = 0
    """Runs at a time; 0: one, or one for every GPU."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1"..."""
    dry_run: bool = False
    """Only say what is done and what is missing."""
    progress: bool = True
    """Show progress bars; of several runs at a time, none."""

    def __post_init__(self):
        if self.jobs < 0:
            raise ValueError(f"jobs must not be negative, but is {self.jobs}")
        if self.results and Path(self.results).suffix != ".jsonl":
            raise ValueError(f"results must name a .jsonl file, not {self.results}")


class ChildFailed(RuntimeError):
    """A run of the sweep failed; the others are made nevertheless."""


# -------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Table:
    """A sweep as its file describes it."""

    arms: dict[str, dict[str, Any]]
    """Name of the method -> settings in which it differs from the others."""
    results: str
    """The JSON-lines file that collects the records."""
    folder: str
    """Where the runs themselves go."""
    settings: dict[str, Any]
    """Of every run, DistillConfig's fields; seed, out, resume and the like belong to the sweep."""
    seeds: tuple[int, ...] = (0, 1, 2)
    samples: int = 5000
    """Images of the last evaluation."""
    judge: str = "toyfaces"
    """The network behind agreement and FID: the embedded one, or a file of `gapkd judge`."""
    second_judge: str = ""
    """Another one, that no student was trained with: file or embedded name; empty: none."""
    commit: str = ""
    """Of a table that is only a record by now: the code that has its settings."""

    def config(self, arm: str, seed: int) -> DistillConfig:
        """The settings of one run. Raises ValueError, naming the arm."""
        values = {**self.settings, **self.arms[arm], "seed": seed}
        try:
            return from_dict(DistillConfig, values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"arm {arm}: {error}") from error

    def common(self) -> DistillConfig:
        """The settings of the first arm: all arms share teacher and data."""
        return self.config(next(iter(self.arms)), self.seeds[0])

    def run_folder(self, arm: str, seed: int) -> Path:
        return Path(self.folder) / f"{arm}-{seed}"

    def bench_marks(self) -> dict[str, str | int]:
        """What the figures of a record rest on: checksums of networks, and the number of images."""
        marks = {"teacher_sha256": sha256(self.common().teacher)}
        for name, judge in (("judge", self.judge), ("second_judge", self.second_judge)):
            if judge:
                file = "attributes" if judge == "toyfaces" else judge
                marks[f"{name}_sha256"] = sha256(file)
        return marks | {"samples": self.samples}

    def files(self, arm: str) -> dict[str, str]:
        """Checksums of an arm's own files, since a record names them without their folders."""
        settings = self.config(arm, self.seeds[0])
        named = {name: Path(getattr(settings, name)) for name in ("discriminator", "perceptual")}
        return {name: sha256(file) for name, file in named.items() if file.is_file()}


def _are_settings(*values: object) -> bool:
    return all(value is None or isinstance(value, dict) for value in values)


def _are_numbers(values: object, least: int) -> bool:
    numbers = isinstance(values, list) and len(values) > 0
    return numbers and all(type(value) is int and value >= least for value in values)


ENTRIES = dict.fromkeys((f.name for f in fields(Table)), (lambda v: isinstance(v, str), "text")) | {
    "arms": (lambda v: isinstance(v, dict) and _are_settings(*v.values()),
             "methods, each with a list of `setting: value`"),
    "settings": (_are_settings, "a list of `setting: value`"),
    "results": (lambda v: isinstance(v, str) and Path(v).suffix == ".jsonl", "a .jsonl file"),
    "seeds": (lambda v: _are_numbers(v, 0), "a list of whole numbers from 0 on"),
    "samples": (lambda v: _are_numbers([v], FEWEST) and v <= MOST["fid_samples"],
                f"a whole number of at least {FEWEST} and at most {MOST['fid_samples']:,}")}
"""Entry of a table's file -> whether it may hold a value, and what that must be."""


def find_table(name: str) -> Path:
    """The file of that path, here or in the course; or the course's table of that name."""
    places = Path(name), ROOT / name, SWEEPS / f"{name}.yml"
    return next((place for place in places if place.is_file()), Path(name))


def read_table(path: str | Path) -> Table:
    """Read and check a table. Raises ValueError that names the file and the place."""
    try:
        content = read_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(file.stem for file in SWEEPS.glob("*.yml")))
        raise ValueError(f"the table {path} cannot be read ({error.strerror}): give a file, or one "
                         f"of the course's tables ({known})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {shown(' '.join(str(error).split()))}") from error
    known = ", ".join(ENTRIES)
    if not isinstance(content, dict) or not content.get("arms"):
        raise ValueError(f"{path} must name its methods under `arms`; it may hold {known}")
    for name, value in content.items():
        if name not in ENTRIES:
            raise ValueError(f"{path} has an entry {shown(name)}: known are {known}")
        fits, kind = ENTRIES[name]
        if name in ("seeds", "samples"):
            value = content[name] = as_kind(value, int)
        if not fits(value):
            raise ValueError(f"{path}: `{name}` must be {kind}, not {in_brief(value)}")
    stem = Path(path).stem
    content = {"results": f"runs/{stem}.jsonl", "folder": f"runs/{stem}"} | content
    for name in {"results", "folder", "judge", "second_judge"} & content.keys():
        content[name] = os.path.expanduser(content[name])
    content["seeds"] = tuple(content.get("seeds", Table.seeds))
    content["settings"] = content.get("settings") or {}
    content["arms"] = {str(arm): changes or {} for arm, changes in content["arms"].items()}
    table, spelt = Table(**content), {}
    for arm in table.arms:
        _check_arm(path, table, arm)
        same = spelt.setdefault(unicodedata.normalize("NFC", arm).casefold(), arm)
        if same != arm:
            raise ValueError(f"{path}: the arms {same!r} and {arm!r} are one folder on some "
                             "systems: rename one of them")
    return table


def _check_arm(path: str | Path, table: Table, arm: str) -> None:
    """A name that can be a folder, settings that may differ between arms, values that hold."""
    changes = table.arms[arm]
    is_name = arm.strip() and arm.isprintable() and Path(arm).name == arm != ".."
    if not is_name or len(arm.encode()) > LONGEST:
        raise ValueError(f"{path}: the arm {arm[:60]!r} cannot name a folder: choose another name, "
                         f"of {LONGEST} bytes at most in UTF-8")
    if arm in REFERENCES or {"teacher", "data"} & changes.keys():
        raise ValueError(f"{path}, arm {arm}: one teacher and one set of data, named under "
                         f"`settings`, serve all arms, and {' and '.join(REFERENCES)} are the "
                         "names of their rows")
    for name in {**table.settings, **changes}:
        if name in CHOSEN:
            raise ValueError(f"{path}: {name} is for the sweep to choose: leave it out")
    if table.commit:  # its settings may be unknown by now
        return
    try:
        table.config(arm, table.seeds[0])
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from error


# ---------------------------------------------------------------------------------- what is there


def missing(table: Table, arms: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """Arm and seed of the runs that the results do not hold, the first seed of all arms first.
    Raises ValueError where they hold one of that name with other settings, judge or teacher."""
    records = {(r["arm"], r.get("seed")): r for r in read_results(table.results)}
    todo, marks = [], table.bench_marks()
    for seed in seeds:
        for arm in arms:
            record = records.get((arm, seed))
            if record is None:
                todo.append((arm, seed))
            elif not _same_run(record, table.config(arm, seed), marks, table.files(arm)):
                raise ValueError(f"{table.results} holds a run of {arm}, seed {seed}, with other "
                                 "settings, another teacher, judge or number of images judged, or "
                                 "other networks in the files that it names: give the arm another "
                                 "name, or take out that line and the folder "
                                 f"{table.run_folder(arm, seed)}")
    for record in records.values() if todo else ():
        if not _same_bench(record, marks):
            raise ValueError(f"{table.results} holds figures of another teacher, judge or number "
                             f"of images judged than this table's ({shown(record['arm'])}): no run "
                             "of it may join them; give another results file")
    return todo


def _same_run(record: dict, config: DistillConfig, marks: dict, files: dict) -> bool:
    """Whether a record is of a run with these settings; those newer than it have their defaults."""
    if record.get("files_sha256", files) != files:
        return False
    known = shareable(to_dict(DistillConfig())) | record["settings"]
    asked = shareable(to_dict(config))
    same = all(known[name] == value for name, value in asked.items() if name not in MEASURING)
    return same and _same_bench(record, marks)


def _same_bench(record: dict, marks: dict) -> bool:
    return all(record.get(name) == marks.get(name) for name in ("teacher_sha256", *BENCH))


def _lock_of(results: Path) -> Path:
    return results.with_name(f".{results.name}.lock")


def _write(results: str | Path, records: Sequence[dict]) -> None:
    """Put records into the results file, in place of older ones of the same name: whole or not at
    all, whoever else writes."""
    file = Path(results)
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(_lock_of(file), wait=True):
        rows = {(r["arm"], r.get("seed")): r for r in [*read_results(file), *records]}
        lines = [json.dumps(row) + "\n" for row in rows.values()]
        write_atomically(file, "".join(lines).encode())


# ---------------------------------------------------------------------------------------- running


def run_sweep(config: SweepConfig) -> list[dict]:
    """Train what is missing; returns all records of the results file. Raises ValueError for a table
    or results file that does not fit, ChildFailed where runs failed (the others are made), and
    TrainingInterrupted after Ctrl-C."""
    table = _table_of(config)
    arms = tuple(dict.fromkeys(config.arms or table.arms))
    seeds = tuple(dict.fromkeys(config.seeds or table.seeds))
    home = Path(table.results).parent
    if not home.is_dir() and home not in Path(table.folder).parents:
        raise ValueError(f"there is no folder {home} for the results: start the command in the "
                         f"folder that the paths of {config.table} count from, or make it")
    todo = missing(table, arms, seeds)
    _check_begun(table, todo)
    if todo and not config.dry_run:
        check_place(table.results)
        check_place(table.run_folder(*todo[0]), "folder")
    _check_students(config, table, arms if todo else ())
    every = len(arms) * len(seeds)
    show(f"{every - len(todo)} of {every} runs are in {table.results}")
    if config.dry_run:
        for arm, seed in todo:
            show(f"missing: {arm} seed {seed}: {row_command(table.config(arm, seed))}")
        return read_results(table.results)
    gpus = torch.cuda.device_count() if config.device in ("auto", "cuda") else 0
    jobs = min(config.jobs or max(1, gpus), len(todo))
    if jobs > 1:
        _check_locks(table)
        _spread(config, jobs, gpus)
        return read_results(table.results)
    if todo:
        _work(config, table, todo)
    records = read_results(table.results)
    if not missing(table, arms, seeds):  # else another worker is at the last ones, and shows them
        runs = [record for record in records if record["arm"] in arms]
        references = [record for record in records if record["arm"] in REFERENCES]
        for images in sorted({run["images"] for run in runs}):
            show(results_table([run for run in runs if run["images"] == images], references))
    return records


def _check_begun(table: Table, todo: Sequence[tuple[str, int]]) -> None:
    """Refuse a run that was begun with other settings, before the bench is made."""
    for arm, seed in todo:
        folder, now = table.run_folder(arm, seed), table.config(arm, seed)
        settings, inputs = (read_about(folder).get(key) for key in ("settings", "inputs"))
        if not (isinstance(settings, dict) and isinstance(inputs, dict) and states_of(folder)):
            continue
        if settings.keys() != to_dict(now).keys():  # another version's: the run itself says so
            continue
        if other := differences(now, settings, inputs):
            raise ValueError(f"{folder} holds a run of {arm}, seed {seed}, that was begun with "
                             f"{'; '.join(other)}: give the arm another name, or take out that "
                             "folder")


def _check_students(config: SweepConfig, table: Table, arms: Sequence[str]) -> None:
    """Refuse an arm whose student cannot be, before hours are spent on the others."""
    for arm in arms:
        c = table.config(arm, 0)
        try:
            check_student(c, load_generator(c.teacher))
        except ValueError as error:
            raise ValueError(f"{config.table}, arm {arm!r}: {error}") from error


def _table_of(config: SweepConfig) -> Table:
    """The table that is asked for, with the results file that is asked for."""
    file = find_table(config.table)
    table = read_table(file)
    if table.commit:
        raise ValueError(f"{config.table} is the record of an experiment whose options are gone "
                         f"from gapkd: commit {table.commit} has them; run it again from there")
    for arm in config.arms:
        if arm not in table.arms:
            raise ValueError(f"{config.table} has no arm {arm}: choose from "
                             f"{', '.join(table.arms)}")
    results = config.results
    if not results and INSTALLED and file.parent == SWEEPS:  # its own results lie in the wheel
        results = f"runs/{file.stem}.jsonl"
    if not results:
        return table
    return replace(table, results=results, folder=str(faces_folder(results)))


def row_command(config: DistillConfig) -> str:
    """The command that trains one run alone."""
    return command_line("gapkd distill", DistillConfig, to_dict(config))


def _check_locks(table: Table) -> None:
    """Refuse several workers where they could not tell each other what they are at."""
    for lock in (Path(table.folder) / ".workers.lock", _lock_of(Path(table.results))):
        lock.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock, wait=True) as alone:
            if not alone:
                raise ValueError(f"{lock.parent} lies on a file system without locks, by which "
                                 "workers claim their runs: make one at a time, with --jobs 1")


def _spread(config: SweepConfig, jobs: int, gpus: int) -> None:
    """Start workers, each this command with one job, and wait for them."""
    command = [sys.executable, "-m", "gapkd", "sweep", config.table, "--jobs", "1",
               "--no-progress"]  # several bars would write over each other
    for name in ("arms", "seeds"):
        if values := getattr(config, name):
            command += [f"--{name}", *map(str, values)]
    command += ["--results", config.results] if config.results else []
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    devices = [f"cuda:{n % gpus}" if gpus else config.device for n in range(jobs)]
    workers = []

    def pass_on(number: int, frame: object) -> None:
        for worker in workers:
            worker.terminate()
        raise KeyboardInterrupt("stopped; the same command goes on from here")

    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, pass_on) if in_main_thread else None
    try:
        for device in devices:
            workers.append(subprocess.Popen([*command, "--device", device], env=environment))
        failed = sum(worker.wait() != 0 for worker in workers)
    except KeyboardInterrupt:  # Ctrl-C reaches the workers too: they save their states
        for worker in workers:
            worker.wait()
        raise
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)
    if failed:
        raise ChildFailed(f"{failed} of {jobs} workers met a run that failed: see above")


def _work(config: SweepConfig, table: Table, todo: Sequence[tuple[str, int]]) -> None:
    """Train and measure, in this process, what nobody else is at."""
    common, failed = table.common(), []
    bench = Bench(common.teacher, table.judge, common.data, table.samples, table.second_judge,
                  choose_device(config.device))
    mark = bench.marks.get("listing_sha256")
    if any(record.get("listing_sha256", mark) != mark for record in read_results(table.results)):
        raise ValueError(f"{table.results} holds figures that were measured on other images than "
                         f"those that are now in {common.data}: bring the others back, or "
                         "give another results file")
    _add_references(table, bench, wait=False)
    for arm, seed in _claims(table, todo):
        out = table.run_folder(arm, seed)
        settings = replace(table.config(arm, seed), out=str(out), device=config.device,
                           progress=config.progress, resume=bool(states_of(out)))
        try:
            record = {"arm": arm, **bench.train(settings), **table.bench_marks()}
            if files := table.files(arm):
                record["files_sha256"] = files
        except (TrainingDiverged, OutOfMemory, ValueError) as error:
            failed.append(arm)
            print(f"{arm} seed {seed} failed: {error}", file=sys.stderr, flush=True)
            continue
        _write(table.results, [record])
        _draw_faces(table, arm, seed, load_generator(out / "generator.safetensors"))
        figures = [f"{name} {value:.3f}" for name, value in record["final"].items()
                   if name in PROBED or name.startswith("fid_")]
        show(f"{arm} seed {seed}: {', '.join(figures)}, {record['seconds']:.0f} s")
    _add_references(table, bench, wait=True)  # whoever was at them may have died
    if failed:
        raise ChildFailed(f"{len(failed)} run(s) failed: {', '.join(failed)}; the others are in "
                          f"{table.results}")


def _claims(table: Table, runs: Sequence[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """The runs that nobody else is at, one by one, each ours until the next is asked for; one that
    failed until the last, since other workers would only see it fail again."""
    def recorded() -> list[tuple[str, int | None]]:
        return [(record["arm"], record.get("seed")) for record in read_results(table.results)]

    with ExitStack() as failed:
        for arm, seed in runs:
            with suppress(Timeout), ExitStack() as ours:
                ours.enter_context(locked(Path(table.folder) / f".{arm}-{seed}.claim"))
                if (arm, seed) in recorded():
                    continue
                yield arm, seed
                if (arm, seed) not in recorded():
                    failed.enter_context(ours.pop_all())


def _draw_faces(table: Table, arm: str, seed: int, G: StyleGenerator) -> None:
    """Keep what the first seed's networks make of the same latents, in a row, one PNG an arm."""
    if seed == table.seeds[0]:
        images = next(sample_images(G, 16, 7))
        save_png(images, faces_folder(table.results) / f"{arm}.png", columns=len(images))


def _add_references(table: Table, bench: Bench, wait: bool) -> None:
    """Give the results the rows of real images and teacher, unless they have them or, where we do
    not wait for it, another worker is at them."""
    Path(table.folder).mkdir(parents=True, exist_ok=True)
    with suppress(Timeout), locked(Path(table.folder) / ".references.claim", wait):
        there = {record["arm"] for record in read_results(table.results)}
        if not there & set(REFERENCES):
            origin = provenance(bench.device) | bench.marks | table.bench_marks() | _origins(table)
            rows = bench.references().items()
            _write(table.results, [{"arm": arm, "final": final, **origin} for arm, final in rows])
            _draw_faces(table, "teacher", table.seeds[0], bench.teacher)


def _origins(table: Table) -> dict[str, dict]:
    """How networks came about that are not embedded, so that nobody else has them."""
    origins = {}
    for role, file in (("teacher", table.common().teacher), ("judge", table.judge)):
        if Path(file).exists():
            origin = read_metadata(file)["provenance"]
            if isinstance(origin.get("settings"), dict):
                origin |= {"settings": shareable(origin["settings"])}
            origins[f"{role}_origin"] = origin
    return origins

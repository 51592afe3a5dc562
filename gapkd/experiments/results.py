"""What is read off the records of a sweep: means, differences, tables.

A results file holds one JSON line a run: its arm, seed, settings, images, seconds, the curve of
what was measured while it trained, the `final` figures, and where, when and by which judge they
were taken. Two more lines, `real` and `teacher`, give the figures their scale. Settings of a record
may have gone from the package since: nothing here builds them anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gapkd.data.images import untile
from gapkd.files.storage import data_path, json_lines
from gapkd.settings import shown

REFERENCES = ("real", "teacher")
"""Rows that are not arms: real images against other real ones, and the teacher."""
BENCH = ("judge_sha256", "second_judge_sha256", "samples")
"""Entries of a record that say what measured it."""

FID = "fid_(?!to_teacher_).+"
COLUMNS = {
    "l1": "L1 ↓", "perceptual": "perceptual ↓", "agree_mean_accuracy": "same class ↑",
    "agree_mean_correlation": "correlation ↑", "agree_edits": "edits ↑",
    FID: "FID to real ↓", "fid_to_teacher_.+": "FID to teacher ↓",
    "eq_t": "EQ-T, dB ↑", "eq_r": "EQ-R, dB ↑"}
SECOND_COLUMNS = {
    f"second_{FID}": "FID to real ↓", "second_fid_to_teacher_.+": "FID to teacher ↓",
    "second_agree_mean_correlation": "correlation ↑", "second_agree_mean_accuracy": "same class ↑",
    "second_perceptual": "perceptual ↓", "l1": "L1 ↓",
    "projection_psnr": "projection, PSNR dB ↑", "agree_edits": "edits* ↑", "ppl_.+": "PPL* ↓",
    "coverage_.+": "coverage* ↑"}
"""Figures of a results table, as patterns of their names in a record, and their titles. "FID to
teacher" compares images of the same z. SECOND_COLUMNS is the table by the judge that no student was
trained with; it did not read those with a star, and two others need no judge."""


# -------------------------------------------------------------------------------------- reading


def read_results(path: str | Path) -> list[dict]:
    """The records of a results file, none if it is not there yet. Raises ValueError for a line that
    is no record, for a run that stands there twice, and for records of different judges or numbers
    of images judged."""
    file, records, seen = Path(path), [], {}
    for number, record in json_lines(file) if os.path.exists(file) else []:
        if not _is_record(record):
            raise ValueError(f"{file}, line {number}, is not the record of a run: mend the line, "
                             "or take it out; its run is then made again")
        first = seen.setdefault((record["arm"], record.get("seed")), number)
        if first != number:
            raise ValueError(f"{file} holds the same run (arm {shown(record['arm'])}, seed "
                             f"{record.get('seed')}) in lines {first} and {number}: take one of "
                             "them out")
        records.append(record)
    for name in BENCH:
        if len({record.get(name) for record in records}) > 1:
            raise ValueError(f"{file} holds figures that cannot be compared, of different {name}: "
                             "take lines out; their runs are then made again")
    return records


def _is_record(value: object) -> bool:
    """Whether a line's value has what is read off a record, each of its kind."""
    if not isinstance(value, dict) or not isinstance(value.get("final"), dict):
        return False
    text, number = (str, type(None)), (int, type(None))
    kinds = dict.fromkeys(BENCH, text) | {"arm": str, "seed": number, "samples": number}
    if value.get("arm") not in REFERENCES:
        kinds |= {"seed": int, "settings": dict, "images": int, "seconds": (int, float)}
    known = all(isinstance(value.get(name), kind) for name, kind in kinds.items())
    return known and all(isinstance(figure, (int, float)) for figure in value["final"].values())


def results(name: str) -> list[dict]:
    """The runs in data/results/<name>.jsonl, without the rows of real images and teacher."""
    records = read_results(data_path(f"results/{name}.jsonl"))
    return [record for record in records if record["arm"] not in REFERENCES]


def reference_rows(name: str) -> list[dict]:
    """What gives the figures of `results` their scale: the records of real images and teacher."""
    records = read_results(data_path(f"results/{name}.jsonl"))
    return [record for record in records if record["arm"] in REFERENCES]


def faces_folder(results: str | Path) -> Path:
    """Where the faces beside a results file lie: for table.jsonl in table/."""
    return Path(results).with_suffix("")


def read_faces(results: str | Path, arms: Sequence[str]) -> dict[str, Tensor]:
    """Arm -> what the first seed's network drew, images (N, 3, R, R) in [-1, 1], of the same
    latents for all; arms that have none are missing."""
    found = {}
    for arm in arms:
        file = faces_folder(results) / f"{arm}.png"
        if file.is_file():
            with Image.open(file) as picture:
                pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
            found[arm] = untile(pixels).float() / 127.5 - 1
    return found


# -------------------------------------------------------------------------- means and differences


def _summary(runs: Sequence[dict], name: str) -> tuple[float, float, int]:
    """Mean, standard deviation over seeds (0 for one), and number of those that have a figure."""
    values = np.array([run["final"][name] for run in runs if name in run["final"]])
    spread = values.std(ddof=1).item() if len(values) > 1 else 0.0
    return values.mean().item(), spread, len(values)


@dataclass(frozen=True)
class Paired:
    """How far one arm lies from another one over the seeds that both have; `f"{pair:+.3f}"` writes
    the mean and its interval."""

    mean: float  # of the differences, arm - other; nan without a common seed
    low: float   # 95 % confidence interval of the mean, by Student's t: nan with fewer than two
    high: float
    sd: float    # of the differences
    n: int       # seeds that both have
    p: float     # two-sided, of the paired t-test

    def __format__(self, spec: str) -> str:
        if self.n == 0:
            return "no common seed"
        interval = f"[{self.low:{spec}}, {self.high:{spec}}]" if self.n > 1 else "(one seed)"
        return f"{self.mean:{spec}} {interval}"


def paired(records: Sequence[dict], arm: str, other: str, name: str) -> Paired:
    """A figure of an arm against that of another, seed by seed: runs of one seed share latents, the
    order of the data and what initial weights they can. Without two common seeds, interval, sd and
    p are nan."""
    from scipy.stats import t as student  # takes a second to import

    ours, theirs = ({r["seed"]: r["final"][name] for r in records
                     if r["arm"] == one and name in r["final"]} for one in (arm, other))
    common = sorted(ours.keys() & theirs.keys())
    differences = np.array([ours[seed] - theirs[seed] for seed in common])
    n, nan = len(common), float("nan")
    mean = differences.mean().item() if n else nan
    if n < 2:
        return Paired(mean, nan, nan, nan, n, nan)
    sd = differences.std(ddof=1).item()
    error = sd / n**0.5
    reach = student.ppf(0.975, n - 1).item() * error
    if error:
        p = 2 * student.sf(abs(mean) / error, n - 1).item()
    else:  # the same difference in every pair
        p = 0.0 if mean else 1.0
    return Paired(mean, mean - reach, mean + reach, sd, n, p)


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """p values corrected by Holm for how many they are; nan stays nan, and does not count."""
    counted = sorted((name for name, p in ps.items() if p == p), key=ps.__getitem__)
    corrected, largest = dict(ps), 0.0
    for rank, name in enumerate(counted):
        largest = max(largest, min(1.0, (len(counted) - rank) * ps[name]))
        corrected[name] = largest
    return corrected


# ----------------------------------------------------------------------------------------- tables


def results_table(records: Sequence[dict], references: Sequence[dict] = (),
                  columns: Mapping[str, str] = COLUMNS, arms: Sequence[str] = ()) -> str:
    """Markdown: rows for scale (`references`, by default those among the records), then one an arm,
    mean ± standard deviation over its seeds; `arms` are which ones, in this order, by default all.

    In brackets the chance level of that arm: what its images would score if they were paired with
    other ones of the teacher's. It differs from arm to arm, since blurred images are near to
    everything.

    Raises ValueError for runs of different length, or judged in different feature spaces or on
    different numbers of images: they do not belong into one table.
    """
    references = references or [row for row in records if row["arm"] in REFERENCES]
    records = [row for row in records if row["arm"] not in REFERENCES]
    if not records:
        return "_No runs are recorded yet._"
    lengths = sorted({record["images"] for record in records})
    if len(lengths) > 1:
        of = ", ".join(map(str, lengths))
        raise ValueError(f"runs of {of} images do not belong into one table")
    names = figure_names(records, columns)
    fids = [name for name in records[0]["final"] if re.fullmatch(FID, name)]
    if not fids:
        raise ValueError(f"the record of {records[0]['arm']}, seed {records[0]['seed']}, has no "
                         "FID: take it out, or make its run again")
    samples = fids[0].rsplit("_", 1)[1]  # a metric's name ends with its sample count
    lines = [f"| {lengths[0]:,} images each, judged on {samples} | seeds | {' | '.join(names)} |",
             "|---|--:|" + "--:|" * len(names)]
    rows = [("real, against other real" if row["arm"] == "real" else row["arm"], "", [row])
            for row in references]
    for arm in arms or dict.fromkeys(record["arm"] for record in records):
        runs = [record for record in records if record["arm"] == arm]
        rows.append((arm, f"{len(runs)} ", runs))
    for title, seeds, runs in rows:
        cells = [_cell(runs, name) for name in names.values()]
        lines.append(f"| {title} | {seeds}| {' | '.join(cells)} |")
    return "\n".join(lines)


def figure_names(records: Sequence[dict], columns: Mapping[str, str]) -> dict[str, str]:
    """Title of a column -> name of its figure in these records; no figure, no column. Raises
    ValueError where one title has two: the records were judged by different networks."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(name for record in records for name in record["final"]):
        for pattern, title in columns.items():
            if not re.fullmatch(pattern, name):
                continue
            if title in found:
                raise ValueError(f"some of the runs were judged by {found[title]}, others by "
                                 f"{name}: these do not belong into one column")
            found[title] = name
    return {title: found[title] for title in columns.values() if title in found}


def _all_paired(records: Sequence[dict], arm: str, other: str, columns: Mapping[str, str]
                ) -> tuple[dict[str, Paired], dict[str, float]]:
    """Title of a column -> its pairs, and its p after Holm for how many columns there are."""
    names = figure_names(records, columns)
    pairs = {title: paired(records, arm, other, name) for title, name in names.items()}
    return pairs, holm({title: pair.p for title, pair in pairs.items()})


def _with_arrow(columns: Mapping[str, str]) -> dict[str, str]:
    """The columns whose title says which side is better."""
    return {name: title for name, title in columns.items() if title[-1] in "↑↓"}


def paired_table(records: Sequence[dict], rows: Mapping[str, tuple[str, str]],
                 columns: Mapping[str, str] = SECOND_COLUMNS, shown: Sequence[str] = ()) -> str:
    """Markdown: arms against others, seed by seed; mean difference, interval, and p after Holm for
    the number of `columns`.

    Args:
        rows: what is compared -> (arm, other).
        shown: titles that get a column of their own, by default all; the last two columns count
            over all.
    """
    shown = list(shown or figure_names(records, columns))
    lines = [f"| arm − other | pairs | {' | '.join(shown)} | intervals without 0 | after Holm |",
             "|---|--:|" + "--:|" * (len(shown) + 2)]
    for label, (arm, other) in rows.items():
        pairs, ps = _all_paired(records, arm, other, columns)
        cells = [f"{pairs[title]:+.3f}{_p(ps[title])}" for title in shown]
        apart = sum(pair.low > 0 or pair.high < 0 for pair in pairs.values())
        significant = sum(p < 0.05 for p in ps.values())
        seeds = max(pair.n for pair in pairs.values())
        lines.append(f"| {label}: `{arm}` − `{other}` | {seeds} | {' | '.join(cells)} "
                     f"| {apart} of {len(pairs)} | {significant} |")
    return "\n".join(lines)


def told_apart(records: Sequence[dict], arm: str, other: str,
               columns: Mapping[str, str] = SECOND_COLUMNS) -> tuple[list[str], list[str]]:
    """Titles of the figures in which an arm is significantly better than another one, and worse: p
    below 0.05 after Holm. An arrow in a title says which side is better; without one it is left
    out."""
    pairs, ps = _all_paired(records, arm, other, _with_arrow(columns))
    significant = [title for title, p in ps.items() if p < 0.05]
    better = [title for title in significant if (pairs[title].mean > 0) == title.endswith("↑")]
    return better, [title for title in significant if title not in better]


def in_percent(records: Sequence[dict], arm: str, other: str,
               columns: Mapping[str, str] = SECOND_COLUMNS
               ) -> dict[str, tuple[float, float, float]]:
    """Title -> difference of two arms and the ends of its interval, in % of the other one's mean
    over their common seeds; above 0 the arm is better. Titles without an arrow are left out, and
    figures whose mean is 0."""
    found = {}
    seeds = {record["seed"] for record in records if record["arm"] == arm}
    common = [r for r in records if r["arm"] == other and r["seed"] in seeds]
    for title, name in figure_names(records, _with_arrow(columns)).items():
        pair = paired(records, arm, other, name)
        if pair.n and (mean := abs(_summary(common, name)[0])):
            unit = (100 if title[-1] == "↑" else -100) / mean
            found[title] = (pair.mean * unit, *sorted((pair.low * unit, pair.high * unit)))
    return found


def _p(p: float) -> str:
    """A p value as the end of a table's cell; nothing where there is none."""
    if p != p:
        return ""
    return ", p < 0.001" if p < 0.001 else f", p {p:.3f}"


def _cell(runs: Sequence[dict], name: str) -> str:
    """A figure of an arm's runs: mean ± deviation, how many have it if not all, chance level."""
    if not any(name in run["final"] for run in runs):
        return "-"
    mean, spread, measured = _summary(runs, name)
    text = f"{mean:.3f}"
    if measured > 1:
        text += f" ± {spread:.3f}"
    if measured < len(runs):
        text += f", of {measured}"
    level = f"{name}_chance"
    if runs[0]["arm"] not in REFERENCES and any(level in run["final"] for run in runs):
        text += f" ({_summary(runs, level)[0]:.3f})"
    return text


def sweep_note(file: str, records: Sequence[dict], references: Sequence[dict] = ()) -> str:
    """In sentences: the command, commits and machines behind the results of the table `file`, and,
    from `references`, where networks come from that are not here."""
    def of(name: str, rows: Sequence[dict]) -> str:
        return ", ".join(sorted({str(row[name]) for row in rows}))

    hours = sum(record["seconds"] for record in records) / 3600
    notes = [f"Made with `gapkd sweep {file}`: commit {of('commit', records)}, "
             f"{of('hardware', records)}, threads a run: {of('threads', records)}, "
             f"{hours:.1f} hours for all {len(records)} runs, {of('date', records)}."]
    if older := [record for record in records if "command" in record]:
        arms = ", ".join(dict.fromkeys(record["arm"] for record in older))
        notes.append(f"{len(older)} of them ({arms}) were trained by `{of('command', older)}`, "
                     "which this command has replaced, with the same settings.")
    if again := [record["measured"] for record in records if "measured" in record]:
        notes.append(f"{len(again)} students were measured again, at commit {of('commit', again)}.")
    for name in dict.fromkeys(name for record in records for name in record.get("added", {})):
        later = [record["added"][name] for record in records if name in record.get("added", {})]
        notes.append(f"{name} was added to {len(later)} of them, at commit {of('commit', later)}.")
    for role in ("teacher", "judge"):
        if origin := references and references[0].get(f"{role}_origin"):
            notes.append(f"The {role}: {_origin(origin)}.")
    return " ".join(notes)


def _origin(origin: dict) -> str:
    """Where a network comes from that is not here, and how well it does."""
    made = [f"`gapkd {origin['command']}`"] if "command" in origin else []
    made += [str(origin[name]) for name in ("commit", "hardware", "date") if name in origin]
    text = ", ".join(made)
    if held_out := origin.get("held_out"):
        scores = [f"{name} {value:.3f}" for name, value in held_out["scores"].items()]
        text += f"; on {held_out['images']:,} images held out: {', '.join(scores)}"
    return text

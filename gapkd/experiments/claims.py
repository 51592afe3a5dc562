"""What the paper claims, and what the records say of it: no verdict is typed.

A claim is a list of contrasts, each of which says in which figure an arm should lie above or below
another one. Where a second judge has read that figure, its reading counts.
"""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gapkd.experiments.results import FID, Paired, holm, paired, reference_rows, results

CHANCE, TEACHER = "chance", "teacher"
"""Levels to compare with that are not arms: an arm's own chance level, and a teacher's agreement
with itself, 1."""
MARGIN = 0.1
"""How far from chance, or from the teacher, still counts as there: for correlations. What is to be
above chance has to be further away."""
LEVEL = 0.05
"""A difference is significant below this p, corrected by Holm for the contrasts of its claim."""

FIGURES = {
    "correlation": "agree_mean_correlation", "FID": FID, "L1": "l1",
    "edits": "agree_edits", "PPL": "ppl_.+", "PSNR": "projection_psnr"}
"""Short name -> pattern of the name that a figure has in a record."""
UNJUDGED = ("L1", "PSNR")
"""Those of them that need no judge."""

SUPPORTED, CONTRADICTED = "supported", "contradicted at this budget"
UNDECIDED, ONE_SEED, NOT_MEASURED = "undecided", "one seed", "not measured"
MARKS = {SUPPORTED: "✓", CONTRADICTED: "✗", UNDECIDED: "·", ONE_SEED: "○", NOT_MEASURED: "–"}


@dataclass(frozen=True)
class Contrast:
    """One comparison that decides on a claim."""

    sweep: str   # records in data/results/<sweep>.jsonl
    arm: str
    other: str   # an arm, CHANCE or TEACHER
    figure: str  # of FIGURES
    says: int    # the claim: arm above other (1), below (-1), or within MARGIN of it (0)


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper's, and what would have to be measured if it holds here."""

    name: str
    says: str
    contrasts: tuple[Contrast, ...]


@dataclass(frozen=True)
class Finding:
    """What the records say of a contrast."""

    contrast: Contrast
    pair: Paired
    second: bool = False  # read by the judge that no student was trained with
    where: str = ""       # teacher and budget
    verdict: str = NOT_MEASURED


# stranger64 has every contrast of table64 for which it has the arms. C5's contrasts of these two
# and of long compare starts, each at the rate that is best for it.
CLAIMS = (
    Claim("C1", "Two StyleGANs trained apart draw unrelated faces from the same z.",
          (Contrast("table", "alone", CHANCE, "correlation", 0),
           Contrast("table64", "alone", CHANCE, "correlation", 0))),
    Claim("C2", "Distilling between such strangers teaches little.",
          (Contrast("table", "random", CHANCE, "correlation", 0),
           Contrast("table64", "random", CHANCE, "correlation", 0),
           Contrast("table64", "random-fast", CHANCE, "correlation", 0),
           Contrast("stranger64", "random", CHANCE, "correlation", 0),
           Contrast("stranger64", "random-fast", CHANCE, "correlation", 0),
           Contrast("photographs", "random", CHANCE, "correlation", 0),
           Contrast("students", "own", CHANCE, "correlation", 0),
           Contrast("students", "own-fast", CHANCE, "correlation", 0))),
    Claim("C3", "It is the mapping network: a student that inherits it draws the same faces.",
          (Contrast("table", "inherit", "random", "correlation", 1),
           Contrast("table64", "inherit", "random", "correlation", 1),
           Contrast("table64", "inherit", "random-fast", "correlation", 1),
           Contrast("stranger64", "inherit", "random", "correlation", 1),
           Contrast("stranger64", "inherit", "random-fast", "correlation", 1),
           Contrast("photographs", "paper", "random", "correlation", 1),
           Contrast("students", "inherited", "own", "correlation", 1),
           Contrast("students", "inherited", "own-fast", "correlation", 1),
           Contrast("students", "paper", "own-fast", "correlation", 1))),
    Claim("C4", "Inheriting it makes outputs as consistent as can be (here: r within 0.1 of 1).",
          (Contrast("table", "inherit", TEACHER, "correlation", 0),
           Contrast("table", "gapkd", TEACHER, "correlation", 0),
           Contrast("table64", "inherit", TEACHER, "correlation", 0),
           Contrast("table64", "gapkd", TEACHER, "correlation", 0),
           Contrast("stranger64", "inherit", TEACHER, "correlation", 0),
           Contrast("stranger64", "gapkd", TEACHER, "correlation", 0),
           Contrast("students", "inherited", TEACHER, "correlation", 0),
           Contrast("finished", "inherited", TEACHER, "correlation", 0))),
    Claim("C5", "Trained long enough, fresh synthesis weights end ahead of pruned ones.",
          (Contrast("table", "inherit", "pruned", "FID", -1),
           Contrast("table", "paper", "dcp", "FID", -1),
           Contrast("table", "paper-fast", "dcp-fast", "FID", -1),
           Contrast("table64", "inherit", "pruned", "FID", -1),
           Contrast("table64", "paper", "dcp", "FID", -1),
           Contrast("stranger64", "inherit", "pruned", "FID", -1),
           Contrast("stranger64", "paper", "dcp", "FID", -1),
           Contrast("students", "inherited", "recipe", "FID", -1),
           Contrast("finished", "inherited", "recipe", "FID", -1),
           Contrast("long", "fresh", "pruned", "FID", -1))),
    # Correlation and L1 came last, after all records had been read: for all pairs of arms. (Those
    # of table64 differ in their rate, too, and are no test of the loss.)
    Claim("C6", "The latent-direction loss lowers the FID, brings faces nearer to the teacher's "
                "and improves projection.",
          (Contrast("pairs", "paper", "paper - ld", "FID", -1),
           Contrast("pairs", "paper", "paper - ld", "PSNR", 1),
           Contrast("pairs", "paper", "paper - ld", "correlation", 1),
           Contrast("pairs", "paper", "paper - ld", "L1", -1),
           Contrast("pairs", "recipe + ld", "recipe", "FID", -1),
           Contrast("pairs", "recipe + ld", "recipe", "PSNR", 1),
           Contrast("pairs", "recipe + ld", "recipe", "correlation", 1),
           Contrast("pairs", "recipe + ld", "recipe", "L1", -1),
           Contrast("table", "paper", "inherit", "FID", -1),
           Contrast("table", "paper", "inherit", "correlation", 1),
           Contrast("table", "paper", "inherit", "L1", -1))),
    Claim("C7", "Teacher and student may differ in architecture.",
          (Contrast("sizes", "paper, kernel 1", CHANCE, "correlation", 1),
           Contrast("sizes", "mobile", CHANCE, "correlation", 1),
           Contrast("table64", "mobile", CHANCE, "correlation", 1),
           Contrast("stranger64", "mobile", CHANCE, "correlation", 1))),
    Claim("C8", "It carries over to StyleGAN3, and beats pruned weights there.",
          (Contrast("stylegan3", "paper", "random", "correlation", 1),
           Contrast("stylegan3", "paper", "pruned", "FID", -1))),
    Claim("C9", "The whole method is ahead of training alone, GAN Slimming and CAGAN.",
          (Contrast("table", "paper", "alone", "FID", -1),
           Contrast("table", "paper", "slimming", "FID", -1),
           Contrast("table", "paper", "cagan", "FID", -1),
           Contrast("table64", "paper", "alone", "FID", -1),
           Contrast("table64", "paper", "slimming", "FID", -1),
           Contrast("stranger64", "paper", "slimming", "FID", -1),
           Contrast("table64", "paper", "cagan", "FID", -1))),
    Claim("C10", "Its W is smoother than the others', and edits carry over better.",
          (Contrast("table", "paper", "alone", "PPL", -1),
           Contrast("table", "paper", "cagan", "PPL", -1),
           Contrast("table64", "paper", "alone", "PPL", -1),
           Contrast("table64", "paper", "cagan", "PPL", -1),
           Contrast("table", "paper-path", "alone", "PPL", -1),
           Contrast("table", "paper-path", "cagan", "PPL", -1),
           Contrast("pairs", "paper", "paper - ld", "PPL", -1),
           Contrast("pairs", "recipe + ld", "recipe", "PPL", -1),
           Contrast("pairs", "paper", "paper - ld", "edits", 1),
           Contrast("pairs", "recipe + ld", "recipe", "edits", 1))),
)
"""The paper's claims, and the contrasts by which each is judged here."""


# -------------------------------------------------------------------------------------- judging


def records_of(sweep: str) -> list[dict]:
    """The runs of a sweep; none where nobody ran it."""
    try:
        return results(sweep)
    except FileNotFoundError:
        return []


def judged_by(runs: Sequence[dict], figure: str) -> str | None:
    """The name under which all these runs have a figure, the second judge's first; or None."""
    for prefix in ("second_", ""):
        pattern = prefix + FIGURES[figure]
        for name in runs[0]["final"] if runs else ():
            if re.fullmatch(pattern, name) and all(name in run["final"] for run in runs):
                return name
    return None


def compare(contrast: Contrast) -> Finding:
    """The pairs of a contrast, before there is a verdict."""
    arms = contrast.arm, contrast.other
    runs = [run for run in records_of(contrast.sweep) if run["arm"] in arms]
    name = judged_by(runs, contrast.figure)
    if name is None:
        return Finding(contrast, paired([], *arms, contrast.figure))
    teacher = runs[0]["settings"]["teacher"].removesuffix(".safetensors")
    where = f"{teacher}, {runs[0]['images']:,}"
    if contrast.other in (CHANCE, TEACHER):  # levels, as if they were another arm's
        for run in list(runs):
            level = run["final"].get(f"{name}_chance", 0.0) if contrast.other == CHANCE else 1.0
            runs.append({"arm": contrast.other, "seed": run["seed"], "final": {name: level}})
    return Finding(contrast, paired(runs, *arms, name), name.startswith("second_"), where)


def judge(contrast: Contrast, pair: Paired, p: float) -> str:
    """The verdict on one contrast; the corrected p is used only where a direction is claimed."""
    if pair.n < 2:
        return ONE_SEED if pair.n else NOT_MEASURED
    near = -MARGIN < pair.low and pair.high < MARGIN
    far = pair.low > MARGIN or pair.high < -MARGIN
    if not contrast.says:
        right, decided = near, near or far
    else:
        right = pair.mean * contrast.says > 0
        decided = p < LEVEL and (far or contrast.other not in (CHANCE, TEACHER))
    if not decided:
        return UNDECIDED
    return SUPPORTED if right else CONTRADICTED


def findings(claim: Claim) -> list[Finding]:
    """What the records say of a claim, contrast by contrast."""
    found = {contrast: compare(contrast) for contrast in claim.contrasts}
    # A contrast that was named and not measured counts too: else a claim gains by what is left out.
    ps = holm({contrast: 1.0 if math.isnan(one.pair.p) else one.pair.p
               for contrast, one in found.items() if contrast.says})
    return [replace(one, verdict=judge(contrast, one.pair, ps.get(contrast, 0.0)))
            for contrast, one in found.items()]


def verdict(found: Sequence[Finding]) -> str:
    """One verdict: a single seed does not count beside others, what was not measured is added."""
    tally = Counter(finding.verdict for finding in found)
    missing, single = tally.pop(NOT_MEASURED, 0), tally.pop(ONE_SEED, 0)
    if not tally:
        return UNDECIDED if single else NOT_MEASURED
    said = next(one for one in MARKS if one in tally)
    if SUPPORTED in tally and CONTRADICTED in tally:
        said = "divided: " + ", ".join(f"{tally[one]} {one}" for one in MARKS if one in tally)
    elif len(tally) > 1:
        said = f"in part {said}: {tally[said]} of {tally.total()} comparisons"
    return f"{said}; {missing} {NOT_MEASURED}" if missing else said


# ---------------------------------------------------------------------------------------- table


def claims_table(claims: Sequence[Claim] = CLAIMS) -> str:
    """Markdown, one row per claim: verdict, what was measured on which teachers and budgets, and
    the commands that make it again."""
    lines = ["| | the paper says | verdict | measured here: difference, 95 % interval, arms "
             "| records: teacher, images per run | again |", "|---|---|---|---|---|---|"]
    for claim in claims:
        found = findings(claim)
        effects = "<br>".join(effect_line(one) for one in found)
        places = "<br>".join(dict.fromkeys(f"{one.contrast.sweep}: {one.where}"
                                           for one in found if one.where)) or "–"
        lines.append(f"| {claim.name} | {claim.says} | **{verdict(found)}** | {effects} | {places} "
                     f"| {again(claim)} |")
    return "\n".join(lines)


def effect_line(finding: Finding) -> str:
    """Markdown: a contrast, its mark, and how large the difference is over how many seeds; a dagger
    where the training judge has read it."""
    contrast, pair = finding.contrast, finding.pair
    effect = f"{pair:+.3f}" if pair.n else NOT_MEASURED
    by_first = pair.n and contrast.figure not in UNJUDGED and not finding.second
    seeds = f", {pair.n} seeds" if pair.n > 1 else ""
    line = f"{MARKS[finding.verdict]} {effect}".replace(" ", "\u00a0")  # in one piece
    return (f"{line} {contrast.figure}{'†' if by_first else ''}, `{contrast.arm}` − "
            f"`{contrast.other}` ({contrast.sweep}{seeds})")


def again(claim: Claim) -> str:
    """The commands that make a claim's runs again, folded, as Markdown."""
    commands = []
    for sweep in dict.fromkeys(contrast.sweep for contrast in claim.contrasts):
        named = {arm for one in claim.contrasts if one.sweep == sweep
                 for arm in (one.arm, one.other)}
        runs = [record for record in records_of(sweep) if record["arm"] in named]
        if runs and any("teacher_origin" in row for row in reference_rows(sweep)):
            commands.append(f"{sweep}: its teacher is not part of this repository")
        elif runs:
            arms = shlex.join(dict.fromkeys(record["arm"] for record in runs))
            seeds = " ".join(map(str, sorted({record["seed"] for record in runs})))
            commands.append(f"<code>gapkd sweep tools/sweeps/{sweep}.yml --arms {arms} --seeds "
                            f"{seeds} --results runs/{claim.name}-{sweep}.jsonl</code>")
    if not commands:
        return "–"
    return f"<details><summary>command</summary>{'<br>'.join(commands)}</details>"

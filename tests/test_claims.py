"""The claims of the paper: verdicts follow from records, in either direction, and say what is
missing."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from gapkd.experiments.claims import (
    CHANCE,
    CLAIMS,
    CONTRADICTED,
    FIGURES,
    NOT_MEASURED,
    ONE_SEED,
    SUPPORTED,
    TEACHER,
    UNDECIDED,
    Claim,
    Contrast,
    claims_table,
    findings,
    verdict,
)
from gapkd.experiments.results import Paired, paired, results

AGREE = "agree_mean_correlation"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a sweep's records: arm -> its figures, one dictionary a seed."""
    monkeypatch.setenv("GAPKD_DATA", str(tmp_path))
    (tmp_path / "results").mkdir()

    def records(sweep: str, arms: dict[str, list[dict]]) -> None:
        lines = [{"arm": arm, "seed": seed, "images": 1000, "settings": {"teacher": "T"},
                  "seconds": 1, "final": final}
                 for arm, runs in arms.items() for seed, final in enumerate(runs)]
        file = tmp_path / "results" / f"{sweep}.jsonl"
        file.write_text("\n".join(map(json.dumps, lines)))
    return records


def verdicts(*contrasts: Contrast) -> list[str]:
    return [finding.verdict for finding in findings(Claim("C", "It is so.", contrasts))]


def agreeing(*values: float) -> list[dict]:
    return [{AGREE: value} for value in values]


def test_a_direction_is_supported_contradicted_or_undecided(write):
    write("t", {"high": agreeing(0.51, 0.52, 0.50), "low": agreeing(0.1, 0.1, 0.1),
                "any": agreeing(0.9, 0.1, 0.2)})
    assert verdicts(Contrast("t", "high", "low", "correlation", 1)) == [SUPPORTED]
    assert verdicts(Contrast("t", "high", "low", "correlation", -1)) == [CONTRADICTED]
    assert verdicts(Contrast("t", "any", "low", "correlation", 1)) == [UNDECIDED]


def test_a_claim_of_no_difference_needs_an_interval_within_the_margin(write):
    write("t", {"near": agreeing(0.01, 0.02, 0.03), "far": agreeing(0.4, 0.41, 0.4),
                "wide": agreeing(-0.2, 0.0, 0.2), "same": agreeing(0.98, 0.97, 0.99)})
    for arm, expected in (("near", SUPPORTED), ("far", CONTRADICTED), ("wide", UNDECIDED)):
        assert verdicts(Contrast("t", arm, CHANCE, "correlation", 0)) == [expected]
    assert verdicts(Contrast("t", "same", TEACHER, "correlation", 0)) == [SUPPORTED]
    assert verdicts(Contrast("t", "far", TEACHER, "correlation", 0)) == [CONTRADICTED]


def test_chance_is_that_of_the_run(write):
    runs = [{AGREE: 0.5, f"{AGREE}_chance": level} for level in (0.5, 0.49, 0.51)]
    write("t", {"a": runs})
    (finding,) = findings(Claim("C", "", (Contrast("t", "a", CHANCE, "correlation", 0),)))
    assert finding.verdict == SUPPORTED and finding.pair.mean == pytest.approx(0)


def test_what_is_to_be_above_chance_is_so_by_more_than_the_margin(write):
    write("t", {"above": agreeing(0.3, 0.31, 0.32), "hardly": agreeing(0.05, 0.051, 0.05),
                "below": agreeing(-0.3, -0.31, -0.32)})
    for arm, expected in (("above", SUPPORTED), ("hardly", UNDECIDED), ("below", CONTRADICTED)):
        assert verdicts(Contrast("t", arm, CHANCE, "correlation", 1)) == [expected]


def test_runs_whose_teacher_is_elsewhere_cannot_be_made_again(write, tmp_path):
    write("t", {"a": agreeing(0.5, 0.6), "b": agreeing(0.1, 0.1)})
    claim = Claim("C", "It is so.", (Contrast("t", "a", "b", "correlation", 1),))
    assert "gapkd sweep" in claims_table([claim])
    with open(tmp_path / "results" / "t.jsonl", "a") as file:
        file.write("\n" + json.dumps({"arm": "teacher", "final": {}, "teacher_origin": {}}))
    table = claims_table([claim])
    assert "t: its teacher is not part of this repository" in table and "gapkd" not in table


def test_what_is_missing_is_said(write):
    write("t", {"a": agreeing(0.5), "b": agreeing(0.1)})
    assert verdicts(Contrast("t", "a", "b", "correlation", 1)) == [ONE_SEED]
    for missing in (Contrast("t", "a", "nobody", "correlation", 1),
                    Contrast("t", "a", "b", "PPL", 1),
                    Contrast("t", "nobody", CHANCE, "correlation", 1),
                    Contrast("nowhere", "a", "b", "correlation", 1)):
        assert verdicts(missing) == [NOT_MEASURED]
        table = claims_table([Claim("C", "It is so.", (missing,))])
        assert "| **not measured** | –\u00a0not\u00a0measured " in table


def test_the_second_judge_counts_where_it_has_read_both(write):
    both = [{"fid_x_5k": 1.0, "second_fid_x_5k": value, "fid_to_teacher_x_5k": 0.0}
            for value in (5.0, 5.1)]
    write("t", {"a": both, "b": [final | {"second_fid_x_5k": 9.0} for final in both],
                "old": [{"fid_x_5k": 3.0}] * 2})
    second, first = findings(Claim("C", "", (Contrast("t", "a", "b", "FID", -1),
                                             Contrast("t", "a", "old", "FID", -1))))
    assert (second.second, second.pair.mean) == (True, pytest.approx(-3.95))
    assert (first.second, first.pair.mean) == (False, pytest.approx(-2.0))
    table = claims_table([Claim("C", "It is so.", (Contrast("t", "a", "old", "FID", -1),))])
    table = table.replace("\u00a0", " ")
    assert "✓ -2.000 [-2.000, -2.000] FID†, `a` − `old` (t, 2 seeds)" in table
    assert "--arms a old --seeds 0 1 --results runs/C-t.jsonl" in table
    assert "| t: T, 1,000 |" in table


def test_l1_needs_no_judge_and_less_of_it_is_nearer(write):
    write("t", {"a": [{"l1": value} for value in (0.10, 0.11, 0.10)],
                "b": [{"l1": value} for value in (0.20, 0.21, 0.21)]})
    (nearer,) = findings(Claim("C", "", (Contrast("t", "a", "b", "L1", -1),)))
    assert nearer.verdict == SUPPORTED and nearer.pair.mean < 0 and not nearer.second
    assert " L1, `a`" in claims_table([Claim("C", "", (nearer.contrast,))])  # and no dagger
    assert verdicts(Contrast("t", "b", "a", "L1", -1)) == [CONTRADICTED]


def test_the_latent_direction_loss_is_judged_in_every_figure_for_every_pair_of_arms():
    says = {}
    for one in next(claim for claim in CLAIMS if claim.name == "C6").contrasts:
        says.setdefault((one.sweep, one.arm, one.other), {})[one.figure] = one.says
    assert len(says) == 3
    for (sweep, *_), found in says.items():
        psnr = {"PSNR": 1} if sweep == "pairs" else {}
        assert found == {"FID": -1, "correlation": 1, "L1": -1} | psnr


def test_a_claim_pays_for_the_number_of_its_contrasts(write):
    write("t", {"a": agreeing(0.3, 0.4, 0.5), "b": agreeing(0.1, 0.15, 0.1)})
    one = Contrast("t", "a", "b", "correlation", 1)  # p 0.035
    assert 0.025 < paired(results("t"), "a", "b", AGREE).p < 0.05
    assert verdicts(one) == [SUPPORTED]
    assert verdicts(one, Contrast("t", "b", "a", "correlation", -1)) == [UNDECIDED, UNDECIDED]
    untried = Contrast("t", "a", "nobody", "correlation", 1)  # counts as well
    assert verdicts(one, untried) == [UNDECIDED, NOT_MEASURED]


@pytest.mark.parametrize(("every", "expected"), [
    ((SUPPORTED, SUPPORTED, ONE_SEED), SUPPORTED),
    ((NOT_MEASURED, SUPPORTED, NOT_MEASURED), f"{SUPPORTED}; 2 {NOT_MEASURED}"),
    ((UNDECIDED, CONTRADICTED, SUPPORTED, SUPPORTED),
     f"divided: 2 {SUPPORTED}, 1 {CONTRADICTED}, 1 {UNDECIDED}"),
    ((UNDECIDED, SUPPORTED, ONE_SEED, UNDECIDED), f"in part {SUPPORTED}: 1 of 3 comparisons"),
    ((CONTRADICTED, UNDECIDED), f"in part {CONTRADICTED}: 1 of 2 comparisons"),
    ((ONE_SEED, NOT_MEASURED), UNDECIDED), ((NOT_MEASURED,), NOT_MEASURED)])
def test_one_verdict_out_of_several(every, expected):
    assert verdict([SimpleNamespace(verdict=one) for one in every]) == expected


def test_the_claims_name_what_there_is():
    assert [claim.name for claim in CLAIMS] == [f"C{n}" for n in range(1, 11)]
    assert {c.figure for claim in CLAIMS for c in claim.contrasts} <= FIGURES.keys()
    for contrast in (c for claim in CLAIMS for c in claim.contrasts):
        known = {record["arm"] for record in results(contrast.sweep)} | {CHANCE, TEACHER}
        assert {contrast.arm, contrast.other} <= known, contrast
    found = findings(CLAIMS[2])  # inheriting the mapping network, three seeds of the table
    assert found[0].verdict == SUPPORTED and found[0].pair.n == 3 and found[0].second
    assert isinstance(found[0].pair, Paired)
    assert len(claims_table().splitlines()) == 12

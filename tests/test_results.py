"""What is read off records: means, pairs, tables, notes, and the records that come along."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from gapkd.experiments import results
from gapkd.experiments.results import (
    SECOND_COLUMNS,
    holm,
    in_percent,
    paired,
    paired_table,
    read_results,
    results_table,
    sweep_note,
    told_apart,
)

STORED = sorted((Path(__file__).parent.parent / "data" / "results").glob("*.jsonl"))


def run(arm: str, seed: int = 0, **final: float) -> dict:
    return {"arm": arm, "seed": seed, "images": 10, "settings": {}, "seconds": 1800, "final": final}


def test_arms_are_compared_seed_by_seed():
    ours, theirs = {0: 0.5, 1: 0.7, 2: 0.4, 7: 9.0}, {2: 0.1, 0: 0.4, 1: 0.5, 3: -9.0}
    records = [run("a", seed, r=value) for seed, value in ours.items()]
    records += [run("b", seed, r=value) for seed, value in theirs.items()]
    records += [run("a", 3, l1=1.0)]  # has not the figure that is asked for
    pair = paired(records, "a", "b", "r")  # differences 0.1, 0.2, 0.3: t = 0.2 / (0.1 / sqrt 3)
    assert pair.n == 3
    assert (pair.mean, pair.sd) == (pytest.approx(0.2), pytest.approx(0.1))
    assert pair.p == pytest.approx(0.0741799, abs=1e-6)
    assert (pair.low, pair.high) == (pytest.approx(-0.048414, abs=1e-6),
                                     pytest.approx(0.448414, abs=1e-6))
    expected = ttest_rel([0.5, 0.7, 0.4], [0.4, 0.5, 0.1])
    interval = expected.confidence_interval(0.95)
    assert (pair.p, pair.low, pair.high) == pytest.approx((expected.pvalue, *interval))
    assert f"{pair:+.2f}" == "+0.20 [-0.05, +0.45]"
    back = paired(records, "b", "a", "r")
    assert (back.mean, back.low, back.high) == pytest.approx((-pair.mean, -pair.high, -pair.low))
    assert back.p == pytest.approx(pair.p)


def test_what_cannot_be_compared_is_said_without_a_traceback():
    records = [run("a", 0, r=0.5), run("a", 1, r=0.7), run("b", 1, r=0.4), run("c", 5, r=1.0)]
    one = paired(records, "a", "b", "r")
    assert (one.mean, one.n) == (pytest.approx(0.3), 1)
    assert all(math.isnan(x) for x in (one.low, one.high, one.sd, one.p))
    assert f"{one:.2f}" == "0.30 (one seed)"
    for other, name in (("c", "r"), ("nobody", "r"), ("b", "l1")):
        none = paired(records, "a", other, name)
        assert (none.n, f"{none:.2f}") == (0, "no common seed")
        assert all(math.isnan(x) for x in (none.mean, none.low, none.high, none.sd, none.p))


@pytest.mark.parametrize(("step", "p"), [(0.0, 1.0), (0.5, 0.0)])
def test_the_same_difference_in_every_pair_is_no_division_by_zero(step, p):
    records = [run(arm, n, r=n + (arm == "a") * step) for arm in "ab" for n in range(3)]
    pair = paired(records, "a", "b", "r")
    assert (pair.mean, pair.low, pair.high, pair.p) == (step, step, step, p)


def test_holm_corrects_for_how_many_there_are():
    nan = float("nan")
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": nan})
    assert math.isnan(corrected.pop("e"))
    # 4 * 0.005, 3 * 0.01, 2 * 0.03, and 1 * 0.04, which may not fall below the one before
    assert corrected == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_a_table_has_scale_mean_spread_and_chance():
    records = [run("dcp", 0, l1=0.1, l1_chance=0.4, fid_faces_5k=1, fid_to_teacher_faces_5k=2),
               run("paper", 0, l1=0.2, l1_chance=0.5, fid_faces_5k=3, fid_to_teacher_faces_5k=4),
               run("paper", 1, l1=0.4, l1_chance=0.7, fid_faces_5k=5)]
    rows = [{"arm": "real", "final": {"fid_faces_5k": 0.5}},
            {"arm": "teacher", "final": {"l1": 0.0, "l1_chance": 0.3, "fid_faces_5k": 0.7}}]
    assert results_table(records, rows).splitlines() == [
        "| 10 images each, judged on 5k | seeds | L1 ↓ | FID to real ↓ | FID to teacher ↓ |",
        "|---|--:|--:|--:|--:|",
        "| real, against other real | | - | 0.500 | - |",
        "| teacher | | 0.000 | 0.700 | - |",
        "| dcp | 1 | 0.100 (0.400) | 1.000 | 2.000 |",
        "| paper | 2 | 0.300 ± 0.141 (0.600) | 4.000 ± 1.414 | 4.000, of 1 |"]
    assert "| paper" in results_table(records, arms=("paper", "dcp")).splitlines()[2]
    assert results_table([*rows, *records]) == results_table(records, rows)
    assert results_table([]) == "_No runs are recorded yet._"


def test_columns_that_are_asked_for():
    record = run("paper", fid_toyfaces_5k=1, second_fid_toyfaces_5k=2, ppl_toyfaces_2k=7.5, l1=1)
    lines = results_table([record], columns=SECOND_COLUMNS).splitlines()
    assert lines[0] == "| 10 images each, judged on 5k | seeds | FID to real ↓ | L1 ↓ | PPL* ↓ |"
    assert lines[2] == "| paper | 1 | 2.000 | 1.000 | 7.500 |"


def test_a_table_of_pairs_counts_what_stays_after_the_correction():
    values = {"a": [(0.5, 1.0, 3.0), (0.7, 1.2, 4.0), (0.9, 1.1, 3.0)],
              "b": [(0.1, 2.0, 3.0), (0.2, 2.2, 3.0), (0.55, 2.1, 4.0)], "c": [(0.1, 1.0, 1.0)]}
    records = [run(arm, seed, l1=l1, agree_edits=edits, ppl_x_2k=ppl)
               for arm, runs in values.items() for seed, (l1, edits, ppl) in enumerate(runs)]
    columns = {"l1": "L1 ↓", "agree_edits": "edits ↑", "ppl_.+": "PPL ↓"}
    rows = {"first": ("a", "b"), "second": ("a", "c"), "third": ("a", "d")}
    # edits: -1 in every pair, p 0; L1: 0.4, 0.5, 0.35, p 0.0106 times 2; PPL: 0, 1, -1, p 1
    assert paired_table(records, rows, columns, ("L1 ↓",)).splitlines() == [
        "| arm − other | pairs | L1 ↓ | intervals without 0 | after Holm |",
        "|---|--:|--:|--:|--:|",
        "| first: `a` − `b` | 3 | +0.417 [+0.227, +0.606], p 0.022 | 2 of 3 | 2 |",
        "| second: `a` − `c` | 1 | +0.400 (one seed) | 0 of 3 | 0 |",
        "| third: `a` − `d` | 0 | no common seed | 0 of 3 | 0 |"]
    assert "-1.000 [-1.000, -1.000], p < 0.001" in paired_table(records, rows, columns)
    assert told_apart(records, "a", "b", columns) == ([], ["L1 ↓", "edits ↑"])
    assert told_apart(records, "b", "a", columns) == (["L1 ↓", "edits ↑"], [])
    assert told_apart(records, "a", "c", columns) == ([], [])  # one seed
    assert told_apart(records, "a", "b", columns | {"l1": "L1"}) == ([], ["edits ↑"])
    relative = in_percent(records, "a", "b", columns)  # L1 0.417 [0.227, 0.606] of 0.283
    assert relative["L1 ↓"] == pytest.approx((-147.1, -214.0, -80.1), abs=0.1)
    assert relative["edits ↑"] == pytest.approx((-100 / 2.1,) * 3)
    assert in_percent(records, "a", "d", columns) == {}


def test_a_table_does_not_mix():
    record = run("paper", fid_toyfaces_5k=1.0)
    with pytest.raises(ValueError, match="judged by fid_toyfaces_5k, others by fid_toyfaces_2k"):
        results_table([record, run("dcp", fid_toyfaces_2k=1.0)])
    with pytest.raises(ValueError, match="the record of dcp, seed 0, has no FID: take it out"):
        results_table([run("dcp", l1=1.0)])
    with pytest.raises(ValueError, match="runs of 10, 20 images do not belong into one table"):
        results_table([record, record | {"images": 20}])


def test_the_note_says_how_the_runs_were_made_and_what_came_later():
    here = {"commit": "c1", "hardware": "H", "threads": 1, "date": "d"}
    records = [run("a") | here, run("b") | here | {
        "command": "gapkd study", "commit": "c0", "measured": {"commit": "c2"},
        "added": {"agree_edits": {"commit": "c3"}}}]
    note = sweep_note("t.yml", records)
    assert note.startswith("Made with `gapkd sweep t.yml`: commit c0, c1, H, threads a run: 1, 1.0 "
                           "hours for all 2 runs, d. 1 of them (b) were trained by `gapkd study`,")
    assert "1 students were measured again, at commit c2." in note
    assert note.endswith("agree_edits was added to 1 of them, at commit c3.")
    assert "trained by" not in sweep_note("t.yml", records[:1])
    judge = {"command": "judge", "held_out": {"images": 12, "scores": {"label": 0.75}}, **here}
    origins = [{"arm": "real", "judge_origin": judge, "teacher_origin": here}]
    note = sweep_note("t.yml", records[:1], origins)
    assert note.endswith(" The teacher: c1, H, d. The judge: `gapkd judge`, c1, H, d; on 12 images "
                         "held out: label 0.750.")


WRONG = [{"settings": []}, {"settings": "x"}, {"settings": None}, {"seed": [1]}, {"arm": ["a"]},
         {"samples": [1]}, {"judge_sha256": []}, {"final": None}, {"final": {"l1": "0.5"}},
         {"images": "10"}, {"seconds": None}]


@pytest.mark.parametrize("line", [
    '{"arm": "a"', '{"arm": "a", "final": {}}', '{"arm": "real", "seed": [], "final": {}}',
    "[1]", '"real"', "[" * 100_000,
    *(json.dumps(run("a") | changes) for changes in WRONG)])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps({"arm": "real", "final": {}}) + "\n" + line + "\n")
    with pytest.raises(ValueError, match="r.jsonl, line 2, is not the record of a run"):
        read_results(file)


def test_a_file_as_editors_leave_it(tmp_path):
    file, lines = tmp_path / "r.jsonl", [json.dumps(run(arm)) + "\n" for arm in "ab"]
    file.write_text("\n".join(lines), "utf-8-sig")  # with a mark at its beginning
    assert read_results(file) == [run("a"), run("b")]
    file.write_text("".join(lines), "utf-16")
    with pytest.raises(ValueError, match="r.jsonl, line 1, is not the record of a run"):
        read_results(file)
    with pytest.raises(ValueError, match="cannot be read .*: it should be a text file"):
        read_results(tmp_path)


def test_a_run_that_stands_there_twice_is_no_second_seed(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (run("a"), run("a", 1), run("a"))))
    with pytest.raises(ValueError, match=r"\(arm a, seed 0\) in lines 1 and 3: take one of them"):
        read_results(file)


def test_no_file_holds_no_record(tmp_path):
    assert read_results(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("name", results.BENCH)
def test_figures_of_different_judges_are_not_mixed(tmp_path, name):
    values = (1, 2) if name == "samples" else ("1", "2")
    lines = [json.dumps(run("a", seed) | {name: value}) for seed, value in enumerate(values)]
    (tmp_path / "r.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=f"cannot be compared, of different {name}"):
        read_results(tmp_path / "r.jsonl")


@pytest.mark.parametrize("file", STORED, ids=lambda file: file.stem)
def test_the_records_that_come_along_can_be_read_and_shown(file):
    runs, references = results.results(file.stem), results.reference_rows(file.stem)
    assert [row["arm"] for row in references] in (["real", "teacher"], [])  # screening has none
    seen = {(record["arm"], record["seed"]) for record in runs}
    assert len(seen) == len(runs) > 0
    for record in runs:
        assert record["settings"]["images"] == record["images"] <= record["curve"][-1]["images"]
        assert {"commit", "hardware", "threads", "date", *results.BENCH[::2]} <= record.keys()
        assert {"l1", "agree_mean_correlation", "agree_mean_accuracy"} <= record["final"].keys()
    if file.stem == "schedule":  # its arms have equal time, not equal numbers of images
        runs = [record for record in runs if record["arm"] == runs[0]["arm"]]
    assert len(results_table(runs, references).splitlines()) == (
        2 + len(references) + len({record["arm"] for record in runs}))
    assert sweep_note("x.yml", runs, references).endswith(".")


def test_how_many_records_there_are():
    counts = {file.stem: len(results.results(file.stem)) for file in STORED}
    assert counts == {"direction": 18, "finished": 6, "long": 6, "pairs": 80, "photographs": 6,
                      "rates": 57, "schedule": 18, "screening": 19, "short": 3, "sizes": 24,
                      "stranger64": 30, "students": 15, "stylegan3": 15, "table": 51,
                      "table64": 45}

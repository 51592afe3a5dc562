"""A table of methods: every run made once, by however many workers; what does not fit is refused in a sentence."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock

from gapkd.cli import main
from gapkd.experiments import sweep
from gapkd.experiments.sweep import SweepConfig, read_faces, read_results, read_table, run_sweep, sweep_note
from gapkd.files.checkpoints import load_generator
from gapkd.metrics.evaluation import sample_images
from gapkd.metrics.features import AttributeNetwork, save_attribute_network
from gapkd.settings import DistillConfig, from_dict
from gapkd.training.trainer import TrainingDiverged

SMALL = {"images": 16, "batch": 8, "d_channels": [4], "keep": 0.5, "precision": "float32", "probe_every": 8,
         "grid_every": 0, "fid_every": 8, "fid_samples": 40}
ROOT = Path(__file__).parent.parent


@pytest.fixture
def table(tmp_path, teacher_file):
    """Writes a table file with some entries changed; returns its path."""
    def write(**changes) -> str:
        content = {"results": str(tmp_path / "results.jsonl"), "folder": str(tmp_path / "runs"), "seeds": [0, 1],
                   "samples": 40, "settings": SMALL | {"teacher": str(teacher_file)},
                   "arms": {"alone": {"rgb_weight": 0, "perceptual_weight": 0, "ld_weight": 0}, "paper": None}}
        file = tmp_path / "table.yml"
        file.write_text(yaml.safe_dump(content | changes))
        return str(file)

    return write


@pytest.fixture(autouse=True)
def quick(quick_latent_space):
    pass


def names(records):
    return [(r["arm"], r["seed"]) for r in records if r["arm"] not in sweep.REFERENCES]


def test_every_run_is_made_once(table, tmp_path, monkeypatch, capsys):
    file = table()
    assert names(run_sweep(SweepConfig(file, arms=("alone",), seeds=(1,)))) == [("alone", 1)]
    records = run_sweep(SweepConfig(file))
    assert names(records) == [("alone", 1), ("alone", 0), ("paper", 0), ("paper", 1)]  # seed by seed
    assert [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()] == records
    assert [r["arm"] for r in records[:2]] == ["real", "teacher"] and records[1]["final"]["l1"] == 0
    assert not any("second_" in name for name in records[-1]["final"])
    first = next(r for r in records if r["arm"] == "alone" and r["seed"] == 0)
    assert first["settings"]["rgb_weight"] == 0 and "out" not in first["settings"]
    assert {"commit", "hardware", "seconds", "teacher_sha256", "judge_sha256"} <= first.keys()
    assert [p["images"] for p in first["curve"]] == [8, 16] and all("fid_toyfaces_40" in p for p in first["curve"])
    monkeypatch.setattr(sweep.Bench, "train", lambda *a: pytest.fail("trained again"))
    assert run_sweep(SweepConfig(file)) == records
    assert "4 of 4 runs are in" in capsys.readouterr().out
    faces = read_faces(tmp_path / "results.jsonl", ("teacher", "paper", "nobody"))
    G = load_generator(tmp_path / "runs" / "paper-0" / "generator.safetensors")
    assert list(faces) == ["teacher", "paper"] and faces["paper"].shape == (16, 3, 32, 32)
    torch.testing.assert_close(faces["paper"], next(sample_images(G, 16, 7)), atol=1 / 127, rtol=0)


def test_a_second_judge_is_asked_too(table, tmp_path):
    """Another network must say something else; the first one again must say the same."""
    torch.manual_seed(5)
    save_attribute_network(AttributeNetwork(channels=(8, 8, 8, 8), hidden=8), tmp_path / "other.safetensors")
    found = {}
    for second in ("attributes", str(tmp_path / "other.safetensors")):
        results = str(tmp_path / f"{len(found)}.jsonl")
        run_sweep(SweepConfig(table(arms={"paper": None}, seeds=[0], second_judge="attributes", results=results)))
        file = table(arms={"paper": None}, seeds=[0], second_judge=second, results=results)
        found[second] = run_sweep(SweepConfig(file, remeasure=True))
    (_, teacher, same), (_, other_teacher, other) = found.values()
    for name in ("fid_toyfaces_40", "agree_mean_correlation", "perceptual"):
        assert same["final"][f"second_{name}"] == pytest.approx(same["final"][name], rel=1e-6)
        assert abs(other["final"][f"second_{name}"] - other["final"][name]) > 1e-3
    assert teacher["final"]["second_fid_toyfaces_40"] == teacher["final"]["fid_toyfaces_40"]
    assert other_teacher["final"]["second_fid_toyfaces_40"] != other_teacher["final"]["fid_toyfaces_40"]
    with pytest.raises(ValueError, match="that another judge has measured"):
        run_sweep(SweepConfig(table(arms={"paper": None}, seeds=[0], second_judge="attributes", results=results)))


def test_a_dry_run_says_the_command_of_every_row(table, capsys, tmp_path):
    run_sweep(SweepConfig(table(), seeds=(1,), dry_run=True))
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("0 of 2 runs are in") and not (tmp_path / "runs").exists()
    assert "missing: alone seed 1: gapkd distill" in said[1] and "--rgb-weight 0" in said[1] and "--seed 1" in said[1]


def test_workers_share_the_runs(table):
    file = table()
    assert names(run_sweep(SweepConfig(file, jobs=2))) != []
    records = read_results(read_table(file).results)
    assert sorted(names(records)) == [("alone", 0), ("alone", 1), ("paper", 0), ("paper", 1)]


def test_rows_are_made_again_beside_what_is_there(table, tmp_path):
    file, mine = table(), tmp_path / "again" / "mine.jsonl"
    first = run_sweep(SweepConfig(file, seeds=(0,), arms=("paper",)))
    before = Path(read_table(file).results).read_bytes()
    again = run_sweep(SweepConfig(file, seeds=(0,), arms=("paper",), results=str(mine), jobs=1))
    assert names(again) == names(first) == [("paper", 0)] and mine.is_file()
    assert again[-1]["final"] == first[-1]["final"]
    assert (tmp_path / "again" / "mine" / "paper-0" / "generator.safetensors").is_file()
    assert Path(read_table(file).results).read_bytes() == before
    run_sweep(SweepConfig(file, seeds=(0, 1), arms=("paper",), results=str(mine), jobs=2))
    assert ("paper", 1) in names(read_results(mine)) and Path(read_table(file).results).read_bytes() == before
    with pytest.raises(ValueError, match="results must name a .jsonl file, not mine"):
        SweepConfig(file, results="mine")


def test_what_another_worker_is_at_is_left_to_it(table, tmp_path):
    (tmp_path / "runs").mkdir()
    with FileLock(tmp_path / "runs" / ".paper-0.claim"):
        assert ("paper", 0) not in names(run_sweep(SweepConfig(table(seeds=[0]))))
    assert ("paper", 0) in names(run_sweep(SweepConfig(table(seeds=[0]))))


def test_an_interrupted_run_is_resumed(table, tmp_path):
    file = table(arms={"paper": None}, seeds=[0], settings=SMALL | {
        "teacher": yaml.safe_load(Path(table()).read_text())["settings"]["teacher"], "images": 40_000})
    worker = subprocess.Popen([sys.executable, "-m", "gapkd", "sweep", file], stderr=subprocess.PIPE, text=True,
                              env=os.environ | {"OMP_NUM_THREADS": "1"})
    log = tmp_path / "runs" / "paper-0" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    worker.send_signal(signal.SIGINT)
    _, said = worker.communicate(timeout=60)
    assert worker.returncode == 130 and "the state is saved" in said
    seen = json.loads(log.read_text().splitlines()[-1])["images"]
    settings = json.loads((tmp_path / "runs" / "paper-0" / "settings.json").read_text())["settings"]
    table(arms={"paper": None}, seeds=[0], settings={k: v for k, v in settings.items() if k not in (
        "out", "resume", "progress", "device", "seed")} | {"images": seen + 64})
    record = run_sweep(SweepConfig(file))[-1]
    assert record["images"] == seen + 64
    lines = [json.loads(line)["images"] for line in log.read_text().splitlines()]
    assert lines == sorted(set(lines)) and lines[0] < seen  # the log goes on where it was


@pytest.mark.parametrize("kind", [TrainingDiverged, ValueError])
def test_one_that_fails_does_not_stop_the_others(table, monkeypatch, capsys, kind):
    real = sweep.Bench.train

    def flaky(bench, settings):
        if settings.rgb_weight == 0:
            raise kind("training diverged near image 8")
        return real(bench, settings)

    monkeypatch.setattr(sweep.Bench, "train", flaky)
    file = table(seeds=[0])
    assert main(["sweep", file]) == 2
    assert "alone seed 0 failed: training diverged" in (said := capsys.readouterr().err)
    assert "1 run(s) failed: alone; the others are in" in said
    assert names(read_results(read_table(file).results)) == [("paper", 0)]


def test_results_of_another_table_are_refused(table, tmp_path):
    run_sweep(SweepConfig(table(seeds=[0])))
    with pytest.raises(ValueError, match="holds a run of alone, seed 0, with other settings or another teacher"):
        run_sweep(SweepConfig(table(seeds=[0], arms={"alone": {"rgb_weight": 1}})))
    (tmp_path / "results.jsonl").write_text('{"arm": "alone"\n')
    with pytest.raises(ValueError, match="results.jsonl, line 1, is not the record of a run"):
        run_sweep(SweepConfig(table(seeds=[0])))


def test_when_is_measured_and_newer_settings_do_not_make_another_run(table):
    file = table(seeds=[0], arms={"paper": None})
    run_sweep(SweepConfig(file))
    results = Path(read_table(file).results)
    *others, record = read_results(results)
    record["settings"].pop("feature_weight")  # as if an older version had written it
    record["settings"]["fid_every"] = 0
    results.write_text("".join(json.dumps(r) + "\n" for r in [*others, record]))
    assert run_sweep(SweepConfig(file)) == [*others, record]


def test_students_are_measured_again(table, tmp_path, monkeypatch, capsys):
    file = table(seeds=[0])
    before = run_sweep(SweepConfig(file))
    (tmp_path / "runs" / "alone-0" / "generator.safetensors").unlink()
    monkeypatch.setattr(sweep.Bench, "measure", lambda bench, G: {"new": float(G.resolution)})
    after = run_sweep(SweepConfig(file, remeasure=True))
    assert "alone seed 0 stays as it is" in capsys.readouterr().out
    assert [r["arm"] for r in after] == [r["arm"] for r in before]
    assert after[2] == before[2] and after[3]["final"] == {"new": 32.0} and after[3]["measured"]["commit"]
    assert after[3]["curve"] == before[3]["curve"]


@pytest.mark.parametrize("changes, message", [
    ({"arms": {}}, "must name its methods under `arms`"), ({"arms": {"a": 3}}, "must be a list of `setting: value`"),
    ({"arms": {"a": {"rgb_wieght": 1}}}, "arm a: DistillConfig has no setting rgb_wieght; did you mean rgb_weight"),
    ({"arms": {"a": {"keep": 2}}}, "arm a: keep must lie in"), ({"seeds": 3}, "`seeds` must be a list of whole"),
    ({"arms": {"teacher": {}}}, "are the names of their rows"), ({"samples": "many"}, "`samples` must be a whole"),
    ({"results": 3}, "`results` must be text, not 3"), ({"arms": {"a/b": None}}, "'a/b' cannot name a folder"),
    ({"arms": {"a": {"teacher": "toyfaces64"}}}, "one teacher and one set of data"),
    ({"arms": {"a": {"seed": 2}}}, "seed is for the sweep to choose"), ({"sedes": [1]}, "has an entry sedes"),
    ({"settings": {"out": "x"}}, "out is for the sweep to choose"), ({"samples": 3}, "`samples` must be at least 10"),
    ({"seeds": [0, -1]}, "`seeds` must be a list of whole numbers from 0 on")])
def test_bad_tables(table, changes, message):
    with pytest.raises(ValueError, match=message):
        read_table(table(**changes))


def test_bad_files_and_arms(table, tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        read_table(tmp_path / "none.yml")
    (tmp_path / "bad.yml").write_text("arms: [")
    with pytest.raises(ValueError, match="bad.yml is not YAML"):
        read_table(tmp_path / "bad.yml")
    (tmp_path / "evil.yml").write_text("arms: !!python/object/apply:os.system ['touch /tmp/never']")
    with pytest.raises(ValueError, match="evil.yml is not YAML"):
        read_table(tmp_path / "evil.yml")
    with pytest.raises(ValueError, match="has no arm nobody: choose from alone, paper"):
        run_sweep(SweepConfig(table(), arms=("nobody",)))


def test_an_impossible_arm_is_refused_before_any_run(table, tmp_path):
    file = table(arms={"paper": None, "bad": {"kernel": 1, "synthesis": "pruned"}})
    with pytest.raises(ValueError, match="table.yml, arm bad: synthesis=\"pruned\" copies weights"):
        run_sweep(SweepConfig(file))
    assert not (tmp_path / "runs" / "paper-0").exists()


def test_figures_of_different_judges_are_not_mixed(table, tmp_path):
    file = table(seeds=[0], arms={"paper": None})
    run_sweep(SweepConfig(file))
    results = tmp_path / "results.jsonl"
    for change, value in (("samples", 50), ("second_judge", "second_judge")):
        with pytest.raises(ValueError, match="that another judge has measured, or on another number of images"):
            run_sweep(SweepConfig(table(seeds=[0], arms={"paper": None}, **{change: value})))
    *others, record = read_results(results)
    for name in sweep.BENCH:
        results.write_text("".join(json.dumps(r) + "\n" for r in [*others, record | {name: "another"}]))
        with pytest.raises(ValueError, match=f"cannot be compared, of different {name}"):
            read_results(results)
        assert read_results(results, mixed=True)[-1][name] == "another"
    run_sweep(SweepConfig(file, remeasure=True))
    assert read_results(results)[-1]["judge_sha256"] == record["judge_sha256"]


def test_results_need_a_folder_that_is_there(table, tmp_path):
    with pytest.raises(ValueError, match="there is no folder .*nowhere for the results: start the command in"):
        run_sweep(SweepConfig(table(results=str(tmp_path / "nowhere" / "results.jsonl"))))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_students_are_measured_where_they_are_trained(table, monkeypatch):
    seen = []
    monkeypatch.setattr(sweep.Bench, "measure", lambda bench, G: seen.append(
        {next(m.parameters()).device.type for m in (G, bench.teacher, bench.net)}) or {"l1": 0.0})
    run_sweep(SweepConfig(table(seeds=[0], arms={"paper": None}), device="cuda"))
    assert seen == [{"cuda"}]


@pytest.mark.parametrize("file", sorted((ROOT / "sweeps").glob("*.yml")), ids=lambda f: f.name)
def test_the_tables_that_come_along(file, monkeypatch):
    table = read_table(file)
    for arm in table.arms:
        assert from_dict(DistillConfig, dataclasses.asdict(table.config(arm, 0))).images >= 25_000
    monkeypatch.chdir(ROOT)
    runs = [(r["arm"], r["seed"]) for r in read_results(table.results) if r["arm"] not in sweep.REFERENCES]
    todo = sweep.missing(table, tuple(table.arms), table.seeds)  # refuses records that are not of this table
    assert len(todo) + len(runs) == len(table.arms) * len(table.seeds) and not set(todo) & set(runs)


def test_the_note_says_what_was_added_later_and_where():
    run = {"arm": "a", "seed": 0, "seconds": 3600, "commit": "c1", "hardware": "H", "threads": 1, "date": "d"}
    note = sweep_note("t.yml", [run, run | {"added": {"agree_edits": {"commit": "c2"}}}])
    assert "2.0 hours for all 2 runs" in note and note.endswith("agree_edits was added to 1 of them, at commit c2.")
    assert "added" not in sweep_note("t.yml", [run])

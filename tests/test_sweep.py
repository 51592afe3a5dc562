"""A table of methods: every run made once, by however many workers; misfits are refused."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml
from filelock import FileLock, Timeout

from gapkd.cli import main
from gapkd.data.images import save_png
from gapkd.experiments import sweep
from gapkd.experiments.results import REFERENCES, read_faces, read_results
from gapkd.experiments.sweep import ChildFailed, SweepConfig, read_table, run_sweep
from gapkd.files.checkpoints import load_generator, save_network
from gapkd.metrics.attributes import AttributeNetwork
from gapkd.metrics.equivariance import equivariance
from gapkd.metrics.sampling import sample_images
from gapkd.networks.stylegan3 import AliasFreeGenerator
from gapkd.settings import read_yaml
from gapkd.sharing.hub import save_pretrained
from gapkd.training.trainer import TrainingDiverged

SMALL = {"images": 16, "batch": 8, "d_channels": [4], "keep": 0.5, "precision": "float32",
         "probe_every": 16, "log_every": 8, "grid_every": 0, "fid_every": 8, "fid_samples": 40}
SWEEPS = Path(__file__).parent.parent / "tools" / "sweeps"
ONE = {"arms": {"paper": None}, "seeds": [0]}


@pytest.fixture
def table(tmp_path, teacher_file, quick_latent_space):
    """Writes a table file with some entries changed; returns its path."""
    def write(settings=(), **changes) -> str:
        content = {"results": str(tmp_path / "results.jsonl"), "folder": str(tmp_path / "runs"),
                   "seeds": [0, 1], "samples": 40,
                   "settings": {**SMALL, "teacher": str(teacher_file), **dict(settings)},
                   "arms": {"alone": {"rgb_weight": 0, "perceptual_weight": 0, "ld_weight": 0},
                            "paper": None}}
        file = tmp_path / "table.yml"
        file.write_text(yaml.safe_dump(content | changes))
        return str(file)

    return write


@pytest.fixture
def quick_workers(tmp_path, monkeypatch):
    """The same for workers, which are processes of their own."""
    script = tmp_path / "worker.py"
    script.write_text(f"""#!{sys.executable}
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(SWEEPS.parent.parent)!r}]
from gapkd.cli import main
from tiny import quicken_latent_space
quicken_latent_space()
sys.exit(main(sys.argv[3:]))
""")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def names(records):
    return [(r["arm"], r["seed"]) for r in records if r["arm"] not in REFERENCES]


def test_every_run_is_made_once(table, tmp_path, monkeypatch, capsys):
    file = table()
    assert names(run_sweep(SweepConfig(file, arms=("alone",), seeds=(1,)))) == [("alone", 1)]
    said = capsys.readouterr()
    assert "| alone | 1 |" in said.out and "alone-1: trained, is being measured" in said.err
    records = run_sweep(SweepConfig(file))
    assert names(records) == [("alone", 1), ("alone", 0), ("paper", 0), ("paper", 1)]
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    real, teacher, _, first, _, last = records
    assert [real["arm"], teacher["arm"]] == ["real", "teacher"] and teacher["final"]["l1"] == 0
    assert first["settings"]["rgb_weight"] == 0 and "out" not in first["settings"]
    marks = {"commit", "hardware", "seconds", "teacher_sha256", "judge_sha256", "samples"}
    assert marks <= first.keys() and first["samples"] == 40 and first["images"] == 16
    assert {"l1", "perceptual", "agree_mean_accuracy", "agree_edits", "fid_toyfaces_40",
            "ppl_toyfaces_20", "projection_psnr"} <= first["final"].keys()
    assert not any(name.startswith(("second_", "eq_")) for name in last["final"])
    halfway, end = last["curve"]  # a student of the paper logs a loss called perceptual, too
    assert halfway.keys() == {"images", "fid_toyfaces_40"} and halfway["images"] == 8
    probed = {"l1", "perceptual", "agree_mean_accuracy", "agree_mean_correlation"}
    assert end.keys() == halfway.keys() | probed and end["images"] == 16
    monkeypatch.setattr(sweep.Bench, "train", lambda *a: pytest.fail("trained again"))
    assert run_sweep(SweepConfig(file)) == records
    said = capsys.readouterr().out
    assert "4 of 4 runs are in" in said and "| real, against other real |" in said
    assert "| alone | 2 |" in said and "| paper | 2 |" in said
    faces = read_faces(tmp_path / "results.jsonl", ("teacher", "paper", "nobody"))
    G = load_generator(tmp_path / "runs" / "paper-0" / "generator.safetensors")
    assert list(faces) == ["teacher", "paper"] and faces["paper"].shape == (16, 3, 32, 32)
    drawn = next(sample_images(G, 16, 7))
    torch.testing.assert_close(faces["paper"], drawn, atol=1 / 127, rtol=0)


def test_a_second_judge_is_asked_too(table, tmp_path):
    """Another network must say something else; the first one again must say the same."""
    torch.manual_seed(5)
    net = AttributeNetwork(channels=(8, 8, 8, 8), hidden=8)
    other = save_network(net, tmp_path / "other.safetensors")
    for second, agrees in (("attributes", True), (str(other), False)):
        file = table(**ONE, second_judge=second, results=str(tmp_path / f"{agrees}.jsonl"),
                     folder=str(tmp_path / str(agrees)))
        _, teacher, student = (record["final"] for record in run_sweep(SweepConfig(file)))
        pairs = [(student, "agree_mean_correlation"), (student, "perceptual"),
                 (student, "fid_toyfaces_40"), (teacher, "fid_toyfaces_40")]
        for final, name in pairs:
            assert (final[f"second_{name}"] == pytest.approx(final[name], rel=1e-6)) == agrees


def test_networks_from_elsewhere_say_where_they_come_from(table, tmp_path, teacher_file):
    """A shared StyleGAN3, judged by a network of a file: equivariances, and the origin of both."""
    torch.manual_seed(1)
    teacher = AliasFreeGenerator(32, 8, 8, [6, 6, 6], mapping_layers=2, margin=2)
    save_pretrained(teacher, tmp_path / "net", {"seed": 7})
    net = AttributeNetwork(channels=(8, 8, 8, 8), hidden=8)
    judge = save_network(net, tmp_path / "judge.safetensors", {"command": "judge", "settings": [1]})
    settings = {"teacher": str(tmp_path / "net"), "ld_blocks": [1, 2]}
    file = table(**ONE, settings=settings, judge=str(judge))
    real, teacher, record = run_sweep(SweepConfig(file))
    assert real["teacher_origin"]["seed"] == 7
    assert teacher["judge_origin"] == {"command": "judge", "settings": [1]}
    assert record["settings"]["ld_blocks"] == [1, 2] and record["settings"]["teacher"] == "net"
    G = load_generator(tmp_path / "runs" / "paper-0" / "generator.safetensors")
    assert record["final"]["eq_t"] == pytest.approx(equivariance(G, "translation"), rel=1e-3)
    assert record["final"]["eq_r"] == pytest.approx(equivariance(G, "rotation"), rel=1e-3)
    assert teacher["final"]["eq_t"] > 0


def test_a_dry_run_says_the_command_of_every_row(table, capsys, tmp_path):
    run_sweep(SweepConfig(table(), dry_run=True, seeds=(0, 0)))
    assert capsys.readouterr().out.count("seed 0") == len(read_table(table()).arms)
    run_sweep(SweepConfig(table(), dry_run=True))
    first, alone, paper, *second_seed = capsys.readouterr().out.splitlines()
    assert first.startswith("0 of 4 runs are in") and not (tmp_path / "runs").exists()
    assert alone.startswith("missing: alone seed 0: gapkd distill ")
    assert paper.startswith("missing: paper seed 0: ") and "seed 1" in "".join(second_seed)
    assert "--rgb-weight 0" in alone and "--rgb-weight" not in paper
    assert all("--seed 1" in line for line in second_seed) and len(second_seed) == 2


def test_workers_make_rows_again_beside_what_is_there(table, tmp_path, quick_workers):
    file, mine = table(), tmp_path / "again" / "mine.jsonl"
    first = run_sweep(SweepConfig(file, seeds=(0,), arms=("paper",)))
    before = Path(read_table(file).results).read_bytes()
    again = run_sweep(SweepConfig(file, seeds=(0,), arms=("paper",), results=str(mine), jobs=1))
    assert names(again) == names(first) == [("paper", 0)]
    assert again[-1]["final"] == first[-1]["final"]
    assert (tmp_path / "again" / "mine" / "paper-0" / "generator.safetensors").is_file()
    run_sweep(SweepConfig(file, arms=("paper", "alone"), seeds=(1,), results=str(mine), jobs=2))
    assert sorted(names(read_results(mine))) == [("alone", 1), ("paper", 0), ("paper", 1)]
    assert Path(read_table(file).results).read_bytes() == before


def test_a_run_is_recorded_before_its_faces_are_drawn(table, monkeypatch):
    made = {"seed": 0, "settings": {}, "images": 16, "seconds": 1.0, "final": {}}
    monkeypatch.setattr(sweep, "Bench", lambda *_: Mock(train=lambda settings: made))
    monkeypatch.setattr(sweep, "_add_references", Mock())
    with pytest.raises(ValueError, match="there is no checkpoint"):  # nothing to draw with
        run_sweep(SweepConfig(table(**ONE)))
    assert names(read_results(read_table(table(**ONE)).results)) == [("paper", 0)]


def test_what_another_worker_is_at_is_left_to_it(table, tmp_path):
    (tmp_path / "runs").mkdir()
    with FileLock(tmp_path / "runs" / ".paper-0.claim"):
        assert names(run_sweep(SweepConfig(table(**ONE)))) == []
    assert names(run_sweep(SweepConfig(table(**ONE)))) == [("paper", 0)]


def test_a_run_that_failed_is_not_begun_by_the_next_worker(table, tmp_path, monkeypatch):
    claims = []

    def diverge(self, settings):
        claims.append(FileLock(tmp_path / "runs" / f".{Path(settings.out).name}.claim"))
        for claim in claims:
            with pytest.raises(Timeout):
                claim.acquire(blocking=False)
        raise TrainingDiverged("loss_g = nan")

    monkeypatch.setattr(sweep.Bench, "train", diverge)
    with pytest.raises(ChildFailed, match="alone, paper"):
        run_sweep(SweepConfig(table(), seeds=(0,)))
    assert len(claims) == 2
    for claim in claims:
        claim.acquire(blocking=False)


def test_nobody_waits_for_the_rows_of_teacher_and_real_images(table, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    claim, train = FileLock(tmp_path / "runs" / ".references.claim"), sweep.Bench.train

    def train_while_they_are_measured(self, settings):
        assert claim.is_locked
        record = train(self, settings)
        claim.release()  # whoever was at them has died
        return record

    monkeypatch.setattr(sweep.Bench, "train", train_while_they_are_measured)
    with claim:
        records = run_sweep(SweepConfig(table(**ONE)))
    assert [record["arm"] for record in records] == ["paper", "real", "teacher"]


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks"), NotImplementedError()])
def test_a_file_system_without_locks(table, monkeypatch, error):
    """One worker goes on; several would train one run at a time, into one folder."""
    monkeypatch.setattr(FileLock, "acquire", Mock(side_effect=error))
    with pytest.raises(ValueError, match="without locks, by which .* make one at a time, with"):
        run_sweep(SweepConfig(table(), jobs=2))
    assert names(run_sweep(SweepConfig(table(**ONE)))) == [("paper", 0)]


def test_a_table_is_read_as_utf_8(tmp_path, monkeypatch):
    """Whatever encoding the system has for files that say none."""
    def read(file, encoding="ascii"):
        return file.read_bytes().decode(encoding)

    (tmp_path / "table.yml").write_text("arms: {größer: }", encoding="utf-8")
    monkeypatch.setattr(Path, "read_text", read)
    assert read_table(tmp_path / "table.yml").arms == {"größer": {}}


def test_an_interrupted_run_is_resumed(table, tmp_path, quick_workers):
    command = [sys.executable, "-m", "gapkd", "sweep", table(**ONE, settings={"images": 40_000})]
    worker = subprocess.Popen(command, stderr=subprocess.PIPE, text=True,
                              env=os.environ | {"OMP_NUM_THREADS": "1"})
    log = tmp_path / "runs" / "paper-0" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    worker.send_signal(signal.SIGINT)
    _, said = worker.communicate(timeout=60)
    assert worker.returncode == 130 and "the state is saved" in said
    seen = json.loads(log.read_text().splitlines()[-1])["images"]
    record = run_sweep(SweepConfig(table(**ONE, settings={"images": seen + 64})))[-1]
    assert record["images"] == seen + 64
    lines = [json.loads(line)["images"] for line in log.read_text().splitlines()]
    assert lines == sorted(set(lines)) and lines[0] <= seen  # the log goes on where it was


def test_an_interrupted_run_of_another_arm_is_refused_before_anything_is_measured(
        table, tmp_path, monkeypatch, capsys):
    file = table(**ONE)
    monkeypatch.setattr(sweep.Bench, "measure", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # it is trained, and has no record
        run_sweep(SweepConfig(file))
    monkeypatch.setattr(sweep, "Bench", lambda *a: pytest.fail("made a bench"))
    for dry_run in (True, False):
        with pytest.raises(ValueError, match="paper-0 holds a run of paper, seed 0, that was begun "
                           "with rgb_weight=3.0, not 1: give the arm another name, or take out"):
            run_sweep(SweepConfig(table(**ONE | {"arms": {"paper": {"rgb_weight": 1}}}),
                                  dry_run=dry_run))
    run_sweep(SweepConfig(table(**ONE | {"arms": {"new": {"rgb_weight": 1}}}), dry_run=True))
    assert "missing: new seed 0" in capsys.readouterr().out


def test_a_terminated_sweep_takes_its_workers_along(table, tmp_path, quick_workers):
    command = [sys.executable, "-m", "gapkd", "sweep", table(settings={"images": 40_000}),
               "--jobs", "2"]
    sweeper = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    logs = [tmp_path / "runs" / f"{arm}-0" / "log.jsonl" for arm in ("alone", "paper")]
    deadline = time.monotonic() + 240
    try:
        while not all(log.exists() and log.read_text() for log in logs):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        sweeper.send_signal(signal.SIGTERM)
        _, said = sweeper.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):  # else nobody is left, as it should be
            os.killpg(sweeper.pid, signal.SIGKILL)
    assert sweeper.returncode == 130 and said.count("the state is saved") == 2
    assert "the same command goes on from here" in said
    for log in logs:
        assert list(log.parent.glob("checkpoints/*.pt"))


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


def test_a_sweep_goes_on_where_nothing_can_be_printed(table, monkeypatch, capsys):
    full = Mock(side_effect=OSError(28, "No space left"))
    monkeypatch.setattr(sys, "stdout", Mock(write=full, encoding="utf-8"))
    assert len(run_sweep(SweepConfig(table(**ONE)))) == 3
    assert "written (No space left), so this stands here:\npaper seed 0" in capsys.readouterr().err


def test_records_of_another_table_are_refused(table):
    run_sweep(SweepConfig(table(**ONE)))
    for changes in (
            {"arms": {"paper": {"rgb_weight": 1}}}, {"settings": {"teacher": "toyfaces32"}},
            {"samples": 50}, {"judge": "second_judge"}, {"second_judge": "second_judge"}):
        with pytest.raises(ValueError, match="holds a run of paper, seed 0, with other settings, "
                                             "another teacher, judge or number of images judged"):
            run_sweep(SweepConfig(table(**ONE | changes)))


def test_figures_on_another_scale_are_refused_before_a_run_joins_them(table, monkeypatch):
    """Neither found out after the training nor, as with another teacher, never."""
    file = table(**ONE)
    records = run_sweep(SweepConfig(file))
    monkeypatch.setattr(sweep.Bench, "train", lambda *a: pytest.fail("trained"))
    for changes in ({"settings": {**SMALL, "teacher": "toyfaces32"}}, {"samples": 50},
                    {"judge": "second_judge"}, {"second_judge": "second_judge"}):
        with pytest.raises(ValueError, match="another teacher, judge or number of images judged "
                                             "than this table's .real.: no run of it may join"):
            run_sweep(SweepConfig(table(**{"arms": {"other": None}, "seeds": [0]} | changes)))
    results = Path(read_table(file).results)
    assert read_results(results) == records
    results.write_text("".join(json.dumps(row | {"second_judge_sha256": "0"}) + "\n"
                               for row in records))
    with pytest.raises(ValueError, match="no run of it may join them"):  # without the second one
        run_sweep(SweepConfig(table(arms={"other": None}, seeds=[0])))


def test_runs_of_several_lengths_are_shown_in_a_table_each(table, capsys):
    run_sweep(SweepConfig(table(arms={"short": None, "long": {"images": 24}}, seeds=[0])))
    said = capsys.readouterr().out
    assert [said.count(text) for text in ("| 16 images each", "| 24 images each")] == [1, 1]
    assert said.index("| short | 1 |") < said.index("| 24 images each") < said.index("| long | 1 |")
    assert said.count("| real, against other real |") == 2


def test_one_table_is_measured_on_one_set_of_images(table, tmp_path):
    """Pictures that were replaced under their names would give one table two kinds of FID."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in (0, 1):
        for i in range(20):
            pixels = torch.rand(1, 3, 32, 32 if seed else 1).expand(1, 3, 32, 32)
            save_png(pixels, folder / f"{i}.png", columns=1)
        made = SweepConfig(table({"data": str(folder)}, seeds=[seed], samples=10,
                                 arms={"paper": {"perceptual_weight": 0}}))
        if not seed:
            records = run_sweep(made)
            continue
        with pytest.raises(ValueError, match="measured on other images than those .*photos: bring"):
            run_sweep(made)
    file = Path(read_table(made.table).results)
    assert read_results(file) == records and all(r["listing_sha256"] for r in records)
    file.write_text("".join(json.dumps({k: v for k, v in r.items() if k != "listing_sha256"}) + "\n"
                            for r in records))
    assert len(run_sweep(made)) == len(records) + 1  # of older records nobody can tell


def test_another_network_in_a_file_of_the_same_name_is_another_run(table, tmp_path):
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        (tmp_path / name).mkdir()
        save_network(AttributeNetwork(channels=(8, 8, 8, 8), hidden=8),
                     tmp_path / name / "own.safetensors")
    def asked(name: str) -> list[dict]:
        arms = {"paper": {"perceptual": str(tmp_path / name / "own.safetensors")}}
        return run_sweep(SweepConfig(table(arms=arms, seeds=[0])))

    assert asked("one") == asked("one")
    with pytest.raises(ValueError, match="or other networks in the files that it names"):
        asked("two")


def test_when_is_measured_and_newer_or_older_settings_do_not_make_another_run(table):
    file = table(**ONE)
    run_sweep(SweepConfig(file))
    results = Path(read_table(file).results)
    *others, record = read_results(results)
    record["settings"].pop("feature_weight")  # as if an older version had written it
    record["settings"] |= {"fid_every": 0, "an_option_that_is_gone": 1}
    results.write_text("".join(json.dumps(row) + "\n" for row in [*others, record]))
    assert run_sweep(SweepConfig(file)) == [*others, record]


@pytest.mark.parametrize("changes, message", [
    ({"arms": {}}, "must name its methods under `arms`"),
    ({"arms": {"a": 3}}, "`arms` must be methods, each with a list of `setting: value`"),
    ({"arms": {"a": {"rgb_wieght": 1}}}, "arm a: DistillConfig has no setting rgb_wieght; did you"),
    ({"arms": {"a": {"keep": 2}}}, "arm a: keep must lie in"),
    ({"arms": {"teacher": {}}}, "are the names of their rows"),
    ({"arms": {"a/b": None}}, "'a/b' cannot name a folder"),
    ({"arms": {"..": None}}, "'..' cannot name a folder"),
    ({"arms": {"A": None, "a": None}}, "'A' and 'a' are one folder on some systems: rename one"),
    ({"arms": {"\u00e9": None, "e\u0301": None}}, "are one folder on some systems: rename one"),
    ({"arms": {"a\0": None}}, "cannot name a folder"),
    ({"arms": {"ä" * 101: None}}, "cannot name a folder: choose another name, of 200 bytes at"),
    ({"arms": {"a": {"teacher": "toyfaces64"}}}, "one teacher and one set of data"),
    ({"arms": {"a": {"seed": 2}}}, "seed is for the sweep to choose"),
    ({"settings": {"out": "x"}}, "out is for the sweep to choose"),
    ({"seeds": 3}, "`seeds` must be a list of whole numbers from 0 on, not 3"),
    ({"seeds": [0, -1]}, "`seeds` must be a list of whole numbers from 0 on"),
    ({"samples": "many"}, "`samples` must be a whole number of at least 10"),
    ({"samples": 3}, "`samples` must be a whole number of at least 10 and .*, not 3"),
    ({"samples": 10**9}, "at least 10 and at most 1,000,000, not 1000000000"),
    ({"results": 3}, "`results` must be a .jsonl file, not 3"),
    ({"results": "runs/mine"}, "`results` must be a .jsonl file, not 'runs/mine'"),
    ({"results": ""}, "`results` must be a .jsonl file, not ''"),
    ({"sedes": [1]}, "has an entry sedes: known are arms, results"),
    ({"x\nall is well": 1}, r"has an entry 'x\\nall is well': known"),
    ({"x" * 10**5: 1}, r"has an entry x{150}\.\.\.x{150}: known"),
    ({"settings": {"x\nall is well": 1}}, r"has no setting 'x\\nall is well'; known are")])
def test_bad_tables(table, changes, message):
    with pytest.raises(ValueError, match=message):
        read_table(table(**changes))


@pytest.mark.parametrize("text", ["!!bool maybe", "!!timestamp x", "!!int abc", "9" * 5000])
def test_values_that_are_not_of_their_kind_are_named_with_the_file(tmp_path, text):
    (tmp_path / "t.yml").write_text(f"arms: {{a: {{flip: {text}}}}}")
    with pytest.raises(ValueError, match=r"t.yml is not YAML: it holds a value that is not of the"):
        read_table(tmp_path / "t.yml")


@pytest.mark.parametrize("entry", ["seeds: *e", "settings: {lr: *e}"])
def test_a_value_without_end_is_shown_in_brief(tmp_path, entry):
    levels = "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
                     for old, new in ("ab", "bc", "cd", "de"))
    content = read_yaml(f"a: &a [{', '.join('x' * 10)}]\n{levels}last: {{{entry}}}")["last"]
    (tmp_path / "t.yml").write_text(yaml.dump({"arms": {"a": None}} | content))
    with pytest.raises(ValueError, match="must be a") as caught:
        read_table(tmp_path / "t.yml")
    assert len(str(caught.value)) < 1000


def test_a_path_of_a_table_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/anna")
    (tmp_path / "t.yml").write_text("{results: ~/t.jsonl, folder: ~/t, judge: ~/j, arms: {a: }}")
    table = read_table(tmp_path / "t.yml")
    assert (table.results, table.folder) == ("/home/anna/t.jsonl", "/home/anna/t")
    assert (table.judge, table.second_judge) == ("/home/anna/j", "")


def test_numbers_and_names_are_what_they_look_like(tmp_path):
    """1e-3 is a number, 1e5 a whole one, and a method may be called `on`, `no`, `null` or `1e3`."""
    (tmp_path / "t.yml").write_text("""
seeds: [0, 1e1, 2.0]
samples: 2000.0
settings: {lr: 1e-3, images: 1e5, flip: off, noise: yes, ld_blocks: [2.0, 3]}
arms: {on: {ema_half_life: 2e3}, off: , no: , null: , 1e3: {keep: 5e-1}, 007: , 2024-01-01: }
""")
    table = read_table(tmp_path / "t.yml")
    assert list(table.arms) == ["on", "off", "no", "null", "1e3", "007", "2024-01-01"]
    assert repr((table.seeds, table.samples)) == "((0, 10, 2), 2000)"
    config = table.config("1e3", 0)
    assert (config.lr, config.images, config.flip, config.noise) == (0.001, 100_000, False, True)
    assert repr(config.ld_blocks) == "(2, 3)"
    assert config.keep == 0.5 and table.config("on", 0).ema_half_life == 2000


@pytest.mark.parametrize("text", ["arms: [", "arms: !!python/object/apply:os.system ['true']"])
def test_bad_files(tmp_path, text):
    (tmp_path / "bad.yml").write_text(text)
    (tmp_path / "wide.yml").write_text("arms: {a: {}}", encoding="utf-16")
    with pytest.raises(ValueError, match="wide.yml is no UTF-8 text: save it as UTF-8"):
        read_table(tmp_path / "wide.yml")
    with pytest.raises(ValueError, match="bad.yml is not YAML"):
        read_table(tmp_path / "bad.yml")
    with pytest.raises(ValueError, match="tabel cannot be read .*tables .*, table"):
        read_table("tabel")


@pytest.mark.parametrize("text, message", [
    ("arms:\n  a: {keep: 1}\n  b:\n  a:", "a stands there twice, again in line 4: take one"),
    ("arms:\n  a: {keep: 1, lr: 1, keep: 0.5}", "keep stands there twice, again in line 2"),
    ("seeds: [0]\narms: {a: }\n\nseeds: [1]", "seeds stands there twice, again in line 4")])
def test_an_entry_that_stands_there_twice_is_named(tmp_path, text, message):
    (tmp_path / "twice.yml").write_text(text)
    with pytest.raises(ValueError, match=f"twice.yml is not YAML: {message}"):
        read_table(tmp_path / "twice.yml")


def test_settings_may_be_shared_within_a_table(tmp_path):
    (tmp_path / "t.yml").write_text("arms: {a: &a {<<: &b {keep: 0.5, lr: 1}, lr: 2}, "
                                    "c: {<<: *a, keep: 0.25}}\nsettings: *b")
    table = read_table(tmp_path / "t.yml")
    assert table.arms == {"a": {"keep": 0.5, "lr": 2}, "c": {"keep": 0.25, "lr": 2}}


def test_bad_requests(table, tmp_path):
    with pytest.raises(ValueError, match="has no arm nobody: choose from alone, paper"):
        run_sweep(SweepConfig(table(), arms=("nobody",)))
    with pytest.raises(ValueError, match="there is no folder .*nowhere for the results: start the"):
        run_sweep(SweepConfig(table(results=str(tmp_path / "nowhere" / "results.jsonl"))))
    impossible = {"alone": {"ld_weight": 0}, "thin": {"kernel": 1, "synthesis": "pruned"}}
    with pytest.raises(ValueError, match="arm 'thin': .*kernel must be the teacher's 3, not 1"):
        run_sweep(SweepConfig(table(arms=impossible)))
    assert not (tmp_path / "runs").exists()  # nothing was trained before it was said
    with pytest.raises(ValueError, match="results must name a .jsonl file, not mine"):
        SweepConfig(table(), results="mine")
    with pytest.raises(ValueError, match="jobs must not be negative"):
        SweepConfig(table(), jobs=-1)


def test_a_record_of_options_that_are_gone_is_read_but_not_run(table):
    file = table(arms={"queue": {"an_option_that_is_gone": 8}}, commit="c2976f9")
    assert list(read_table(file).arms) == ["queue"]
    with pytest.raises(ValueError, match="options are gone from gapkd: commit c2976f9 has them"):
        run_sweep(SweepConfig(file))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_students_are_measured_where_they_are_trained(table, monkeypatch):
    seen = []
    monkeypatch.setattr(sweep.Bench, "measure", lambda bench, G: seen.append(
        {next(m.parameters()).device.type for m in (G, bench.teacher, bench.net)}) or {
            "l1": 0.0, f"fid_toyfaces_{bench.samples}": 1.0})
    run_sweep(SweepConfig(table(**ONE), device="cuda"))
    assert seen == [{"cuda"}]


@pytest.mark.parametrize("file", sorted(SWEEPS.glob("*.yml")), ids=lambda file: file.name)
def test_the_tables_that_come_along(file, monkeypatch):
    table = read_table(file)
    monkeypatch.chdir(SWEEPS.parent.parent)
    runs = names(read_results(table.results))
    assert {arm for arm, _ in runs} == set(table.arms)
    if table.commit:  # only a record
        return
    networks = {"photographs": "smiles-teacher32", "rates": "third_judge"}
    if file.stem in networks:  # they are not here
        with pytest.raises(ValueError, match=f"{networks[file.stem]}.safetensors"):
            run_sweep(SweepConfig(str(file)))
    else:  # refuses records that are not of this table
        todo = sweep.missing(table, tuple(table.arms), table.seeds)
        assert len(todo) + len(runs) == len(table.arms) * len(table.seeds)
        assert not set(todo) & set(runs)


@pytest.mark.parametrize("name", ["table", "tools/sweeps/table.yml"])
@pytest.mark.parametrize("installed", [True, False])
def test_tables_of_the_course_go_by_name_and_a_wheel_keeps_its_results(tmp_path, monkeypatch, name,
                                                                       installed):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "INSTALLED", installed)
    table = sweep._table_of(SweepConfig(name))
    assert table.results == f"{'runs' if installed else 'data/results'}/table.jsonl"
    assert table.folder == "runs/table" and "dcp" in table.arms
    mine = sweep._table_of(SweepConfig(name, results="a/mine.jsonl"))
    assert (mine.results, mine.folder) == ("a/mine.jsonl", "a/mine")

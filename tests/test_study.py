"""The longer runs: skipped when done, resumed when interrupted, summarised over seeds."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from PIL import Image
from scipy.stats import ttest_ind

from gapkd.experiments.study import (
    ARMS,
    SET_COLUMNS,
    StudyConfig,
    difference,
    results_note,
    results_table,
    run_study,
    summary,
    welch_p,
)
from gapkd.files.checkpoints import load_generator, save_network
from gapkd.metrics.equivariance import equivariance
from gapkd.metrics.features import AttributeNetwork
from gapkd.networks.stylegan2 import Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator


@pytest.fixture
def study(tmp_path, monkeypatch, quick_latent_space):
    torch.manual_seed(0)
    net = AttributeNetwork(channels=(8, 8, 8, 8), hidden=8).eval()
    monkeypatch.setattr("gapkd.metrics.features.load_attribute_network", lambda *_: net)
    monkeypatch.setattr("gapkd.experiments.study.DistillConfig", _tiny)
    monkeypatch.setattr("gapkd.experiments.study.from_dict", lambda cls, values: cls(**values))
    teacher = tmp_path / "teacher.safetensors"
    save_network(Generator(32, 8, 8, 8, mapping_layers=2), teacher)
    return StudyConfig(arms=("alone", "full"), seeds=(0, 1), teacher=str(teacher), images=16, samples=40,
                       results=str(tmp_path / "results.json"), folder=str(tmp_path / "runs"), progress=False)


def _tiny(**values):
    from gapkd.settings import DistillConfig

    return DistillConfig(**values | {"batch": 8, "d_channels": (4,), "keep": 0.5, "precision": "float32",
                                     "probe_every": 8, "grid_every": 0})


def test_a_study_records_every_arm_and_seed_once(study, monkeypatch, tmp_path):
    story = tmp_path / "story.png"
    records = run_study(dataclasses.replace(study, story=str(story)))
    assert Image.open(story).size[0] > 12 * 32
    assert [(r["arm"], r["seed"]) for r in records] == [("alone", 0), ("full", 0), ("alone", 1), ("full", 1)]
    stored = json.loads(open(study.results).read())["runs"]
    assert stored == json.loads(json.dumps(records))
    first = stored[0]
    assert [point["images"] for point in first["curve"]] == [8, 16]
    assert {"l1", "perceptual", "agree_mean_accuracy", "fid_toyfaces_40", "coverage_toyfaces_40", "ppl_toyfaces_20",
            "projection_psnr"} <= first["final"].keys()
    assert first["settings"]["rgb_weight"] == 0 and "out" not in first["settings"] and first["commit"]
    monkeypatch.setattr("gapkd.experiments.study.distill", lambda *a: pytest.fail("trained again"))
    assert len(run_study(study)) == 4


def test_a_results_file_holds_one_study(study):
    run_study(dataclasses.replace(study, arms=("alone",), seeds=(0,)))
    for changes, culprit in (({"images": 24}, "images=16, not 24"), ({"samples": 50}, "samples=40, not 50")):
        with pytest.raises(ValueError, match=f"{culprit}: choose another results file"):
            run_study(dataclasses.replace(study, **changes))
    save_network(Generator(32, 8, 8, 8, mapping_layers=2), study.teacher)
    with pytest.raises(ValueError, match="teacher_sha256"):
        run_study(study)


def test_the_table_gives_scale_and_chance(study):
    records = run_study(dataclasses.replace(study, seeds=(0,)))
    references = json.loads(open(study.results).read())["references"]
    assert [row["name"] for row in references] == ["real", "teacher"]
    lines = results_table(records, references).splitlines()
    assert lines[0].startswith("| 16 images each, judged on 40 |") and "real, against other real" in lines[2]
    assert [line.split("|")[1].strip() for line in lines[3:]] == ["teacher", "alone", "full"]
    final = records[0]["final"]
    assert f"{final['l1']:.3f} ({final['l1_chance']:.3f})" in lines[4]
    assert f"{final['agree_mean_correlation']:.3f} (0.000)" in lines[4]
    with pytest.raises(ValueError, match="no run of arm"):
        summary(records, "pruned", "l1")


def test_a_stylegan3_is_judged_on_its_equivariance_too(study):
    save_network(AliasFreeGenerator(32, 8, 8, [6, 6, 6], mapping_layers=2, margin=2), study.teacher)
    records = run_study(dataclasses.replace(study, arms=("full",), seeds=(0,), ld_blocks=(1, 2)))
    assert records[0]["settings"]["ld_blocks"] == [1, 2]
    G = load_generator(f"{study.folder}/full-0-16/generator.safetensors")
    assert records[0]["final"]["eq_t"] == pytest.approx(equivariance(G, "translation"), rel=1e-3)
    stored = json.loads(open(study.results).read())
    table = results_table(stored["runs"], stored["references"])
    assert "| EQ-T, dB ↑ | EQ-R, dB ↑ |" in table and f"{records[0]['final']['eq_r']:.3f} |" in table
    assert stored["references"][-1]["eq_t"] > 0
    assert "--ld-blocks 1 2" in results_note(stored)


def test_summary_is_mean_and_spread_over_seeds():
    records = [{"arm": "full", "seed": s, "final": {"l1": v}} for s, v in enumerate((0.1, 0.2, 0.6))]
    mean, spread, seeds = summary(records, "full", "l1")
    assert (mean, spread, seeds) == (pytest.approx(0.3), pytest.approx(0.2645751), 3)
    with pytest.raises(ValueError, match="no run of arm alone"):
        summary(records, "alone", "l1")


def test_arms_name_real_settings_and_a_wrong_one_is_refused():
    from gapkd.settings import DistillConfig, from_dict

    assert all(from_dict(DistillConfig, changes) for changes in ARMS.values())
    with pytest.raises(ValueError, match="no arm ful: choose"):
        StudyConfig(arms=("ful",))


def test_a_difference_comes_with_its_standard_error():
    seeds = {"a": (0.5, 0.7), "b": (0.1, 0.2, 0.3), "c": (0.4,)}
    records = [{"arm": arm, "final": {"r": v}} for arm, values in seeds.items() for v in values]
    gain, error = difference(records, "a", "b", "r")
    assert gain == pytest.approx(0.4) and error == pytest.approx((0.02 / 2 + 0.01 / 3) ** 0.5)
    assert math.isnan(difference(records, "a", "c", "r")[1])
    assert welch_p(records, "a", "b", "r") == pytest.approx(ttest_ind(seeds["a"], seeds["b"], equal_var=False).pvalue)
    assert math.isnan(welch_p(records, "a", "c", "r"))


def test_other_columns_and_other_arms():
    final = {"fid_toyfaces_5k": 1.0, "fid_to_teacher_toyfaces_5k": 2.0, "ppl_toyfaces_2k": 7.5}
    records = [{"arm": arm, "seed": 0, "images": 10, "final": final} for arm in ("dcp", "full", "cagan")]
    lines = results_table(records, columns=SET_COLUMNS).splitlines()
    assert lines[0] == "| 10 images each, judged on 5k | seeds | FID ↓ | PPL ↓ |"
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["full", "dcp", "cagan"]
    assert lines[2].endswith("| 1.000 | 7.500 |")
    records[1] = records[1] | {"final": {"fid_toyfaces_5k": 3.0}}  # measured before there were path lengths
    lines = results_table(records, columns=SET_COLUMNS).splitlines()
    assert "| full | 1 | 3.000 | - |" in lines
    with pytest.raises(ValueError, match="has the figure ppl_toyfaces_2k: measure its students again"):
        summary(records, records[1]["arm"], "ppl_toyfaces_2k")
    chosen = results_table(records, columns=SET_COLUMNS, arms=("cagan", "full")).splitlines()
    assert chosen[2:] == [lines[4], lines[2]]


def test_a_table_does_not_mix():
    records = [{"arm": arm, "seed": 0, "images": 10, "final": {"fid_toyfaces_5k": 1.0, "kid_toyfaces_5k": 0.0123}}
               for arm in ("full", "dcp")]
    assert "| full | 1 | 1.000 | 12.300 |" in results_table(records, columns=SET_COLUMNS).splitlines()
    with pytest.raises(ValueError, match="judged by fid_toyfaces_5k, others by fid_toyfaces_2k"):
        results_table([records[0], records[1] | {"final": {"fid_toyfaces_2k": 1.0}}])
    with pytest.raises(ValueError, match="runs of 10, 20 images do not belong"):
        results_table([records[0], records[1] | {"images": 20}])

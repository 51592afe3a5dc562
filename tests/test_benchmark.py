"""Benchmark and growth: every row is there, measured and recorded; how fast is not for tests."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest
import torch

from gapkd.networks.stylegan2 import Discriminator, Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator
from tools import benchmark, growth
from tools.benchmark import BenchmarkConfig, run_benchmark, show_benchmark
from tools.growth import GrowthConfig, fit_line, measure_growth, show_growth

CPU = torch.device("cpu")


@pytest.fixture
def small(teacher_file, monkeypatch):
    """Small networks, and memory that is not measured in further processes."""
    def alias_free_cases(device):
        G = AliasFreeGenerator(32, 8, 8, [6, 6, 6], mapping_layers=2, margin=2)
        layer = G.synthesis.layers[1].activation
        x = torch.randn(2, 6, layer.size, layer.size)
        return {"generator": (G, None, 2), "layer": (layer, x, 2)}

    torch.manual_seed(0)
    monkeypatch.setattr(benchmark, "LARGEST_STEP", 32)
    monkeypatch.setattr(benchmark, "networks", lambda r, channels: (
        Generator(r, 8, 8, 8, mapping_layers=2).eval(), Discriminator(r, 8)))
    monkeypatch.setattr(benchmark, "peak_memory", lambda make, device:
                        2**20 * (2 if make.keywords["by_the_book"] else 1))
    monkeypatch.setattr(benchmark, "alias_free_cases", alias_free_cases)
    monkeypatch.setattr(benchmark, "TEACHER", str(teacher_file))


def test_every_row_is_measured_and_recorded(tmp_path, small):
    file = tmp_path / "speed.json"
    record = run_benchmark(BenchmarkConfig(
        ("chapters", "comparison", "stylegan3"), steps=1, resolutions=(32, 64), repeats=1,
        out=str(file)))
    stored = json.loads(file.read_text())
    assert stored == json.loads(json.dumps(record)) and stored["hardware"] and stored["commit"]
    for name, figure in record["chapters"]:
        known = r"\d+|cpu|cuda|[1-9]\d* images/s|\d+\.\d times"
        assert re.fullmatch(known, figure), (name, figure)
    names = " ".join(name for name, _ in record["chapters"])
    for part in ("toy faces", "GAN training", "distillation, total loss", "without L_ld",
                 "without L_gan", "batch 16", "MACs"):
        assert part in names
    rows = record["comparison"]["rows"]
    assert [row["case"] for row in rows] == [*benchmark.CASES, "teacher", "student"]
    assert [row["resolution"] for row in rows] == [32] * 4 + [64] * 2
    assert [(row["case"], row["pass"]) for row in record["stylegan3"]] == [
        (case, how) for case in ("generator", "layer")
        for how in ("forward", "forward and backward")]
    for row in [*rows, *record["stylegan3"]]:
        assert row["images_per_second"] > 0 and row["times_textbook"] > 0
        assert row["memory"] == 1 / row["batch"] and row["memory_textbook"] == 2 / row["batch"]
        assert ("of_peak" in row) == (row["case"] in ("teacher", "student"))
        assert 0 < row.get("of_peak", 0.5) < 1
    tables = show_benchmark(stored).splitlines()
    assert len(tables) == len(record["chapters"]) + len(rows) + len(record["stylegan3"]) + 10
    assert any(line.startswith("| distillation step, 32 px | 16 |") for line in tables)
    assert any(line.startswith("| layer | 2 | forward and backward |") for line in tables)


@pytest.mark.slow
def test_exported_networks_are_compared_by_turns(small, monkeypatch):
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    monkeypatch.setattr(torch, "compile", lambda G, dynamic: G)  # which takes a minute a network
    monkeypatch.setattr(benchmark, "LIMITS", ("float32",))
    monkeypatch.setattr(benchmark, "BATCHES", (1, 2))
    record = run_benchmark(BenchmarkConfig(parts=("exports",), resolutions=(32,), repeats=2))
    found = record["exports"]
    assert [(row["batch"], row["form"]) for row in found["rows"]] == [
        (batch, form) for batch in (1, 2) for form in ("PyTorch", "torch.compile", "ONNX, float32")]
    for row in found["rows"]:
        assert row["teacher"] > 0 and row["student"] > 0 and row["times"] > 0
        assert 0 < row["student_of_peak"] < 1 and 0 < row["teacher_of_peak"] < 1
    assert "| ONNX, float32 | 32 | 2 | " in show_benchmark(json.loads(json.dumps(record)))


def test_an_r1_step_counts_by_its_share():
    assert benchmark.step_seconds({"run": [1.0, 2.0, 9.0], "r1": [16.0]}) == 3.0
    assert benchmark.step_seconds({"run": [1.0]}) == 1.0


def test_memory_is_that_of_a_process_of_its_own():
    few, many = (benchmark.peak_memory(partial(benchmark.prepare, "training", 32, batch, CPU), CPU)
                 for batch in (4, 32))
    assert 2**20 < few < many
    assert many - few > 28 * 32 * 32 * 64 * 4  # 28 images more: at least one full map each


def test_a_line_is_found():
    fit = fit_line([1, 10, 100], [2.5, 7, 52])
    assert fit["offset"] == pytest.approx(2) and fit["slope"] == pytest.approx(0.5)
    assert fit["error"] == pytest.approx(0, abs=1e-9)
    assert growth.says(fit, 20) == pytest.approx(12)


def test_growth_is_measured_fitted_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "GROWTH", {"channels": ((32, 4, 4), (32, 8, 4)),
                                           "batch": ((32, 4, 4), (32, 4, 8))})
    monkeypatch.setattr(growth, "peak_memory", lambda make, device:
                        make.args[2] * make.keywords["channels"] * 2**20)
    file, plot = tmp_path / "g.json", tmp_path / "g.png"
    found = measure_growth(GrowthConfig(repeats=1, out=str(file), plot=str(plot)))
    assert json.loads(file.read_text()) == json.loads(json.dumps(found))
    assert plot.read_bytes().startswith(b"\x89PNG")
    first, twice, wider = found["rows"]
    assert [(r["channels"], r["batch"]) for r in found["rows"]] == [(4, 4), (4, 8), (8, 4)]
    assert all(r["seconds"] > 0 and r["macs"] > 0 for r in found["rows"])
    assert twice["macs"] == 2 * first["macs"] and wider["macs"] > first["macs"]
    assert twice["counted_memory"] == 2 * first["counted_memory"]
    assert len(show_growth(found).splitlines()) == 2 + 3 + 2

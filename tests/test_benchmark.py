"""The benchmark: every row is there, measured, and recorded; how fast is not a matter for tests."""

from __future__ import annotations

import json
import re

import pytest
import torch

from gapkd import benchmark
from gapkd.benchmark import BenchmarkConfig, run_benchmark, show, show_alias_free, show_comparison
from gapkd.files.checkpoints import save_network
from gapkd.networks.stylegan2 import Discriminator, Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator

CPU = torch.device("cpu")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Small networks, and memory that is not measured in further processes."""
    torch.manual_seed(0)
    monkeypatch.setattr(benchmark, "networks", lambda r, channels: (
        Generator(r, 8, 8, 8, mapping_layers=2).eval(), Discriminator(r, 8)))
    monkeypatch.setattr(benchmark, "peak_memory", lambda *arguments: 2**20 * (2 if arguments[-1] else 1))
    def alias_free_cases(device):
        G = AliasFreeGenerator(32, 8, 8, [6, 6, 6], mapping_layers=2, margin=2)
        layer = G.synthesis.layers[1].activation
        return {"generator": (G, None, 2), "layer": (layer, torch.randn(2, 6, layer.size, layer.size), 2)}

    monkeypatch.setattr(benchmark, "alias_free_cases", alias_free_cases)
    return save_network(Generator(32, 8, 8, 8, mapping_layers=2), tmp_path / "teacher.safetensors")


def test_every_row_is_measured_and_recorded(tmp_path, small):
    file = tmp_path / "speed.json"
    record = run_benchmark(BenchmarkConfig(teacher=str(small), steps=1, resolutions=(32, 64), largest_step=32,
                                           repeats=1, out=str(file)))
    stored = json.loads(file.read_text())
    assert stored == json.loads(json.dumps(record)) and stored["hardware"] and stored["commit"]
    for name, figure in record["chapters"]:
        assert re.fullmatch(r"\d+|cpu|cuda|[1-9]\d* images/s|\d+\.\d times", figure), (name, figure)
    names = " ".join(name for name, _ in record["chapters"])
    for part in ("toy faces", "GAN training", "distillation, total loss", "batch 16", "MACs"):
        assert part in names
    assert show(stored["chapters"]) == show(record["chapters"])
    rows = record["comparison"]["rows"]
    assert [row["case"] for row in rows] == [*benchmark.CASES, "teacher", "student"]
    for row in rows:
        assert row["images_per_second"] > 0 and row["times_textbook"] > 0
        assert row["memory"] == 1 / 16 and row["memory_textbook"] == 2 / 16
        assert 0 < row.get("of_peak", 0.5) < 1
    assert [(row["case"], row["pass"]) for row in stored["stylegan3"]] == [
        (case, how) for case in ("generator", "layer") for how in ("forward", "forward and backward")]
    assert all(row["times_textbook"] > 0 for row in stored["stylegan3"])
    assert "| layer | 2 | forward and backward |" in show_alias_free(stored["stylegan3"])
    table = show_comparison(stored["comparison"])
    assert len(table.splitlines()) == len(rows) + 4 and "| distillation step, 32 px | 16 |" in table


def test_memory_is_that_of_a_process_of_its_own(monkeypatch):
    few, many = (benchmark.peak_memory(benchmark.prepare, CPU, "training", 32, batch, CPU, False) for batch in (4, 32))
    assert 2**20 < few < many
    assert many - few > 28 * 32 * 32 * 64 * 4  # 28 images more, at the very least one full feature map each


@pytest.mark.parametrize("changes, message", [({"steps": 0}, "steps must be at least 1"),
                                              ({"resolutions": (48,)}, "powers of two from 32 on")])
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        BenchmarkConfig(**changes)

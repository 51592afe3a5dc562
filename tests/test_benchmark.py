"""The benchmark: every row is there, measured, and recorded; how fast is not a matter for tests."""

from __future__ import annotations

import json
import re

import torch

from gapkd.benchmark import BenchmarkConfig, run_benchmark, show
from gapkd.checkpoints import save_network
from gapkd.stylegan2 import Generator


def test_every_row_is_measured_and_recorded(tmp_path):
    torch.manual_seed(0)
    teacher = save_network(Generator(32, 8, 8, 8, mapping_layers=2), tmp_path / "teacher.safetensors")
    rows = run_benchmark(BenchmarkConfig(teacher=str(teacher), steps=1, out=str(tmp_path / "speed.json")))
    record = json.loads((tmp_path / "speed.json").read_text())
    assert record["rows"] == [list(row) for row in rows] and record["hardware"] and record["commit"]
    for name, figure in rows:
        assert re.fullmatch(r"\d+|cpu|cuda|[1-9]\d* images/s|\d+\.\d times", figure), (name, figure)
    names = " ".join(name for name, _ in rows)
    for part in ("toy faces", "GAN training", "distillation, total loss", "batch 16", "MACs"):
        assert part in names
    assert show(record["rows"]) == show(rows) and len(show(rows).splitlines()) == len(rows) + 2

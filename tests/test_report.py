"""The page about a run."""

from __future__ import annotations

import base64
import io
import json
import re

import pytest
from PIL import Image
from tiny import config

from gapkd.cli import main
from gapkd.report import MOST_GRIDS, ReportConfig, _thin, write_report
from gapkd.training.loop import train_gan


def pictures(page: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(data)))
            for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]


def test_the_page_shows_curves_grids_and_settings(tmp_path, capsys):
    run = tmp_path / "a <run>"
    train_gan(config(run), probe=lambda G: {"my_number": 3.0})
    assert main(["report", str(run)]) == 0
    assert "report.html" in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert "<h1>a &lt;run&gt;</h1>" in page and "teacher run, finished: 32 of 32 images" in page
    for words in ("Losses", "Path length", "my_number", "16 images", "32 images"):
        assert words in page
    settings = dict(re.findall(r"<td><code>(\w+)</code></td><td>([^<]*)</td>", page))
    assert settings["resolution"] == "8" and settings["d_channels"] == "[8]"
    assert '<tr class="changed"><td><code>resolution</code>' in page
    assert '<tr><td><code>lr</code>' in page  # as by default
    sizes = [p.size for p in pictures(page)]
    assert len(sizes) == page.count("<img") >= 7 and min(min(s) for s in sizes) > 60
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing is fetched from elsewhere


def test_a_run_that_is_still_training(tmp_path):
    run = tmp_path / "run"
    train_gan(config(run, images=16))
    about = json.loads((run / "settings.json").read_text())
    about["settings"]["images"] = 10**6
    (run / "settings.json").write_text(json.dumps(about))
    (run / "generator.safetensors").unlink()
    with open(run / "log.jsonl", "a") as log:
        log.write('{"images": 24, "seco')  # the line that is being written
    page = write_report(ReportConfig(str(run), out=str(tmp_path / "page.html"))).read_text()
    assert "not finished: 16 of 1,000,000 images" in page
    (run / "log.jsonl").unlink()
    assert "nothing logged yet" in write_report(ReportConfig(str(run))).read_text()


def test_grids_are_thinned_evenly():
    assert _thin(list(range(5)), MOST_GRIDS) == [0, 1, 2, 3, 4]
    assert _thin(list(range(101)), 5) == [0, 25, 50, 75, 100]


@pytest.mark.parametrize("content", [None, "{}", "[1]", '{"kind": "x", "settings": {}}'])
def test_no_run(tmp_path, content, capsys):
    if content:
        (tmp_path / "settings.json").write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run of gapkd" in capsys.readouterr().err

"""The embedded files: whole, small, loadable, with provenance; the card is written from them."""

from __future__ import annotations

import shlex
import shutil

import pytest
import tyro

from gapkd.card import DATA, check_sums, write_card
from gapkd.files.checkpoints import load_discriminator, load_generator, read_metadata
from gapkd.metrics.features import load_attribute_network
from gapkd.settings import TrainConfig, command_line, to_dict

FILES = sorted(DATA.glob("*.safetensors"))


def test_checksums_hold_and_name_every_file():
    assert check_sums() == []
    listed = {line.split("  ")[1] for line in (DATA / "SHA256SUMS").read_text().splitlines()}
    assert listed == {f.name for f in FILES} >= {"toyfaces32.safetensors", "attributes.safetensors"}


def test_all_of_it_is_small():
    assert sum(f.stat().st_size for f in DATA.rglob("*") if f.is_file()) < 25e6


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_network_loads_and_says_where_it_came_from(file):
    metadata = read_metadata(file)
    card = metadata["provenance"]
    if metadata["kind"] in ("stylegan2-generator", "stylegan3-generator"):
        student = card["command"] == "distill"
        G = load_generator(file.stem)
        assert G.resolution == (load_generator("toyfaces32").resolution if student else card["settings"]["resolution"])
        assert not card["commit"].endswith("+"), "trained from a tree with uncommitted changes"
        assert {"commit", "hardware", "seconds", "images", "metrics"} <= card.keys()
        assert {"real", "teacher", *(["student"] * student)} == card["metrics"].keys()
    elif metadata["kind"] == "stylegan2-discriminator":
        load_discriminator(file.stem)
    else:
        load_attribute_network(file)


def test_the_card_is_what_the_files_say(tmp_path):
    for file in FILES:
        shutil.copy(file, tmp_path)
    write_card(tmp_path)
    for name in ("README.md", "SHA256SUMS"):
        assert (tmp_path / name).read_text() == (DATA / name).read_text()


def test_the_command_on_the_card_gives_the_settings_back():
    settings = TrainConfig(resolution=64, channels=(64, 32), noise=False, flip=False, lr=0.0015, start_from="a run")
    words = shlex.split(command_line("gapkd teacher", TrainConfig, to_dict(settings)).replace("a run", "'a run'"))
    assert words[:2] == ["gapkd", "teacher"] and "--no-noise" in words
    assert tyro.cli(TrainConfig, args=words[2:]) == settings
    assert command_line("gapkd teacher", TrainConfig, to_dict(TrainConfig())) == "gapkd teacher"


def test_a_changed_file_is_noticed(tmp_path):
    for name in ("attributes.safetensors", "SHA256SUMS"):
        shutil.copy(DATA / name, tmp_path)
    with open(tmp_path / "attributes.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert "attributes.safetensors" in check_sums(tmp_path)

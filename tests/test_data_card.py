"""The embedded files: whole, small, loadable, with provenance; the card is written from them."""

from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tiny import config, distill_config

from gapkd.files.checkpoints import load_discriminator, load_generator, read_metadata
from gapkd.metrics.attributes import (
    AttributeConfig,
    load_attribute_network,
    train_attribute_network,
)
from gapkd.training.loop import distill, train_gan
from tools.data_card import DATA, EmbedConfig, embed, write_card

FILES = sorted(DATA.glob("*.safetensors"))


def test_all_of_it_is_small():
    assert sum(file.stat().st_size for file in DATA.rglob("*") if file.is_file()) < 25e6


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_network_loads_and_says_where_it_came_from(file):
    metadata = read_metadata(file)
    card = metadata["provenance"]
    if metadata["kind"] in ("stylegan2-generator", "stylegan3-generator"):
        student = card["command"] == "distill"
        made_of = load_generator(card["settings"]["teacher"]) if student else None
        expected = made_of.resolution if student else card["settings"]["resolution"]
        assert load_generator(file.stem).resolution == expected
        assert not card["commit"].endswith("+"), "trained from a tree with uncommitted changes"
        assert {"commit", "hardware", "seconds", "images", "metrics"} <= card.keys()
        assert {"real", "teacher", *(["student"] * student)} == card["metrics"].keys()
    elif metadata["kind"] == "stylegan2-discriminator":
        load_discriminator(file.stem)
    else:
        load_attribute_network(file)


def test_card_and_checksums_are_what_the_files_say(tmp_path):
    for file in FILES:
        shutil.copy(file, tmp_path)
    write_card(tmp_path)
    for name in ("README.md", "SHA256SUMS"):
        assert (tmp_path / name).read_text() == (DATA / name).read_text()


def test_attribute_networks_of_todays_command_are_described(tmp_path):
    for name, seed in (("attributes", 0), ("another", 3)):
        out = str(tmp_path / f"{name}.safetensors")
        train_attribute_network(AttributeConfig("toyfaces", out, 8, 4, seed=seed, progress=False))
    write_card(tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert "The attribute network: reads" in page and "network, which was trained on toyf" in page
    assert "`gapkd judge --data toyfaces --images 8 --batch 4 --seed 3`, 0 minutes" in page
    assert page.count("- 5000 held-out images: hair style 0.") == 2


def test_a_teacher_and_its_student_are_taken_over(tmp_path):
    """A teacher in two stages, then a student of it: measured, copied, described."""
    data = tmp_path / "data"
    data.mkdir()
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    train_gan(config(first, resolution=32, images=8))
    train_gan(config(second, resolution=32, images=8, start_from=str(first)))
    embed(EmbedConfig(str(second), "small", samples=12), data)
    distill(distill_config(third, data / "small.safetensors", images=8))
    embed(EmbedConfig(str(third), "smaller", samples=12, half=True, shown=8), data)
    assert Image.open(data / "smaller.png").height < Image.open(data / "small.png").height
    with safe_open(data / "smaller.safetensors", "pt") as stored:
        assert stored.get_tensor("synthesis.const").dtype == torch.float16
    assert (data / "small_discriminator.safetensors").exists() and (data / "small.png").exists()
    assert not (data / "smaller_discriminator.safetensors").exists()
    small, smaller = (read_metadata(data / f"{name}.safetensors")["provenance"]
                      for name in ("small", "smaller"))
    assert small["metrics"].keys() == {"real", "teacher"}
    assert not any(name.startswith("agree") for name in small["metrics"]["teacher"])
    assert smaller["metrics"]["teacher"]["agree_mean_accuracy"] == 1
    assert "fid_toyfaces_12" in smaller["metrics"]["student"]
    assert not any("chance" in name for name in smaller["metrics"]["student"])
    assert str(tmp_path) not in str(small) + str(smaller)  # no paths of this machine
    page = (data / "README.md").read_text()
    assert "A StyleGAN2 generator, 16 images in 0.0 hours, in 2 stages.\n" in page
    assert "distilled from small.safetensors, 8 images" in page

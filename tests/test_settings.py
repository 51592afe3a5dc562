"""Settings: bad ones are named, good ones survive a file and the command line; named recipes are
their defaults."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from pathlib import Path

import pytest
import tyro

from gapkd.networks.stylegan2 import Discriminator
from gapkd.settings import (
    LOSS_WEIGHTS,
    RECIPES,
    DistillConfig,
    TrainConfig,
    as_word,
    command_line,
    from_dict,
    read_settings,
    shareable,
    to_dict,
    widths,
)

NO_LOSS = {"gan_weight": 0.0, "rgb_weight": 0, "perceptual_weight": 0, "ld_weight": 0}


@pytest.mark.parametrize("cls, values, message", [
    (DistillConfig, {"recipe": "papper"}, "recipe must be one of 'paper', 'gapkd', not 'papper'"),
    (DistillConfig, {"recipe": ["paper"]}, r"recipe must be one of .*, not \['paper'\]"),
    (DistillConfig, {"lr": "fast"}, "lr must be a number, not 'fast'"),
    (DistillConfig, {"synthesis": "best"}, "synthesis must be one of 'random', .* not 'best'"),
    (DistillConfig, {"batch": 1}, "batch of at least 2, or set ld_weight and moment_weight to 0"),
    (TrainConfig, {"bach": 4}, "no setting bach; did you mean batch"),
    (TrainConfig, {"batch": 0}, "batch must be at least 1"),
    (TrainConfig, {"batch": "x"}, "batch must be a whole number"),
    (TrainConfig, {"batch": True}, "batch must be a whole number"),
    (TrainConfig, {"lr": 0.0}, "lr must be positive"),
    *[(cls, {name: value}, f"{name} must be a number below 1e18 in magnitude, not {said}")
      for cls, name, value, said in (
          (TrainConfig, "lr", math.inf, "inf"), (TrainConfig, "r1_gamma", math.nan, "nan"),
          (DistillConfig, "rgb_weight", math.inf, "inf"), (TrainConfig, "path_weight", 1e300, "1e"),
          (TrainConfig, "ema_half_life", 10**400, "1000000"))],
    (TrainConfig, {"images": 10**20}, "images must be at most 1,000,000,000,000, not 100,000,"),
    (TrainConfig, {"lr_end": 1.5}, r"lr_end must lie in \(0, 1\]"),
    (DistillConfig, {"gan_from": 1.0}, r"gan_from must lie in \[0, 1\).* set gan_weight to 0"),
    (DistillConfig, {"recipe": "gapkd", "rgb_weight": 0, "perceptual_weight": 0},
     "gan_from=0.8 leaves nothing to learn from until the discriminator begins: set it to 0"),
    (DistillConfig, {"reuse": 0}, "reuse must be at least 1"),
    (DistillConfig, {"reuse": 2}, "set reuse to 1, or ld_weight and feature_weight to 0"),
    (DistillConfig, {"reuse": 2, "ld_weight": 0.0, "rgb_weight": 0.0, "perceptual_weight": 0.0},
     "reuse repeats images of the teacher's, and no loss looks at them: set it to 1, or give rgb"),
    (TrainConfig, {"style_mixing": 2.0}, "probability"),
    (TrainConfig, {"seed": -1}, "seed must not be negative"),
    (TrainConfig, {"seed": 2**63}, "seed must be below 2.63"),
    (TrainConfig, {"channels": []}, "channels must name at least one width"),
    (TrainConfig, {"d_channels": (8, 0)}, r"each at least 1 .*, not \(8, 0\)"),
    (TrainConfig, {"channels": (10**8,)}, "at least 1 and at most 16,384, not"),
    (DistillConfig, {"d_channels": (8, 10**8)}, "at least 1 and at most 16,384, not"),
    (TrainConfig, {"batch": 10**8}, "batch must be at most 16,384, not 100,000,000"),
    (TrainConfig, {"fid_samples": 10**9}, "fid_samples must be at most 1,000,000, not"),
    (TrainConfig, {"mapping_layers": 65}, "mapping_layers must be at most 64, not 65"),
    (TrainConfig, {"resolution": 2**16}, "resolution must be at most 4,096, not 65,536"),
    *[(TrainConfig, {"architecture": "stylegan3-t", "channels": channels},
       "channels of a StyleGAN3 must be its widest and its narrowest layer's, not")
      for channels in ((64, 48, 32), (32, 64))],
    (TrainConfig, {"layers": 2}, "layers must be at least 3, not 2"),
    (TrainConfig, {"resume": True}, "resume needs out"),
    (TrainConfig, {"fid_features": "vgg"}, "fid_features must be 'toyfaces', 'inception', 'imagen"),
    *[(DistillConfig, {"perceptual": name}, "or the .safetensors file of a judge or a discrimin"
       rf"ator \(`gapkd convert FILE discriminator.safetensors` writes .*, not '{name}'")
      for name in ("both.pkl", "runs/first")],
    (DistillConfig, {"keep": 0.0}, r"keep must lie in \(0, 1\]"),
    (DistillConfig, {"content": "photos"}, "content must be one of '', 'toyfaces'"),
    (DistillConfig, {"ld_blocks": "2,3"}, "ld_blocks must be a tuple of whole numbers"),
    (DistillConfig, {"ld_blocks": ["2"]}, "ld_blocks must be a tuple of whole numbers"),
    (DistillConfig, {"ld_blocks": ()}, "ld_blocks must name at least one"),
    (DistillConfig, {"ld_blocks": (2, 3, 2)}, r"ld_blocks must name each block once, not \(2, 3"),
    (DistillConfig, {"feature_weight": -1.0}, "feature_weight must not be negative"),
    (DistillConfig, {"moment_weight": 20, "perceptual": "lpips"},
     "moment_weight compares features, which perceptual=\"lpips\" does not give"),
    (DistillConfig, NO_LOSS, "moment_weight and ld_weight are all 0: give one of them a weight")])
def test_bad_settings(cls, values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(cls, values)


def test_a_path_may_begin_with_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/anna")
    config = DistillConfig(out="~/run", teacher="~/x.pkl", data="~nobody-has-this-name/x")
    assert (config.out, config.teacher) == ("/home/anna/run", "/home/anna/x.pkl")
    assert config.data == "~nobody-has-this-name/x" and config.perceptual == "toyfaces"


def test_settings_survive_json():
    settings = DistillConfig(ld_blocks=(1, 2), d_channels=(8, 4))
    assert from_dict(DistillConfig, json.loads(json.dumps(to_dict(settings)))) == settings


@pytest.mark.parametrize("path", ["/home/anna/a.pkl", "C:\\Users\\anna\\a.pkl", "C:anna/a.pkl"])
def test_of_a_file_the_name_is_shared(path):
    assert shareable({"teacher": path, "data": 5}) == {"teacher": "a.pkl", "data": 5}


def test_a_fifth_of_the_images_goes_into_slimming():
    assert DistillConfig(images=105, synthesis="slimmed").slimming_images == 21
    assert DistillConfig(images=105).slimming_images == 0


def test_widths_name_the_finest_blocks():
    assert widths((64, 32), 32) == [64, 64, 64, 32] and widths((64,), 16) == [64, 64, 64]
    assert widths((8, 6, 4, 2), 32) == [8, 6, 4, 2]
    with pytest.raises(ValueError, match="channels names 3 blocks, but a 8 px network has 2"):
        Discriminator(8, widths((8, 8, 8), 8))


def test_settings_in_one_line():
    text = 'kernel: 1, lr: 2e-3, ld_blocks: [1, 2], d_channels: 8, noise: off, data: "a, b"'
    text += ", kernel: 3"
    assert read_settings(text) == {"kernel": 3, "lr": 0.002, "ld_blocks": (1, 2), "noise": False,
                                   "d_channels": (8,), "data": "a, b"}
    assert read_settings("") == {}
    assert read_settings("lr: 1, keep: 1, recipe: paper") == {"lr": 1, "keep": 1, "recipe": "paper"}
    second = read_settings("lr: 1, keep: 1, recipe: gapkd, synthesis: pruned, recipe: paper, lr: 2")
    assert second == {"keep": 1, "recipe": "paper", "lr": 2}


@pytest.mark.parametrize("text, message", [
    ("kernel", "kernel must be one of 3, 1, not None"),
    ("ld_blocks: [1, 2", "cannot be read as settings: write name: value, name: value"),
    ("ld_blocks: [1, x]", r"ld_blocks must be a tuple of whole numbers, not \(1, 'x'\)"),
    ("kernel: 1}, {lr: 1", "cannot be read as settings"),
    *[(f"lr: !!{wrong}", "cannot be read as settings: write name: value") for wrong in (
        "bool maybe", "timestamp x", "int abc", 'float ""', "int [1]", "int " + "9" * 5000)],
    ("noise: 2", "noise must be true or false, not 2"),
    ("seeds: 1", "no setting seeds; did you mean seed"), ("lr=3", "no setting lr=3; did you mean")])
def test_a_wrong_setting_in_one_line_is_one_sentence(text, message):
    with pytest.raises(ValueError, match=message):
        read_settings(text)


# ---------------------------------------------------------------------- recipes


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_decides_its_settings_and_nothing_else(name):
    config, plain = to_dict(DistillConfig(recipe=name)), to_dict(DistillConfig())
    assert config == plain | RECIPES[name] | {"recipe": name}
    assert from_dict(DistillConfig, {"recipe": name}) == DistillConfig(recipe=name)
    assert RECIPES[name].keys() == RECIPES["paper"].keys()


def test_the_papers_recipe_has_the_papers_numbers():
    """Weights of the losses, offsets and the rate, as its authors train."""
    config = DistillConfig(recipe="paper")
    assert (config.rgb_weight, config.perceptual_weight, config.ld_weight) == (3, 3, 30)
    assert (config.lr, config.lr_end, config.gan_weight, config.gan_from) == (0.002, 1, 1, 0)
    assert (config.keep, config.mapping, config.synthesis) == (0.3, "inherit", "random")
    assert (config.ld_offsets, config.ld_strength, config.ema_half_life) == ("split", 5, 10_000)


def test_all_losses_of_a_distillation_are_listed():
    own = {name for name in vars(DistillConfig)["__annotations__"] if name.endswith("_weight")}
    assert {*LOSS_WEIGHTS} == own and LOSS_WEIGHTS[0] == "gan_weight"


def test_what_is_given_wins_even_where_it_is_the_papers_value():
    config = DistillConfig(recipe="gapkd", ld_weight=30.0)
    assert config.ld_weight == 30 and config.synthesis == RECIPES["gapkd"]["synthesis"]
    assert dataclasses.replace(config, images=5).ld_weight == 30
    assert from_dict(DistillConfig, to_dict(config)) == config


@pytest.mark.parametrize("changes", [
    {}, {"ld_weight": 30.0}, {"images": 77, "synthesis": "random"}, {"recipe": "paper"},
    {"lr": 0.004}, {"data": "my photos/a b.zip", "content": "toyfaces"},
])
def test_the_command_line_gives_the_same_settings(changes):
    config = DistillConfig(**{"recipe": "gapkd"} | changes)
    _, _, *words = shlex.split(command_line("gapkd distill", DistillConfig, to_dict(config)))
    assert tyro.cli(DistillConfig, args=words) == config
    stored = to_dict(DistillConfig()) | {"ld_kind": "kl"}  # a setting that is gone
    assert command_line("distill", DistillConfig, stored) == "distill"


@pytest.mark.parametrize("path, word", [
    ("runs/a-001", "runs/a-001"), ("-d2", "./-d2"),
    (Path("my run"), "'my run'"), ("hf://me/it", "hf://me/it"), ("it's", """'it'"'"'s'""")])
def test_a_path_within_a_command_can_be_typed(path, word):
    assert as_word(path) == word


def test_the_help_says_what_each_recipe_takes(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(DistillConfig, args=["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "student and discriminator. (default of recipe paper: 0.002, gapkd: 0.008)" in shown
    assert "None" not in shown

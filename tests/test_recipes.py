"""Named recipes: their settings are defaults, in Python, on the command line and in files."""

from __future__ import annotations

import dataclasses

import pytest
import tyro

from gapkd.settings import RECIPES, DistillConfig, command_line, from_dict, to_dict


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_decides_its_settings_and_nothing_else(name):
    config, plain = to_dict(DistillConfig(recipe=name)), to_dict(DistillConfig())
    assert config == plain | RECIPES[name] | {"recipe": name}
    assert from_dict(DistillConfig, {"recipe": name}) == DistillConfig(recipe=name)
    assert RECIPES[name].keys() == RECIPES["paper"].keys()


def test_what_is_given_wins_even_where_it_is_the_papers_value():
    config = DistillConfig(recipe="gapkd", ld_weight=30.0)
    assert config.ld_weight == 30 and config.synthesis == RECIPES["gapkd"]["synthesis"]
    assert dataclasses.replace(config, images=5).ld_weight == 30
    assert from_dict(DistillConfig, to_dict(config)) == config


@pytest.mark.parametrize("changes", [
    {}, {"ld_weight": 30.0}, {"images": 77, "synthesis": "random"}, {"recipe": "paper"},
    {"lr": 0.004},
])
def test_the_command_line_gives_the_same_settings(changes):
    config = DistillConfig(**{"recipe": "gapkd"} | changes)
    _, *words = command_line("distill", DistillConfig, to_dict(config)).split()
    assert tyro.cli(DistillConfig, args=words) == config
    stored = to_dict(DistillConfig()) | {"ld_kind": "kl"}  # a setting that is gone
    assert command_line("distill", DistillConfig, stored) == "distill"


def test_the_help_says_what_each_recipe_takes(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(DistillConfig, args=["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "student and discriminator. (default of recipe paper: 0.002, gapkd: 0.008)" in shown
    assert "None" not in shown

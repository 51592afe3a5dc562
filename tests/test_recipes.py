"""Named recipes: their settings are defaults, whatever is given stays, in Python, on the command line and in files."""

from __future__ import annotations

import dataclasses

import pytest
import tyro

from gapkd import cli
from gapkd.settings import RECIPES, DistillConfig, command_line, from_dict, to_dict


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_changes_its_settings_and_nothing_else(name):
    config, plain = to_dict(DistillConfig(recipe=name)), to_dict(DistillConfig())
    changed = {field for field in plain if config[field] != plain[field]} - {"recipe"}
    assert changed == set(RECIPES[name]) and all(config[k] == v for k, v in RECIPES[name].items())
    assert from_dict(DistillConfig, {"recipe": name}) == DistillConfig(recipe=name)


def test_what_is_given_wins_even_where_it_is_the_papers_value():
    config = DistillConfig(recipe="gapkd", ld_weight=30.0)
    assert config.ld_weight == 30 and config.synthesis == RECIPES["gapkd"]["synthesis"]
    assert dataclasses.replace(config, images=5).ld_weight == 30
    assert from_dict(DistillConfig, to_dict(config)) == config


def parse(arguments):
    command = cli.OTHERS | cli.distill_command(arguments)
    return tyro.cli(command, args=arguments, config=(tyro.conf.OmitArgPrefixes,))


@pytest.mark.parametrize("changes", [{}, {"ld_weight": 30.0}, {"images": 77, "synthesis": "random"},
                                     {"recipe": "paper"}])
def test_the_command_line_gives_the_same_settings(changes):
    config = DistillConfig(**{"recipe": "gapkd"} | changes)
    words = command_line("distill", DistillConfig, to_dict(config)).split()
    assert parse(words) == config
    assert parse(["distill", "--recipe=gapkd"]) == DistillConfig(recipe="gapkd")


def test_an_unknown_recipe(capsys):
    with pytest.raises(ValueError, match="recipe must be one of 'paper', 'gapkd', not 'papper'"):
        DistillConfig(recipe="papper")
    with pytest.raises(SystemExit):
        parse(["distill", "--recipe", "papper"])
    assert "papper" in capsys.readouterr().err

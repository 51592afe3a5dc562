"""pyproject.toml is the one list of dependencies: constraints.txt and environment.yml stay in step."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# `metrics` is left out: it needs a torchvision that matches the torch that is there
CONSTRAINED = ["dev", "export", "tensorboard", "docs"]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def applies(requirement: Requirement, python: str) -> bool:
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def pins(python: str) -> dict[str, str]:
    """Canonical name -> exact version on that Python."""
    found = {}
    for requirement in constraints():
        if applies(requirement, python):
            assert canonicalize_name(requirement.name) not in found, f"{requirement.name} is pinned twice"
            found[canonicalize_name(requirement.name)] = str(requirement.specifier).removeprefix("==")
    return found


def test_constraints_are_exact_and_name_no_host():
    for requirement in constraints():
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), f"{requirement} is not exact"
        assert requirement.url is None
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"https?:|file:|^-|@", text, flags=re.MULTILINE)


def test_constraints_hold_torch_and_leave_its_companions_alone():
    for python in PYTHONS:
        names = pins(python)
        assert names["torch"] == "2.13.0"
        assert not [n for n in names if n.startswith(("nvidia", "cuda", "triton", "torchvision"))]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_to_a_version_that_it_allows(python):
    names = pins(python)
    wanted = PROJECT["dependencies"] + [line for extra in CONSTRAINED for line in EXTRAS[extra]]
    for requirement in map(Requirement, wanted):
        if requirement.name != PROJECT["name"] and applies(requirement, python):  # dev takes in another extra
            pin = names.get(canonicalize_name(requirement.name))
            assert pin is not None, f"{requirement.name} is not in constraints.txt"
            assert requirement.specifier.contains(pin), f"{pin} is pinned, but {requirement} is wanted"


def test_every_extra_is_constrained_or_left_out_on_purpose():
    assert set(EXTRAS) == {*CONSTRAINED, "metrics"}


def test_an_extra_takes_in_only_constrained_ones():
    own = [r for extra in CONSTRAINED for r in map(Requirement, EXTRAS[extra]) if r.name == PROJECT["name"]]
    assert own and all(requirement.extras <= set(CONSTRAINED) for requirement in own)


def test_nothing_but_metrics_needs_torchvision():
    for extra, lines in {**EXTRAS, "core": PROJECT["dependencies"]}.items():
        names = {Requirement(line).name for line in lines}
        with_images = any("image" in Requirement(line).extras for line in lines)
        assert extra == "metrics" or not (names & {"torchvision", "lpips", "torch-fidelity"} or with_images)


def test_conda_environment_is_in_step():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    *conda, from_pip = environment["dependencies"]
    python, pip = map(Requirement, conda)
    assert (python.name, pip.name) == ("python", "pip")
    assert python.specifier == SpecifierSet(PROJECT["requires-python"])
    # everything else is pyproject's list, through pip, so that torch is named once and nothing can drift
    constraint, project = from_pip["pip"]
    assert constraint == "-c constraints.txt"
    extra = re.fullmatch(r"-e \.\[(\w+)\]", project)
    assert extra and extra[1] in EXTRAS

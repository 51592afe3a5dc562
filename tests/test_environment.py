"""pyproject.toml is the one list of dependencies; constraints.txt and environment.yml keep step."""

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
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {extra: [Requirement(line) for line in lines]
          for extra, lines in PROJECT["optional-dependencies"].items()}
FREE = {"metrics"}  # needs a torchvision that matches the torch that is there
CONSTRAINED = EXTRAS.keys() - FREE
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def pins(python: str) -> dict[str, Requirement]:
    """Canonical name -> the line of constraints.txt that applies on that Python."""
    lines = [line for line in CONSTRAINTS.splitlines() if line and not line.startswith("#")]
    here = [pin for pin in map(Requirement, lines) if applies(pin, python)]
    found = {canonicalize_name(pin.name): pin for pin in here}
    assert len(found) == len(here), "something is pinned twice"
    return found


def applies(requirement: Requirement, python: str) -> bool:
    place = {"python_version": python, "python_full_version": f"{python}.0"}
    marker = requirement.marker
    return marker is None or marker.evaluate({**default_environment(), **place})


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_are_exact_and_hold_torch_without_its_companions(python):
    names = pins(python)
    for name, pin in names.items():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{name} is not exact"
    assert str(names["torch"].specifier) == "==2.13.0"
    assert not [n for n in names if n.startswith(("nvidia", "cuda", "triton", "torchvision"))]


def test_constraints_name_no_host():
    assert not re.search(r"https?:|file:|^-|@", CONSTRAINTS, flags=re.MULTILINE)


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_to_a_version_that_it_allows(python):
    names = pins(python)
    for wanted in [*CORE, *(line for extra in CONSTRAINED for line in EXTRAS[extra])]:
        if wanted.name == PROJECT["name"]:  # an extra that takes in another one
            assert wanted.extras <= CONSTRAINED
        elif applies(wanted, python):
            pin = names.get(canonicalize_name(wanted.name))
            assert pin is not None, f"{wanted.name} is not in constraints.txt"
            version = str(pin.specifier).removeprefix("==")
            assert wanted.specifier.contains(version), f"{pin} is pinned, but {wanted} is wanted"


def test_nothing_but_metrics_needs_torchvision():
    for extra, lines in {**EXTRAS, "core": CORE}.items():
        names = {line.name for line in lines}
        with_images = any("image" in line.extras for line in lines)
        needs = names & {"torchvision", "lpips", "torch-fidelity"} or with_images
        assert bool(needs) == (extra in FREE)


def test_conda_environment_is_in_step():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    python, pip, from_pip = environment["dependencies"]
    assert Requirement(python).name == "python" and pip == "pip"
    assert Requirement(python).specifier == SpecifierSet(PROJECT["requires-python"])
    # everything else is pyproject's list, through pip, so that nothing can drift
    constraint, project = from_pip["pip"]
    assert constraint == "-c constraints.txt"
    extra = re.fullmatch(r"-e \.\[(\w+)\]", project)
    assert extra and extra[1] in EXTRAS

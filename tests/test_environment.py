"""pyproject.toml is the one list of dependencies; constraints.txt and environment.yml keep step."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tools import torch_build

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
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]


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
    assert not re.search(r"https?:|file:|^-|@", CONSTRAINTS, flags=re.MULTILINE)  # no host


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


def test_every_python_is_tested_and_said_to_be():
    tested = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    assert tested["jobs"]["cpu"]["strategy"]["matrix"]["python"] == PYTHONS
    prefix = "Programming Language :: Python :: "
    said = [line.removeprefix(prefix) for line in PROJECT["classifiers"] if prefix in line]
    assert said == ["3", *PYTHONS] and PROJECT["requires-python"] == f">={PYTHONS[0]}"


def test_one_version_everywhere():
    import gapkd

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changes = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert PROJECT["version"] == gapkd.__version__ == cited["version"] == changes


def test_the_core_needs_nothing_of_the_course():
    """Nor does any module import it before it is needed, but for figures and explorers."""
    course = {Requirement(line).name for line in ("ipywidgets", "jupyterlab", "matplotlib",
                                                  "papermill")}
    assert {line.name for line in EXTRAS["course"]} == course
    assert not {line.name for line in CORE} & course
    without = "\n".join(f"sys.modules[{name!r}] = None" for name in sorted(course))
    modules = [file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
               for file in sorted((ROOT / "gapkd").rglob("*.py"))]
    wanted = [name for name in modules if "__" not in name and "gapkd.viewing" not in name]
    program = f"import sys\n{without}\n" + "\n".join(f"import {name}" for name in wanted)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name, module", [("matplotlib", "figures"), ("ipywidgets", "explore")])
def test_figures_and_explorers_without_the_course_are_one_sentence(name, module):
    program = (f"import sys\nsys.modules[{name!r}] = None\nimport importlib.util as u\n"
               f"found = u.find_spec\n"
               f"u.find_spec = lambda n, *a: None if n == {name!r} else found(n, *a)\n"
               f"import gapkd.viewing.{module}")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last == (f'ImportError: figures and explorers need {name}: pip install "gapkd[course]"')


# ---------------------------------------------------------------------------------- which torch


@pytest.fixture
def machine(monkeypatch):
    """A Linux machine without torch and without a GPU, whose pip finds torch with CUDA: the
    commands that are started on it, words of those that fail, and what pip finds."""
    started, failing, found = [], [], {"requires_dist": ["nvidia-cublas==13.1; extra == ''"]}

    def start(command, **options):
        words = " ".join(map(str, command[1:]))
        if "--report" in words:
            report = json.dumps({"install": [{"metadata": found}]})
            return subprocess.CompletedProcess(command, 0, report)
        started.append(words)
        return subprocess.CompletedProcess(command, any(word in words for word in failing))

    monkeypatch.setattr(torch_build.subprocess, "run", start)
    monkeypatch.setattr(torch_build, "find_spec", lambda name: None)
    monkeypatch.setattr(torch_build, "has_nvidia_driver", lambda: False)
    monkeypatch.setattr(torch_build.platform, "system", lambda: "Linux")
    for name in ("TORCH", "TORCH_INDEX"):
        monkeypatch.delenv(name, raising=False)
    return started, failing, found


UV = "-m uv pip install --python .* --torch-backend cpu --no-deps torch==2.13.0"


def test_the_cpu_build_is_taken_where_there_is_no_gpu(machine, capsys):
    assert torch_build.main() == 0
    started, failing, _ = machine
    assert re.match("-m pip install --quiet uv", started[0]) and re.fullmatch(UV, started[1])
    said = capsys.readouterr().out
    assert "no NVIDIA driver here: taking torch's CPU build, 0.2 GB" in said
    assert "(with CUDA: make clean, then make TORCH=cuda setup)" in said
    failing.append("uv pip")
    assert torch_build.main() == 0  # the choice is left to pip, and that is said
    assert "2.7 GB of downloads. To fetch less" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("change, said", [
    ({"driver": True}, "with CUDA: 2.7 GB"), ({"TORCH": "cuda"}, "then make TORCH=cpu setup"),
    ({"system": "Darwin"}, "as pip finds it"), ({"requires_dist": ["sympy"]}, "as pip finds it"),
    ({"there": True}, "")])
def test_where_pip_takes_what_is_wanted_nothing_is_done(machine, monkeypatch, capsys, change, said):
    if "driver" in change:
        monkeypatch.setattr(torch_build, "has_nvidia_driver", lambda: True)
    if "system" in change:
        monkeypatch.setattr(torch_build.platform, "system", lambda: change["system"])
    if "there" in change:
        monkeypatch.setattr(torch_build, "find_spec", lambda name: name)
    monkeypatch.setenv("TORCH", change.get("TORCH", ""))
    machine[2].update({name: change[name] for name in change if name == "requires_dist"})
    assert torch_build.main() == 0 and machine[0] == []
    printed = capsys.readouterr().out
    assert said in printed and bool(said) == bool(printed)


def test_the_choice_can_be_made_by_hand(machine, monkeypatch, capsys):
    started, failing, _ = machine
    monkeypatch.setattr(torch_build, "has_nvidia_driver", lambda: True)
    monkeypatch.setenv("TORCH", "cpu")
    assert torch_build.main() == 0 and re.fullmatch(UV, started[1])
    monkeypatch.setenv("TORCH_INDEX", "ADDRESS")
    assert torch_build.main() == 0 and "--index-url ADDRESS torch==2.13.0" in started[2]
    failing.append("ADDRESS")
    assert torch_build.main() == 1
    monkeypatch.setenv("TORCH", "gpu")
    assert torch_build.main() == 1
    assert "TORCH must be one of auto, cpu, cuda, not gpu" in capsys.readouterr().err

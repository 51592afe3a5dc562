"""The calculator counts what a real step does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gapkd.cli import main
from gapkd.distillation.distiller import Distiller
from gapkd.distillation.students import make_student
from gapkd.metrics.attributes import AttributeNetwork
from gapkd.metrics.features import distance_for
from gapkd.networks.stylegan2 import Discriminator, Generator, config_f
from gapkd.settings import DistillConfig
from gapkd.training.plan import (
    PlanConfig,
    activation_memory,
    architecture_of,
    image_macs,
    make_plan,
    networks_for,
    published_rate,
    saved_bytes,
    step_macs,
    vgg,
    weights_memory,
)
from gapkd.training.trainer import Trainer

SMALL = {"resolution": 32, "z_dim": 16, "w_dim": 16, "channels": 32, "mapping_layers": 2}


class Work(TorchDispatchMode):
    """Counts multiply-accumulates, twice differentiated ones too, where FlopCounterMode stops."""

    total = 0.0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **(keywords or {}))
        formula = flop_registry.get(function._overloadpacket)
        if formula:
            self.total += formula(*arguments, **(keywords or {}), out_val=out) / 2
        return out


@pytest.mark.parametrize("views", [2, 1])
def test_the_work_of_a_step_is_that_of_a_real_step(tmp_path, views):
    torch.manual_seed(0)
    teacher, batch = Generator(**SMALL), 4
    settings = DistillConfig(out=str(tmp_path), batch=batch, precision="float32", path_weight=2.0,
                             ld_offsets="split" if views == 2 else "none")
    distance = distance_for(settings.perceptual, torch.device("cpu"))
    distiller = Distiller(teacher, distance, settings)
    trainer = Trainer(settings, make_student(teacher), Discriminator(32, 32), distiller)
    reals, work = trainer.real_batch(), {}
    for name, run in {"d": lambda: trainer.discriminator_step(reals),
                      "g": lambda: trainer.generator_step(reals),
                      "r1": lambda: trainer.r1_step(reals),
                      "path": lambda: trainer.path_step(reals)}.items():
        with Work() as counter:
            run()
        work[name] = counter.total / batch
    n = networks_for(SMALL, 0.3, [32] * 4, "toyfaces")
    plain = step_macs(n, views, r1_every=0)
    assert plain == pytest.approx(work["d"] + work["g"], rel=0.1)
    r1, path = step_macs(n, views, r1_every=16), step_macs(n, views, r1_every=0, path_every=4)
    assert r1 - plain == pytest.approx(work["r1"] / 16, rel=0.2)
    assert path - plain == pytest.approx(work["path"] / 4, rel=0.35)


def test_vgg_is_as_large_as_published():
    with torch.device("meta"):
        network = vgg()
    assert image_macs(network, 224) == pytest.approx(15.35e9, rel=0.001)
    assert sum(p.numel() for p in network.parameters()) == 14_714_688


def test_saved_bytes_of_a_network_known_by_hand():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
        x = torch.empty(3, 5)
    # the input, and the activation that relu and the last layer share
    assert saved_bytes(net, x) == 4 * 3 * (5 + 7)


def test_memory_grows_with_views_and_weights_are_counted():
    n = networks_for(SMALL, 0.3, [32] * 4, "toyfaces")
    wide = networks_for(SMALL, 1.0, [4] * 4, "toyfaces")
    assert 1.5 < activation_memory(wide, views=2) / activation_memory(wide, views=1) < 2.0
    G = Generator(**SMALL)
    parts = (G, make_student(G), Discriminator(32, 32), nn.ModuleList(AttributeNetwork().blocks))
    teacher, student, D, judge = (sum(p.numel() for p in part.parameters()) for part in parts)
    assert weights_memory(n) == 4 * (teacher + 5 * student + 4 * D + judge)
    assert activation_memory(networks_for(SMALL, 0.3, [32] * 4, "lpips")) > activation_memory(n)


def test_the_published_run_is_plausible_and_a_step_holds_the_published_forward_passes():
    """The teacher once, the student once for D, and once with its two gradients for G."""
    assert 0.1 < published_rate()[1] < 1
    published = 45_124_673_536 + 4 * 4_123_578_080
    assert step_macs(networks_for(architecture_of("ffhq256"), 0.3), views=1) > published


def test_hours_are_work_over_speed_and_gpus_share_them():
    one, two = (dict(make_plan(PlanConfig(gpus=n, rate=2.5, images=320_000))) for n in (1, 2))
    work = float(two["training step"].split()[0]) * 1e12
    assert two["run"] == "20,000 steps, 320,000 images"
    hours = 20_000 * work / (2 * 2.5e12) / 3600
    assert float(two["time on 2"].split()[0]) == pytest.approx(hours, rel=0.02)
    assert float(one["time on 1"].split()[0]) == pytest.approx(2 * hours, rel=0.02)
    memory, shared = (float(rows["memory a GPU, float32"].split()[0]) for rows in (one, two))
    assert shared < memory


def test_architectures_by_name(tmp_path):
    for name, resolution in (("ffhq256", 256), ("1024", 1024), ("toyfaces32", 32)):
        assert architecture_of(name)["resolution"] == resolution
    with torch.device("meta"):
        built = Generator(**architecture_of("ffhq256"))
        assert built.architecture() == config_f(256).architecture()
    for name in ("ffhq", "ffhq250", "ffhq16", str(tmp_path / "missing.safetensors")):
        with pytest.raises(ValueError, match="is neither a gapkd file nor an embedded network"):
            architecture_of(name)


@pytest.mark.parametrize("changes, message", [
    ({"gpus": 3}, "batch=16 cannot be shared by 3 GPUs"), ({"keep": 2.0}, "keep must lie in"),
    ({"images": 0}, "images must be"), ({"teacher": "nobody"}, "is neither a gapkd file"),
    ({"teacher": "toyfaces32_discriminator"}, "holds a stylegan2-discrim"),
    ({"teacher": "attributes"}, "holds a attribute-network: plans are")])
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        make_plan(PlanConfig(**changes))


def test_the_command(capsys):
    assert main(["plan", "--teacher", "toyfaces32", "--gpus", "1"]) == 0
    assert "T MACs for 16 images" in capsys.readouterr().out

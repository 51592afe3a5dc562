"""Networks of other repositories: recorded references load through their own files and give the recorded numbers."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from official_files import TRACE, named_like_nvidia, nvidia_pickle, torch_bytes
from recorded import arrays, under

import gapkd
from gapkd.cli import main
from gapkd.files.checkpoints import CheckpointError, load_discriminator, load_generator, read_metadata
from gapkd.files.foreign import ForeignError, to_rosinality
from gapkd.networks.stylegan2 import Discriminator, Generator


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# ------------------------------------------------------------------------------------------- NVIDIA


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@torch.no_grad()
def test_nvidia_files_give_the_recorded_numbers(tmp_path, nvidia, protocol, monkeypatch):
    monkeypatch.delenv(TRACE, raising=False)
    file = write(tmp_path / "ffhq.pkl", nvidia_pickle(under("G.", nvidia), under("D.", nvidia), protocol))
    G, D = load_generator(file), load_discriminator(file)
    torch.testing.assert_close(G(nvidia["z"]), nvidia["image"], atol=1e-4, rtol=0)
    torch.testing.assert_close(G(nvidia["z"], truncation=0.7), nvidia["image_psi07"], atol=1e-4, rtol=0)
    torch.testing.assert_close(D(nvidia["image"]), nvidia["logits"], atol=1e-4, rtol=0)
    assert not G.training and not any(p.requires_grad for p in [*G.parameters(), *D.parameters()])
    assert TRACE not in os.environ
    metadata = read_metadata(file)
    assert metadata["provenance"]["source"] == "NVIDIA's StyleGAN2" and metadata["architecture"]["resolution"] == 32


def test_a_student_is_made_from_an_nvidia_file(tmp_path, nvidia):
    teacher = load_generator(write(tmp_path / "a.pkl", nvidia_pickle(under("G.", nvidia))))
    student = gapkd.make_student(teacher, synthesis="pruned")
    assert student(nvidia["z"]).shape == nvidia["image"].shape


@torch.no_grad()
def test_clamped_convolutions_are_clamped(tmp_path, nvidia):
    state = under("G.", nvidia)
    loose = load_generator(write(tmp_path / "a.pkl", nvidia_pickle(state, attributes={"*": {"conv_clamp": 256}})))
    assert loose.clamp == 256 and loose.architecture()["clamp"] == 256
    torch.testing.assert_close(loose(nvidia["z"]), nvidia["image"], atol=1e-4, rtol=0)  # nothing reaches 256
    tight = load_generator(write(tmp_path / "b.pkl", nvidia_pickle(state, attributes={"*": {"conv_clamp": 0.5}})))
    out = tight.synthesis(tight.mapping(nvidia["z"]))
    assert max(f.abs().max().item() for f in out.features) == 0.5 and out.rgbs[0].abs().max() <= 0.5
    again = gapkd.save_network(tight, tmp_path / "c.safetensors")
    assert torch.equal(load_generator(again)(nvidia["z"]), out.image)
    D = under("D.", nvidia)
    critics = [load_discriminator(write(tmp_path / f"{clamp}.pkl", nvidia_pickle(
        None, D, attributes={"*": {"conv_clamp": clamp}, "b4.mbstd": {"group_size": 2}}))) for clamp in (None, 0.1)]
    assert critics[0].clamp is None and critics[1].clamp == 0.1 and critics[1].mbstd_group == 2
    assert not torch.allclose(critics[0](nvidia["image"]), critics[1](nvidia["image"]))


@torch.no_grad()
def test_conditional_networks(tmp_path):
    torch.manual_seed(0)
    G, D = Generator(16, 6, 5, [4, 4, 3], mapping_layers=3, c_dim=7).eval(), Discriminator(16, [4, 4, 3], c_dim=7)
    file = write(tmp_path / "cifar.pkl", nvidia_pickle(named_like_nvidia(G), named_like_nvidia(D)))
    z, c = torch.randn(3, 6), torch.eye(7)[:3]
    assert torch.equal(load_generator(file)(z, c), G(z, c))
    assert torch.equal(load_discriminator(file)(G(z, c), c), D(G(z, c), c))
    with pytest.raises(ValueError, match="conditional: give one-hot labels"):
        load_generator(file)(z)


def test_a_discriminator_that_cannot_be_read_spares_the_generator(tmp_path, nvidia):
    """NVIDIA's cifar10.pkl: its discriminator has the architecture 'orig', without skip connections."""
    critic = {name: value for name, value in under("D.", nvidia).items() if ".skip." not in name}
    file = write(tmp_path / "cifar10.pkl", nvidia_pickle(under("G.", nvidia), critic))
    assert load_generator(file).resolution == 32 and read_metadata(file)["kind"] == "stylegan2-generator"
    with pytest.raises(CheckpointError, match="the discriminator in cifar10.pkl is not a residual one"):
        load_discriminator(file)


def without(state: dict, *names: str) -> dict:
    return {k: v for k, v in state.items() if k not in names}


def changed(state: dict, **tensors: torch.Tensor) -> dict:
    return state | {name.replace("__", "."): value for name, value in tensors.items()}


@pytest.mark.parametrize("change, attributes, message", [
    (lambda s: without(s, "synthesis.b8.conv1.weight"), {}, "lacks synthesis.b8.conv1.weight"),
    (lambda s: without(s, *[k for k in s if ".b8." in k]), {}, r"blocks of the sizes \[4, 16, 32\]"),
    (lambda s: without(s, *[k for k in s if ".fc" in k]), {}, "has no mapping network"),
    (lambda s: changed(s, synthesis__b8__conv0__resample_filter=torch.ones(4, 4)), {}, "another resampling filter"),
    (lambda s: changed(s, synthesis__b8__torgb__weight=torch.ones(4, 24, 1, 1)), {}, r"not \(3, 'any', 1, 1\)"),
    (lambda s: s | {"synthesis.input.weight": torch.zeros(2, 2)}, {}, r"the layers \[\] of a StyleGAN3 generator"),
    (lambda s: s, {"synthesis.b8": {"architecture": "resnet"}}, "architecture 'resnet': only 'skip'"),
    (lambda s: s, {"synthesis.b8.conv0": {"activation": "relu"}}, "activation 'relu': only lrelu"),
    (lambda s: s, {"mapping.fc3": {"bias_gain": 1.0}}, "learning-rate multiplier 1.0"),
    (lambda s: s, {"synthesis.b8.conv0": {"conv_clamp": 3}}, "clamp their outputs at different values")])
def test_what_cannot_be_translated_is_named(tmp_path, nvidia, change, attributes, message):
    file = write(tmp_path / "net.pkl", nvidia_pickle(change(under("G.", nvidia)), attributes=attributes))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_generator(file)
    assert "net.pkl" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["t", "r"])
@torch.no_grad()
def test_stylegan3_files_give_the_recorded_numbers(tmp_path, name):
    data = arrays(f"stylegan3{name}_nvidia")
    state = under("G.", data)
    file = write(tmp_path / "afhq.pkl", nvidia_pickle(state, under("D.", data),
                                                      attributes={"*": {"conv_clamp": 256}}))
    G = load_generator(file)
    torch.testing.assert_close(G(data["z"]), data["image"], atol=1e-4, rtol=0)
    torch.testing.assert_close(G(data["z"], truncation=0.7), data["image_psi07"], atol=1e-4, rtol=0)
    torch.testing.assert_close(load_discriminator(file)(data["image"]), data["logits"], atol=1e-4, rtol=0)
    again = load_generator(gapkd.save_network(G, tmp_path / "own.safetensors"))
    assert torch.equal(again(data["z"]), G(data["z"])) and G.radial == (name == "r") and G.clamp == 256
    with pytest.raises(ForeignError, match="a StyleGAN3 generator cannot be written"):
        to_rosinality(G)


@pytest.mark.parametrize("change, attributes, message", [
    (lambda s: without(s, *[k for k in s if ".L3_" in k]), {}, r"the layers \[0, 1, 2, 4, .* not 0, 1"),
    (lambda s: without(s, "synthesis.input.freqs"), {}, "lacks synthesis.input.freqs"),
    (lambda s: {k.replace("L8_32_3", "L8_48_3"): v for k, v in s.items()}, {}, "draws images of 48 pixels"),
    (lambda s: changed(s, synthesis__L2_36_24__up_filter=torch.ones(12) / 12), {}, "layer 2 .* has other filters"),
    (lambda s: s, {"synthesis": {"margin_size": -3}}, "margin_size of the StyleGAN3 generator in net.pkl is -3"),
    (lambda s: changed(s, synthesis__L2_36_24__weight=torch.ones(2, 2, 3, 3)), {}, "do not fit the architecture")])
def test_stylegan3_files_that_cannot_be_translated(tmp_path, change, attributes, message):
    state = under("G.", arrays("stylegan3t_nvidia"))
    file = write(tmp_path / "net.pkl", nvidia_pickle(change(state), attributes=attributes))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_generator(file)
    assert "net.pkl" in str(caught.value) and "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------- rosinality


@pytest.mark.parametrize("with_zip", [True, False])
@pytest.mark.parametrize("name", ["teacher", "student", "student_k1"])
@torch.no_grad()
def test_stylekd_files_give_the_recorded_numbers(tmp_path, stylekd, name, with_zip):
    state = under(f"{name}.state.", stylekd)
    optimiser = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    content = {"g": {k: v + 1 for k, v in state.items()}, "g_ema": state, "latent_avg": torch.arange(48.0),
               "g_optim": optimiser.state_dict(), "args": Namespace(size=32)}
    G = load_generator(write(tmp_path / "net.pt", torch_bytes(content, with_zip)))
    torch.testing.assert_close(G(stylekd["z"]), stylekd[f"{name}.image"], atol=1e-4, rtol=0)
    assert torch.equal(G.mapping.w_avg, torch.arange(48.0)) and G.kernel == (1 if name == "student_k1" else 3)


@torch.no_grad()
def test_a_missing_latent_avg_is_estimated(tmp_path, stylekd):
    """Training checkpoints have none; truncation needs it."""
    file = write(tmp_path / "net.pt", torch_bytes({"g_ema": under("student.state.", stylekd)}))
    before, G = torch.get_rng_state(), load_generator(file)
    w = G.mapping(torch.randn(5000, G.z_dim, generator=torch.Generator().manual_seed(7)))
    error = w.std(dim=0) * (1 / 5000 + 1 / 10_000)**0.5  # of the difference of the two means
    assert ((G.mapping.w_avg - w.mean(dim=0)).abs() < 5 * error + 1e-6).all() and G.mapping.w_avg.abs().max() > 0
    assert torch.equal(load_generator(file).mapping.w_avg, G.mapping.w_avg)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("change, message", [
    (lambda s: changed(s, style__1__weight=torch.ones(47, 48)), "mapping network in net.pt do not fit each other"),
    (lambda s: changed(s, style__1__weight=torch.ones(1, 70_000)), "mapping network in net.pt is too large")])
def test_mapping_networks_that_cannot_be_averaged(tmp_path, stylekd, change, message):
    file = write(tmp_path / "net.pt", torch_bytes({"g_ema": change(under("student.state.", stylekd))}))
    with pytest.raises(CheckpointError, match=message):
        load_generator(file)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"g": s}, lambda s: {"state_dict": s},
                                  lambda s: {"g_ema": {f"module.{k}": v for k, v in s.items()}}])
def test_bare_and_wrapped_state_dicts(tmp_path, stylekd, wrap):
    state = under("student.state.", stylekd)
    assert load_generator(write(tmp_path / "net.pt", torch_bytes(wrap(state)))).resolution == 32


@pytest.mark.parametrize("name", ["teacher", "student", "student_k1"])
def test_the_round_trip_is_exact(tmp_path, stylekd, name, capsys):
    state = under(f"{name}.state.", stylekd)
    first = write(tmp_path / "a.pt", torch_bytes({"g_ema": state, "latent_avg": torch.arange(48.0)}))
    assert main(["convert", str(first), str(tmp_path / "b.safetensors")]) == 0
    assert main(["convert", str(tmp_path / "b.safetensors"), str(tmp_path / "c.pt")]) == 0
    back = torch.load(tmp_path / "c.pt", weights_only=True)
    assert back["g_ema"].keys() == state.keys()  # the filters and the noise maps too
    for key, value in state.items():
        assert torch.equal(back["g_ema"][key], value) or (key.endswith("kernel") and torch.allclose(
            back["g_ema"][key], value)), key
    assert torch.equal(back["latent_avg"], torch.arange(48.0))
    provenance = read_metadata(tmp_path / "b.safetensors")["provenance"]
    assert provenance["converted_from"]["file"] == "a.pt" and len(provenance["converted_from"]["sha256"]) == 64


def test_students_of_ours_are_written_for_other_tools(tmp_path):
    torch.manual_seed(0)
    G = Generator(16, 6, 6, [(5, 4), (3, 2), (2, 2)], kernel=1, mapping_layers=2).eval()
    file = write(tmp_path / "s.pt", torch_bytes(to_rosinality(G)))
    z = torch.randn(2, 6)
    assert torch.equal(load_generator(file)(z), G(z)) and load_generator(file).channels == G.channels
    with pytest.raises(ForeignError, match="neither classes nor clamped"):
        to_rosinality(Generator(8, 4, 4, 4, mapping_layers=1, c_dim=3))


def test_rosinality_discriminator(tmp_path):
    torch.manual_seed(0)
    D = Discriminator(16, [6, 5, 4])
    names = {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")
             for ours, theirs in (("fc", "final_linear.0"), ("out", "final_linear.1"))}
    names |= {"from_rgb.weight": "convs.0.0.weight", "from_rgb.bias": "convs.0.1.bias",
              "conv.weight": "final_conv.0.weight", "conv.bias": "final_conv.1.bias"}
    for b in range(2):
        names |= {f"blocks.{b}.conv0.weight": f"convs.{b + 1}.conv1.0.weight",
                  f"blocks.{b}.conv0.bias": f"convs.{b + 1}.conv1.1.bias",
                  f"blocks.{b}.conv1.weight": f"convs.{b + 1}.conv2.1.weight",
                  f"blocks.{b}.conv1.bias": f"convs.{b + 1}.conv2.2.bias",
                  f"blocks.{b}.skip.weight": f"convs.{b + 1}.skip.1.weight"}
    state = {names[k]: v for k, v in D.state_dict().items()}
    loaded = load_discriminator(write(tmp_path / "d.pt", torch_bytes({"d": state})))
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(loaded(x), D(x))
    with pytest.raises(CheckpointError, match="of the kind stylegan2-discriminator, but a generator"):
        load_generator(tmp_path / "d.pt")


@pytest.mark.parametrize("change, message", [
    (lambda s: without(s, "convs.3.conv.weight"), "lacks convs|styled convolutions"),
    (lambda s: without(s, "style.1.weight"), "no mapping network"),
    (lambda s: without(s, "convs.2.noise.weight"), "lacks convs.2.noise.weight"),
    (lambda s: changed(s, to_rgbs__0__upsample__kernel=torch.ones(4, 4)), "is another filter"),
    (lambda s: changed(s, convs__1__conv__weight=torch.ones(1, 8, 8, 1, 1)), "kernels of different sizes"),
    (lambda s: {"weights": torch.ones(3)}, "holds no StyleGAN2 network under .* 'g_ema'")])
def test_bad_rosinality_files(tmp_path, stylekd, change, message):
    file = write(tmp_path / "net.pt", torch_bytes({"g_ema": change(under("student.state.", stylekd))}))
    with pytest.raises(CheckpointError, match=message):
        load_generator(file)


# ------------------------------------------------------------------------------------------- the command


def test_convert_refuses(tmp_path, capsys):
    source = str(gapkd.save_network(Generator(8, 4, 4, 4, mapping_layers=1), tmp_path / "a.safetensors"))
    for out, message in ((source, "exists already"), (str(tmp_path / "b.onnx"), "must end in .safetensors or .pt")):
        assert main(["convert", source, out]) == 2
        assert message in capsys.readouterr().err

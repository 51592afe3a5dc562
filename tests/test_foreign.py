"""Networks of other repositories: recorded references load through their own files and give the
recorded numbers; what cannot be translated is named."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import warnings
import zipfile
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from official_files import TRACE, named_like_nvidia, nvidia_pickle, torch_bytes
from recorded import STYLEKD, arrays, under
from safetensors.torch import save_file
from tiny import perturb

import gapkd
from gapkd.cli import main
from gapkd.files.checkpoints import (
    CheckpointError,
    load_discriminator,
    load_generator,
    read_metadata,
)
from gapkd.files.foreign import ForeignError, largest_activation, to_rosinality
from gapkd.files.storage import data_path
from gapkd.networks.filtered_lrelu import low_pass
from gapkd.networks.mobile import MobileGenerator
from gapkd.networks.stylegan2 import Discriminator, Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator

close = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def write(tmp_path):
    """A file with the network that a test makes."""
    def write(content: bytes, name: str = "net.pkl") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


class Saved(NamedTuple):
    """A pickle makes it by a call with these."""

    step: int
    model: object


def refused(file: Path, message: str, load=load_generator) -> None:
    """One sentence, with the name of the file."""
    with pytest.raises(CheckpointError, match=f"{file.name} .*{message}") as caught:
        load(file)
    assert "\n" not in str(caught.value)


def without(*names: str):
    """A change of a state dict: what has these in its name is taken out."""
    return lambda s: {k: v for k, v in s.items() if not any(name in k for name in names)}


def having(name: str, *shape: int):
    """A change of a state dict: a tensor of that shape under that name."""
    return lambda s: s | {name: torch.ones(shape)}


def of_kind(dtype: torch.dtype):
    """A change of a state dict: its parameters are of that kind."""
    return lambda s: {k: v.to(dtype) if k.endswith(("weight", "bias")) else v for k, v in s.items()}


# ---------------------------------------------------------------------------------------- NVIDIA


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_nvidia_files_give_the_recorded_numbers(write, nvidia, protocol):
    file = write(nvidia_pickle(under("G.", nvidia), under("D.", nvidia), protocol))
    G, D = load_generator(file), load_discriminator(file)
    for truncation, name in ((1.0, "image"), (0.7, "image_psi07")):
        torch.testing.assert_close(G(nvidia["z"], truncation=truncation), nvidia[name], **close)
    torch.testing.assert_close(D(nvidia["image"]), nvidia["logits"], **close)
    assert not G.training and not any(p.requires_grad for p in [*G.parameters(), *D.parameters()])
    assert TRACE not in os.environ
    metadata = read_metadata(file)
    assert metadata["provenance"] == {"source": "NVIDIA's StyleGAN2", "file": "net.pkl"}
    assert metadata["architecture"] == G.architecture()
    student = gapkd.make_student(G, synthesis="pruned")
    assert student(nvidia["z"]).shape == nvidia["image"].shape


@pytest.mark.parametrize("name", ["t", "r"])
def test_stylegan3_files_give_the_recorded_numbers(write, name):
    data = arrays(f"stylegan3{name}_nvidia")
    size = np.broadcast_to(np.asarray(36), [2])  # as NVIDIA keeps them
    fields = {"synthesis.input": {"size": size, "sampling_rate": np.float64(16)},
              "synthesis.L2_36_24": {"in_size": size, "up_factor": 2,
                                     "padding": [11, 10] * 2 if name == "r" else [9, 8] * 2}}
    file = write(nvidia_pickle(under("G.", data), under("D.", data),
                               attributes=fields | {"*": {"conv_clamp": 256}}))
    G = load_generator(file)
    for truncation, recorded in ((1.0, "image"), (0.7, "image_psi07")):
        torch.testing.assert_close(G(data["z"], truncation=truncation), data[recorded], **close)
    torch.testing.assert_close(load_discriminator(file)(data["image"]), data["logits"], **close)
    assert G.radial == (name == "r") and G.clamp == 256
    for protocol in (2, 5):  # of parameters alone; arrays are written otherwise in each
        bare = nvidia_pickle(without("_filter")(under("G.", data)), None, protocol, fields)
        assert load_generator(write(bare)).architecture() == G.architecture() | {"clamp": None}
    without_labels = nvidia_pickle(under("G.", data), attributes={"mapping": {"embed": None}})
    assert load_generator(write(without_labels)).c_dim == 0
    refused(write(nvidia_pickle(without("L2_36_24.magnitude_ema")(under("G.", data)))),
            "lacks synthesis.L2_36_24.magnitude_ema")


@pytest.mark.parametrize("name", ["t", "r"])
def test_stylegan3_filters_may_be_rounded(write, name):
    state = {k: v.bfloat16() for k, v in under("G.", arrays(f"stylegan3{name}_nvidia")).items()}
    assert any("up_filter" in k for k in state)
    assert load_generator(write(torch_bytes(state))).radial == (name == "r")
    odd = {k: v * 1.02 if k.endswith("L2_36_24.up_filter") else v for k, v in state.items()}
    refused(write(torch_bytes(odd)), "layer 2 of its synthesis network has other filters")


@pytest.mark.parametrize("margin", [2, 10])
def test_the_margin_of_a_stylegan3_stands_in_its_names(write, margin):
    G = perturb(AliasFreeGenerator(32, 6, 6, [5, 4, 4, 3], mapping_layers=2, margin=margin)).eval()
    state, z = named_like_nvidia(G), torch.randn(2, 6)
    for file in (write(torch_bytes(state)), write(nvidia_pickle(state))):
        assert torch.equal(load_generator(file)(z), G(z))
    odd = {k.replace("L1_", "L1_1"): v for k, v in state.items()}
    for file in (write(torch_bytes(odd)), write(nvidia_pickle(odd))):
        refused(file, r"synthesis.L1_1\d+_4 has another size in its name than the published")
    wider = write(nvidia_pickle(state, attributes={"synthesis": {"margin_size": margin + 1}}))
    refused(wider, rf"synthesis.L0_\d+_5 has another size .* give it \({18 + 2 * margin}\)")


def test_clamped_convolutions_are_clamped(write, nvidia):
    tight = load_generator(write(nvidia_pickle(under("G.", nvidia),
                                               attributes={"*": {"conv_clamp": 0.5}})))
    out = tight.synthesis(tight.mapping(nvidia["z"]))
    assert max(f.abs().max() for f in out.features) == 0.5 and out.rgbs[0].abs().max() <= 0.5


def test_skip_convolutions_are_clamped_as_their_fields_say(write):
    """NVIDIA builds them without: their conv_clamp is None while all others have one."""
    D, x = Discriminator(16, [16, 16, 16]), torch.randn(4, 3, 16, 16)
    for block in D.blocks:
        block.skip.weight.mul_(5)
    named, clamp = named_like_nvidia(D), {"*": {"conv_clamp": 0.5}}
    theirs = clamp | {f"b{size}.skip": {"conv_clamp": None, "bias": None} for size in (16, 8)}
    free, clamped = (load_discriminator(write(nvidia_pickle(None, named, attributes=given)))
                     for given in (theirs, clamp))
    maps = free.from_rgb(x)
    for block in free.blocks:  # by hand: what the branch adds is at most clamp / sqrt(2)
        skip = block.skip(maps)
        assert skip.abs().max() > 0.5
        maps = block.conv1(block.conv0(maps)).clamp(-0.5**1.5, 0.5**1.5) + skip
    torch.testing.assert_close(free.features(x)[-1], maps, **close)
    assert not torch.allclose(free(x), clamped(x)) and clamped.blocks[0].skip.clamp == 0.5
    odd = {"*": {"conv_clamp": 0.5}, "b16.skip": {"conv_clamp": None}, "b8.skip": {"conv_clamp": 2}}
    refused(write(nvidia_pickle(None, named, attributes=odd)), "different", load_discriminator)


def test_fields_of_discriminators_and_of_noise(write, nvidia):
    D, G, x = under("D.", nvidia), under("G.", nvidia), nvidia["image"]
    whole = load_discriminator(write(nvidia_pickle(None, D, attributes={
        "b4.mbstd": {"group_size": None, "num_channels": 1}, "b8": {"architecture": "resnet"}})))
    fours = load_discriminator(write(nvidia_pickle(None, D)))
    x = torch.cat([x, -x, x.flip(3), x.flip(2)])  # more than one group of four
    assert len(x) > 4 and not torch.allclose(whole(x), fours(x))
    fours.mbstd_group = len(x)
    assert whole.mbstd_group is None and torch.equal(whole(x), fours(x))
    for path, field, message in (
            ("b4.mbstd", {"group_size": "4"}, "b4.mbstd has the group_size '4'"),
            ("head", {}, "it holds head, which the published versions do not have"),
            ("b4.mbstd", {"group_size": 0}, "b4.mbstd has the group_size 0"),
            ("b4.mbstd", {"num_channels": 2}, "b4.mbstd has the num_channels 2"),
            ("b16.conv0", {"weight_gain": 1.0}, "b16.conv0 has the weight_gain 1.0: in"),
            ("b8.skip", {"activation": "lrelu"}, "b8.skip has the activation 'lrelu'"),
            ("b8", {"architecture": "skip"}, "b8 has the architecture 'skip': only resnet")):
        file = write(nvidia_pickle(None, D, attributes={path: field}))
        refused(file, message, load_discriminator)
    off = {f"synthesis.b{size}.conv{n}": {"use_noise": False}
           for size in (4, 8, 16, 32) for n in (0, 1) if size > 4 or n}
    G = load_generator(write(nvidia_pickle(G, attributes=off)))
    assert torch.equal(G(nvidia["z"]), G(nvidia["z"], noise="none")) and G.silent
    bare = load_generator(write(nvidia_pickle(without("noise", "w_avg")(under("G.", nvidia)))))
    assert torch.equal(bare(nvidia["z"]), G(nvidia["z"]))
    w = bare.mapping(torch.randn(4000, bare.z_dim))  # what is missing is estimated
    error = w.std(dim=0) / len(w)**0.5
    assert ((bare.mapping.w_avg - w.mean(dim=0)).abs() < 6 * error + 1e-6).all()
    assert bare.mapping.w_avg.abs().max() > 0


def test_conditional_networks(write):
    G = Generator(16, 6, 5, [4, 4, 3], mapping_layers=3, c_dim=7).eval()
    D = Discriminator(16, [4, 4, 3], c_dim=7)
    file = write(nvidia_pickle(named_like_nvidia(G), named_like_nvidia(D)))
    z, c = torch.randn(3, 6), torch.eye(7)[:3]
    assert torch.equal(load_generator(file)(z, c), G(z, c))
    assert torch.equal(load_discriminator(file)(G(z, c), c), D(G(z, c), c))
    with pytest.raises(ValueError, match="conditional: give one-hot labels"):
        load_generator(file)(z)


@pytest.mark.parametrize("classes", [3, 600])
def test_a_missing_mean_of_w_is_that_of_all_classes(write, classes):
    G = Generator(16, 6, 5, [4, 4, 3], mapping_layers=1, c_dim=classes).eval()
    with torch.no_grad():  # late classes lie elsewhere
        G.mapping.embed.weight.mul_(0.1).add_(torch.linspace(-1, 1, classes))
    state = named_like_nvidia(G)
    del state["mapping.w_avg"]
    found = load_generator(write(torch_bytes(state))).mapping.w_avg
    labels = torch.arange(60_000) % classes
    w = G.mapping(torch.randn(60_000, 6), torch.nn.functional.one_hot(labels, classes).float())
    assert ((found - w.mean(dim=0)).abs() < 0.06 * w.std(dim=0)).all()


def test_a_discriminator_that_cannot_be_read_spares_the_generator(write, nvidia):
    """NVIDIA's cifar10.pkl: its discriminator is of the architecture 'orig', without skips."""
    file = write(nvidia_pickle(under("G.", nvidia), without(".skip.")(under("D.", nvidia))))
    assert load_generator(file).resolution == 32
    assert read_metadata(file)["kind"] == "stylegan2-generator"
    refused(file, "the discriminator is not a residual one", load_discriminator)


def test_a_generator_that_cannot_be_read_spares_the_discriminator(write, nvidia, tmp_path):
    """When its file is asked for what it holds, too."""
    file = write(nvidia_pickle(without("b4.torgb")(under("G.", nvidia)), under("D.", nvidia)))
    assert read_metadata(file)["kind"] == "stylegan2-discriminator"
    assert main(["convert", str(file), str(tmp_path / "discriminator.safetensors")]) == 0
    D = load_discriminator(tmp_path / "discriminator.safetensors")
    torch.testing.assert_close(D(nvidia["image"]), nvidia["logits"], **close)
    refused(file, "lacks synthesis.b4.torgb.bias")


@pytest.mark.parametrize("change, attributes, message", [
    (without("b8.conv1.weight"), {}, "lacks synthesis.b8.conv1.weight"),
    (without("b8.torgb"), {}, "lacks synthesis.b8.torgb"),
    (without(".b8."), {}, r"blocks of the sizes \[4, 16, 32\]"),
    (without(".fc"), {}, "has no mapping network"),
    (having("synthesis.b8.conv0.resample_filter", 4, 4), {}, "is another filter"),
    *[(lambda s, gain=gain: {k: gain * v if k.endswith("_filter") else v for k, v in s.items()},
       {}, r"resample_filter is another filter than \[1, 3, 3, 1\], or has another gain")
      for gain in (2, -1, 4)],
    (having("synthesis.b8.torgb.weight", 4, 24, 1, 1), {}, r"not \(3, 24, 1, 1\)"),
    (having("mapping.fc3.weight", 48, 48, 1, 2), {}, r"fc3.weight has the shape \(48, 48, 1, 2\)"),
    (having("synthesis.input.weight", 2, 2), {}, r"the layers \[\] of a StyleGAN3 generator"),
    (dict, {"synthesis.b8": {"architecture": "resnet"}}, "architecture 'resnet': only skip"),
    (dict, {"synthesis.b8.conv0": {"activation": "linear"}}, "activation 'linear': only lrelu"),
    (dict, {"synthesis.b8.conv1": {"act_gain": 1.0}}, "conv1 has the act_gain 1.0: only 1.414"),
    (dict, {"synthesis.b8.conv0": {"up": 1}}, "conv0 has the up 1: only 2"),
    (dict, {"synthesis.b8.conv0.affine": {"bias_gain": 0.1}}, "multiplier 0.1: only 1.0"),
    (having("synthesis.b8.attention.weight", 3, 3), {}, "holds synthesis.b8.attention.weight"),
    (dict, {"synthesis.b8": {"slope": 0.1}}, r"b8 has the field 'slope' \(0.1\), which"),
    *[(dict, {"*": {"conv_clamp": clamp}}, f"conv_clamp is {shown}, not a number above 0 and up to")
      for clamp, shown in ((-1.0, "-1.0"), (1e39, r"1e\+39"), (10**400, "10+"))],
    *[(change, attributes, f"it holds {name}, which the published versions do not have")
      for name, change, attributes in (
          ("post", having("post.weight", 3, 3), {}), ("out_mean", having("out_mean", 3), {}),
          ("invert", dict, {"invert": {}}))],
    (dict, {"synthesis.b8.torgb": {"conv_clamp": 3}}, "clamp their outputs at different values"),
    *[(dict, {path: {"weight_gain": 1.0}}, f"{path} has the weight_gain 1.0: in .* it is 0.0")
      for path in ("mapping.fc3", "synthesis.b8.conv1")],
    *[(dict, {f"synthesis.b8.{path}": {"activation": "lrelu"}}, "'lrelu': only linear is known")
      for path in ("torgb", "torgb.affine", "conv1.affine")],
    (dict, {"synthesis.b8.torgb": {"weight_gain": 0.1}}, "torgb has the weight_gain 0.1"),
    (dict, {"synthesis.b8.conv1": {"padding": 0}}, "conv1 has the padding 0: in .* it is 1"),
    (dict, {"mapping": {"num_layers": 1}}, "mapping has the num_layers 1"),
    (dict, {"mapping": {"num_ws": 9}}, "mapping has the num_ws 9: in .* it is 8"),
    (dict, {"synthesis": {"img_resolution": 64}}, "synthesis has the img_resolution 64: in .* 32"),
    (dict, {"synthesis": {"block_resolutions": [4, 8]}}, r"it is \[4, 8, 16, 32\]"),
    (dict, {"mapping.fc3": {"bias_gain": 1.0}}, "learning-rate multiplier 1.0")])
def test_what_cannot_be_translated_is_named(write, nvidia, change, attributes, message):
    refused(write(nvidia_pickle(change(under("G.", nvidia)), attributes=attributes)), message)


@pytest.mark.parametrize("change, attributes, message", [
    (without(".L3_"), {}, r"the layers \[0, 1, 2, 4, .* not 0, 1"),
    (without("input.freqs"), {}, "lacks synthesis.input.freqs"),
    (lambda s: {k.replace("L8_32_3", "L8_48_3"): v for k, v in s.items()}, {}, "two .* not 48"),
    (having("synthesis.L2_36_24.up_filter", 12), {}, "layer 2 .* has other filters"),
    (having("synthesis.L2_36_24.down_filter", 12), {}, "layer 2 .* has other filters"),
    (dict, {"synthesis.input": {"bandwidth": 3.0}}, "bandwidth 3.0: only 2.0"),
    (dict, {"synthesis.L2_36_24": {"out_cutoff": 9.0}}, "L2_36_24 has the out_cutoff 9.0: in the"),
    (dict, {"synthesis.L2_36_24": {"is_torgb": True}}, "L2_36_24 has the is_torgb True"),
    *[(dict, {"synthesis.L2_36_24": {field: value}}, f"L2_36_24 has the {field} .*: in the")
      for field, value in (("padding", [1, 1, 1, 1]), ("up_factor", 1), ("down_factor", 1),
                           ("tmp_sampling_rate", 7), ("conv_kernel", 1), ("down_radial", True),
                           ("in_size", 35), ("out_size", np.array([35, 35])))],
    (dict, {"synthesis.input": {"sampling_rate": 15.0}}, "sampling_rate 15.0: in .* it is 16"),
    (dict, {"synthesis.input": {"size": np.array([37, 37])}}, "input has the size .* it is 36"),
    (dict, {"synthesis": {"layer_names": ["L0"]}}, "synthesis has the layer_names"),
    (dict, {"synthesis": {"num_ws": 3}}, "synthesis has the num_ws 3: in .* it is 10"),
    (dict, {"synthesis": {"img_resolution": 64}}, "synthesis has the img_resolution 64: in .* 32"),
    (dict, {"synthesis": {"margin_size": -3}}, "margin is -3"),
    (dict, {"synthesis": {"num_critical": "2"}}, "critical is '2'"),
    (dict, {"synthesis": {"output_scale": None}}, "output_scale is None"),
    *[(lambda s, ema=ema: s | {"synthesis.L2_36_24.magnitude_ema": torch.tensor(ema).double()}, {},
       "layers.2.magnitude_ema that is not above 0")
      for ema in (0.0, -1.0)],
    (having("synthesis.L2_36_24.weight", 2, 2, 3, 3), {}, r"\(2, 2, 3, 3\), not \(24, 24, 3, 3\)")])
def test_stylegan3_files_that_cannot_be_translated(write, change, attributes, message):
    state = under("G.", arrays("stylegan3t_nvidia"))
    refused(write(nvidia_pickle(change(state), attributes=attributes)), message)


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_rgba_networks(write, channels):
    """As NVIDIA's own tools make them of such images: a generator draws what its toRGB says."""
    G = perturb(Generator(16, 6, 6, [(5, 4), (3, 2), (2, 2)], mapping_layers=2)).eval()
    more = {"mapping_layers": 2, "img_channels": channels}
    odd = Generator(16, 6, 6, G.channels, **more).eval()
    rows, z = [0, 1, 2, 0][:channels], torch.randn(2, 6)
    odd.load_state_dict({k: v[rows] if k.endswith(("torgb.bias", "torgb.conv.weight")) else v
                         for k, v in G.state_dict().items()})
    alias_free = perturb(AliasFreeGenerator(16, 6, 6, [4, 3, 3], **more)).eval()
    for content in (nvidia_pickle(named_like_nvidia(odd)), torch_bytes(to_rosinality(odd))):
        loaded = load_generator(write(content))
        assert loaded.img_channels == channels == loaded.architecture()["img_channels"]
        torch.testing.assert_close(loaded(z), G(z)[:, rows], atol=1e-6, rtol=0)
    loaded = load_generator(write(nvidia_pickle(named_like_nvidia(alias_free))))
    assert torch.equal(loaded(z), alias_free(z)) and loaded(z).shape[1] == channels
    D = Discriminator(16, [4, 3, 2], img_channels=channels)
    loaded = load_discriminator(write(nvidia_pickle(None, named_like_nvidia(D))))
    assert torch.equal(loaded(odd(z)), D(odd(z)))
    bad = {k: torch.ones(5, *v.shape[1:]) if "torgb.weight" in k or k.endswith("torgb.bias") else v
           for k, v in named_like_nvidia(G).items()}
    refused(write(nvidia_pickle(bad)), "img_channels must be 3, 1 .grey. or 4 .RGBA., not 5")


# ------------------------------------------------------------------------------------ rosinality


@pytest.mark.parametrize("with_zip", [True, False])
@pytest.mark.parametrize("name", STYLEKD)
def test_stylekd_files_give_the_recorded_numbers(write, stylekd, name, with_zip):
    state = under(f"{name}.state.", stylekd)
    optimiser = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    content = {"g": {k: v + 1 for k, v in state.items()}, "g_ema": state,
               "latent_avg": torch.arange(48.0), "g_optim": optimiser.state_dict(),
               "args": Namespace(size=32)}
    G = load_generator(write(torch_bytes(content, with_zip)))
    torch.testing.assert_close(G(stylekd["z"]), stylekd[f"{name}.image"], **close)
    assert torch.equal(G.mapping.w_avg, torch.arange(48.0))
    assert G.kernel == (1 if name == "student_k1" else 3)


def test_a_missing_latent_avg_is_estimated(write, stylekd):
    """Training checkpoints have none; truncation needs it."""
    file = write(torch_bytes({"g_ema": under("student.state.", stylekd)}))
    before, G = torch.get_rng_state(), load_generator(file)
    w = G.mapping(torch.randn(5000, G.z_dim, generator=torch.Generator().manual_seed(7)))
    error = w.std(dim=0) * (1 / 5000 + 1 / 10_000)**0.5  # of the difference of the two means
    assert ((G.mapping.w_avg - w.mean(dim=0)).abs() < 5 * error + 1e-6).all()
    assert G.mapping.w_avg.abs().max() > 0
    own = torch.arange(6 * 48.0).reshape(6, 48)
    for a_layer in ({}, {"latent_avg": own}):  # as projections into W+ may keep it
        again = write(torch_bytes({"g_ema": under("student.state.", stylekd), **a_layer}))
        told = pytest.warns(UserWarning, match=r"latent_avg, of shape \(6, 48\), is no mean of w")
        with told if a_layer else nullcontext():
            assert torch.equal(load_generator(again).mapping.w_avg, G.mapping.w_avg)
    both = {name: under("student.state.", stylekd) for name in ("g", "g_ema")}
    with pytest.warns(UserWarning, match="taken is 'g_ema', the averaged one; its lat"):
        load_generator(write(torch_bytes({**both, "latent_avg": own})))
    for rows in (own[:1].repeat(6, 1), own[:1].repeat(1, 6, 1), own[0], own[0].view(48, 1)):
        same = write(torch_bytes({"g_ema": under("student.state.", stylekd), "latent_avg": rows}))
        assert torch.equal(load_generator(same).mapping.w_avg, own[0])
    bad = write(torch_bytes({"g_ema": under("student.state.", stylekd), "latent_avg": own[0] / 0}))
    with pytest.warns(UserWarning, match="its latent_avg, which is not finite, is no mean of w"):
        load_generator(bad)
    huge = torch.zeros(1, 48).expand(2**40, 48)
    again = write(torch_bytes({"g_ema": under("student.state.", stylekd), "latent_avg": huge}))
    with pytest.warns(UserWarning, match=r"latent_avg, of shape \(1099511627776, 48\), is no mean"):
        load_generator(again)
    for odd in (own[0].numpy(), own[0].tolist()):
        for content in ({"g_ema": under("student.state.", stylekd), "latent_avg": odd},
                        {"g_ema": under("student.state.", stylekd) | {"latent_avg": odd}}):
            if isinstance(content["g_ema"].get("latent_avg"), list):
                continue  # no state dict holds lists
            with pytest.warns(UserWarning, match="its latent_avg, which is no tensor, is no mean"):
                again = load_generator(write(torch_bytes(content)))
            assert torch.equal(again.mapping.w_avg, G.mapping.w_avg)
    assert torch.equal(torch.get_rng_state(), before)


def prefixed(prefix: str):
    """A change of a state dict: that stands before every name."""
    return lambda s: {prefix + k: v for k, v in s.items()}


WRAPS = [
    dict, lambda s: {"g": s}, lambda s: {"state_dict": s}, lambda s: {"any name": {"of any": s}},
    lambda s: {"g_ema": prefixed("module.")(s)}, prefixed("g_ema."), prefixed("_orig_mod."),
    prefixed("decoder."), prefixed("net.generator."), lambda s: [{"epoch": 3}, (s,)],
    lambda s: {re.sub("^conv1", "conv1._orig_mod", k): v for k, v in s.items()},
    *[lambda s, wrapper=wrapper: prefixed(f"{wrapper}.")({
        re.sub(r"^(conv1|convs\.\d|style)\.", rf"\1.{wrapper}.", k): v for k, v in s.items()})
      for wrapper in ("_checkpoint_wrapped_module", "_fsdp_wrapped_module", "module")],
    lambda s: {"state_dict": prefixed("decoder.")(s) | {"encoder.conv1.weight": torch.ones(3)},
               "hyper_parameters": Namespace(lr=1)}, lambda s: Namespace(model=s),
    lambda s: Saved(step=1, model=s)]


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_network_is_found_wherever_it_stands(write, stylekd, wrap):
    G = load_generator(write(torch_bytes(wrap(under("student.state.", stylekd)))))
    torch.testing.assert_close(G(stylekd["z"]), stylekd["student.image"], **close)


@pytest.mark.parametrize("name", ["stylegan2", "t", "r"])
@pytest.mark.parametrize("prefix", ["", "module.", "G_ema."])
def test_state_dicts_with_nvidias_names(tmp_path, nvidia, name, prefix):
    data = nvidia if name == "stylegan2" else arrays(f"stylegan3{name}_nvidia")
    state = {prefix + k: v.contiguous() for k, v in under("G.", data).items()}
    save_file(state, tmp_path / "model.safetensors", {"kind": "checkpoint"})  # a word of theirs
    for folder in (tmp_path, tmp_path / "model.safetensors"):
        torch.testing.assert_close(load_generator(folder)(data["z"]), data["image"], **close)


def test_of_several_the_averaged_one_is_taken_and_it_is_said(write, stylekd):
    state = under("student.state.", stylekd)
    other = {k: v if k.endswith("kernel") else v + 1 for k, v in state.items()}
    for content, path in (
            ({"g": other, "g_ema": state}, "g_ema"),
            ({"netG": other, "netG_ema": state}, "netG_ema"),
            ({"model": other, "modelEma": state}, "modelEma"),
            ({"G": other, "G_smooth": state}, "G_smooth"),
            ({"G": other, "Gavg": state}, "Gavg"), ({"netG": other, "netGE": state}, "netGE"),
            *[({"g": other, name: state}, name) for name in (
                "g_smoothing", "G_moving", "gma", "g_ema2", "ema999", "gen_mavg", "g_copy",
                "g_target", "g_test", "G_mean")],
            ({"optimizer": {"exp_avg": other}, "n": {"m": {"gema": state}}}, "n.m.gema"),
            (prefixed("generator.")(other) | prefixed("generator_ema.")(state), "generator_ema"),
            *[({word: {"g": other, "g_ema": state}}, f"{word}.g_ema") for word in ("ema", "test")],
            (prefixed("copy.g.")(other) | prefixed("copy.g_ema.")(state), "copy.g_ema"),
            ({"all": {"raw": other, "model": {"ema": state}}}, "all.model.ema"),
            ({"model": {**other}, "ema": {"initted": torch.ones(())} | prefixed("online_model.")(
                other) | prefixed("ema_model.")(state)}, "ema.ema_model")):  # of ema_pytorch
        with pytest.warns(UserWarning, match=f"net.pkl: it holds . .* '{path}', the averaged one"):
            G = load_generator(write(torch_bytes(content)))
        assert torch.equal(G.synthesis.const, state["input.input"])
    content = {"g": other, "g_ema_0.9": state, "g_ema_0.999": {**other}}
    with pytest.warns(UserWarning, match="'g_ema_0.9', the first of those that are called averag"):
        assert torch.equal(load_generator(write(torch_bytes(content))).synthesis.const,
                           state["input.input"])
    with pytest.warns(UserWarning, match="'first', the first, since none alone is called averaged"):
        G = load_generator(write(torch_bytes({"first": other, "second": state})))
    assert torch.equal(G.synthesis.const, other["input.input"])


def test_a_file_name_in_a_warning_is_one_printable_line(write, stylekd):
    state = under("student.state.", stylekd)
    with pytest.warns(UserWarning, match="holds 2 generators") as caught:
        load_generator(write(torch_bytes({"g": state, "g_ema": {**state}}), "a\x1b[31m\nb.pt"))
    assert all(str(warning.message).isprintable() for warning in caught)


@pytest.mark.parametrize("name", ["g_no_ema", "g_without_ema", "nonEma"])
def test_a_denied_word_is_none(write, stylekd, name):
    state = under("student.state.", stylekd)
    with pytest.warns(UserWarning, match="taken is 'g', the first that is not called unaveraged"):
        G = load_generator(write(torch_bytes({name: having("input.input", 1, 8, 4, 4)(state),
                                              "g": state})))
    assert torch.equal(G.synthesis.const, state["input.input"])


@pytest.mark.parametrize("layout", ["nvidia", "rosinality"])
def test_an_average_of_parameters_alone_borrows_the_rest(write, layout):
    """Noise maps and mean of w are no parameters, and stand beside the others in the same file."""
    G = perturb(Generator(8, 4, 4, 4, mapping_layers=1)).eval()
    G.mapping.w_avg.fill_(0.5)
    state, z = named_like_nvidia(G), torch.randn(2, 4)
    if layout == "rosinality":
        named = to_rosinality(G)
        state = named["g_ema"] | {"latent_avg": named["latent_avg"]}
    bare = without("noise_const", "noises.", "_avg", "kernel", "filter")(state)
    whole = {name: value if name not in bare else value + 1 for name, value in state.items()}
    with pytest.warns(UserWarning, match="mean of w that it lacks are those of 'g'"):
        loaded = load_generator(write(torch_bytes({"g": whole, "ema": {"shadow": bare}})))
    torch.testing.assert_close(loaded(z, truncation=0.5), G(z, truncation=0.5), **close)
    other = {name: value for name, value in whole.items() if "style.1.b" not in name
             and "torgb.affine.bias" not in name}  # another network, or a damaged one
    with pytest.warns(UserWarning, match="3 noise maps are missing: without noise=.random. it"):
        silent = load_generator(write(torch_bytes({"g": other, "g_ema": bare})))
    assert torch.equal(silent(z), silent(z, noise="none"))


def test_an_averaged_student_borrows_from_its_raw_weights_not_from_its_teacher(write):
    G, T = (perturb(Generator(8, 4, 4, 4, mapping_layers=1)).eval() for _ in range(2))
    state, z = named_like_nvidia(G), torch.randn(2, 4)
    bare = without("noise_const", "_avg", "filter")(state)
    raw = {name: value + 0.01 if name in bare else value for name, value in state.items()}
    content = {"teacher": named_like_nvidia(T), "student": raw, "student_ema": bare}
    with pytest.warns(UserWarning, match="mean of w that it lacks are those of 'student'"):
        loaded = load_generator(write(torch_bytes(content)))
    assert torch.equal(loaded(z, truncation=0.5), G(z, truncation=0.5))


@pytest.mark.parametrize("radial", [True, False])
def test_a_stylegan3s_average_borrows_its_fourier_features(write, radial):
    G = perturb(AliasFreeGenerator(16, 4, 4, [4, 4, 4], mapping_layers=1, radial=radial)).eval()
    data, z = named_like_nvidia(G), torch.randn(2, 4)
    for n, layer in enumerate(G.synthesis.layers):
        path = next(name for name in data if f".L{n}_" in name).rpartition(".")[0].split(".aff")[0]
        data[f"{path}.down_filter"] = low_pass(*layer.down_design)
    bare = {name: value for name, value in data.items() if name.endswith(("weight", "bias"))}
    raw = {name: value + 1 if name in bare else value for name, value in data.items()}
    with pytest.warns(UserWarning, match="'g_ema', the averaged .*, Fourier features or mean of w"):
        loaded = load_generator(write(torch_bytes({"g": raw, "g_ema": bare})))
    assert torch.equal(loaded(z, truncation=0.5), G(z, truncation=0.5))
    refused(write(torch_bytes(bare)), "parameters of a StyleGAN3 alone, and lost are its Fourier")


def test_filters_of_other_parts_of_a_file_do_not_matter(write, stylekd):
    G, odd = Generator(8, 4, 4, 4, mapping_layers=1), torch.ones(11, 11)
    for state, other in ((named_like_nvidia(G), "augment.resample_filter"),
                         (under("student.state.", stylekd), "ssim.kernel"),
                         (under("student.state.", stylekd), "D.convs.1.conv2.0.kernel")):
        assert load_generator(write(torch_bytes(state | {other: odd}))).resolution


@pytest.mark.parametrize("name", ["post.0.weight", "embed.weight", "gamma", "super.b8.torgb.bias"])
def test_what_is_not_applied_beside_a_network_is_named(write, stylekd, name):
    odd, theirs = {name: torch.ones(3, 3)}, named_like_nvidia(Generator(8, 4, 4, 4))
    wrapped = prefixed("G.")(theirs) | prefixed("D.")(named_like_nvidia(Discriminator(8, 4)))
    for content in (torch_bytes(theirs | odd), nvidia_pickle(wrapped | odd),
                    torch_bytes({"g_ema": under("student.state.", stylekd) | odd})):
        with pytest.warns(UserWarning, match=rf"under {name.partition('.')[0]} is not applied: if"):
            load_generator(write(content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a known network, an option, another part of the file
        for content in (wrapped, {"e.weight": torch.ones(3)} | prefixed("G.")(theirs),
                        theirs | {"D.b4.fc.weight": torch.ones(2), "args": Namespace(lr=1)},
                        theirs | {"n_averaged": torch.tensor(3)}):  # a counter
            load_generator(write(torch_bytes(content)))


def test_averaged_weights_that_are_no_network_are_not_passed_over_in_silence(write, stylekd):
    state = under("student.state.", stylekd)
    bare = without("noises", "kernel")(state)
    values, lit = [*bare.values()], {f"G_ema.{k.replace('.', '')}": v for k, v in bare.items()}
    for content, where in (({"model": state, "ema": {"decay": 0.9, "shadow_params": values}},
                            "ema.shadow_params"), (prefixed("G.")(state) | lit, "G_ema")):
        with pytest.warns(UserWarning, match=f"the averaged weights in '{where}' are not read"):
            load_generator(write(torch_bytes(content)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # other weights, or averages of another network
        for content in ({"g": state, "d_ema": {"shadow_params": values[1:]}},
                        {"g_ema": state, "ema": {"shadow_params": values}}):
            load_generator(write(torch_bytes(content)))


def test_a_mean_of_w_is_found_beside_and_above_a_network(write, stylekd):
    """As Lightning writes a pSp network."""
    state, mean = under("student.state.", stylekd), torch.arange(48.0)
    for name in ("net.decoder.latent_avg", "net.latent_avg", "latent_avg", "net.mean_latent"):
        content = {"state_dict": prefixed("net.decoder.")(state) | {name: mean.repeat(6, 1)}}
        assert torch.equal(load_generator(write(torch_bytes(content))).mapping.w_avg, mean)
    content = {"latent_avg": mean, "x": {"mean_latent": 4096, "g_ema": state}}  # how many
    assert torch.equal(load_generator(write(torch_bytes(content))).mapping.w_avg, mean)


def test_a_latent_avg_is_the_mean_of_w_of_nvidias_names_too(write):
    for G in (Generator(8, 4, 4, 4, mapping_layers=1),
              AliasFreeGenerator(16, 4, 4, [4, 4, 4], mapping_layers=1)):
        own, mean = named_like_nvidia(perturb(G)), torch.arange(4.0)
        bare = without("w_avg")(own)
        for rows in (mean, mean.repeat(6, 1)):
            file = write(torch_bytes({"g": prefixed("decoder.")(bare), "latent_avg": rows}))
            assert torch.equal(load_generator(file).mapping.w_avg, mean)
        file = write(torch_bytes({"g": own, "latent_avg": mean}))  # it has its own
        assert torch.equal(load_generator(file).mapping.w_avg, G.mapping.w_avg)
        for odd in (torch.ones(()), torch.ones(3)):
            with pytest.warns(UserWarning, match="latent_avg, of shape .* is no mean of w: the"):
                load_generator(write(torch_bytes({"g": bare, "latent_avg": odd})))


def test_a_whole_network_beside_an_averaged_one_that_is_not(write, stylekd):
    state = under("student.state.", stylekd)
    part = dict([*state.items()][:5]) | {"input.input": state["input.input"]}
    with pytest.warns(UserWarning, match="taken is 'g', since 'g_ema' cannot be read: it "):
        G = load_generator(write(torch_bytes({"g_ema": part, "g": state})))
    torch.testing.assert_close(G(stylekd["z"]), stylekd["student.image"], **close)
    refused(write(torch_bytes({"g_ema": part, "g": dict(part)})), "it has 1 styled")


def test_folders_with_one_network(tmp_path, stylekd):
    content = torch_bytes(under("student.state.", stylekd))
    (tmp_path / "config.json").write_text('{"architectures": ["StyleGAN"]}')
    (tmp_path / "ANY.PKL").write_bytes(content)
    assert load_generator(tmp_path).resolution == 32
    (tmp_path / "optimizer.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="name the file .* of ANY.PKL, optimizer.pt"):
        load_generator(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    assert load_generator(tmp_path).resolution == 32
    split = tmp_path / "split"
    split.mkdir()
    for name in ("model-1-of-2.bin", "model-2-of-2.bin", "model.bin.index.json"):
        (split / name).write_bytes(content)
    for part in ("discriminator", "generator"):
        (tmp_path / "apart" / part).mkdir(parents=True)
        (tmp_path / "apart" / part / "net.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match="one of discriminator/net.bin, generator/net.bin"):
        load_generator(tmp_path / "apart")
    with pytest.raises(CheckpointError, match="split are split over 2 files, which are not read"):
        load_generator(split)
    part = {"input.input": torch.ones(1, 4, 4, 4), "convs.0.conv.weight": torch.ones(1)}
    for name, message in (("model-00001-of-00002.bin", "one of the files over which .*: join them"),
                          ("model-00001-of-00001.bin", "it has 2 styled convolutions")):
        (split / name).write_bytes(torch_bytes(part))
        refused(split / name, message)


def test_an_unpacked_file_of_torch_save_can_be_packed_again(tmp_path, stylekd):
    content = torch_bytes(under("student.state.", stylekd))
    zipfile.ZipFile(io.BytesIO(content)).extractall(tmp_path / "unpacked")
    folder, = (tmp_path / "unpacked").iterdir()
    with pytest.raises(CheckpointError, match="outside itself: .*, zip its folder again"):
        load_generator(folder)
    shutil.make_archive(tmp_path / "net", "zip", folder.parent, folder.name)
    assert load_generator((tmp_path / "net.zip").rename(tmp_path / "net.pt")).resolution == 32


def test_a_training_of_others_that_names_its_parts_as_ours(write, stylekd):
    state = under("student.state.", stylekd)
    content = {"G_ema": state, "G": {**state}, "D": {}, "opt_g": {}, "opt_d": {}}
    with pytest.warns(UserWarning, match="taken is 'G_ema', the averaged one"):
        assert load_generator(write(torch_bytes(content))).resolution == 32


def test_a_training_state_that_was_edited_is_refused(write):
    G = Generator(8, 4, 4, 4, mapping_layers=1)
    about = {"networks": {"G": {"kind": G.kind, "architecture": G.architecture()}},
             "provenance": {}}

    def state(network: dict = {}, weights: object = None, **changes: object) -> str:  # noqa: B006
        own = {**about, "networks": {"G": about["networks"]["G"] | network}} | changes
        content = {"G_ema": G.state_dict() if weights is None else weights, "D": {}, "opt_g": {},
                   "about": json.dumps(own)}
        return write(torch_bytes(content), "state.pt")

    assert load_generator(state()).resolution == 8
    huge = G.state_dict() | {"synthesis.const": torch.zeros(1).expand(2**44)}
    for changes in ({"network": {"kind": [G.kind]}}, {"network": {"kind": 3}},
                    {"network": {"architecture": None}}, {"weights": [1]}, {"provenance": None},
                    {"weights": G.state_dict() | {"synthesis.const": 1.0}}, {"weights": huge}):
        refused(state(**changes), "(not laid out as a network|do not fit the architecture)")


def test_lazily_negated_tensors_keep_their_sign(write, stylekd):
    state = under("student.state.", stylekd)
    const = state["input.input"]
    state["input.input"] = torch._neg_view(const)
    G = load_generator(write(torch_bytes({"g_ema": state})))
    assert torch.equal(G.synthesis.const, -const)


@pytest.mark.parametrize("content, message", [
    ({"GAN": {"S.net.0.weight": torch.ones(1)}}, r"gapkd reads both in NVIDIA's layout"),
    ({"x.weight": torch.ones(1)}, r"no StyleGAN2 network under .*: a Tensor\): gapkd reads"),
    *[(change(network.state_dict()), "of a gapkd network without its architecture: write")
      for change in (dict, lambda s: {f"net.G.{name}": value for name, value in s.items()})
      for network in (Generator(8, 4, 4, 4, mapping_layers=1), Discriminator(8, 4),
                      AliasFreeGenerator(16, 4, 4, [4, 4, 4], mapping_layers=1),
                      MobileGenerator(8, 4, 4, 4, mapping_layers=1))],
    *[({name: {"b4.torgb.weight": torch.ones(1)}, "mapping": {"fc0.weight": torch.ones(1)}},
       "apart from the mapping network: join both to one state dict, with mapping. and synthesis")
      for name in ("synthesis", "G_synthesis")],
    ({"G_synthesis.b4.torgb.bias": torch.ones(1)}, "it holds no StyleGAN2 network"),
    (Generator(8, 4, 4, 4, mapping_layers=1), "whole modules of gapkd: write .*gapkd.save_network"),
    ({"params": {"constant_input.weight": torch.ones(1), "final_conv.0.weight": torch.ones(1)}},
     "it holds no StyleGAN2 network under any name"),  # basicsr's
    ({"_fsdp_wrapped_module._flat_param": torch.ones(9)}, "flat parameters of FSDP: save"),
    ({"convs.1.skip.1.weight_orig": torch.ones(9)}, "its weights are kept in parts, by"),
    (torch.nn.Linear(2, 2), "whole modules .'torch.nn.*Linear'.*save the network's state_dict")])
def test_what_a_file_holds_instead_is_named(write, content, message):
    refused(write(torch_bytes(content), "net.pt"), message)


@pytest.mark.parametrize("name", STYLEKD)
def test_the_round_trip_is_exact(write, tmp_path, stylekd, name):
    state = under(f"{name}.state.", stylekd)
    first = write(torch_bytes({"g_ema": state, "latent_avg": torch.arange(48.0)}), "a.pt")
    ours, back = tmp_path / "b.safetensors", tmp_path / "c.pt"
    assert main(["convert", str(first), str(ours)]) == main(["convert", str(ours), str(back)]) == 0
    content = torch.load(back, weights_only=True)
    assert content["g_ema"].keys() == state.keys()  # the filters and the noise maps too
    for key, value in state.items():
        tolerance = 1e-6 if key.endswith("kernel") else 0
        torch.testing.assert_close(content["g_ema"][key], value, atol=tolerance, rtol=0, msg=key)
    assert torch.equal(content["latent_avg"], torch.arange(48.0))
    source = read_metadata(ours)["provenance"]["converted_from"]
    assert source["file"] == "a.pt" and len(source["sha256"]) == 64


@pytest.mark.parametrize("network, message", [
    (lambda: Generator(8, 4, 4, 4, mapping_layers=1, c_dim=3), "no classes"),
    (lambda: AliasFreeGenerator(16, 4, 4, [4, 3, 3]), "a stylegan3-generator cannot be written")])
def test_what_rosinalitys_layout_cannot_hold(network, message):
    with pytest.raises(ForeignError, match=message):
        to_rosinality(network())


def test_rosinality_discriminator(write):
    D = Discriminator(16, [6, 5, 4])
    names = {"from_rgb": ("convs.0.0", "convs.0.1"), "conv": ("final_conv.0", "final_conv.1"),
             "fc": ("final_linear.0",) * 2, "out": ("final_linear.1",) * 2}
    for b in range(2):
        names |= {f"blocks.{b}.conv0": (f"convs.{b + 1}.conv1.0", f"convs.{b + 1}.conv1.1"),
                  f"blocks.{b}.conv1": (f"convs.{b + 1}.conv2.1", f"convs.{b + 1}.conv2.2"),
                  f"blocks.{b}.skip": (f"convs.{b + 1}.skip.1", "")}
    state = {}
    for name, value in D.state_dict().items():
        layer, _, part = name.rpartition(".")
        state[f"{names[layer][part == 'bias']}.{part}"] = value
    file, x = write(torch_bytes({"d": state}), "d.pt"), torch.randn(4, 3, 16, 16)
    assert torch.equal(load_discriminator(file)(x), D(x))
    refused(file, "of the kind stylegan2-discriminator, but a generator was asked for")


@pytest.mark.parametrize("change, message", [
    (without("convs.3."), "has 4 styled convolutions"),
    (without("style.1.w"), "no mapping network"),
    (without("convs.2.conv.mod"), "lacks convs.2.conv.modulation.weight"),
    (without("convs.2.noise.weight"), "lacks convs.2.noise.weight"),
    (having("style.1.weight", 47, 48), r"style.1.weight has the shape \(47, 48\), not \(48, 48\)"),
    (having("style.1.weight", 1, 70_000), "z_dim is 70000"),
    (having("to_rgbs.0.upsample.kernel", 4, 4), "is another filter"),
    *[(lambda s, gain=gain: {k: gain * v if k.endswith("kernel") else v for k, v in s.items()},
       r"kernel is another filter than \[1, 3, 3, 1\], or has another gain") for gain in (2, 0.25)],
    (having("convs.1.conv.weight", 1, 8, 8, 1, 1), r"\(1, 8, 8, 1, 1\), not"),
    (having("convs.1.attention.weight", 3, 3), "it holds convs.1.attention.weight, which the"),
    *[(of_kind(dtype), "holds numbers of a kind that no network of gapkd has: save it with float32")
      for dtype in (torch.int8, torch.complex64, torch.float8_e5m2, torch.uint16)],
    (lambda s: s | {k: v.to(torch.float8_e5m2) for k, v in s.items() if k.endswith("kernel")},
     r"another filter than \[1, 3, 3, 1\], or too coarse: save it with float32 weights"),
    (lambda s: s | {"style.1.weight": s["style.1.weight"].to_sparse()},
     "style.1.weight is no tensor, but .*: save plain tensors .* dequantize of a quantised one"),
    (lambda s: s | {"style.1.weight": s["style.1.weight"].numpy()},
     "style.1.weight is no tensor, but a numpy array: save plain tensors"),
    (lambda s: s | {f"style.{n}.weight": s["style.1.weight"] for n in range(1, 60)}
     | {f"style.{n}.bias": s["style.1.bias"] for n in range(1, 60)},
     r"same numbers in many tensors, .*: save a clone\(\) of every tensor"),
    *[(lambda s, end=end: {k.replace("conv.weight", f"conv.{end}"): v for k, v in s.items()},
       r"its weights are kept in parts, by weight_norm, .*: undo that with torch.nn.utils \(")
      for end in ("weight_v", "weight_orig", "parametrizations.weight.original0")],
    (lambda s: s | {"input.input": s["input.input"].double() * 1e60}, "that are not finite"),
    (lambda s: {"weights": torch.ones(3)}, "holds no StyleGAN2 network under .* 'g_ema'")])
def test_bad_rosinality_files(write, stylekd, change, message):
    refused(write(torch_bytes({"g_ema": change(under("student.state.", stylekd))})), message)


def test_a_clamp_is_left_out_where_nothing_reaches_it(tmp_path, nvidia, write, capsys):
    """NVIDIA's trainings clamp at 256, and students inherit it."""
    file = write(nvidia_pickle(under("G.", nvidia), attributes={"*": {"conv_clamp": 256}}))
    student = gapkd.make_student(load_generator(file), synthesis="pruned")
    ours, out = gapkd.save_network(student, tmp_path / "s.safetensors"), tmp_path / "s.pt"
    assert main(["convert", str(ours), str(out)]) == 0
    err = capsys.readouterr().err
    assert re.fullmatch(r"gapkd: the clamp at 256, .* 200 latents is [\d.]+, \d% of it\n", err)
    theirs = load_generator(out)
    assert theirs.clamp is None and torch.equal(theirs(nvidia["z"]), student(nvidia["z"]))


def test_a_clamp_that_is_reached_is_left_out_when_asked(tmp_path, capsys):
    G = Generator(8, 4, 4, 4, mapping_layers=1, clamp=1.0).eval()
    source, out = str(gapkd.save_network(G, tmp_path / "g.safetensors")), tmp_path / "g.pt"
    assert largest_activation(G) == 1.0
    assert main(["convert", source, str(out)]) == 2 and not out.exists()
    assert "near its clamp of 1 (the largest activation of 200 " in capsys.readouterr().err
    assert main(["convert", source, str(out), "--drop-clamp"]) == 0
    assert "is 1, 100% of it" in capsys.readouterr().err
    loose = load_generator(out)
    features = loose.synthesis(loose.mapping(torch.randn(2, 4))).features
    assert loose.clamp is None and features[-1].abs().max() > 1


def test_the_largest_activation_is_that_of_every_layer():
    G = Generator(8, 4, 4, 4, mapping_layers=1, clamp=500.0).eval()
    usual = largest_activation(G)
    for layer, bias in ((G.synthesis.blocks[1].conv0, 200.0), (G.synthesis.blocks[0].torgb, 300.0)):
        layer.bias.fill_(bias)
        assert largest_activation(G) >= bias > usual
    assert not any(layer._forward_hooks for layer in G.modules())


def test_convert_refuses(tmp_path, capsys):
    G = Generator(8, 4, 4, 4, mapping_layers=1)
    source = str(gapkd.save_network(G, tmp_path / "a.safetensors"))
    for out, message in ((source, "exists already"),
                         (str(tmp_path / "b.onnx"), "must end in .safetensors or .pt")):
        assert main(["convert", source, out]) == 2
        assert message in capsys.readouterr().err
    D = str(gapkd.save_network(Discriminator(8, 4), tmp_path / "D.safetensors"))
    for wrong, out in ((D, "other.safetensors"), (source, "netD.safetensors")):
        assert main(["convert", wrong, str(tmp_path / out)]) == 2
        assert f'the name {out} asks for one; "discriminator" in' in capsys.readouterr().err
    assert main(["convert", str(data_path("attributes.safetensors")), str(tmp_path / "b.pt")]) == 2
    assert "asks for one" not in capsys.readouterr().err  # no name helps there
    assert main(["convert", source, str(tmp_path / "b.safetensors"), "--drop-clamp"]) == 2
    assert "drop_clamp is for .pt files" in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()

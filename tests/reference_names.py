"""Recorded state dicts (tests/golden/*.npz) under the reference implementations' names, translated to ours."""

from __future__ import annotations

import re

import torch


def _styled(ours: str, theirs: dict[str, torch.Tensor], conv: str, affine: str, noise: str, bias: str) -> dict:
    return {f"{ours}.conv.weight": theirs[conv], f"{ours}.affine.weight": theirs[f"{affine}.weight"],
            f"{ours}.affine.bias": theirs[f"{affine}.bias"], f"{ours}.bias": theirs[bias],
            f"{ours}.noise_strength": theirs[noise].reshape(())}


def _torgb(ours: str, theirs: dict[str, torch.Tensor], weight: str, affine: str, bias: str) -> dict:
    return {f"{ours}.conv.weight": theirs[weight], f"{ours}.affine.weight": theirs[f"{affine}.weight"],
            f"{ours}.affine.bias": theirs[f"{affine}.bias"], f"{ours}.bias": theirs[bias].reshape(3)}


def nvidia_generator(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`mapping.fc0...`, `synthesis.b4...` -> the state dict of gapkd.stylegan2.Generator."""
    out = {"mapping.w_avg": state["mapping.w_avg"], "synthesis.const": state["synthesis.b4.const"][None]}
    for name, value in state.items():
        if m := re.fullmatch(r"mapping\.fc(\d+)\.(weight|bias)", name):
            out[f"mapping.layers.{m[1]}.{m[2]}"] = value
    resolutions = sorted({int(m[1]) for n in state if (m := re.match(r"synthesis\.b(\d+)\.", n))})
    for b, r in enumerate(resolutions):
        block = f"synthesis.b{r}"
        for conv in ("conv0", "conv1") if b else ("conv1",):
            ours, theirs = f"synthesis.blocks.{b}.{conv}", f"{block}.{conv}"
            out |= _styled(ours, state, f"{theirs}.weight", f"{theirs}.affine", f"{theirs}.noise_strength",
                           f"{theirs}.bias")
            out[f"{ours}.noise_const"] = state[f"{theirs}.noise_const"][None, None]
        out |= _torgb(f"synthesis.blocks.{b}.torgb", state, f"{block}.torgb.weight", f"{block}.torgb.affine",
                      f"{block}.torgb.bias")
    return out


def nvidia_discriminator(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`b32...`, `b4...` -> the state dict of gapkd.stylegan2.Discriminator."""
    top = max(int(m[1]) for n in state if (m := re.match(r"b(\d+)\.", n)))
    out, b, r = {}, 0, top
    while r > 4:
        for layer in ("conv0.weight", "conv0.bias", "conv1.weight", "conv1.bias", "skip.weight"):
            out[f"blocks.{b}.{layer}"] = state[f"b{r}.{layer}"]
        b, r = b + 1, r // 2
    out |= {f"from_rgb.{p}": state[f"b{top}.fromrgb.{p}"] for p in ("weight", "bias")}
    return out | {f"{layer}.{p}": state[f"b4.{layer}.{p}"]
                  for layer in ("conv", "fc", "out") for p in ("weight", "bias")}


def rosinality_generator(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`style.1...`, `conv1...`, `convs.0...` -> the state dict of gapkd.stylegan2.Generator."""
    out = {"mapping.w_avg": torch.zeros_like(state["style.1.bias"]), "synthesis.const": state["input.input"]}
    for name, value in state.items():
        if m := re.fullmatch(r"style\.(\d+)\.(weight|bias)", name):  # layer 0 of theirs is the normalisation
            out[f"mapping.layers.{int(m[1]) - 1}.{m[2]}"] = value
    names = ["conv1"] + [f"convs.{i}" for i in range(sum(bool(re.fullmatch(r"convs\.\d+\.conv\.weight", n))
                                                         for n in state))]
    for layer, theirs in enumerate(names):
        b, second = (layer + 1) // 2, layer % 2 == 0
        ours = f"synthesis.blocks.{b}.conv{int(second)}"
        squeezed = state | {f"{theirs}.conv.weight": state[f"{theirs}.conv.weight"][0]}
        out |= _styled(ours, squeezed, f"{theirs}.conv.weight", f"{theirs}.conv.modulation", f"{theirs}.noise.weight",
                       f"{theirs}.activate.bias")
        out[f"{ours}.noise_const"] = state[f"noises.noise_{layer}"]
        if second:
            rgb = "to_rgb1" if b == 0 else f"to_rgbs.{b - 1}"
            squeezed = state | {f"{rgb}.conv.weight": state[f"{rgb}.conv.weight"][0]}
            out |= _torgb(f"synthesis.blocks.{b}.torgb", squeezed, f"{rgb}.conv.weight", f"{rgb}.conv.modulation",
                          f"{rgb}.bias")
    return out

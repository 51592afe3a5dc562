"""Costs: the published figures exactly, and what runs against a count by hand."""

from __future__ import annotations

import pytest
import torch

from gapkd.metrics.cost import (
    _LiveTensors,
    images_per_second,
    macs,
    parameters,
    process_memory,
    speed_ratio,
    working_memory,
)
from gapkd.networks.stylegan2 import Generator, config_f_channels
from gapkd.networks.stylegan3 import AliasFreeGenerator


def build(resolution: int, keep: float = 1.0, kernel: int = 3) -> Generator:
    channels = [c - int((1 - keep) * c) for c in config_f_channels(resolution)]
    with torch.device("meta"):  # a 1024 px teacher needs no memory to be counted
        return Generator(resolution, 512, 512, channels, kernel)


@pytest.mark.parametrize("resolution, keep, expected", [
    (256, 1.0, 45_124_673_536), (1024, 1.0, 74_266_894_336),
    (256, 0.3, 4_123_578_080), (1024, 0.3, 6_990_183_648)])
def test_published_macs_are_met_exactly(resolution, keep, expected):
    assert macs(build(resolution, keep), "paper") == expected


def test_published_sizes_of_the_students():
    assert parameters(build(256)) == pytest.approx(30.0e6, rel=0.002)
    assert parameters(build(256, 0.3)) == pytest.approx(5.6e6, rel=0.01)


def test_a_pointwise_second_convolution_is_cheaper():
    heter, student = build(256, 0.3, kernel=1), build(256, 0.3)
    assert macs(heter, "paper") < 0.5 * macs(student, "paper")
    assert parameters(heter) < parameters(student)


def test_true_macs_equal_a_count_by_hand():
    G = Generator(8, z_dim=5, w_dim=6, channels=[(3, 4), (7, 2)], mapping_layers=2)
    mapping = 5 * 6 + 6 * 6
    affines = 6 * (3 + 4 + 4 + 7 + 2)                    # conv 4x4, toRGB 4x4, up, conv, toRGB
    demodulation = 3 * 4 + 4 * 7 + 7 * 2                 # no demodulation in toRGB
    block4 = 16 * (3 * 4 * 9 + 4 * 3)
    # up on the 4x4 grid, blur, convolution, toRGB
    block8 = 16 * 4 * 7 * 9 + 64 * 7 * 16 + 64 * (7 * 2 * 9 + 2 * 3)
    skip = 16 * 3 * 16                       # the image: every input pixel times a 4x4 filter
    assert macs(G, "true") == mapping + affines + demodulation + block4 + block8 + skip
    published = mapping + affines + block4 + block8 - 64 * 7 * 16
    assert macs(G, "paper") == published


def test_labels_are_counted():
    plain, labelled = (Generator(8, 4, 4, 4, mapping_layers=1, c_dim=c) for c in (0, 3))
    for convention in ("true", "paper"):
        assert macs(labelled, convention) - macs(plain, convention) == 3 * 4 + 4 * 4


def test_a_convention_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match='"true" or "paper", not'):
        macs(Generator(8, 4, 4, 4, mapping_layers=1), "MACs")
    other = AliasFreeGenerator(16, 8, 8, [8, 8, 8], mapping_layers=2, margin=2)
    with pytest.raises(ValueError, match="known for StyleGAN2 only"):
        macs(other, "paper")
    assert macs(other) > 0


def test_parameters_leave_buffers_out():
    G = Generator(8, z_dim=5, w_dim=6, channels=4, mapping_layers=1)
    noise = sum(b.numel() for b in G.buffers())
    assert noise > 0 and parameters(G) == sum(p.numel() for p in G.parameters())


def test_speed_is_measured_and_the_ratio_sees_the_smaller_network():
    big, small = (Generator(32, 16, 16, width, mapping_layers=1) for width in (96, 8))
    assert images_per_second(small, batch=4, repeats=3) > 0
    assert speed_ratio(small, big, batch=4, repeats=5) > 1.5
    assert speed_ratio(big, small, batch=4, repeats=5) < 0.7


def test_live_tensors_are_counted_as_long_as_they_live():
    with _LiveTensors() as live:
        a = torch.ones(1000)
        b = a + 1
        del a
        c = b * 2
        assert (live.now, live.peak) == (8000, 8000)
        view = c.view(10, 100)  # no memory of its own
        assert live.now == 8000
        del b, c
        assert live.now == 4000
        del view
    assert (live.now, live.peak) == (0, 8000)
    weight = torch.ones(500)
    with _LiveTensors([weight]) as live:
        kept = weight.view(5, 100)  # the weight's own memory
        assert live.peak == 0 and len(kept) == 5


def test_working_memory_grows_with_the_batch_and_holds_the_largest_layer():
    torch.manual_seed(0)
    G = Generator(16, 8, 8, 32, mapping_layers=1).eval()
    one, eight = working_memory(G), working_memory(G, 8)
    assert one >= 2 * 32 * 16 * 16 * 4  # input and output of the widest convolution
    assert 2 * one < eight < 8 * one    # what is made of the weights, a batch shares


def test_the_memory_of_a_process_holds_what_it_allocates():
    little, much = (process_memory(f"x = bytearray({size})") for size in (1, 50_000_000))
    assert 45e6 < much - little < 60e6
    with pytest.raises(RuntimeError, match="failed: ZeroDivisionError"):
        process_memory("1 / 0")

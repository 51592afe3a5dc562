"""Costs: the published figures exactly, and what runs against a count by hand."""

from __future__ import annotations

import pytest
import torch

from gapkd.metrics.cost import images_per_second, macs, parameters, speed_ratio
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


def test_published_sizes_and_a_pointwise_second_convolution_is_cheaper():
    teacher, student, heter = build(256), build(256, 0.3), build(256, 0.3, kernel=1)
    assert parameters(teacher) == pytest.approx(30.0e6, rel=0.002)  # noise maps are left out
    assert parameters(student) == pytest.approx(5.6e6, rel=0.01)
    assert parameters(heter) < parameters(student)
    assert macs(heter, "paper") < 0.5 * macs(student, "paper")


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


def test_speed_is_measured_and_the_ratio_sees_the_smaller_network():
    big, small = (Generator(32, 16, 16, width, mapping_layers=1) for width in (96, 8))
    assert images_per_second(small, batch=4, repeats=3) > 0
    assert speed_ratio(small, big, batch=4, repeats=5) > 1.5
    assert speed_ratio(big, small, batch=4, repeats=5) < 0.7

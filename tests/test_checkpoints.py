"""Networks on disk: round trip, and one clear sentence for everything that is not one."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from gapkd.files.checkpoints import (
    CheckpointError,
    load_discriminator,
    load_generator,
    read_metadata,
    save_network,
    write_atomically,
)
from gapkd.networks.stylegan2 import Discriminator, Generator


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Generator(16, 8, 8, [(8, 6), (4, 5), (3, 2)], kernel=1, mapping_layers=2).eval()


def test_round_trip_bit_for_bit(tmp_path, network):
    file = save_network(network, tmp_path / "g.safetensors", {"seed": 3})
    loaded = load_generator(file)
    z = torch.randn(2, 8)
    assert torch.equal(loaded(z), network(z)) and not loaded.training
    assert read_metadata(file)["provenance"] == {"seed": 3}
    D = Discriminator(16, [4, 3, 2])
    assert torch.equal(load_discriminator(save_network(D, tmp_path / "d.safetensors"))(loaded(z)), D(loaded(z)))


def test_headers_of_any_length_are_recognised(tmp_path, network):
    """The file begins with the header's length: its first byte may be the one that pickles begin with."""
    seen = set()
    for n in range(0, 300, 8):
        file = save_network(network, tmp_path / "g.safetensors", {"note": "x" * n})
        seen.add(file.read_bytes()[0])
        assert load_generator(file).resolution == 16
    assert 0x80 in seen


def test_loading_leaves_the_random_state_alone(tmp_path, network):
    file = save_network(network, tmp_path / "g.safetensors")
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    load_generator(file)
    assert torch.equal(torch.rand(1), expected)


def cut(file, network):
    file.write_bytes(file.read_bytes()[:-100])


def text(file, network):
    file.write_text("hello")


def foreign(file, network):
    save_file({"a": torch.zeros(2)}, file)


def discriminator(file, network):
    save_network(Discriminator(8, 2), file)


def not_finite(file, network):
    content = bytearray(file.read_bytes())
    content[-200:-100] = b"\xff" * 100
    file.write_bytes(content)


def wrong_shape(file, network):
    tensors = {k: v.clone() for k, v in network.state_dict().items()}
    architecture = json.dumps(network.architecture() | {"w_dim": 9})
    save_file(tensors, file,
              {"gapkd": "1", "kind": "stylegan2-generator", "architecture": architecture, "provenance": "{}"})


def nothing_enters(file, network):
    tensors = {k: v.clone() for k, v in network.state_dict().items()}
    architecture = json.dumps(network.architecture() | {"z_dim": 0})
    save_file(tensors, file,
              {"gapkd": "1", "kind": "stylegan2-generator", "architecture": architecture, "provenance": "{}"})


def absurd(file, network):
    architecture = json.dumps(network.architecture() | {"channels": [[10**6, 10**6]] * 3})
    save_file({"a": torch.zeros(2)}, file,
              {"gapkd": "1", "kind": "stylegan2-generator", "architecture": architecture, "provenance": "{}"})


@pytest.mark.parametrize("damage, message", [
    (cut, "not a whole safetensors"), (text, "is text: expected a network as"), (foreign, "not one of gapkd's"),
    (discriminator, "of the kind stylegan2-discriminator"), (not_finite, "weights that are not finite"),
    (wrong_shape, "do not fit"), (nothing_enters, "do not fit"), (absurd, "do not fit")])
def test_unusable_files(tmp_path, network, damage, message):
    file = tmp_path / "network.safetensors"
    save_network(network, file)
    damage(file, network)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_generator(file)
    assert "network.safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file():
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .* embedded network \(.*toyfaces32, "):
        load_generator("nowhere.safetensors")


def test_missing_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("GAPKD_DATA", str(tmp_path))
    with pytest.raises(CheckpointError, match=f"there is none in {tmp_path}"):
        load_generator("toyfaces32")


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "x"
    write_atomically(file, b"old")
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gapkd.files.storage.os.replace", full)
    with pytest.raises(OSError, match="untouched"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["x"]

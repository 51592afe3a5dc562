"""Networks on disk: round trip and missing files; writing that leaves a file whole or not there;
where things come from."""

from __future__ import annotations

import errno
import math
import os
import re
import stat

import numpy as np
import pytest
import torch
from torch.nn.utils import prune

from gapkd.files import provenance, storage
from gapkd.files.checkpoints import (
    CheckpointError,
    load_discriminator,
    load_generator,
    read_metadata,
    save_network,
    sha256,
)
from gapkd.networks import families
from gapkd.networks.stylegan2 import Discriminator, Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator


@pytest.mark.parametrize("family, arguments", [
    (Generator, {"resolution": 8, "z_dim": 4, "w_dim": 4, "channels": [[5, 4], [3, 2]],
                 "mapping_layers": 1, "c_dim": 2, "clamp": 2.0, "img_channels": 4}),
    (Discriminator, {"resolution": 8, "channels": [3, 2], "mbstd_group": None, "clamp": 0.5,
                     "clamp_skips": True, "img_channels": 1}),
    (AliasFreeGenerator, {"resolution": 16, "z_dim": 4, "w_dim": 4, "channels": [4, 3, 3],
                          "radial": True, "kernel": 1, "clamp": 256.0, "img_channels": 1})])
def test_round_trip_bit_for_bit(tmp_path, family, arguments):
    saved = family(**arguments)
    assert saved.architecture() | arguments == saved.architecture()
    load = load_discriminator if isinstance(saved, Discriminator) else load_generator
    torch.manual_seed(1)
    file = save_network(saved, tmp_path / "g.safetensors", {"seed": 3})
    loaded, drawn = load(file), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)  # loading leaves the random state alone
    assert loaded.state_dict().keys() == saved.state_dict().keys()
    for name, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert read_metadata(file) == {"kind": saved.kind, "provenance": {"seed": 3},
                                   "architecture": loaded.architecture()}
    assert loaded.architecture() == saved.architecture() and sha256(file) == storage.sha256(file)


@pytest.mark.parametrize("provenance, weight, message", [
    ([1], 0.0, "provenance must be a dict"), ({"r": np.float32(3)}, 0.0, "float32.*: a number of"),
    ({}, math.nan, "synthesis.const is not finite"), ({}, math.inf, "synthesis.const is not fin")])
def test_what_could_not_be_loaded_is_not_saved(tmp_path, provenance, weight, message):
    G = Generator(8, 4, 4, 4, mapping_layers=1)
    file = save_network(G, tmp_path / "g.safetensors")
    G.synthesis.const.data[:] = weight
    with pytest.raises(ValueError, match=message):
        save_network(G, file, provenance)
    assert load_generator(file).synthesis.const.any()


@pytest.mark.parametrize("change, message", [
    (lambda G: prune.l1_unstructured(G.mapping.layers[0], "weight", 0.5), "kept in parts, by wei"),
    (lambda G: G.add_module("head", torch.nn.Linear(2, 2)), "head.bias is not in a network of its"),
    (lambda G: G.to(torch.float8_e4m3fn), "float8_e4m3fn.* could not be loaded: save netw"),
    (lambda G: setattr(G.mapping.layers[0], "weight", torch.nn.Parameter(torch.ones(3, 4))),
     "has the shape .3, 4., not .4, 4. as in"),
    (lambda G: G.state_dict(), "generator or discriminator of gapkd, not a OrderedDict")])
def test_a_changed_network_is_not_written_over_a_good_file(tmp_path, change, message):
    G = Generator(8, 4, 4, 4, mapping_layers=1)
    file = save_network(G, tmp_path / "g.safetensors")
    before, changed = file.read_bytes(), change(G)
    with pytest.raises(ValueError, match=message):
        save_network(changed if isinstance(changed, dict) else G, file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel,
                                  lambda G: torch.nn.DataParallel(torch.compile(G))])
def test_a_compiled_or_spread_network_is_saved_as_what_it_is(tmp_path, wrap):
    G = Generator(8, np.int64(4), 4, 4, mapping_layers=1)
    loaded = load_generator(save_network(wrap(G), tmp_path / "g.safetensors"))
    assert torch.equal(loaded.synthesis.const, G.synthesis.const)


def test_a_tilde_is_the_home_folder_where_files_are_written_too(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    save_network(Generator(8, 4, 4, 4, mapping_layers=1), "~/g.safetensors")
    assert load_generator("~/g.safetensors").resolution == 8
    storage.write_folder("~/folder", {"a.txt": b"a"})
    with pytest.raises(ValueError, match="exists already"):
        storage.new_file("~/g.safetensors")
    with pytest.raises(ValueError, match="exists already"):
        storage.new_folder("~/folder")
    assert storage.check_place("~/new") == tmp_path / "home/new"
    for name, folder in (("DATA", storage.data_folder), ("CACHE", storage.cache_folder)):
        monkeypatch.setenv(f"GAPKD_{name}", "~/d")
        assert folder() == tmp_path / "home/d"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_new_family_needs_no_change_here(tmp_path, monkeypatch):
    class Tiny(Generator):
        kind = "tiny-generator"

    monkeypatch.setitem(families.NETWORKS, "tiny-generator", Tiny)
    file = save_network(Tiny(8, 4, 4, 4, mapping_layers=1), tmp_path / "g.safetensors")
    assert type(load_generator(file)) is Tiny


def test_headers_of_any_length_are_recognised(tmp_path):
    """A file begins with its header's length: the first byte may be that of pickles."""
    seen, network = set(), Generator(8, 4, 4, 4, mapping_layers=1)
    for n in range(0, 300, 8):
        file = save_network(network, tmp_path / "g.safetensors", {"note": "x" * n})
        seen.add(file.read_bytes()[0])
        assert load_generator(file).resolution == 8
    assert 0x80 in seen


def test_missing_files(monkeypatch, tmp_path):
    embedded = r"there is no checkpoint .* embedded network \(.*toyfaces32, "
    for name in ("nowhere.safetensors", "nowhere"):
        with pytest.raises(CheckpointError, match=embedded):
            load_generator(name)
    with pytest.raises(CheckpointError, match="did you mean toyfaces64_discrim"):
        load_discriminator("toyfaces64_discriminatr")
    with pytest.raises(CheckpointError) as caught:
        load_generator("attribute")
    assert not re.search("attributes|judge|discriminator", str(caught.value))
    monkeypatch.setenv("GAPKD_DATA", str(tmp_path))
    with pytest.raises(CheckpointError, match=f"there is none in {tmp_path}"):
        load_generator("toyfaces32")
    with pytest.raises(FileNotFoundError, match=f"toyfaces32.x is not in {tmp_path}: install"):
        storage.data_path("toyfaces32.x")
    with pytest.raises(CheckpointError, match="is a folder: name the file in it"):
        load_generator(tmp_path)


def test_an_empty_name_is_not_what_lies_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_network(Generator(8, 4, 4, 4, mapping_layers=1), "model.safetensors")
    save_network(Discriminator(8, 2), "discriminator.safetensors")
    for read in (load_generator, load_discriminator, read_metadata, sha256):
        with pytest.raises(CheckpointError, match="a network's name is empty: give a file, or"):
            read("")


# -------------------------------------------------------------------------- storage, provenance


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    file = storage.write_atomically(tmp_path / "x", b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="could not write .*No space left.*there before is untouched"):
        storage.write_atomically(file, b"new")
    assert file.read_bytes() == b"old" and os.listdir(tmp_path) == ["x"]


def test_a_folder_in_a_files_place_is_to_be_moved(tmp_path):
    (tmp_path / "x" / "kept").mkdir(parents=True)
    with pytest.raises(OSError, match="could not write .*/x .Is a directory.: move that folder "):
        storage.write_atomically(tmp_path / "x", b"new")
    assert (tmp_path / "x" / "kept").is_dir()


def test_folders_that_cannot_be_synchronised(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    assert storage.write_atomically(tmp_path / "below" / "x", b"new").read_bytes() == b"new"


def test_provenance(monkeypatch, tmp_path):
    known = provenance.provenance()
    assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", known["commit"]) and known["hardware"]
    assert known["torch"] == torch.__version__ and re.fullmatch(r"\d{4}-\d\d-\d\d", known["date"])
    monkeypatch.setattr(provenance, "ROOT", tmp_path)  # as if installed in another repository
    assert provenance.provenance()["commit"] == "unknown"
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert provenance.provenance(torch.device("cuda:1"))["hardware"] == "card 1"
    assert provenance.provenance(torch.device("cpu"))["hardware"] == known["hardware"]
    monkeypatch.setenv("PATH", "")  # no git there
    assert provenance.provenance()["commit"] == "unknown"

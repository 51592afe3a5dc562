"""ONNX files draw what their generator draws, whatever is left out or given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import perturb

import gapkd
from gapkd.cli import main
from gapkd.files.checkpoints import save_network
from gapkd.metrics.editing import Directions, save_directions, sefa
from gapkd.networks.mobile import MobileGenerator
from gapkd.networks.stylegan2 import Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator
from gapkd.sharing import export as module
from gapkd.sharing.export import (
    Drawing,
    ExportConfig,
    ExportError,
    compare,
    drawn_by,
    export,
    read_onnx_facts,
    session,
    to_onnx,
)

pytest.importorskip("onnxruntime", reason="needs the extra `export`")


def network(**changes) -> Generator:
    torch.manual_seed(0)
    sizes = {"resolution": 8, "z_dim": 8, "w_dim": 8, "channels": 32, "mapping_layers": 2}
    return perturb(Generator(**sizes | changes)).eval()


def mobile() -> MobileGenerator:
    return perturb(MobileGenerator(16, 8, 8, channels=32, mapping_layers=2))


def alias_free(radial: bool) -> AliasFreeGenerator:
    kernel = 1 if radial else 3
    return AliasFreeGenerator(16, 8, 8, [8, 8, 8], kernel=kernel, radial=radial, margin=2)


FAMILIES = {"stylegan2": network, "stylegan3-t": lambda: alias_free(False),
            "stylegan3-r": lambda: alias_free(True), "mobile": mobile}


@pytest.fixture(scope="module")
def G():
    return network()


@pytest.fixture(scope="module")
def content(G):
    return to_onnx(G)


@pytest.fixture(scope="module")
def file(G, tmp_path_factory):
    """A generator's file."""
    return str(save_network(G, tmp_path_factory.mktemp("export") / "g.safetensors", {"seed": 5}))


@pytest.fixture(scope="module")
def written(file, tmp_path_factory):
    """What the command makes of it."""
    path = tmp_path_factory.mktemp("export") / "g.onnx"
    assert main(["export", file, "--onnx", str(path), "--latents", "20"]) == 0
    return path


def close(found, wanted, atol=1e-5):
    torch.testing.assert_close(found, wanted, atol=atol, rtol=0)


def test_exporting_leaves_a_network_in_training():
    G = network().train()
    to_onnx(G)
    assert all(part.training for part in G.modules())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_drawn_at_every_batch_size(family):
    torch.manual_seed(0)
    G = FAMILIES[family]().eval()
    draw = drawn_by(to_onnx(G))
    for n in (1, 2, 5):
        z = torch.randn(n, 8)
        close(draw({"z": z}), G(z), atol=1e-4)
        given = {"z": z, "truncation": torch.tensor([0.7])}
        close(draw(given), G(z, truncation=0.7), atol=1e-4)


def test_offset_is_added_to_ws(G, content):
    z, offset = torch.randn(3, 8), torch.randn(3, G.num_ws, 8)
    draw, ws = drawn_by(content), G.mapping(z)[:, None]
    close(draw({"z": z, "offset": offset}), G.synthesis(ws + offset).image)
    one = draw({"z": z, "offset": offset[:1]})  # one edit for all
    close(one, G.synthesis(ws + offset[:1]).image)
    optional = {v.name: v.shape for v in session(content).get_overridable_initializers()}
    assert optional == {"truncation": [1], "offset": ["offset_batch", G.num_ws, 8]}
    found = torch.from_numpy(session(content).run(["ws"], {"z": z.numpy()})[0])
    close(found, ws.expand(-1, G.num_ws, -1))
    truncated = G.truncate(ws, 0.5) + offset
    given = {"z": z, "offset": offset, "truncation": torch.tensor([0.5])}
    close(draw(given), G.synthesis(truncated).image)


def test_a_conditional_network_asks_for_its_labels():
    G = network(c_dim=3)
    content = to_onnx(G)
    assert [value.name for value in session(content).get_inputs()] == ["z", "c"]
    z, c = torch.randn(3, 8), torch.eye(3)
    close(drawn_by(content)({"z": z, "c": c}), G(z, c))
    assert compare(drawn_by(content), Drawing(G), 3)[0] < 1e-5


@pytest.mark.parametrize("precision, factor, grey", [("float16", 0.85, 0.5), ("int8", 0.6, 8)])
def test_smaller_weights_draw_nearly_the_same(G, content, precision, factor, grey):
    small = to_onnx(G, precision=precision)
    assert len(small) < factor * len(content)
    _, mean = compare(drawn_by(small), Drawing(G), 20)
    assert 0 < mean < grey * module.GREY
    _, exact = compare(drawn_by(content), Drawing(G), 20)
    assert exact < mean / 10


@pytest.mark.parametrize("make", [network, mobile])
def test_int8_has_a_scale_for_every_output_channel(make):
    import onnx

    torch.manual_seed(0)
    G = make()
    model = onnx.load_from_string(to_onnx(G, precision="int8"))
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    readers = {name: node for node in model.graph.node for name in node.input}
    found = 0
    for node in model.graph.node:
        weight = G.state_dict().get(node.output[0].removeprefix("G."))
        reader = readers.get(node.output[0])
        if node.op_type == "DequantizeLinear" and weight is not None and reader.op_type == "Conv":
            found += 1
            stored, scale = (tensors[name] for name in node.input)
            largest = weight.abs().amax(dim=(1, 2, 3)).numpy()
            assert stored.dtype == np.int8 and scale == pytest.approx(largest / 127)
            scale = scale[:, None, None, None]
            assert (np.abs(stored * scale - weight.numpy()) <= scale / 2 + 1e-6).all()
    assert found


@pytest.mark.parametrize("group, axis", [(1, 1), (4, 0)])
def test_a_transposed_convolution_has_its_channels_elsewhere(group, axis):
    from onnx import helper

    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=group)
    assert module.output_axis(node, 4) == axis


@pytest.mark.parametrize("precision", module.LIMITS)
def test_the_file_explains_itself_to_other_programs(precision):
    import onnx

    model = onnx.load_from_string(to_onnx(network(c_dim=3), precision))
    assert (model.producer_name, model.producer_version) == ("gapkd", gapkd.__version__)
    assert f"8 x 8 px, {precision}" in model.doc_string
    assert model.graph.name == "stylegan2-generator"
    values = {value.name: value for value in (*model.graph.input, *model.graph.output)}
    first = {n: v.type.tensor_type.shape.dim[0].dim_param or 1 for n, v in values.items()}
    assert first == {"z": "batch", "c": "batch", "truncation": 1, "offset": "offset_batch",
                     "image": "batch", "ws": "batch"}
    assert all(value.doc_string for value in values.values())
    names = [node.name for node in model.graph.node]
    assert all(names) and len(set(names)) == len(names)


def test_the_command_writes_and_says_what_it_checked(written):
    facts = read_onnx_facts(written)
    assert facts["check"]["latents"] == 20 and facts["check"]["largest"] < 1e-4
    known = facts["kind"], facts["num_ws"], facts["name"], facts["provenance"]
    assert known == ("stylegan2-generator", 4, "g", {"seed": 5})
    assert len(facts["directions"]["vectors"][0]) == 8 and not facts["directions"]["given"]


@pytest.mark.parametrize("limits", [(1e-12, np.inf), (np.inf, 1e-12)])
def test_nothing_is_written_when_the_check_fails(file, tmp_path, monkeypatch, limits):
    monkeypatch.setitem(module.LIMITS, "float32", limits)
    with pytest.raises(ExportError, match="float32 does not hold for .*safetensors.* is written"):
        export(ExportConfig(file, str(tmp_path / "g.onnx"), latents=3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("latents", [1, 3, 30])
def test_the_check_counts_its_latents(G, latents):
    seen = []

    def draw(given):
        seen.append(len(given["z"]))
        return Drawing(G)(**given)[0] + 0.25 * (len(seen) % 2)  # every second batch is right

    largest, mean = compare(draw, Drawing(G), latents)
    assert sum(seen) == latents and largest == pytest.approx(0.25, rel=1e-3)
    assert mean == pytest.approx(0.25 * sum(seen[::2]) / latents, rel=1e-3)


def exported(file, folder, directions) -> dict:
    """What an ONNX file with those directions says of them."""
    kept = str(save_directions(directions, folder / "d.safetensors"))
    export(ExportConfig(file, str(folder / "g.onnx"), latents=2, directions=kept))
    return read_onnx_facts(folder / "g.onnx")["directions"]


def test_directions_go_into_the_file(file, tmp_path):
    own = Directions(("smile",), torch.eye(8)[:1], torch.tensor([2.0]))
    assert exported(file, tmp_path, own) == {
        "names": ["smile"], "reach": [2.0], "vectors": [[1.0] + [0.0] * 7], "given": True}


def test_directions_of_another_w_are_told_of(file, tmp_path):
    with pytest.warns(UserWarning, match="found in another W than that of .*g.safetensors, .*"
                      "with `gapkd directions .*g.safetensors --out FILE`"):
        exported(file, tmp_path, sefa(network(mapping_layers=3)))


def test_the_file_tells_nothing_of_the_machine(G, tmp_path):
    settings = {"teacher": "/home/secret/big/generator.safetensors", "out": "/home/secret/run7",
                "data": "/home/secret/photos.zip", "device": "cuda:3", "images": 5}
    path = tmp_path / "run7" / "generator.safetensors"
    save_network(G, path, {"settings": settings, "started_from": {"settings": settings}})
    export(ExportConfig(str(path), str(tmp_path / "g.onnx"), latents=2))
    facts = read_onnx_facts(tmp_path / "g.onnx")
    assert facts["name"] == "run7/generator" and facts["provenance"]["settings"]["images"] == 5
    content = (tmp_path / "g.onnx").read_bytes()
    assert not any(word in content for word in (b"/home", b"secret", b"cuda:3"))


@pytest.mark.parametrize("options, message", [
    ("", "say what to write: --onnx FILE.onnx, --program FILE.pt2, or both"),
    ("--onnx g.bin", "onnx=g.bin must end in .onnx"),
    ("--program g.onnx", "program=g.onnx must end in .pt2"),
    ("--program g.pt2 --precision int8", "precision=int8 is for ONNX files"),
    ("--program g.pt2 --directions d.safetensors", "directions=d.safetensors is for ONNX files"),
    ("--onnx g.onnx --latents 0", "latents must be at least 1"),
    ("--onnx there.onnx", "there.onnx exists already"),
    ("--onnx g.onnx --directions d.safetensors", "directions of width 4")])
def test_bad_settings_give_one_sentence(file, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.onnx").write_text("mine")
    save_directions(Directions(("smile",), torch.eye(4)[:1], torch.ones(1)), "d.safetensors")
    assert main(["export", file, *options.split()]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert (tmp_path / "there.onnx").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


def test_foreign_files_are_no_onnx_of_ours(tmp_path, file):
    (tmp_path / "a.onnx").write_bytes(b"rubbish")
    for path in (tmp_path / "a.onnx", file):
        with pytest.raises(ExportError, match="is no ONNX file of `gapkd export`"):
            read_onnx_facts(path)
    with pytest.raises(ExportError, match="there is no file"):
        read_onnx_facts(tmp_path / "b.onnx")


def test_a_missing_extra_is_named(G, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"missing: onnx, .*; pip install 'gapkd\[export\]'"):
        to_onnx(G)


def test_a_program_draws_what_the_generator_draws(tmp_path):
    G = network(resolution=16, z_dim=6, w_dim=6, channels=8)
    source = save_network(G, tmp_path / "g.safetensors")
    (made,) = export(ExportConfig(str(source), program=str(tmp_path / "g.pt2"), latents=5))
    assert made.path == tmp_path / "g.pt2" and made.largest < 1e-4
    program = torch.export.load(made.path).module()  # needs nothing of gapkd
    z, offset = torch.randn(3, 6), torch.zeros(3, G.num_ws, 6)
    image, ws = program(z, torch.tensor([0.5]), offset)
    torch.testing.assert_close(image, G(z, truncation=0.5), rtol=1e-4, atol=1e-4)
    assert ws.shape == (3, G.num_ws, 6)

"""ONNX files and torch.export programs draw what their generator draws, whatever is left out or given."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from gapkd.sharing import export as module
from gapkd.cli import main
from gapkd.files.checkpoints import save_network
from gapkd.metrics.editing import Directions, save_directions, sefa
from gapkd.networks.stylegan2 import Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator
from gapkd.sharing.export import Drawing, ExportConfig, ExportError, compare, export, read_onnx_facts, session, to_onnx

pytest.importorskip("onnxruntime", reason="needs the extra `export`")


def network(**changes) -> Generator:
    torch.manual_seed(0)
    G = Generator(**{"resolution": 8, "z_dim": 8, "w_dim": 8, "channels": 32, "mapping_layers": 2} | changes).eval()
    with torch.no_grad():
        G.mapping.w_avg.normal_()
        for conv in G.synthesis.convs:
            conv.noise_strength.fill_(0.3)
    return G


@pytest.fixture(scope="module")
def G():
    return network()


@pytest.fixture(scope="module")
def content(G):
    return to_onnx(G)


@pytest.fixture(scope="module")
def folder(G, tmp_path_factory):
    """A generator's file, and what the command makes of it."""
    folder = tmp_path_factory.mktemp("export")
    save_network(G, folder / "g.safetensors", {"seed": 5})
    export(ExportConfig(str(folder / "g.safetensors"), str(folder / "g.onnx"), str(folder / "g.pt2"), latents=20))
    return folder


def images(opened, **given):
    return torch.from_numpy(opened.run(["image"], {k: v.numpy() for k, v in given.items()})[0])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_every_batch_size(G, content, n):
    z = torch.randn(n, 8)
    torch.testing.assert_close(images(session(content), z=z), G(z), atol=1e-5, rtol=0)


def test_what_is_left_out_has_its_default(G, content):
    z, opened = torch.randn(3, 8), session(content)
    full = Drawing(G).complete({"z": z})
    torch.testing.assert_close(images(opened, z=z), Drawing(G)(*full)[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(images(opened, z=z, truncation=torch.tensor([0.5])), G(z, truncation=0.5), atol=1e-5,
                               rtol=0)


def test_offset_and_noise_are_what_they_are_in_the_generator(G, content):
    z, offset = torch.randn(3, 8), torch.randn(3, G.num_ws, 8)
    noise = G.synthesis.draw_noise(3, torch.Generator().manual_seed(1))
    wanted = G.synthesis(G.mapping(z)[:, None] + offset, noise=noise).image
    found = images(session(content), z=z, offset=offset, **{f"noise_{i}": m for i, m in enumerate(noise)})
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    one = images(session(content), z=z, offset=offset[:1])   # one edit for all
    torch.testing.assert_close(one, G.synthesis(G.mapping(z)[:, None] + offset[:1]).image, atol=1e-5, rtol=0)


def test_the_ws_are_an_output(G, content):
    z = torch.randn(2, 8)
    ws = torch.from_numpy(session(content).run(["ws"], {"z": z.numpy()})[0])
    torch.testing.assert_close(ws, G.mapping(z)[:, None].expand(-1, G.num_ws, -1), atol=1e-5, rtol=0)


def test_the_synthesis_network_alone(G):
    opened = session(to_onnx(G, inputs="ws"))
    assert [i.name for i in opened.get_inputs()] == ["ws"]
    ws = torch.randn(3, G.num_ws, 8)
    torch.testing.assert_close(images(opened, ws=ws), G.synthesis(ws).image, atol=1e-5, rtol=0)


def test_a_conditional_network_asks_for_its_labels():
    G = network(c_dim=3)
    opened = session(to_onnx(G))
    assert [i.name for i in opened.get_inputs()] == ["z", "c"]
    z, c = torch.randn(3, 8), torch.eye(3)
    torch.testing.assert_close(images(opened, z=z, c=c), G(z, c), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("radial", [False, True])
def test_stylegan3(radial):
    torch.manual_seed(0)
    G = AliasFreeGenerator(16, 8, 8, [8, 8, 8], kernel=1 if radial else 3, radial=radial, margin=2).eval()
    opened = session(to_onnx(G))
    for n in (1, 3):
        z = torch.randn(n, 8)
        torch.testing.assert_close(images(opened, z=z, truncation=torch.tensor([0.7])), G(z, truncation=0.7),
                                   atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision, factor, grey", [("float16", 0.85, 0.5), ("int8", 0.6, 8)])
def test_smaller_weights_draw_nearly_the_same(G, content, precision, factor, grey):
    small = to_onnx(G, precision=precision)
    assert len(small) < factor * len(content)
    _, mean = compare(module.drawn_by(small), Drawing(G), 20, seed=0)
    assert 0 < mean < grey * module.GREY
    _, exact = compare(module.drawn_by(content), Drawing(G), 20, seed=0)
    assert exact < mean / 10


def test_int8_has_a_scale_for_every_output_channel(G):
    import onnx

    model = onnx.load_from_string(to_onnx(G, precision="int8"))
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    conv = next(node for node in model.graph.node if node.op_type == "Conv" and node.input[1].endswith("weight"))
    node = next(node for node in model.graph.node if node.output[0] == conv.input[1])
    stored, scale = (tensors[name] for name in node.input)
    assert node.op_type == "DequantizeLinear" and stored.dtype == np.int8 and scale.shape == (stored.shape[0],)
    weight = G.state_dict()[conv.input[1].removeprefix("G.")].numpy()
    assert np.abs(stored * scale[:, None, None, None] - weight).max() <= scale.max() / 2 + 1e-6


def test_the_command_writes_and_says_what_it_checked(folder):
    facts = read_onnx_facts(folder / "g.onnx")
    assert facts["check"]["latents"] == 20 and facts["check"]["largest"] < 1e-4
    assert (facts["kind"], facts["num_ws"], facts["name"]) == ("stylegan2-generator", 4, "g")
    assert facts["provenance"] == {"seed": 5} and len(facts["directions"]["vectors"][0]) == 8


def test_the_program_draws_the_same(G, folder):
    draw = torch.export.load(io.BytesIO((folder / "g.pt2").read_bytes())).module()
    z = torch.randn(5, 8)
    torch.testing.assert_close(draw(*Drawing(G).complete({"z": z}))[0], G(z), atol=1e-5, rtol=0)


def test_nothing_is_written_when_the_check_fails(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(module.LIMITS, "float32", (1e-12, 1e-12))
    with pytest.raises(ExportError, match="float32 does not hold for .*g.safetensors.* nothing is written"):
        export(ExportConfig(str(folder / "g.safetensors"), str(tmp_path / "g.onnx"), latents=3))
    assert not list(tmp_path.iterdir())


def test_the_check_sees_a_wrong_network(G, content):
    other = network()
    with torch.no_grad():
        other.synthesis.convs[1].bias[0] += 0.05
    largest, _ = compare(module.drawn_by(content), Drawing(other), 10, seed=0)
    assert largest > 1e-3


def test_directions_go_into_the_file(folder, tmp_path):
    save_directions(Directions(("smile",), torch.eye(8)[:1], torch.tensor([2.0])), tmp_path / "d.safetensors")
    export(ExportConfig(str(folder / "g.safetensors"), str(tmp_path / "g.onnx"), latents=2,
                        directions=str(tmp_path / "d.safetensors")))
    assert read_onnx_facts(tmp_path / "g.onnx")["directions"] == {
        "names": ["smile"], "reach": [2.0], "vectors": [[1.0] + [0.0] * 7], "given": True}


def test_directions_of_another_w_are_told_of(folder, tmp_path):
    stranger = network(mapping_layers=3)
    save_directions(sefa(stranger), tmp_path / "d.safetensors")
    with pytest.warns(UserWarning, match="d.safetensors were found in another W than that of .*g.safetensors"):
        export(ExportConfig(str(folder / "g.safetensors"), str(tmp_path / "g.onnx"), latents=2,
                            directions=str(tmp_path / "d.safetensors")))


def test_the_file_tells_nothing_of_the_machine(G, tmp_path):
    settings = {"teacher": "/home/secret/big/generator.safetensors", "data": "/home/secret/photos.zip",
                "out": "/home/secret/run7", "device": "cuda:3", "images": 5}
    path = save_network(G, tmp_path / "run7" / "generator.safetensors", {"settings": settings})
    export(ExportConfig(str(path), str(tmp_path / "g.onnx"), latents=2))
    facts = read_onnx_facts(tmp_path / "g.onnx")
    assert facts["name"] == "run7/generator" and facts["provenance"]["settings"]["images"] == 5
    content = (tmp_path / "g.onnx").read_bytes()
    assert not any(word in content for word in (b"/home", b"secret", b"cuda:3"))


def test_a_failing_program_leaves_no_onnx_file(folder, tmp_path, monkeypatch):
    judged = []

    def judge(*given):
        judged.append(given)
        if len(judged) == 2:
            raise ExportError("does not hold")
        return 0.0, 0.0

    monkeypatch.setattr(module, "_judge", judge)
    with pytest.raises(ExportError, match="does not hold"):
        export(ExportConfig(str(folder / "g.safetensors"), str(tmp_path / "g.onnx"), str(tmp_path / "g.pt2")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes, message", [
    ({"onnx": "g.bin"}, "onnx=g.bin must end in .onnx"), ({"onnx": ""}, "say what to write"),
    ({"latents": 0}, "latents must be at least 1"), ({"program": "p.pt2", "precision": "int8"}, "is for ONNX files"),
])
def test_bad_settings_give_one_sentence(folder, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=message):
        export(ExportConfig(**{"generator": str(folder / "g.safetensors"), "onnx": "new.onnx"} | changes))
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_widths_must_fit(folder, tmp_path, capsys):
    before = (folder / "g.onnx").read_bytes()
    assert main(["export", str(folder / "g.safetensors"), "--onnx", str(folder / "g.onnx")]) == 2
    assert "g.onnx exists already" in capsys.readouterr().err and (folder / "g.onnx").read_bytes() == before
    save_directions(Directions(("smile",), torch.eye(4)[:1], torch.ones(1)), tmp_path / "d.safetensors")
    assert main(["export", str(folder / "g.safetensors"), "--onnx", str(tmp_path / "g.onnx"), "--directions",
                 str(tmp_path / "d.safetensors")]) == 2
    assert "directions of width 4" in capsys.readouterr().err


def test_foreign_files_are_no_onnx_of_ours(tmp_path, folder):
    (tmp_path / "a.onnx").write_bytes(b"rubbish")
    for path in (tmp_path / "a.onnx", folder / "g.safetensors"):
        with pytest.raises(ExportError, match="is no ONNX file of `gapkd export`"):
            read_onnx_facts(path)
    with pytest.raises(ExportError, match="there is no file"):
        read_onnx_facts(tmp_path / "b.onnx")


def test_a_missing_extra_is_named(G, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match="onnx and onnxscript are missing: pip install 'gapkd[[]export[]]"):
        to_onnx(G)

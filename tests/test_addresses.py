"""Networks by address: fetched once, verified, continued after a break; every failure one sentence."""

from __future__ import annotations

import hashlib
import http.server
import threading

import pytest
import torch

from gapkd.addresses import AddressError, cache_folder, fetch, is_address
from gapkd.checkpoints import CheckpointError, load_generator, save_network
from gapkd.stylegan2 import Generator

CONTENT = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at /net.pkl; `limit` bytes an answer at most, then it hangs up."""

    def __init__(self):
        super().__init__(("localhost", 0), Handler)
        self.requests, self.limit, self.tag, self.content, self.status = [], None, '"one"', CONTENT, None

    @property
    def address(self) -> str:
        return f"http://localhost:{self.server_port}/net.pkl"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        if self.server.status:
            return self.send_error(self.server.status)
        start = 0
        if wanted and self.headers.get("If-Range") == self.server.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(self.server.content):
            return self.send_error(416)
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", self.server.tag)
        self.end_headers()
        self.wfile.write(body[:self.server.limit])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("GAPKD_CACHE", str(tmp_path / "cache"))
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_fetched_once_and_verified(server):
    address = f"{server.address}#sha256={DIGEST.upper()}"
    file = fetch(address, progress=False)
    assert file.read_bytes() == CONTENT and file.parent == cache_folder() and file.name.endswith("-net.pkl")
    assert fetch(address, progress=False) == file and len(server.requests) == 1
    assert {f.name for f in file.parent.iterdir()} <= {file.name, f"{file.name}.lock"}


def test_a_fetch_that_was_cut_off_goes_on(server):
    server.limit = 400_000
    address = f"{server.address}#sha256={DIGEST}"
    with pytest.raises(AddressError, match="could not be fetched .* goes on from there"):
        fetch(address, progress=False)
    assert not [f for f in cache_folder().iterdir() if f.name.endswith("net.pkl")]
    server.limit = None
    assert fetch(address, progress=False).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=400000-"]


def test_another_version_is_begun_anew(server):
    server.limit = 400_000
    with pytest.raises(AddressError):
        fetch(f"{server.address}#sha256={DIGEST}", progress=False)
    server.limit, server.tag, server.content = None, '"two"', CONTENT[::-1]
    digest = hashlib.sha256(server.content).hexdigest()
    assert fetch(f"{server.address}#sha256={digest}", progress=False).read_bytes() == CONTENT[::-1]


def test_a_partial_file_that_is_too_long_is_begun_anew(server):
    server.limit = 400_000
    with pytest.raises(AddressError):
        fetch(f"{server.address}#sha256={DIGEST}", progress=False)
    server.limit = None
    (partial,) = cache_folder().glob("*.partial")
    partial.write_bytes(CONTENT + b"more")
    assert fetch(f"{server.address}#sha256={DIGEST}", progress=False).read_bytes() == CONTENT


def test_what_does_not_match_its_sum_is_removed(server):
    wrong = "0" * 64
    with pytest.raises(AddressError, match="has another check sum .* removed from the cache"):
        fetch(f"{server.address}#sha256={wrong}", progress=False)
    assert not list(cache_folder().glob("*-net.pkl"))


def test_failures_are_sentences(server, tmp_path, monkeypatch):
    server.status = 404
    for address, message in (
            (f"{server.address}#sha256={DIGEST}", "the server says 404"),
            (server.address, "could be altered on its way"),
            (f"{server.address}#md5=1", "must be sha256= and 64"),
            ("ftp://example.org/a.pkl", "not an address that can be fetched"), ("https:///a.pkl", "not an address"),
            (f"http://localhost:1/a.pkl#sha256={DIGEST}", "could not be fetched .* bring the file from elsewhere"),
            ((tmp_path / "missing.pkl").as_uri(), "there is no file at")):
        with pytest.raises(AddressError, match=message) as caught:
            fetch(address, progress=False)
        assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GAPKD_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(AddressError, match="could not be stored in"):
        fetch(f"{server.address}#sha256={DIGEST}", progress=False)


def test_networks_load_from_addresses(server, tmp_path):
    torch.manual_seed(0)
    G = Generator(8, 4, 4, 4, mapping_layers=1).eval()
    file = save_network(G, tmp_path / "a network.safetensors")
    digest, z = hashlib.sha256(file.read_bytes()).hexdigest(), torch.randn(2, 4)
    server.content = file.read_bytes()
    for address in (file.as_uri(), f"{file.as_uri()}#sha256={digest}", f"{server.address}#sha256={digest}"):
        assert is_address(address) and torch.equal(load_generator(address)(z), G(z))
    with pytest.raises(CheckpointError, match="another check sum"):
        load_generator(f"{file.as_uri()}#sha256={'1' * 64}")
    assert file.exists()  # a file of the user's own is never removed


def test_a_path_is_no_address():
    assert not any(map(is_address, ("runs/a.pkl", "/a/b.pkl", "toyfaces32", r"C:\nets\a.pkl")))

"""Networks by address: fetched once, verified, continued after a break; every failure one sentence."""

from __future__ import annotations

import errno
import hashlib
import http.client
import http.server
import os
import threading

import pytest
import torch

from gapkd.files.checkpoints import CheckpointError, load_generator, save_network
from gapkd.files.download import AddressError, cache_folder, fetch, is_address
from gapkd.networks.stylegan2 import Generator

CONTENT = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
WRONG = "0" * 64


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at /net.pkl; `limit` bytes an answer at most, then it hangs up."""

    def __init__(self):
        super().__init__(("localhost", 0), Handler)
        self.requests, self.limit, self.tag, self.content, self.status = [], None, '"one"', CONTENT, None
        self.raw, self.location, self.paths = b"", "", []

    @property
    def address(self) -> str:
        return f"http://localhost:{self.server_port}/net.pkl"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        self.server.paths.append(self.path)
        if self.server.raw:
            return self.wfile.write(self.server.raw)
        if self.server.location and self.path != "/elsewhere.pkl":
            self.send_response(302)
            self.send_header("Location", self.server.location)
            return self.end_headers()
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


def test_only_what_matches_its_sum_gets_the_name(server, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("named before it was verified"))
    with pytest.raises(AddressError, match="has another check sum .* what was fetched was removed"):
        fetch(f"{server.address}#sha256={WRONG}", progress=False)
    assert [f.suffix for f in cache_folder().iterdir()] in ([], [".lock"])


def test_a_file_in_the_cache_gives_way_only_to_one_that_fits(server):
    file = fetch(f"{server.address}#sha256={DIGEST}", progress=False)
    with pytest.raises(AddressError, match="has another check sum"):
        fetch(f"{server.address}#sha256={WRONG}", progress=False)
    assert file.read_bytes() == CONTENT and len(server.requests) == 2
    server.status = 503
    with pytest.raises(AddressError, match="the file in the cache does not fit the check sum"):
        fetch(f"{server.address}#sha256={WRONG}", progress=False)
    assert fetch(f"{server.address}#sha256={DIGEST}", progress=False).read_bytes() == CONTENT
    server.status, server.content = None, CONTENT[::-1]
    digest = hashlib.sha256(server.content).hexdigest()
    assert fetch(f"{server.address}#sha256={digest}", progress=False) == file
    assert file.read_bytes() == server.content


def test_a_cache_that_is_only_read(server, monkeypatch):
    address = f"{server.address}#sha256={DIGEST}"
    file = fetch(address, progress=False)

    def no_lock(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("gapkd.files.download.FileLock", no_lock)  # the rights of a folder do not bind root
    assert fetch(address, progress=False) == file
    for wanted in (f"{server.address}#sha256={WRONG}", address.replace("net", "other")):
        with pytest.raises(AddressError, match="could not be stored in .*cache .*not writable.* set GAPKD_CACHE"):
            fetch(wanted, progress=False)
    assert file.exists() and len(server.requests) == 1


def test_without_a_sum_no_redirect_leaves_https(server, monkeypatch):
    def unencrypted(host, context=None, check_hostname=None, **more):  # what matters here is where a server leads on to
        return http.client.HTTPConnection(host, **more)

    monkeypatch.setattr(http.client, "HTTPSConnection", unencrypted)
    address = server.address.replace("http", "https")
    server.location = server.address.replace("net", "elsewhere")
    with pytest.raises(AddressError, match="leads on to http://.* append #sha256="):
        fetch(address, progress=False)
    assert server.paths == ["/net.pkl"] and not list(cache_folder().glob("*.pkl"))
    assert fetch(f"{address}#sha256={DIGEST}", progress=False).read_bytes() == CONTENT
    server.location = address.replace("net", "elsewhere")
    assert fetch(address.replace("net", "other"), progress=False).read_bytes() == CONTENT


def test_spaces_and_accents_are_quoted(server):
    for name, path in (("my net.pkl", "/my%20net.pkl"), ("café.pkl", "/caf%C3%A9.pkl"), ("a%20b.pkl", "/a%20b.pkl")):
        file = fetch(f"{server.address.replace('net.pkl', name)}#sha256={DIGEST}", progress=False)
        assert file.read_bytes() == CONTENT and server.paths[-1] == path


@pytest.mark.parametrize(("raw", "message"), [
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\nonly this", "the connection broke off"),
    (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak HTTP as it should .*check the address and its port"),
    (b"HTTP/1.1 302 Found\r\nLocation: https://[bad\r\n\r\n", "is not an address that can be fetched")],
    ids=["cut off", "no HTTP", "bad redirect"])
def test_broken_answers_are_sentences(server, raw, message):
    server.raw = raw
    with pytest.raises(AddressError, match=message) as caught:
        fetch(f"{server.address}#sha256={DIGEST}", progress=False)
    assert "localhost" in str(caught.value) and "\n" not in str(caught.value)


def test_a_circle_of_redirects_is_one_sentence(server):
    server.location = server.address
    with pytest.raises(AddressError, match="the server says 302") as caught:
        fetch(f"{server.address}#sha256={DIGEST}", progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", [
    "https://[bad", "https://localhost:port/a.pkl", "https://localhost:99999/a.pkl", "https://localhost:0/a.pkl",
    "https://local host/a.pkl", "https://caf\u00e9.example/a.pkl", "https://a..b/a.pkl", "https://me:word@host/a.pkl"])
def test_bad_hosts_and_ports_are_sentences(server, address):
    with pytest.raises(AddressError, match="is not an address|must be ASCII") as caught:
        fetch(address, progress=False)
    assert address in str(caught.value) and "codec can't" not in str(caught.value)


def test_files_that_cannot_be_read_are_sentences(tmp_path):
    with pytest.raises(AddressError, match="could not be read .*check its path"):
        fetch(f"{tmp_path.as_uri()}/{'a' * 300}.pkl", progress=False)


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

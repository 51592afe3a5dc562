"""Networks by address: fetched once, verified before they are named; each failure one sentence."""

from __future__ import annotations

import errno
import hashlib
import http.server
import shutil
import threading

import pytest
import torch
import urllib3

from gapkd.files import download
from gapkd.files.checkpoints import CheckpointError, load_generator, save_network
from gapkd.files.download import AddressError, cache_folder, fetch, is_address
from gapkd.networks.stylegan2 import Generator

CONTENT = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
WRONG = "0" * 64


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` under any path, of it `limit` bytes; or a redirect, a status, raw bytes."""

    def __init__(self):
        super().__init__(("localhost", 0), Handler)
        self.content, self.limit, self.status, self.raw, self.location = CONTENT, None, 200, b"", ""
        self.paths, self.encodings = [], set()
        self.address = f"http://localhost:{self.server_port}/net.pkl"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.paths.append(self.path)
        server.encodings.add(self.headers["Accept-Encoding"])
        if server.raw:
            self.wfile.write(server.raw)
        elif server.location and self.path != "/elsewhere.pkl":
            self.send_response(302)
            self.send_header("Location", server.location)
            self.end_headers()
        elif server.status != 200:
            self.send_error(server.status)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(server.content)))
            self.end_headers()
            self.wfile.write(server.content[:server.limit])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("GAPKD_CACHE", str(tmp_path / "cache"))
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def get(address: str, digest: str = DIGEST):
    return fetch(f"{address}#sha256={digest}" if digest else address)


def refused(address: str, message: str, digest: str = DIGEST) -> str:
    """The one sentence with which fetching the address fails."""
    with pytest.raises(AddressError, match=message) as caught:
        get(address, digest)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def cached() -> list[str]:
    """What lies in the cache, without locks."""
    return [file.name for file in cache_folder().glob("*") if file.suffix != ".lock"]


def test_fetched_once_and_verified(server, capfd):
    file = fetch(f"{server.address}#sha256={DIGEST.upper()}")
    assert file.read_bytes() == CONTENT and file.parent == cache_folder()
    assert get(server.address) == file and server.paths == ["/net.pkl"] and cached() == [file.name]
    assert file.name.endswith("-net.pkl") and file.name.startswith(
        hashlib.sha256(server.address.encode()).hexdigest()[:16])
    assert server.encodings == {"identity"}  # the sum is that of the file as it lies there
    shown = capfd.readouterr().err
    assert "net.pkl: " in shown and "Downloading" not in shown  # our bar, not pooch's words


@pytest.mark.parametrize("limit", [0, 400_000])
def test_half_a_file_gets_no_name(server, limit):
    server.limit = limit
    refused(server.address, "could not be fetched .*IncompleteRead.*: check the address and")
    assert cached() == []
    server.limit = None
    assert get(server.address).read_bytes() == CONTENT


def test_only_what_matches_its_sum_gets_the_name(server, monkeypatch):
    monkeypatch.setattr(shutil, "move", lambda *_: pytest.fail("named before it was verified"))
    refused(server.address, "has another check sum.* what was fetched was removed", WRONG)
    assert cached() == []


def test_a_file_in_the_cache_gives_way_only_to_one_that_fits(server):
    file = get(server.address)
    refused(server.address, "has another check sum", WRONG)
    server.status = 503
    refused(server.address, "could not be fetched .the server says 503", WRONG)
    assert file.read_bytes() == CONTENT and len(server.paths) == 3
    assert get(server.address) == file and len(server.paths) == 3
    server.status, server.content = 200, CONTENT[::-1]
    assert get(server.address, hashlib.sha256(server.content).hexdigest()) == file
    assert file.read_bytes() == server.content


def test_a_cache_that_is_only_read(server, monkeypatch):
    file = get(server.address)

    def no_lock(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(download, "FileLock", no_lock)  # the rights of a folder do not bind root
    assert get(server.address) == file
    for address, digest in ((server.address, WRONG), (server.address.replace("net", "a"), DIGEST)):
        refused(address, "could not be stored in .*cache .Permission.* set GAPKD_CACHE", digest)
    assert file.exists() and len(server.paths) == 1


def test_two_that_want_the_same_file_fetch_it_once(server):
    threads = [threading.Thread(target=get, args=(server.address,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.paths == ["/net.pkl"] and len(cached()) == 1


def test_without_a_sum_no_redirect_leaves_https(server, monkeypatch):
    def unencrypted(host, port, **_):  # what matters here is where a server leads on to
        return urllib3.HTTPConnectionPool(host, port)

    monkeypatch.setitem(urllib3.poolmanager.pool_classes_by_scheme, "https", unencrypted)
    address = server.address.replace("http", "https")
    server.location = server.address.replace("net", "elsewhere")
    refused(address, "leads on to http://.* append #sha256=", "")
    assert server.paths == ["/net.pkl"] and cached() == []
    assert get(address).read_bytes() == CONTENT
    server.location = "/elsewhere.pkl"
    assert get(address.replace("net", "other"), "").read_bytes() == CONTENT


@pytest.mark.parametrize("name, path", [
    ("my net.pkl", "/my%20net.pkl"), ("a%20b.pkl", "/a%20b.pkl"), ("café.pkl", "/caf%C3%A9.pkl"),
    ("", "/")])
def test_spaces_and_accents_are_quoted(server, name, path):
    assert get(server.address.replace("net.pkl", name)).read_bytes() == CONTENT
    assert server.paths == [path]


@pytest.mark.parametrize("answer, message", [
    ({"raw": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\nonly"}, r"\(Incomplete"),
    ({"raw": b"SSH-2.0-OpenSSH_9.6\r\n"}, "could not be fetched .SSH-2.0-OpenSSH_9.6.: check"),
    ({"location": "https://[bad"}, "https://.bad is not an address that can be fetched"),
    ({"location": "/net.pkl"}, "the server says 302"), ({"status": 404}, "server says 404 Not")],
    ids=["cut off", "no HTTP", "bad redirect", "a circle of redirects", "not found"])
def test_broken_answers_are_sentences(server, answer, message):
    vars(server).update(answer)
    refused(server.address, message)
    assert cached() == []


@pytest.mark.parametrize("address", [
    "https://[bad", "https://localhost:port/a.pkl", "https://localhost:99999/a.pkl", "https:///a.pkl",
    "https://localhost:0/a.pkl", "https://local host/a.pkl", "https://a..b/a.pkl",
    "https://me:word@host/a.pkl", "ftp://example.org/a.pkl",
    "doi://10.5281/zenodo.1/a.pkl"])
def test_addresses_that_nothing_can_be_fetched_from(server, address):
    assert address in refused(address, "is not an address that can be fetched", "")


def test_failures_are_sentences(server, tmp_path, monkeypatch):
    refused(server.address, "could be altered on its way", "")
    refused(f"{server.address}#md5=1", "must be sha256= and 64", "")
    refused("http://localhost:1/a.pkl", r"\(Connection refused\).* bring the file from elsewhere")
    for name in ("missing.pkl", f"{'a' * 300}.pkl"):
        refused(f"{tmp_path.as_uri()}/{name}", "check its path")
    assert server.paths == []
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GAPKD_CACHE", str(tmp_path / "file" / "below"))
    refused(server.address, r"could not be stored in .*below \(Not a directory\): free some space")


def test_networks_load_from_addresses(server, tmp_path):
    G = Generator(8, 4, 4, 4, mapping_layers=1).eval()
    file = save_network(G, tmp_path / "a network.safetensors")
    server.content, z = file.read_bytes(), torch.randn(2, 4)
    digest = hashlib.sha256(server.content).hexdigest()
    for address in (file.as_uri(), f"{file.as_uri()}#sha256={digest.upper()}",
                    f"{server.address}#sha256={digest}"):
        assert is_address(address) and torch.equal(load_generator(address)(z), G(z))
    refused(file.as_uri(), f"another check sum .{digest}.: it is damaged", WRONG)
    assert file.exists()  # a file of the user's own is never removed
    with pytest.raises(CheckpointError, match="another check sum: it is damaged"):
        load_generator(f"{server.address}#sha256={WRONG}")


def test_what_a_server_sent_in_place_of_a_network_is_not_kept(tmp_path, monkeypatch):
    """A login's page in the cache would be met again by every later try."""
    page = tmp_path / "ab-net.pkl"
    monkeypatch.setattr("gapkd.files.checkpoints.fetch", lambda *_, **__: page)
    for end, stays in (("", False), (f"#sha256={WRONG}", True)):
        page.write_text("<!doctype html><html>log in</html>")
        with pytest.raises(CheckpointError, match="ab-net.pkl is a web page") as caught:
            load_generator(f"https://host/net.pkl{end}")
        said = str(caught.value)
        assert page.exists() == stays == ("what was fetched was removed" not in said)
        assert stays or "https://host/net.pkl: " in said
    page = tmp_path / "own.pkl"
    page.write_text("<html>")
    with pytest.raises(CheckpointError, match="own.pkl is a web page"):
        load_generator(page.as_uri())
    assert page.exists()  # a file of the user's own


def test_a_path_is_no_address():
    assert not any(map(is_address, ("runs/a.pkl", "/a/b.pkl", "toyfaces32", r"C:\nets\a.pkl")))

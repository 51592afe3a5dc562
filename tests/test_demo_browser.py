"""The page of `gapkd demo` in a real browser, with the real onnxruntime-web: it draws what PyTorch
draws, every control does something, and no other host is asked for anything."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import time
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from browser import FLAGS, firefox, installed, missing, serve
from browser import NAMES as CHROMIUM
from PIL import Image
from tiny import perturb

pytest.importorskip("onnxruntime", reason="needs the extra `export`")

import handmade

from gapkd.data.images import to_uint8
from gapkd.files.checkpoints import save_network
from gapkd.metrics.editing import Directions, save_directions
from gapkd.networks.mapping import mix_styles
from gapkd.networks.stylegan2 import Generator
from gapkd.sharing import web
from gapkd.sharing.export import ExportConfig, export
from gapkd.sharing.web import DemoConfig, latent, write_demo

pytestmark = [pytest.mark.browser, pytest.mark.slow]
# One more than are shown at first.
NAMES = ("smile", "hair_style: long", "yaw", "glasses", "beard", "gaze", "eye_size")


@pytest.fixture(scope="session")
def runtime(tmp_path_factory):
    """onnxruntime-web, in a folder: as the command fetches and verifies it, in a cache of ours."""
    folder = tmp_path_factory.mktemp("runtime")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAPKD_CACHE", str(folder / "cache"))
        try:
            found = web.fetched_runtime()
        except web.DemoError as error:
            missing(str(error))
    for name, content in found.items():
        (folder / name).write_bytes(content)
    return str(folder)


def network(seed: int, channels: int, mapping: torch.nn.Module | None = None) -> Generator:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        G = perturb(Generator(16, 16, 16, channels, mapping_layers=2))
    G.mapping = mapping or G.mapping
    return G.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Student and teacher with the same mapping network, their ONNX files and their directions."""
    folder = tmp_path_factory.mktemp("pair")
    teacher = network(1, 12)
    pair = (network(2, 6, teacher.mapping), teacher)
    rows = torch.randn(len(NAMES), 16, generator=torch.Generator().manual_seed(0))
    vectors, edits = torch.nn.functional.normalize(rows), folder / "d.safetensors"
    save_directions(Directions(NAMES, vectors, torch.full((len(NAMES),), 4.0)), edits)
    for name, G in zip(("student", "teacher"), pair, strict=True):
        file = save_network(G, folder / f"{name}.safetensors", {"seed": 0})
        export(ExportConfig(str(file), str(folder / f"{name}.onnx"), latents=4,
                            directions=str(edits)))
    return pair, [str(folder / f"{name}.onnx") for name in ("student", "teacher")], vectors


@pytest.fixture(scope="module")
def folder(pair, runtime, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("demo") / "page")
    return write_demo(DemoConfig(*pair[1], out=out, runtime=runtime, seed=7, truncation=1.0))


class Visit:
    """A page that is open, and what it has said and asked for."""

    def __init__(self, page, address):
        self.page, self.address, self.said, self.asked = page, address, [], []
        usual = "readback", "No available adapters"  # of our own reading; there is no GPU
        page.on("console", lambda message: any(word in message.text for word in usual)
                or self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.set_default_timeout(20_000)
        page.goto(address)

    def until(self, condition: str, seconds: float = 40):
        """Wait for an expression to hold. (Playwright's own waiting needs eval, which the page
        forbids.)"""
        end = time.monotonic() + seconds
        while not self.page.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < end, f"not {condition}: {self.said}, {self.message()}"
            time.sleep(0.03)

    def rest(self):
        self.until("window.gapkd?.resting && document.getElementById('loading').hidden")
        return self

    def message(self) -> str:
        message = self.page.locator("#message")
        return message.inner_text() if message.is_visible() else ""

    def canvases(self, where: str = "#pictures canvas") -> list[np.ndarray]:
        """Pixels (R, R, 3) of the canvases there."""
        found = self.page.evaluate("""(where) =>
          [...document.querySelectorAll(where)].map((canvas) => {
            const { width, height } = canvas;
            return [width, [...canvas.getContext("2d").getImageData(0, 0, width, height).data]];
        })""", where)
        return [np.array(data, np.uint8).reshape(size, size, 4)[..., :3] for size, data in found]

    def slide(self, name: str, value: float):
        self.page.locator(f"#{name}").evaluate(
            "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }",
            value)


@pytest.fixture
def serving():
    """Serves folders as long as the test lasts; returns their addresses."""
    with ExitStack() as stack:
        yield lambda *given: stack.enter_context(serve(*given))


@pytest.fixture
def visit(browser, folder, serving):
    """Opens a page (the pair's, unless another address is given); options are playwright's."""
    contexts = []

    def open_page(address: str = "", script: str = "", **options) -> Visit:
        screen = {"viewport": {"width": 1280, "height": 900}}
        context = browser.new_context(**screen | options)
        contexts.append(context)
        if script:
            context.add_init_script(script)
        return Visit(context.new_page(), address or serving(folder))

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def altered(visit, serving, folder, tmp_path):
    """Opens a copy of the pair's page with a file that is other: bytes, text, or None: missing."""
    def open_page(name: str, content: bytes | str | None, **options) -> Visit:
        shutil.copytree(folder, tmp_path / "page")
        file = tmp_path / "page" / name
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return visit(serving(tmp_path / "page"), **options)

    return open_page


@pytest.fixture
def show(visit, serving, runtime, tmp_path):
    """Opens the page of hand-made ONNX files."""
    def open_page(*files, **options) -> Visit:
        out = str(tmp_path / "page")
        config = DemoConfig(*map(str, files), out=out, runtime=runtime, **options)
        return visit(serving(write_demo(config))).rest()

    return open_page


def drawn(G, z, truncation=1.0, offset=None) -> np.ndarray:
    """PyTorch's picture of a z (z_dim,), with an offset (num_ws, w_dim) on ws, (R, R, 3) uint8."""
    w = G.truncate(G.mapping(torch.as_tensor(z, dtype=torch.float32)[None]), truncation)
    offset = torch.zeros(G.num_ws, G.w_dim) if offset is None else offset
    return to_uint8(G.synthesis(w[:, None] + offset).image)[0].numpy()


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference, in grey levels of 255."""
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


def test_it_opens_with_a_picture_and_asks_no_other_host(visit, pair, folder):
    seen = visit().rest()
    assert seen.said == [] and seen.message() == ""
    assert len(seen.asked) > 12 and all(url.startswith(f"{seen.address}/") for url in seen.asked)
    marks = dict(seen.page.evaluate(
        "performance.getEntriesByType('mark').map(({name, startTime}) => [name, startTime])"))
    order = [marks[f"gapkd: {what}"] for what in
             ("first picture", "drawn by student", "drawn by teacher")]
    assert order == sorted(order)
    for G, role, canvas in zip(pair[0], ("student", "teacher"), seen.canvases(), strict=True):
        beforehand = np.asarray(Image.open(folder / f"{role}.png"))
        assert apart(canvas, beforehand) < 0.05
        assert apart(canvas, drawn(G, latent(7, 16))) < 0.05
        assert canvas.std() > 10, "a flat picture would prove nothing"
    a, b = (canvas.astype(float) for canvas in seen.canvases())
    assert seen.page.locator("#distance").inner_text() == f"{np.abs(a - b).mean() / 127.5:.3f}"
    asked = seen.page.evaluate("""performance.getEntriesByType("resource")
        .filter(({ name }) => name.includes("worker.js")).map(({ startTime }) => startTime)""")
    assert asked and asked[0] > marks["gapkd: first picture"], "it waits for nothing large"
    assert len(seen.canvases("#tiles .drawn canvas")) == 12
    roles = seen.page.locator("#pictures").aria_snapshot()
    assert 'img "student: picture 7"' in roles and 'img "teacher: picture 7"' in roles


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_a_seeds_z_is_the_same_in_both_languages(visit, seed):
    found = visit().rest().page.evaluate("(seed) => [...gapkd.latent(seed)]", seed)
    np.testing.assert_allclose(found, latent(seed, 16), rtol=1e-12, atol=1e-14)


def test_after_the_largest_seed_comes_0(show, pair):
    seen = show(*pair[1], seed=2**32 - 1)
    assert seen.page.locator("#otherseed").input_value() == "0"
    seen.page.locator("#next").click()
    assert seen.rest().page.locator("#seed").input_value() == "0"


def test_every_control_changes_both_pictures(visit):
    seen = visit().rest()
    first = before = seen.canvases()

    def changed(what):
        nonlocal before
        now = seen.rest().canvases()
        for a, b in zip(before, now, strict=True):
            assert apart(a, b) > 0.5, f"{what} changes nothing"
        before = now

    for name in ("next", "previous", "random", "otherrandom"):
        seen.page.locator(f"#{name}").click()
        changed(name)
    for name, seed in (("seed", 4_000_000_000), ("otherseed", 12)):
        seen.page.locator(f"#{name}").fill(str(seed))
        seen.page.locator(f"#{name}").press("Enter")
        changed(name)
    sliders = seen.page.locator("input[type=range]")
    names = sliders.evaluate_all("inputs => inputs.map(({id}) => id)")
    assert names == ["truncation", *[f"direction-{i}" for i in range(len(NAMES))], "layers"]
    for name, value in zip(names, (0.4, *[3.5, -3.5] * 3, 3.5, 1), strict=True):
        seen.slide(name, value)
        changed(name)
    seen.page.locator("#tiles button").nth(3).click()
    changed("a small picture")
    small = seen.canvases("#tiles canvas")
    seen.page.get_by_label("Next seeds").check()
    after = seen.rest().canvases("#tiles canvas")
    assert all(apart(a, b) > 0.5 for a, b in zip(small, after, strict=True))
    seen.page.locator("#reset").click()
    changed("reset")
    for a, b in zip(first, before, strict=True):
        assert np.array_equal(a, b), "reset leads elsewhere than to the beginning"
    assert seen.said == []


def test_controls_do_what_they_say(visit, pair):
    pair, _, vectors = pair
    seen = visit().rest()
    zs = [torch.tensor(latent(seed, 16), dtype=torch.float32)[None] for seed in (7, 8)]
    w = [(G, *map(G.mapping, zs)) for G in pair]

    def agree(pictures):
        for canvas, picture in zip(seen.rest().canvases(), pictures, strict=True):
            assert apart(canvas, to_uint8(picture)[0].numpy()) < 0.1

    seen.slide("layers", 2)
    agree(G.synthesis(mix_styles(a, b, G.num_ws - 2, G.num_ws)).image for G, a, b in w)
    seen.slide("layers", pair[0].num_ws)
    agree(G.synthesis(b).image for G, _, b in w)
    seen.slide("layers", 0)
    seen.slide("direction-1", 0.5)  # of a reach of 4
    seen.slide("direction-6", -1.0)
    edit = 2 * vectors[1] - 4 * vectors[6]
    agree(G.synthesis(a + edit).image for G, a, _ in w)
    seen.slide("truncation", 0.5)
    agree(G.synthesis(G.truncate(a, 0.5) + edit).image for G, a, _ in w)
    # a chosen small picture becomes the large one
    small = seen.canvases("#tiles canvas")[5]
    seen.page.locator("#tiles button").nth(5).click()
    assert np.array_equal(seen.rest().canvases()[0], small)
    assert seen.page.locator("#key").inner_text() == "7+6"
    seen.page.locator(".slider").first.dblclick(position={"x": 5, "y": 8})
    assert seen.page.locator("#truncation").input_value() == "1"
    seen.page.locator("#seed").fill("-3")
    seen.page.locator("#seed").press("Enter")
    assert seen.page.locator("#seed").input_value() == "7", "what is no seed is put back"


def test_the_keyboard_reaches_everything_and_focus_is_seen(visit):
    seen = visit().rest()
    keyboard, reached = seen.page.keyboard, []
    for _ in range(60):
        keyboard.press("Tab")
        reached.append(seen.page.evaluate("""() => {
            const now = document.activeElement, style = getComputedStyle(now);
            const next = now.nextElementSibling && getComputedStyle(now.nextElementSibling);
            const ring = style.outlineStyle !== "none"
              || (now.type === "radio" && next.outlineStyle !== "none");
            return [now.id || now.parentElement.id || now.name || now.tagName, ring];
        }"""))
    names = {name for name, _ in reached}
    assert {"theme", "previous", "seed", "next", "random", "morph", "reset", "save", "link", "kind",
            "tiles", "truncation", "direction-0", "direction-5", "more", "otherseed", "otherrandom",
            "layers", "keys", "about"} <= names
    assert [name for name, _ in reached].count("tiles") >= 12
    assert all(ring for name, ring in reached if name != "BODY")
    # the sliders' own keys
    before = seen.canvases()
    seen.page.locator("#direction-0").focus()
    for _ in range(10):
        keyboard.press("ArrowRight")
    slider = seen.page.locator("#direction-0")
    assert float(slider.input_value()) == pytest.approx(0.2)
    assert slider.get_attribute("aria-valuetext") == "+0.20"
    assert apart(seen.rest().canvases()[0], before[0]) > 0.1
    # the rest has letters
    keyboard.press("0")
    assert np.array_equal(seen.rest().canvases()[0], before[0])
    for key, seed in (("n", "8"), ("p", "7")):
        keyboard.press(key)
        assert seen.rest().page.locator("#seed").input_value() == seed
    keyboard.press("r")
    assert apart(seen.rest().canvases()[0], before[0]) > 0.5
    seen.page.locator("#tiles button").first.focus()
    small = seen.canvases("#tiles canvas")[0]
    keyboard.press("Enter")
    assert np.array_equal(seen.rest().canvases()[0], small)
    seen.page.locator("#seed").focus()
    keyboard.press("r")  # a letter in a field is none of the page's keys
    assert seen.page.locator("#key").inner_text().endswith("+1")
    seen.page.locator("#reset").focus()
    keyboard.press("?")
    assert seen.page.locator("#keys").get_attribute("open") is not None
    before = brightness(seen.page)
    keyboard.press("t")
    after, seed = brightness(seen.page), int(seen.page.locator("#seed").input_value())
    assert after != before
    seen.rest().page.evaluate("""for (const key of "ttts0rnn") document.body.dispatchEvent(
        new KeyboardEvent("keydown", { key, repeat: true, bubbles: true }))""")
    assert seen.rest().page.locator("#seed").input_value() == str(seed + 2), "not N alone goes on"
    assert brightness(seen.page) == after


def test_morphing_moves_until_it_is_paused(visit):
    seen = visit().rest()
    seen.page.locator("#morph").click()
    frames = []
    for _ in range(8):
        seen.page.wait_for_timeout(150)
        frames.append(seen.canvases()[1])
    assert all(apart(a, b) > 0.05 for a, b in zip(frames, frames[1:]))  # noqa: B905
    seen.until("document.getElementById('seed').value === '9'")  # past seed 8
    seen.page.locator("#morph").click()
    still = seen.rest().canvases()
    assert seen.page.locator("#morph").inner_text() == "Morph"
    assert len(seen.canvases("#tiles .drawn canvas")) == 12
    seen.page.wait_for_timeout(300)
    assert all(np.array_equal(a, b) for a, b in zip(still, seen.canvases(), strict=True))


def test_a_morph_that_is_begun_again_at_once_is_one(visit):
    """The one that was stopped still waits for its picture; a key that is held repeats itself."""
    seen = visit(script="""window.ways = [];
        addEventListener("load", () => new MutationObserver(() =>
            window.ways.push(document.getElementById("key").textContent)).observe(
                document.getElementById("key"), {childList: true}));""").rest()
    seen.page.evaluate("""() => { for (const repeat of [false, false, false, true])
        document.body.dispatchEvent(
            new KeyboardEvent("keydown", {key: "m", repeat, bubbles: true})); }""")
    seen.page.wait_for_timeout(1500)
    assert seen.page.locator("#morph").inner_text() == "Pause"
    ways = [way.rpartition("@")[0] for way in seen.page.evaluate("window.ways")][3:]
    assert len(ways) > 3 and len({*ways}) == 1, "several draw in turns"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(visit, scheme):
    seen = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True,
                 device_scale_factor=3, color_scheme=scheme).rest()
    page = seen.page
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    beyond = page.evaluate("""() => [...document.querySelectorAll("main *, header *")]
        .filter((one) => one.getBoundingClientRect().right > 390.5 && one.getClientRects().length)
        .map((one) => one.outerHTML)""")
    assert beyond == []
    sizes = page.locator("button, input[type=range], summary").evaluate_all(
        "all => all.map((one) => Math.min(one.offsetHeight, one.offsetWidth))")
    assert min(sizes) >= 32, "too small for a finger"
    size = page.locator("#pictures canvas").first.bounding_box()["width"]
    grain = size * 3 / 16  # device pixels; the browser keeps lengths in 64ths of a pixel
    assert size > 150 and abs(grain - round(grain)) < 0.01, "pixels of unequal size"
    page.locator("#direction-4").scroll_into_view_if_needed()
    page.mouse.wheel(0, 300)
    page.wait_for_timeout(200)
    top = page.locator("#pictures canvas").first.bounding_box()["y"]
    assert top >= 0, "the picture scrolls away from its sliders"
    before = seen.canvases()
    page.locator("#tiles button").nth(7).tap()
    assert all(apart(a, b) > 0.5 for a, b in zip(before, seen.rest().canvases(), strict=True))
    assert seen.said == []


def brightness(page) -> float:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(float, colour.strip("rgb()").split(","))) / 3


def test_light_and_dark(visit):
    for scheme, other in (("light", "dark"), ("dark", "light")):
        seen = visit(color_scheme=scheme).rest()
        first = brightness(seen.page)
        assert (first > 200) if scheme == "light" else (first < 50)
        seen.page.locator("#theme").click()
        second = brightness(seen.page)
        assert (second > 200) if other == "light" else (second < 50)
        seen.page.reload()
        seen.rest()
        assert brightness(seen.page) == second, "the choice is forgotten"


def test_the_picture_is_saved_as_it_is_seen(visit):
    seen = visit().rest()
    with seen.page.expect_download() as caught:
        seen.page.locator("#save").click()
    assert caught.value.suggested_filename == "gapkd-7.png"
    saved = np.asarray(Image.open(caught.value.path()).convert("RGB"))
    assert saved.shape == (512, 1024, 3)
    shown = np.concatenate(seen.canvases(), axis=1)
    assert np.array_equal(saved, shown.repeat(32, axis=0).repeat(32, axis=1))


def test_what_is_saved_is_drawn_already_and_bears_its_own_name(visit, serving, folder):
    """A teacher that is slow to load and to draw."""
    seen = visit(f"{serving(folder)}/#face=3", script="""const post = Worker.prototype.postMessage;
        Worker.prototype.postMessage = function (question) {
          const slow = question.network?.role === "student" ? 1500
            : question.file === "teacher.onnx" ? 300 : 0;
          setTimeout(() => post.call(this, question), slow);
        };""")
    saved = []
    seen.page.on("download", lambda download: saved.append(download))
    seen.page.keyboard.press("s")  # while it loads, the picture of seed 7 is seen
    seen.rest()
    assert saved == []
    with seen.page.expect_download() as caught:
        seen.page.evaluate("for (const id of ['next', 'save']) document.getElementById(id).click()")
    assert caught.value.suggested_filename == "gapkd-4.png"
    picture = np.asarray(Image.open(caught.value.path()).convert("RGB"))[::32, ::32]
    assert np.array_equal(picture, np.concatenate(seen.rest().canvases(), axis=1))


def test_the_address_is_written_once_the_hand_rests(visit):
    """Safari throws where a page changes it a hundred times in half a minute."""
    seen = visit(script="""window.changes = 0;
        const replace = history.replaceState;
        history.replaceState = function (...given) {
          if (++window.changes > 6) throw new DOMException("too often", "SecurityError");
          return replace.apply(this, given);
        };""").rest()
    seen.page.evaluate("""async () => {
        const input = document.getElementById("truncation");
        window.changes = 0;
        for (let i = 0; i < 20; i++) {
          input.value = 0.2 + 0.02 * i;
          input.dispatchEvent(new Event("input"));
          await new Promise((resolve) => setTimeout(resolve, 60));
        }
    }""")
    assert seen.rest().page.evaluate("location.hash") == "#face=7&truncation=0.58"
    assert seen.page.evaluate("window.changes") <= 6  # on a machine that rests between two
    seen.page.evaluate("window.changes = 6")  # from here on it throws
    seen.page.locator("#next").click()
    assert seen.rest().page.evaluate("[location.hash, window.changes]") == [
        "#face=7&truncation=0.58", 7]
    assert seen.said == [] and seen.message() == ""
    seen.page.evaluate("window.changes = 0")
    seen.page.locator("#next").click()
    seen.page.goto("about:blank")
    seen.page.go_back()
    assert seen.rest().page.locator("#seed").input_value() == "9"


def test_the_newest_wish_wins_and_the_interface_is_not_kept_waiting(visit):
    seen = visit(script="""window.asked = [];
        const post = Worker.prototype.postMessage;
        Worker.prototype.postMessage = function (question, ...rest) {
          window.asked.push(question.kind === "draw" ? question.truncation : null);
          return post.call(this, question, ...rest);
        };""").rest()
    longest = seen.page.evaluate("""async () => {
        const input = document.getElementById("truncation");
        window.asked = [];
        let longest = 0, before = performance.now();
        for (let i = 0; i < 300; i++) {
          input.value = 0.2 + 0.002 * i;
          input.dispatchEvent(new Event("input"));
          if (i % 30 === 0) await new Promise(requestAnimationFrame);
          longest = Math.max(longest, performance.now() - before);
          before = performance.now();
        }
        return longest;
    }""")
    seen.rest()
    asked = [value for value in seen.page.evaluate("window.asked") if value is not None]
    assert len(asked) < 60 + 13, f"{len(asked)} draws for 300 wishes"
    assert asked[-1] == pytest.approx(0.8)
    assert float(seen.page.locator("#truncation").input_value()) == asked[-1]
    assert longest < 1000


def test_times_are_taken_in_pairs_and_nothing_is_claimed_before(visit):
    seen = visit(script="""window.pairs = [];
        const post = Worker.prototype.postMessage;
        Worker.prototype.postMessage = function (question, ...rest) {
          const claims = [...document.querySelectorAll(".ms, #faster")].map((one) => one.innerText);
          if (question.kind === "time") window.pairs.push([question.files, claims.join()]);
          return post.call(this, question, ...rest);
        };""")
    seen.until("window.gapkd?.times", 120)
    times, pairs = seen.page.evaluate("[window.gapkd.times, window.pairs]")
    order = [["student.onnx", "teacher.onnx"], ["teacher.onnx", "student.onnx"]]
    assert times["pairs"] >= 20 and len(pairs) > times["pairs"]  # and a warm-up
    assert [files for files, _ in pairs] == (order * len(pairs))[:len(pairs)]
    assert {claims for _, claims in pairs} == {"– ms,– ms,"}
    texts = [float(text.split()[0]) for text in seen.page.locator(".ms").all_inner_texts()]
    assert texts == pytest.approx(times["medians"], abs=0.051)
    said = seen.page.locator("#faster").inner_text()
    fast = f"the student is {times['ratio']:.1f} times as fast"
    assert said in (fast, "the student is no faster here")


def test_an_address_holds_what_is_seen(visit):
    seen = visit(permissions=["clipboard-read", "clipboard-write"]).rest()
    assert seen.page.evaluate("location.hash") == "#face=7&truncation=1.00"
    for name, value in (("truncation", 0.6), ("direction-1", 0.5), ("layers", 2)):
        seen.slide(name, value)
    seen.rest().page.locator("#tiles button").nth(4).click()
    seen.rest().page.locator("#morph").click()
    seen.page.wait_for_timeout(300)
    seen.page.locator("#morph").click()
    shown = seen.rest().canvases()
    seen.page.locator("#link").click()
    seen.until("document.getElementById('linked').textContent === 'Copied'")
    address = seen.page.evaluate("navigator.clipboard.readText()")
    assert address == seen.page.url and "face=7%2B5-8%400." in address
    assert address.endswith("&truncation=0.60&mix=8%2C2&d1=0.50")
    again = visit(address).rest()
    assert all(map(np.array_equal, shown, again.canvases()))
    assert again.page.locator("#direction-1").input_value() == "0.5"
    again.page.evaluate("location.hash = '#face=9'")
    again.until("document.getElementById('seed').value === '9'")
    assert apart(again.rest().canvases()[0], shown[0]) > 0.5


@pytest.mark.parametrize("words", [
    "face=x", "face=7%2B", "face=-1", "face=4294967296", "face=7-8%402", "face=7%400.5", "=",
    "truncation=9&d0=2&d1=nan&class=3&mix=a,b", "mix=8&truncation=", f"face=7{'%2B1' * 600}"])
def test_an_address_that_says_nothing_is_passed_over(visit, folder, words):
    seen = visit()
    seen.page.goto(f"{seen.address}/?again#{words}")
    assert seen.rest().page.evaluate("location.hash") == "#face=7&truncation=1.00"


def test_a_face_of_many_steps_is_found_again_and_typed_as_it_is_shown(visit):
    seen = visit()
    for typed in (f"7{'+1' * 60}", "7+3"):
        seen.page.goto(f"{seen.address}/?{len(typed)}#face={typed}")
        assert seen.rest().page.locator("#key").inner_text().endswith(typed)


def test_a_second_visit_needs_no_server(visit, folder):
    with serve(folder) as address:
        first = visit(address).rest()
        first.until("navigator.serviceWorker.controller")
        shown, context = first.canvases(), first.page.context
    second = Visit(context.new_page(), address).rest()
    assert all(map(np.array_equal, shown, second.canvases()))


def test_what_a_servers_policy_has_to_allow(visit, serving, folder):
    needs = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; "
    more = "connect-src 'self'; style-src 'self'; img-src 'self' data: blob:"
    assert needs.split("; ")[1] in (folder / "index.html").read_text()
    assert visit(serving(folder, needs + more)).rest().said == []


@pytest.fixture(scope="session")
def axe(tmp_path_factory) -> str:
    """axe-core, a script that looks for what keeps people out, from npm."""
    folder = tmp_path_factory.mktemp("axe")
    if shutil.which("npm") is None:
        missing("npm is missing, which brings axe-core")
    command = ["npm", "pack", "axe-core@4.14.1", "--ignore-scripts", "--loglevel", "error"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    archives = list(folder.glob("*.tgz"))
    if done.returncode or not archives:
        missing(f"axe-core is not to be had: {done.stderr.strip()[:100]}")
    with tarfile.open(archives[0]) as package:
        return package.extractfile("package/axe.min.js").read().decode()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width, height", [(1280, 900), (390, 844)])
def test_nobody_is_kept_out(visit, axe, width, height, scheme):
    seen = visit(viewport={"width": width, "height": height}, color_scheme=scheme).rest()
    seen.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    seen.page.evaluate(axe)
    found = seen.page.evaluate("axe.run()")
    assert len(found["passes"]) > 20
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []


def test_firefox_draws_the_same_and_keeps_nobody_out(serving, folder, pair, axe, tmp_path):
    with firefox(tmp_path) as fox:
        fox.goto(serving(folder), 1280, 900)
        end = time.monotonic() + 90
        while not fox.evaluate("Boolean(window.gapkd?.times && window.gapkd.resting)"):
            assert time.monotonic() < end, fox.evaluate("document.body.innerText")
            time.sleep(0.1)
        assert fox.evaluate("document.getElementById('message').hidden")
        for number, G in enumerate(pair[0]):
            found = fox.evaluate(f"""(() => {{
                const canvas = document.querySelectorAll("#pictures canvas")[{number}];
                return [...canvas.getContext("2d").getImageData(0, 0, 16, 16).data];
            }})()""")
            canvas = np.array(found).reshape(16, 16, 4)[..., :3]
            assert apart(canvas, drawn(G, latent(7, 16))) < 0.05
        fox.evaluate(f"(() => {{ {axe} }})()")
        for width, height in ((1280, 900), (390, 844)):
            fox.resize(width, height)
            assert fox.evaluate("document.documentElement.scrollWidth") <= width
            for _ in ("one theme", "the other"):
                fox.evaluate("document.getElementById('theme').click()")
                time.sleep(0.4)  # colours take their time to change
                found = fox.evaluate("""axe.run().then(({ passes, violations }) =>
                    [passes.length, violations.map(({ id }) => id)])""")
                assert found[0] > 20 and found[1] == []


@pytest.mark.parametrize("wanted", ["?webgpu", "?wasm"])
def test_a_gpu_draws_the_same(browser, serving, folder, pair, wanted):
    """On a GPU that the browser computes itself, which the page takes only where it is told to."""
    flags = [flag for flag in FLAGS if flag != "--disable-gpu"]
    flags += ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
    other = browser.browser_type.launch(executable_path=installed(*CHROMIUM), args=flags)
    try:
        seen = Visit(other.new_page(), f"{serving(folder)}/{wanted}")
        if not seen.page.evaluate("""navigator.gpu?.requestAdapter().then(Boolean)"""):
            missing("this browser has no WebGPU of its own")
        seen.until("document.getElementById('loading').hidden", 200)
        name = "WebGPU" if wanted == "?webgpu" else "WebAssembly, 1 thread"
        assert seen.page.locator("#device").inner_text() == f"Drawn by {name}"
        for G, canvas in zip(pair[0], seen.rest().canvases(), strict=True):
            assert apart(canvas, drawn(G, latent(7, 16))) < 0.1
        assert seen.said == []
    finally:
        other.close()


def test_a_gpu_that_draws_otherwise_is_not_taken(altered, folder):
    worker = (folder / "worker.js").read_text()
    for here, there in (  # WebAssembly in the GPU's place, and every picture inverted
            ("RUNTIMES[DEVICE]", "RUNTIMES.wasm"), ("[DEVICE]", '["wasm"]'),
            ("{ pixels: pixels(image), ws,",
             "{ pixels: pixels(image).map((x) => DEVICE === 'webgpu' ? 255 - x : x), ws,")):
        assert here in worker
        worker = worker.replace(here, there)
    seen = altered("worker.js", worker, script="""Object.defineProperty(navigator, "gpu",
        { value: { requestAdapter: async () => ({ info: {} }) } });""").rest()
    assert seen.page.locator("#device").inner_text() == (
        "Drawn by WebAssembly, 1 thread (WebGPU was tried: it draws another picture)")


# ---------------------------------------------------------------------- what can be missing


@pytest.mark.parametrize("file, content, message", [
    *[(name, None, f"{name}.*missing.*gapkd demo") for name in (
        "student.onnx", "teacher.onnx", "ort-wasm-simd-threaded.wasm.gz", "ort.wasm.bundle.min.mjs",
        "networks.json", "worker.js")],
    ("engine.js", None, "A script of this page.*missing.*gapkd demo"),
    ("student.onnx", b"no network", "^student.onnx cannot be drawn with in this browser")])
def test_a_file_that_is_missing_or_damaged_is_named(altered, file, content, message):
    seen = altered(file, content)
    seen.until("!document.getElementById('message').hidden")
    assert re.search(message, seen.message(), re.DOTALL)
    if file == "teacher.onnx":  # the student draws on
        before = seen.canvases()[0]
        seen.page.locator("#next").click()
        seen.until("document.querySelector('#pictures canvas').getAttribute('aria-label')"
                   ".endsWith(' 8')")
        assert apart(before, seen.canvases()[0]) > 0.5


def test_a_browser_without_webassembly_is_told(altered, folder):
    seen = altered("worker.js", f"delete self.WebAssembly;\n{(folder / 'worker.js').read_text()}")
    seen.until("!document.getElementById('message').hidden")
    assert seen.message().startswith("This browser has no WebAssembly")
    assert len(seen.canvases()) == 2 and seen.canvases()[0].std() > 10, "it needs none"


def test_opened_as_a_file_it_says_how_to_serve_it(browser, folder):
    page = browser.new_page()
    page.goto(f"file://{folder / 'index.html'}")
    assert "python -m http.server" in page.locator("#message").inner_text()
    assert not page.locator("main").is_visible()
    page.close()


# ---------------------------------------------------------------------- other networks


def test_one_network_with_classes(show, tmp_path):
    seen = show(handmade.write(tmp_path / "classy.onnx", c_dim=3))
    picture, = seen.canvases()
    seen.slide("label", 2)
    assert apart(picture, seen.rest().canvases()[0]) > 0.5
    assert not seen.page.locator("#gap").is_visible()
    assert seen.page.locator("figcaption b").inner_text() == "classy"
    assert not seen.page.locator("#more").is_visible(), "two directions need no more"
    assert seen.said == []


def test_a_pair_with_names_is_no_student_and_teacher(show, tmp_path):
    files = [handmade.write(tmp_path / f"{n}.onnx", n) for n in (1, 2)]
    seen = show(*files, names=("Ann", "bob_2"))
    assert seen.page.locator("figcaption b").all_inner_texts() == ["Ann", "bob_2"]
    subtitle = "One z, drawn by Ann and by bob_2, on this device."
    assert seen.page.locator("#subtitle").inner_text() == subtitle
    seen.until("window.gapkd.times")
    assert seen.page.locator("#faster").inner_text().startswith("Ann is ")
    said = seen.page.title() + seen.page.locator("body").evaluate("body => body.textContent")
    assert not re.search("student|teacher", said) and seen.said == []


def test_each_network_is_edited_as_far_as_its_own_w_reaches(visit, serving, runtime, tmp_path):
    """Where they share no W, each brings directions of its own."""
    given = [{"names": ["smile"], "vectors": np.eye(6)[[n]].tolist(), "reach": [3.0 - n],
              "given": True} for n in (0, 1)]
    files = [str(handmade.write(tmp_path / f"{n}.onnx", n, mapping=5 * n, directions=directions))
             for n, directions in enumerate(given)]
    config = DemoConfig(*files, out=str(tmp_path / "page"), runtime=runtime)
    seen = visit(serving(write_demo(config)), script="""window.offsets = {};
        const post = Worker.prototype.postMessage;
        Worker.prototype.postMessage = function (question) {
          if (question.kind === "draw") window.offsets[question.file] = question.offset;
          return post.call(this, question);
        };""").rest()
    seen.slide("direction-0", 0.5)
    found = seen.rest().page.evaluate(
        "['student', 'teacher'].map((role) => [...window.offsets[`${role}.onnx`]].slice(0, 6))")
    assert found == [[1.5, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]


def test_a_pair_of_other_layers_without_directions(show, tmp_path):
    seen = show(*[handmade.write(tmp_path / f"{n}.onnx", n, names=(), num_ws=n, resolution=8 * n)
                  for n in (2, 4)])
    assert not seen.page.locator("#directions").is_visible()
    assert not seen.page.locator("#gap").is_visible()
    before = seen.canvases()
    seen.slide("layers", 1)  # of the student's 2: half; for the teacher 2 of 4
    after = seen.rest().canvases()
    assert all(apart(a, b) > 0.5 for a, b in zip(before, after, strict=True))
    assert seen.said == []


def test_names_from_a_file_are_text_and_nothing_else(show, tmp_path):
    trick = "<img src=x onerror=document.title='owned'>"
    seen = show(handmade.write(tmp_path / "n.onnx", names=(trick,), name=trick, sha256=trick))
    label = seen.page.locator("label[for=direction-0]").inner_text()
    assert label.lower().startswith("<img") and seen.page.locator("img").count() == 0
    assert seen.page.title().startswith("gapkd: <img") and seen.said == []

// The page: what is wanted lies in `state`; every control changes it and asks for a new picture.

import { read, written } from "./address.js";
import { LARGEST_SEED, listen, seedField, slider, switchTheme } from "./controls.js";
import { at, make, paint } from "./dom.js";
import { Engine } from "./engine.js";
import { between, faceOf, normals, relative } from "./latent.js";
import { Neighbours } from "./neighbours.js";
import { Pictures, titleOf } from "./pictures.js";
import { measure } from "./timing.js";

const SHOWN = 6; // directions before "more"
const PASSAGE = 2500; // ms from seed to seed
const ASTRAY = 0.02; // how far a picture of the GPU may be from the one that was drawn beforehand
const QUIET = 300; // ms after the last wish, before the address is written and networks are timed
const NOTICE = 1500; // ms
const TITLES = { wasm: "WebAssembly, 1 thread", webgpu: "WebGPU" };
const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000; // short enough to tell others
const frame = () => new Promise(requestAnimationFrame);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** say(text): shows what is wrong. */
export async function main(say) {
  const reply = await fetch("networks.json").catch(() => null);
  if (!reply?.ok) throw new Error("networks.json is missing: write the page again with gapkd demo.");
  const { networks, start, runtime } = await reply.json();
  for (const network of networks) network.directions ??= networks[0].directions;
  const [student, teacher] = networks; // the first draws the small pictures too; without a teacher it is just a network
  const { names } = student.directions;
  const wrapped = (seed) => (seed + LARGEST_SEED + 1) % (LARGEST_SEED + 1); // after the largest comes 0
  const numbered = (seed) => faceOf(wrapped(seed), student.z_dim);
  const beginning = () => ({ face: numbered(start.seed), truncation: start.truncation, label: 0,
                             strengths: names.map(() => 0), mix: { seed: wrapped(start.seed + 1), layers: 0 } });
  let state = read(location.hash, beginning(), student);

  document.title = `gapkd: ${networks.map(titleOf).join(" and ")}`;
  if (!teacher) at("subtitle").textContent = `Every z is a picture. ${student.name} draws it, on this device.`;
  else if (student.role !== "student")
    at("subtitle").textContent = `One z, drawn by ${student.name} and by ${teacher.name}, on this device.`;
  const pictures = new Pictures(networks);
  await pictures.showFirst().then(() => performance.mark("gapkd: first picture"), () => {});

  // -- what draws: the GPU, if the browser has one that draws the picture that was drawn beforehand -------------------

  const begin = (device) => new Engine(device, (have, total) => {
    at("loading").textContent = `Loading ${(have / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`;
  });

  let engine;
  let why = ""; // not the GPU

  async function onGpu() {
    if (location.search === "?wasm") return null;
    const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
    if (!adapter || (adapter.info?.isFallbackAdapter && location.search !== "?webgpu")) return null; // none, or the CPU
    const gpu = begin("webgpu");
    try {
      for (const view of pictures.views) {
        const { file, num_ws, w_dim } = view.network;
        const offset = new Float32Array(num_ws * w_dim);
        await gpu.ask("open", { network: view.network });
        const { pixels } = await gpu.ask("draw", { file, offset, label: 0, ...start, z: numbered(start.seed).z });
        if (!(view.distance(pixels) < ASTRAY)) throw new Error("it draws another picture");
      }
      return gpu;
    } catch (error) {
      why = ` (WebGPU was tried: ${error.message})`;
      gpu.stop();
      return null;
    }
  }

  // -- drawing: the newest wish wins, and what is left of an older one is dropped ------------------------------------

  let wish = 0; // number of the newest
  let since = 0; // when it came
  let drawing = null; // promise of the draws that are under way
  let playing = false, passage = 0;

  /** Strengths, in units of the network's own reach, times its directions, in every layer: (num_ws w_dim). */
  function edits({ num_ws, w_dim, directions }) {
    const step = new Float32Array(w_dim);
    state.strengths.forEach((strength, i) => {
      if (strength) directions.vectors[i].forEach((x, place) => { step[place] += strength * directions.reach[i] * x; });
    });
    return Float32Array.from({ length: num_ws * w_dim }, (_, i) => step[i % w_dim]);
  }

  /** The pixels of a face, edited, so many of its last layers from the other seed. */
  async function draw(view, face, layers = state.mix.layers) {
    const { network } = view;
    const mix = { key: state.mix.seed, z: normals(state.mix.seed, network.z_dim),
                  layers: Math.round(layers * network.num_ws / student.num_ws) };
    const { pixels } = await engine.ask("draw", { file: network.file, z: face.z, truncation: state.truncation,
                                                  label: state.label, offset: edits(network), mix });
    return pixels;
  }

  function redraw() {
    wish += 1;
    since = performance.now();
    drawing ??= Promise.resolve().then(drawNewest);
    return drawing;
  }

  async function drawNewest() {
    try {
      for (let done = 0; done < wish; ) {
        done = wish;
        for (const view of pictures.views.filter(({ open }) => open)) {
          if (done < wish && view.network !== student) break; // a slow teacher waits until the hand rests
          const { face } = state;
          view.show(await draw(view, face), face.key, done);
        }
        pictures.compare();
      }
    } catch (error) {
      say(error.message);
    } finally {
      drawing = null;
    }
    if (!playing) writeSoon();
    if (pictures.views[0].open) small.refresh();
  }

  // -- the address: written once the hand rests, since browsers allow few changes of it -------------------------------

  let writing = null; // the timer

  function write() {
    clearTimeout(writing);
    writing = null;
    try {
      history.replaceState(null, "", written(state));
    } catch { /* too many changes: the next one may be allowed again */ }
  }

  function writeSoon() {
    clearTimeout(writing);
    writing = setTimeout(write, QUIET);
  }

  addEventListener("pagehide", () => playing || write()); // for whoever comes back

  // -- small pictures -------------------------------------------------------------------------------------------------

  let kind = "relatives"; // what they are
  const small = new Neighbours(student.resolution, {
    place: (i) => (kind === "relatives" ? relative(state.face, i + 1) : numbered(state.face.seed + i + 1)),
    draw: (face) => draw(pictures.views[0], face),
    newest: () => ({ wish, since, moving: playing }),
    choose: (face) => { stop(); go(face); },
    last: async () => {
      paint(at("other"), await draw(pictures.views[0], numbered(state.mix.seed), 0), student.resolution);
      pictures.compare();
    },
    complain: say,
  });
  for (const input of document.querySelectorAll("[name=kind]"))
    input.addEventListener("change", () => { kind = input.value; redraw(); });

  // -- where we are --------------------------------------------------------------------------------------------------

  function go(face) {
    state.face = face;
    at("seed").value = face.seed;
    at("key").hidden = playing || face.key === `${face.seed}`;
    at("key").textContent = face.key;
    if (!playing) at("spoken").textContent = `Picture ${face.key}`;
    return redraw();
  }

  function setPlaying(value) {
    playing = value;
    at("morph").setAttribute("aria-pressed", playing);
    at("morph").querySelector("use").setAttribute("href", playing ? "#icon-pause" : "#icon-play");
    at("morph").querySelector("span").textContent = playing ? "Pause" : "Morph";
  }

  function stop() {
    if (!playing) return;
    setPlaying(false);
    go(state.face);
  }

  async function play() {
    setPlaying(true);
    const mine = ++passage; // one that was stopped may still wait for its picture
    const goesOn = () => playing && mine === passage;
    for (let from = state.face, to = numbered(from.seed + 1), began = performance.now(); goesOn(); await frame()) {
      const t = Math.min(1, (performance.now() - began) / PASSAGE);
      await go(t < 1 ? between(from, to, t) : to);
      if (t === 1) [from, to, began] = [to, numbered(to.seed + 1), performance.now()];
    }
  }

  // -- controls ------------------------------------------------------------------------------------------------------

  const changed = redraw;
  const sliders = [slider(at("general"), "Truncation", {
    id: "truncation", min: 0, max: 1.2, step: 0.02, places: 2, changed,
    read: () => state.truncation, write: (x) => { state.truncation = x; } })];
  if (student.c_dim) sliders.push(slider(at("general"), "Class", {
    id: "label", min: 0, max: student.c_dim - 1, step: 1, places: 0, changed,
    read: () => state.label, write: (x) => { state.label = x; } }));
  names.forEach((name, i) => sliders.push(slider(i < SHOWN ? at("first") : at("others"), name.replaceAll("_", " "), {
    id: `direction-${i}`, min: -1, max: 1, step: 0.02, places: 2, centred: true, changed,
    read: () => state.strengths[i], write: (x) => { state.strengths[i] = x; } })));
  sliders.push(slider(at("mixing"), "Layers from it, finest first", {
    id: "layers", min: 0, max: student.num_ws, step: 1, places: 0, changed,
    read: () => state.mix.layers, write: (x) => { state.mix.layers = x; } }));
  at("directions").hidden = !names.length;
  at("more").hidden = names.length <= SHOWN;
  at("more").querySelector("summary").textContent = `${names.length - SHOWN} more`;

  const showAll = () => {
    for (const show of sliders) show();
    at("otherseed").value = state.mix.seed;
  };
  const mixWith = (seed) => {
    state.mix = { seed, layers: state.mix.layers || Math.ceil(student.num_ws / 2) }; // so that something is seen
    showAll();
    redraw();
  };
  const walk = (seed) => { stop(); go(numbered(seed())); };
  seedField(at("seed"), () => state.face.seed, (seed) => walk(() => seed));
  seedField(at("otherseed"), () => state.mix.seed, mixWith);
  listen({
    random: () => walk(randomSeed),
    previous: () => walk(() => state.face.seed - 1),
    next: () => walk(() => state.face.seed + 1),
    morph: () => (playing ? stop() : play()),
    reset: () => { stop(); state = beginning(); showAll(); go(state.face); },
    save: async () => {
      await drawing; // what is under way belongs to it
      await pictures.save();
    },
    link: async () => {
      write();
      const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
      at("linked").textContent = copied ? "Copied" : "See above"; // in the address bar
      await pause(NOTICE);
      at("linked").textContent = "Link";
    },
    theme: switchTheme,
    otherrandom: () => mixWith(randomSeed()),
  });

  const list = (rows) => make("dl", {}, ...rows.map(([term, text]) =>
    make("div", {}, make("dt", { textContent: term }), make("dd", { textContent: text }))));
  at("facts").append(...networks.map(({ role, name, about }) => list([[role, name], ...about])),
    list([["runtime", runtime]]));

  addEventListener("hashchange", () => {
    if (location.hash === written(state)) return;
    stop();
    state = read(location.hash, beginning(), student);
    showAll();
    go(state.face);
  });
  showAll();
  go(state.face);

  // for tests
  window.gapkd = {
    latent: (seed) => normals(seed, student.z_dim),
    /** Whether all pictures show the newest wish, and the address says it. */
    get resting() {
      const drawn = pictures.views.every(({ shown }) => shown === wish) && (playing || small.shown === wish);
      return !drawing && !writing && drawn;
    },
    times: null, // what was measured
  };

  // -- the networks, the small one first -----------------------------------------------------------------------------

  engine = await onGpu() ?? begin("wasm");
  for (const view of pictures.views) {
    await engine.ask("open", { network: view.network });
    view.open = true;
    await redraw();
    performance.mark(`gapkd: drawn by ${view.network.role}`);
  }
  at("loading").hidden = true;
  at("device").textContent = `Drawn by ${TITLES[engine.device]}${why}`;
  navigator.serviceWorker?.register("sw.js" + `?${engine.device}`).catch(() => {}); // without it, no page offline

  const quiet = () => window.gapkd.resting && !playing && !document.hidden && performance.now() - since > QUIET;
  const files = networks.map(({ file }) => file);
  window.gapkd.times = await measure(networks.length, async (order) => {
    const asked = order.map((network) => files[network]);
    return (await engine.ask("time", { files: asked, z: state.face.z, truncation: 1, label: 0 })).took;
  }, async () => { while (!quiet()) await pause(QUIET / 3); });
  pictures.tellTimes(window.gapkd.times);
}

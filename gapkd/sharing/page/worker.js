// Fetches the runtime and the networks, and draws. It lives in a worker, so the page never waits for a picture.

const RUNTIMES = { // gzipped here, because plain servers compress nothing
  wasm: ["./ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm.gz"],
  webgpu: ["./ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm.gz"],
};
const DEVICE = self.location.hash.slice(1); // worker.js#webgpu
const [SCRIPT, WASM] = RUNTIMES[DEVICE];
const networks = {}; // file -> {session, sizes, other}
let ort;
let line = Promise.resolve(); // requests are answered one after the other

self.onmessage = ({ data }) => {
  line = line.then(async () => {
    try {
      postMessage({ id: data.id, ...(await ANSWERS[data.kind](data)) });
    } catch (error) {
      postMessage({ id: data.id, error: error?.message ?? String(error) });
    }
  });
};

const ANSWERS = {
  /** A network's file. */
  async open({ network }) {
    if (networks[network.file]) return {};
    const [bytes] = await Promise.all([fetchBytes(network.file), runtime]);
    try {
      const quietly = { executionProviders: [DEVICE], logSeverityLevel: 3 };
      const session = await ort.InferenceSession.create(new Uint8Array(bytes), quietly);
      networks[network.file] = { session, sizes: network };
    } catch (error) {
      throw new Error(`${network.file} cannot be drawn with in this browser (${error?.message ?? error}).`);
    }
    return {};
  },

  /**
   * Pictures. file: of the network; z (n z_dim); truncation; offset (num_ws w_dim), for all pictures; label: class, for
   * conditional networks; mix: {key, z, layers}, where that many of the last layers come from another z.
   * Answers pixels (n R R 4), ws (n num_ws w_dim), and the ms that the network's run alone took.
   */
  async draw({ file, z, truncation, offset, label, mix }) {
    const network = networks[file];
    const given = { truncation, offset, label };
    if (mix?.layers) given.offset = await mixed(network, z, given, mix);
    const { image, ws, ms } = await run(network, z, given);
    return { pixels: pixels(image), ws, ms };
  },

  /** ms of one run of each of those files, one straight after the other. */
  async time({ files, z, truncation, label }) {
    const took = [];
    for (const file of files) {
      const { sizes } = networks[file];
      const offset = new Float32Array(sizes.num_ws * sizes.w_dim);
      took.push((await run(networks[file], z, { truncation, offset, label })).ms);
    }
    return { took };
  },
};

async function start() {
  if (typeof WebAssembly !== "object")
    throw new Error("This browser has no WebAssembly, or it is turned off: allow it, or take another browser.");
  const script = import(SCRIPT).catch(async () => {
    await fetchBytes(SCRIPT); // says so if it is not there
    throw new Error(`${SCRIPT.slice(2)} is damaged: write the page again with gapkd demo.`);
  });
  const [module, wasm] = await Promise.all([script, fetchBytes(WASM).then(unzipped)]);
  module.env.wasm.numThreads = 1; // more would need headers that plain servers do not send
  module.env.wasm.wasmBinary = wasm;
  return module;
}

async function run({ session, sizes }, z, { truncation, offset, label }) {
  const n = z.length / sizes.z_dim;
  const row = sizes.num_ws * sizes.w_dim;
  const feeds = {
    z: new ort.Tensor("float32", Float32Array.from(z), [n, sizes.z_dim]),
    truncation: new ort.Tensor("float32", Float32Array.of(truncation), [1]),
    offset: new ort.Tensor("float32", Float32Array.from(offset), [offset.length / row, sizes.num_ws, sizes.w_dim]),
  };
  if (sizes.c_dim) {
    const c = Float32Array.from({ length: n * sizes.c_dim }, (_, i) => Number(i % sizes.c_dim === label));
    feeds.c = new ort.Tensor("float32", c, [n, sizes.c_dim]);
  }
  const start = performance.now();
  const { image, ws } = await session.run(feeds);
  return { image, ws: ws.data, ms: performance.now() - start };
}

/** Offsets that give the last layers of every picture to another z: the difference of both ws there. */
async function mixed(network, z, given, mix) {
  const { num_ws, w_dim } = network.sizes;
  const plain = { ...given, offset: new Float32Array(num_ws * w_dim) };
  const key = `${mix.key} ${given.truncation} ${given.label}`;
  if (network.other?.key !== key) {
    const { ws } = await run(network, mix.z, plain);
    network.other = { key, ws };
  }
  const { ws } = await run(network, z, plain);
  const first = (num_ws - mix.layers) * w_dim; // of the numbers that are exchanged
  return ws.map((x, i) => {
    const place = i % (num_ws * w_dim);
    return given.offset[place] + (place < first ? 0 : network.other.ws[place] - x);
  });
}

/** Planes in [-1, 1], (n, 3, R, R), or 1 (grey) or 4 (RGBA) of them -> RGBA bytes, (n, R, R, 4). */
function pixels({ data, dims: [n, planes, height, width] }) {
  const size = height * width;
  const bytes = new Uint8ClampedArray(n * size * 4).fill(255);
  for (let image = 0; image < n; image++)
    for (let channel = 0; channel < Math.max(planes, 3); channel++)
      for (let i = 0, from = (planes * image + Math.min(channel, planes - 1)) * size; i < size; i++)
        bytes[4 * (image * size + i) + channel] = (data[from + i] + 1) * 127.5; // rounded and clamped
  return bytes;
}

async function fetchBytes(name) {
  let reply;
  try {
    reply = await fetch(name);
  } catch {
    throw new Error(`${name} could not be fetched: is the server still running?`);
  }
  if (!reply.ok)
    throw new Error(`${name} is missing (the server says ${reply.status}): write the page again with gapkd demo.`);
  const total = Number(reply.headers.get("Content-Length"));
  const parts = [];
  let have = 0;
  for (const reader = reply.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return new Blob(parts).arrayBuffer();
    parts.push(value);
    have += value.length;
    postMessage({ progress: { name, have, total } });
  }
}

/** Some servers unpack .gz on the way, so the first bytes decide. */
async function unzipped(bytes) {
  const [first, second] = new Uint8Array(bytes);
  if (first !== 0x1f || second !== 0x8b) return bytes;
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

const runtime = start().then((module) => { ort = module; });
runtime.catch(() => {}); // whoever waits for it says so

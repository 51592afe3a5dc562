// The large pictures, one a network, and what is written under them.

import { at, make, paint } from "./dom.js";

const LARGEST = 480; // px on the screen, and at most this share of the window's height:
const SHARE = 0.42;
const SMALL = 128; // px of a network whose pixels are shown as squares
const MOST = 25; // draws that a median is of

export const titleOf = ({ role, name }) => (role === "network" ? name : role);

class View {
  open = false; // whether the network is there
  shown = 0; // number of the wish that it shows
  pixels = null; // RGBA bytes
  #times = [];
  #warm = false;

  constructor(network) {
    this.network = network;
    this.canvas = make("canvas", { width: network.resolution, height: network.resolution });
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", `${titleOf(network)}: picture`);
    this.time = make("output", { textContent: "–" });
    at("pictures").append(make("figure", { className: network.role }, this.canvas, make("figcaption", {},
      make("b", { textContent: titleOf(network) }),
      make("span", { className: "ms", title: `median of the newest draws, at most ${MOST}` }, this.time, " ms"),
      make("small", { textContent: `${(network.bytes / 1e6).toFixed(2)} MB · ${network.precision}` }))));
  }

  show(pixels, key, wish) {
    paint(this.canvas, pixels, this.network.resolution);
    this.canvas.setAttribute("aria-label", `${titleOf(this.network)}: picture ${key}`);
    Object.assign(this, { pixels, shown: wish });
  }

  /** One draw took so long. The first does not count: the runtime sets itself up in it. */
  took(ms) {
    if (this.#warm) this.#times = [...this.#times, ms].slice(-MOST);
    this.#warm = true;
    if (this.median) this.time.textContent = this.median.toFixed(1);
  }

  get median() {
    const sorted = [...this.#times].sort((a, b) => a - b);
    const half = sorted.length >> 1;
    return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  }
}

export class Pictures {
  constructor(networks) {
    this.size = Math.max(...networks.map(({ resolution }) => resolution));
    this.crisp = this.size <= SMALL;
    this.views = networks.map((network) => new View(network));
    document.body.classList.toggle("crisp", this.crisp);
    at("gap").hidden = networks.length < 2 || networks[0].resolution !== networks[1].resolution;
    new ResizeObserver(() => this.#fit()).observe(at("pictures"));
  }

  /** Whole device pixels for every pixel of a small picture, or it would look uneven. */
  #fit() {
    const count = this.views.length;
    const room = Math.min(LARGEST, SHARE * innerHeight, (at("pictures").clientWidth - 16 * (count - 1)) / count);
    const grain = this.size / devicePixelRatio;
    const edge = this.crisp && room >= grain ? Math.floor(room / grain) * grain : room;
    at("pictures").style.setProperty("--edge", `${edge}px`);
  }

  /** Pictures that were drawn when the page was written stand in until the networks are there. */
  showFirst() {
    return Promise.all(this.views.map(async (view) => {
      const image = new Image();
      image.src = view.network.picture;
      await image.decode();
      if (!view.shown) view.canvas.getContext("2d").drawImage(image, 0, 0);
    }));
  }

  /** How far the two pictures are apart, once both are of the same z. */
  compare() {
    const [a, b] = this.views;
    if (at("gap").hidden || !a.shown || a.shown !== b.shown) return;
    let sum = 0;
    for (let i = 0; i < a.pixels.length; i++) sum += Math.abs(a.pixels[i] - b.pixels[i]); // alphas are equal
    at("distance").textContent = (sum / (a.pixels.length * 0.75) / 127.5).toFixed(3);
    const times = b.median / a.median;
    at("faster").textContent = times > 1.05 ? `the student is ${times.toFixed(1)} times as quick` : "";
  }

  /** What is seen, side by side, small pixels enlarged to squares, as PNG. */
  async save(name) {
    const edge = this.size * Math.max(1, Math.round(512 / this.size));
    const sheet = make("canvas", { width: edge * this.views.length, height: edge });
    const context = sheet.getContext("2d");
    context.imageSmoothingEnabled = !this.crisp;
    this.views.forEach(({ canvas }, i) => context.drawImage(canvas, i * edge, 0, edge, edge));
    const content = await new Promise((resolve) => sheet.toBlob(resolve, "image/png"));
    const link = make("a", { href: URL.createObjectURL(content), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}

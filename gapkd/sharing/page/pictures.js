// The large pictures, one a network, and what is written under them.

import { at, make, paint } from "./dom.js";
import { PAIRS } from "./timing.js";

const LARGEST = 480; // px on the screen, and at most this share of the window's height:
const SHARE = 0.42;
const SMALL = 128; // px of a network whose pixels are shown as squares

export const titleOf = ({ role, name }) => (["student", "teacher"].includes(role) ? role : name);

class View {
  open = false; // whether the network is there
  shown = 0; // number of the wish that it shows, 0: none yet
  key = null; // of its face
  pixels = null; // RGBA bytes

  constructor(network) {
    this.network = network;
    this.canvas = make("canvas", { width: network.resolution, height: network.resolution });
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", `${titleOf(network)}: picture`);
    this.time = make("output", { textContent: "–" });
    at("pictures").append(make("figure", { className: network.role }, this.canvas, make("figcaption", {},
      make("b", { textContent: titleOf(network) }),
      make("span", { className: "ms", title: `median of ${PAIRS} draws, by turns` }, this.time, " ms"),
      make("small", { textContent: `${(network.bytes / 1e6).toFixed(2)} MB · ${network.precision}` }))));
  }

  show(pixels, key, wish) {
    paint(this.canvas, pixels, this.network.resolution);
    this.canvas.setAttribute("aria-label", `${titleOf(this.network)}: picture ${key}`);
    Object.assign(this, { pixels, key, shown: wish });
  }

  /** How far, on average over all values from -1 to 1, pixels of the same size are from those that are shown. */
  distance(pixels) {
    const sum = this.pixels.reduce((all, value, i) => all + Math.abs(value - pixels[i]), 0); // alphas are equal
    return sum / (pixels.length * 0.75) / 127.5;
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
      const context = view.canvas.getContext("2d");
      context.drawImage(image, 0, 0);
      view.pixels = context.getImageData(0, 0, view.network.resolution, view.network.resolution).data;
    }));
  }

  /** How far the two pictures are apart, once both are of the same z. */
  compare() {
    const [a, b] = this.views;
    if (at("gap").hidden || !a.shown || a.shown !== b.shown) return;
    at("distance").textContent = a.distance(b.pixels).toFixed(3);
  }

  /** What was measured, once all of it was. */
  tellTimes({ medians, ratio }) {
    this.views.forEach((view, i) => { view.time.textContent = medians[i].toFixed(1); });
    const { network } = this.views[0];
    const first = network.role === "student" ? "the student" : network.name;
    if (ratio > 1.05 && ratio < Infinity) at("faster").textContent = `${first} is ${ratio.toFixed(1)} times as fast`;
    else if (ratio) at("faster").textContent = `${first} is no faster here`;
  }

  /** What was drawn of the first one's z, side by side, small pixels enlarged to squares, as PNG named after it. */
  async save() {
    const { key, shown: newest } = this.views[0];
    const views = this.views.filter(({ shown }) => shown && shown === newest);
    if (!views.length) return;
    const edge = this.size * Math.max(1, Math.round(512 / this.size));
    const sheet = make("canvas", { width: edge * views.length, height: edge });
    const context = sheet.getContext("2d");
    context.imageSmoothingEnabled = !this.crisp;
    views.forEach(({ canvas }, i) => context.drawImage(canvas, i * edge, 0, edge, edge));
    const content = await new Promise((resolve) => sheet.toBlob(resolve, "image/png"));
    const link = make("a", { href: URL.createObjectURL(content), download: `gapkd-${key}.png` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}

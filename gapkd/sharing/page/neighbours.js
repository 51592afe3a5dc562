// Small pictures around the large one: relatives of its z, or the seeds that follow. Choosing one goes there.

import { at, make, paint } from "./dom.js";

const COUNT = 12;
const REST = 150; // ms without a change before they are drawn anew
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Neighbours {
  faces = [];
  shown = 0; // number of the wish that they belong to
  #busy = false;

  /**
   * place(number): the face of a tile; draw(face): its pixels (R, R, 4); choose(face): called for a choice; last():
   * called when all are drawn; newest(): {wish, since, moving}, the newest wish, when it came, and whether pictures are
   * in motion, so that small ones need not be drawn.
   */
  constructor(size, { place, draw, newest, choose, last, complain }) {
    Object.assign(this, { size, place, draw, newest, last, complain });
    this.tiles = Array.from({ length: COUNT }, (_, i) => {
      const tile = make("button", { type: "button" }, make("canvas", { width: size, height: size }));
      tile.setAttribute("aria-label", `Small picture ${i + 1}`);
      tile.addEventListener("click", () => this.faces[i] && choose(this.faces[i]));
      return tile;
    });
    at("tiles").append(...this.tiles);
  }

  /** Draws them as soon as the large pictures rest, and stops when something else is wanted. */
  async refresh() {
    if (this.#busy) return;
    this.#busy = true;
    try {
      while (this.shown !== this.newest().wish && !this.newest().moving) {
        const { wish, since } = this.newest();
        await pause(since + REST - performance.now());
        if (wish === this.newest().wish) await this.#drawAll(wish);
      }
    } catch (error) {
      this.complain(error.message);
    } finally {
      this.#busy = false;
    }
  }

  async #drawAll(wish) {
    for (let i = 0; i < COUNT; i++) {
      const face = this.place(i);
      const pixels = await this.draw(face);
      if (wish !== this.newest().wish) return;
      this.faces[i] = face;
      paint(this.tiles[i].firstElementChild, pixels, this.size);
      this.tiles[i].classList.add("drawn");
      this.tiles[i].title = `Picture ${face.key}`;
      this.tiles[i].setAttribute("aria-label", `Go on from picture ${face.key}`);
    }
    await this.last();
    this.shown = wish;
  }
}

// What is wanted, as the address says it, so that it can be shared: #face=7&truncation=0.70&mix=8,3&d1=0.50

import { faceFrom } from "./latent.js";

/** The part of the address after #. */
export function written({ face, truncation, label, strengths, mix }) {
  const words = new URLSearchParams({ face: face.key, truncation: truncation.toFixed(2) });
  if (label) words.set("class", label);
  if (mix.layers) words.set("mix", `${mix.seed},${mix.layers}`);
  strengths.forEach((strength, i) => { if (strength) words.set(`d${i}`, strength.toFixed(2)); });
  return `#${words}`;
}

/** The same read back. What an address lacks, or says wrongly, stays as it is at the beginning. */
export function read(address, beginning, { z_dim, num_ws, c_dim }) {
  const words = new URLSearchParams(address.slice(1));
  const number = (text, least, most, otherwise) =>
    text?.trim() && text >= least && text <= most ? Number(text) : otherwise;
  const whole = (text, most, otherwise) => Math.floor(number(text, 0, most, otherwise));
  const [seed, layers] = words.get("mix")?.split(",") ?? [];
  return {
    face: faceFrom((words.get("face") ?? "").replaceAll(" ", "+"), z_dim) ?? beginning.face,
    truncation: number(words.get("truncation"), 0, 1.2, beginning.truncation),
    label: whole(words.get("class"), c_dim - 1, beginning.label),
    strengths: beginning.strengths.map((strength, i) => number(words.get(`d${i}`), -1, 1, strength)),
    mix: { seed: whole(seed, 2 ** 32 - 1, beginning.mix.seed), layers: whole(layers, num_ws, beginning.mix.layers) },
  };
}

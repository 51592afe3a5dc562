// Latents z. Every number comes from a seed by the two functions below, which gapkd/sharing/web.py repeats in Python.

const TURN = 0.5; // radians between a picture's z and those of its relatives
const MOST = 500; // steps of a key

/** mulberry32: 32 bits of state, numbers in [0, 1). */
export function mulberry32(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Standard normal numbers, in float64: Box and Muller's pairs, from two uniform numbers each. */
export function normals(seed, count) {
  const uniform = mulberry32(seed);
  const z = new Float64Array(count);
  for (let i = 0; i < count; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform())); // 1 - u lies in (0, 1]
    const angle = 2 * Math.PI * uniform();
    z[i] = radius * Math.cos(angle);
    if (i + 1 < count) z[i + 1] = radius * Math.sin(angle);
  }
  return z;
}

/** A 32-bit number from a text (FNV-1a): the seed that belongs to a key such as "7+3". */
function seedOf(text) {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash >>> 0;
}

// A face is {key, seed, z}. Its key tells how it came about: "7" is seed 7, "7+3" the third relative of that one,
// "7-8@0.40" lies on the way from seed 7 to seed 8.

/** The face of such a key; null where it is none. */
export function faceFrom(key, size, depth = 0) {
  const [, before, sign, last] = /^(.+)([-+])([\d.@]+)$/.exec(key) ?? [];
  const [seed, way] = (last ?? key).split("@");
  if (!/^\d{1,10}$/.test(seed) || seed >= 2 ** 32 || depth > MOST) return null;
  if (before === undefined) return way === undefined ? faceOf(Number(seed), size) : null;
  const first = faceFrom(before, size, depth + 1);
  if (sign === "+") return first && way === undefined ? relative(first, Number(seed)) : null;
  return first && way >= 0 && way <= 1 ? between(first, faceOf(Number(seed), size), Number(way)) : null;
}

export const faceOf = (seed, size) => ({ key: `${seed}`, seed, z: normals(seed, size) });

/** Turned a little from a face towards a z of its own, so that the result is as normal as the face was. */
export function relative(face, number) {
  const key = `${face.key}+${number}`;
  const other = normals(seedOf(key), face.z.length);
  return { key, seed: face.seed, z: face.z.map((x, i) => Math.cos(TURN) * x + Math.sin(TURN) * other[i]) };
}

/** At t in [0, 1] on the way between two faces, along the great circle: a straight line would lead by the average. */
export function between(a, b, exact) {
  const t = Number(exact.toFixed(2)); // as the key says it
  const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  const angle = Math.acos(Math.min(1, Math.max(-1, dot(a.z, b.z) / Math.sqrt(dot(a.z, a.z) * dot(b.z, b.z)))));
  const sine = Math.sin(angle);
  const [from, to] = sine < 1e-6 ? [1 - t, t] : [Math.sin((1 - t) * angle) / sine, Math.sin(t * angle) / sine];
  return { key: `${a.key}-${b.key}@${t.toFixed(2)}`, seed: t < 0.5 ? a.seed : b.seed,
           z: a.z.map((x, i) => from * x + to * b.z[i]) };
}

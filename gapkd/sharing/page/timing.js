// How quick the networks are: in pairs, by turns, after a warm-up. Nothing is said before all of them are drawn.

export const PAIRS = 24;
const WARM_UP = 4;

export function median(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/**
 * count: of networks; run(order): draws once with each, in that order, and answers their ms; idle(): waits until nobody
 * wants a picture. Answers the medians, and how many times as fast the first is as the second, pair by pair.
 */
export async function measure(count, run, idle) {
  const times = Array.from({ length: count }, () => []);
  for (let pair = -WARM_UP; pair < PAIRS; pair++) {
    await idle();
    const order = [...times.keys()];
    if (pair % 2) order.reverse();
    const took = await run(order);
    if (pair >= 0) order.forEach((network, place) => times[network].push(took[place]));
  }
  const ratio = count > 1 ? median(times[0].map((ms, pair) => times[1][pair] / ms)) : null;
  return { pairs: PAIRS, medians: times.map(median), ratio };
}

// Sliders, number fields and keys.

import { at, make } from "./dom.js";

export const LARGEST_SEED = 2 ** 32 - 1;
const KEYS = { r: "random", p: "previous", n: "next", m: "morph", 0: "reset", s: "save", l: "link", t: "theme" };
const HELD = ["previous", "next"]; // go on while their key is held

/**
 * A slider with its name and its value. centred: its bar grows from 0 in the middle. read, write: the value that it
 * stands for; changed: called after a change by hand. Returns a function that shows the value anew.
 */
export function slider(parent, name, { id, min, max, step, places, centred, read, write, changed }) {
  const input = make("input", { type: "range", id, min, max, step });
  const output = make("output", { htmlFor: id });
  const row = make("div", { className: "slider" }, make("label", { htmlFor: id, textContent: name }), output, input);
  const beginning = read();
  const show = () => {
    const value = read();
    const place = `calc(var(--thumb) / 2 + ${(value - min) / (max - min)} * (100% - var(--thumb)))`;
    input.value = value;
    output.textContent = (centred && value > 0 ? "+" : "") + value.toFixed(places);
    input.setAttribute("aria-valuetext", output.textContent);
    input.style.setProperty("--from", !centred ? "0%" : value < 0 ? place : "50%");
    input.style.setProperty("--to", centred && value < 0 ? "50%" : place);
  };
  const change = (value) => {
    write(value);
    show();
    changed();
  };
  input.addEventListener("input", () => change(input.valueAsNumber));
  row.addEventListener("dblclick", () => change(beginning));
  parent.append(row);
  return show;
}

/** A number field for seeds. use: called with a new one; whatever is none puts back what current() says. */
export function seedField(input, current, use) {
  input.max = LARGEST_SEED;
  input.addEventListener("change", () => {
    const seed = input.valueAsNumber;
    if (Number.isInteger(seed) && seed >= 0 && seed <= LARGEST_SEED) use(seed);
    else input.value = current();
  });
}

/** Buttons by id, and the keys that do the same. */
export function listen(actions) {
  for (const [id, action] of Object.entries(actions)) at(id).addEventListener("click", action);
  document.addEventListener("keydown", (event) => {
    const id = KEYS[event.key.toLowerCase()];
    if (event.repeat && !HELD.includes(id)) return;
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=number]")) return;
    if (event.key === "?") {
      at("keys").open = true;
      at("keys").firstElementChild.focus();
    } else actions[id]?.();
  });
}

/** The other theme than the one that is seen. */
export function switchTheme() {
  const dark = getComputedStyle(document.documentElement).getPropertyValue("--dark").trim() === "1";
  const theme = dark ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("gapkd-theme", theme);
  } catch { /* no storage: it lasts as long as the page */ }
}

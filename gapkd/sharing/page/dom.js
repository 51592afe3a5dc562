// A few words for the document.

export const at = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** RGBA bytes (size, size, 4) onto a canvas. */
export function paint(canvas, pixels, size) {
  Object.assign(canvas, { width: size, height: size }); // this also clears it
  canvas.getContext("2d").putImageData(new ImageData(pixels, size), 0, 0);
}

// Elements and texts. Text is always set as text, never as markup.

export const $ = (id) => document.getElementById(id);

/** Return a new element; functions among its attributes are listeners, booleans are set or left out. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (typeof value === "boolean") node.toggleAttribute(name, value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Say something to screen readers. */
export function announce(text) {
  $("live").textContent = text;
}

/** Milliseconds with the digits that matter: 0.041 ms, 1.3 ms, 24 ms. */
export const ms = (value) => `${value < 10 ? Number(value.toPrecision(2)) : Math.round(value)} ms`;
export const percent = (share) => (share > 0.9995 ? ">99.9 %" : share < 0.0005 ? "<0.1 %" : `${(100 * share).toFixed(1)} %`);
export const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

export const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1] ?? 0;

/** Paint 784 ink values, white on black, into a canvas of 28×28 pixels. */
export function paint28(canvas, pixels) {
  const image = new ImageData(28, 28);
  pixels.forEach((ink, index) => image.data.set([ink, ink, ink, 255], 4 * index));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Return a function that runs `task` with the newest input only: one run at a time, inputs in between are dropped. */
export function newest(task) {
  let running = false;
  let waiting = [];
  return async (input) => {
    waiting = [input];
    if (running) return;
    running = true;
    try {
      while (waiting.length) await task(waiting.pop());
    } finally {
      running = false;
    }
  };
}

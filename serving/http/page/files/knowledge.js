// Dark knowledge: soft targets of the current digit at a temperature, and the parts of it that a model relies on.

import { infer, ServiceError } from "./api.js";
import { $, announce, el, newest } from "./dom.js";
import { likeliest } from "./models.js";
import { sentence } from "./status.js";

const SIDE = 28;
const MASK = 6;
const STEP = 2;
const PLACES = Array.from({ length: (SIDE - MASK) / STEP + 1 }, (_, index) => STEP * index);

/** Softmax of the logits divided by the temperature. */
export function softTargets(logits, temperature) {
  const top = Math.max(...logits);
  const weights = logits.map((logit) => Math.exp((logit - top) / temperature));
  const sum = weights.reduce((a, b) => a + b);
  return weights.map((weight) => weight / sum);
}

/** Return the image, and copies of it with a masked square at each place. */
function maskedCopies(pixels) {
  const copies = [pixels];
  for (const top of PLACES) {
    for (const left of PLACES) {
      const copy = pixels.slice();
      for (let row = top; row < top + MASK; row += 1) copy.fill(0, SIDE * row + left, SIDE * row + left + MASK);
      copies.push(copy);
    }
  }
  const bytes = new Uint8Array(copies.length * pixels.length);
  copies.forEach((copy, index) => bytes.set(copy, index * pixels.length));
  return bytes;
}

/** How far the predicted class is ahead of the next one. */
function margin(logits, digit) {
  return logits[digit] - Math.max(...logits.filter((_, other) => other !== digit));
}

/** Return for each pixel the mean loss of margin of the masks that cover it, 0 where masking helps. */
function occlusion([whole, ...masked]) {
  const digit = whole.indexOf(Math.max(...whole));
  const before = margin(whole, digit);
  const [sum, covers] = [new Float64Array(SIDE * SIDE), new Float64Array(SIDE * SIDE)];
  masked.forEach((logits, index) => {
    const lost = before - margin(logits, digit);
    const [top, left] = [PLACES[Math.floor(index / PLACES.length)], PLACES[index % PLACES.length]];
    for (let row = top; row < top + MASK; row += 1) {
      for (let column = left; column < left + MASK; column += 1) {
        sum[SIDE * row + column] += lost;
        covers[SIDE * row + column] += 1;
      }
    }
  });
  return sum.map((value, at) => Math.max(0, value / covers[at]));
}

function correlation(a, b) {
  const mean = (list) => list.reduce((x, y) => x + y) / list.length;
  const [ma, mb] = [mean(a), mean(b)];
  const product = (p, q, mp, mq) => p.reduce((total, value, at) => total + (value - mp) * (q[at] - mq), 0);
  return product(a, b, ma, mb) / Math.sqrt(product(a, a, ma, ma) * product(b, b, mb, mb));
}

/** Return where a map is strongest, in words. */
function strongest(map) {
  const at = map.indexOf(Math.max(...map));
  const third = (value, names) => names[Math.min(2, Math.floor(value / 9.4))];
  return `${third(at / SIDE, ["top", "middle", "bottom"])} ${third(at % SIDE, ["left", "centre", "right"])}`;
}

export class Knowledge {
  constructor(models, live, maxImages) {
    this.teacher = models.find((model) => model.isTeacher);
    this.students = models.filter((model) => model !== this.teacher);
    this.maxImages = maxImages;
    for (const { name } of this.students) $("student").append(el("option", {}, name));
    $("student").value = this.students.find((model) => model.name.startsWith("student"))?.name ?? this.students[0]?.name;
    this.update = newest((pixels) => this.compute(pixels));
    live.addEventListener("digit", ({ detail }) => {
      this.pixels = detail.pixels;
      if (detail.ended) this.updateIfSeen();
    });
    live.addEventListener("clear", () => (this.pixels = undefined));
    $("temperature").addEventListener("input", () => this.draw());
    $("temperature").addEventListener("change", () => announce($("soft").getAttribute("aria-label") ?? ""));
    $("student").addEventListener("change", () => this.updateIfSeen());
    new IntersectionObserver(([entry]) => {
      this.seen = entry.isIntersecting;
      if (this.computed !== this.pixels) this.updateIfSeen();
    }).observe($("knowledge"));
  }

  updateIfSeen() {
    if (this.seen && this.pixels) this.update(this.pixels);
  }

  /** The teacher and the student selected; one model if there are no more. */
  pair() {
    const student = this.students.find((model) => model.name === $("student").value);
    return [this.teacher, student].filter(Boolean);
  }

  async compute(pixels) {
    const models = this.pair();
    const batch = PLACES.length ** 2 < this.maxImages ? maskedCopies(pixels) : pixels;
    try {
      const results = await Promise.all(models.map((model) => infer(model.name, batch)));
      this.results = models.map((model, index) => ({ model, logits: results[index][0], masked: results[index] }));
      this.computed = pixels;
      this.draw();
      if (batch !== pixels) this.drawMaps(pixels);
      else $("maps-note").textContent = `--max-images ${this.maxImages} of the service is too few for the map.`;
    } catch (error) {
      if (!(error instanceof ServiceError)) throw error;
      $("soft-note").textContent = sentence(error.message);
    }
  }

  draw() {
    const temperature = Number($("temperature").value);
    $("temperature-value").textContent = temperature;
    if (!this.results) return;
    const soft = this.results.map(({ logits }) => softTargets(logits, temperature));
    const bar = (p, model) => {
      const node = el("i", { class: model.colour });
      node.style.setProperty("--p", `${100 * p}%`);
      return node;
    };
    const group = (digit) => el("div", {}, ...this.results.map(({ model }, index) => bar(soft[index][digit], model)), el("b", {}, String(digit)));
    $("soft").replaceChildren(...Array.from({ length: 10 }, (_, digit) => group(digit)));
    $("soft").setAttribute("role", "img");
    $("soft").setAttribute("aria-label", this.results.map(({ model }, index) => `${model.name}: ${likeliest(soft[index])}`).join("; "));
    $("soft-title").replaceChildren("Soft targets", el("span", {}, ...this.results.map(({ model }) => el("span", { class: `legend ${model.colour}` }, model.name))));
    this.note(soft);
  }

  note(soft) {
    const [, student] = this.results;
    const trained = student?.model.manifest.recipe.model?.distillation?.temperature;
    const parts = this.results.map(({ model }, index) => `${model.name}: ${likeliest(soft[index])}.`);
    if (student) {
      const kl = soft[0].reduce((sum, p, digit) => sum + (p > 0 ? p * Math.log(p / Math.max(soft[1][digit], 1e-30)) : 0), 0);
      parts.push(`KL(${this.results[0].model.name} ‖ ${student.model.name}) = ${Number(kl.toPrecision(2))} nats.`);
    }
    if (trained) parts.push(`${student.model.name} was trained at temperature ${trained}.`);
    $("soft-note").textContent = parts.join(" ");
  }

  drawMaps(pixels) {
    const maps = this.results.map(({ masked }) => occlusion(masked));
    const nodes = this.results.map(({ model }, index) => {
      const canvas = el("canvas", { width: SIDE, height: SIDE, role: "img", "aria-label": `${model.name} relies most on the ${strongest(maps[index])}` });
      paintMap(canvas, pixels, maps[index]);
      return el("div", {}, canvas, el("p", {}, model.name));
    });
    $("maps").replaceChildren(...nodes);
    const text = `Masked: 6×6 pixels, at ${PLACES.length ** 2} places in one batch. The stronger the colour, the more evidence for the digit is lost.`;
    const r = maps.length === 2 ? ` Correlation of the two maps: ${correlation(...maps).toFixed(2)}.` : "";
    $("maps-note").textContent = text + r;
  }
}

/** The digit in grey, and over it what is lost, from dark red to yellow. */
function paintMap(canvas, pixels, map) {
  const top = Math.max(...map) || 1;
  const image = new ImageData(SIDE, SIDE);
  pixels.forEach((ink, at) => {
    const heat = map[at] / top;
    const grey = ink * 0.75;
    const mix = (colour) => grey + heat * (colour - grey) * 0.85;
    image.data.set([mix(255), mix(210 * heat), mix(30), 255], 4 * at);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

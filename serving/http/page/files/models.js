// The models of the service: their rows, and what each of them predicts.

import { showCard } from "./card.js";
import { $, el, median, ms, percent } from "./dom.js";

/** Return the models with their role and colour, the teacher first, then by size. */
export function withRoles(manifests) {
  const teacherOf = (manifest) => manifest.recipe.model?.distillation?.teacher;
  const teachers = new Set(manifests.map(teacherOf).filter(Boolean));
  const rank = (manifest) => (teachers.has(manifest.name) || manifest.name === "teacher" ? 1 : 0);
  const sorted = manifests.toSorted((a, b) => rank(b) - rank(a) || b.size_bytes - a.size_bytes);
  return sorted.map((manifest, index) => {
    const of = teacherOf(manifest);
    const role = rank(manifest) ? "teacher" : of ? `distilled from ${of}` : manifest.recipe.model ? "trained without a teacher" : "student";
    const kind = manifest.precision === "int8" ? `${role}, int8` : role;
    return { name: manifest.name, manifest, role: kind, isTeacher: rank(manifest) === 1, colour: `m${index % 7}` };
  });
}

const MIN_RESPONSES = 20; // for a median
const MAX_RESPONSES = 99;

export class Row {
  constructor(model) {
    this.model = model;
    this.times = []; // of inference, the newest
    const { name, manifest, role } = model;
    this.digit = el("div", { class: "digit" }, "·");
    this.bars = Array.from({ length: 10 }, (_, digit) => el("i", {}, String(digit)));
    this.figure = el("div", { class: "bars", role: "img", "aria-label": "no prediction" }, ...this.bars);
    this.verdict = el("p", { class: "verdict" });
    this.gains = el("p", { class: "gains" });
    const card = el("button", { class: "link", click: () => showCard(model) }, "Model card", el("span", { class: "hidden" }, ` of ${name}`));
    const facts = `${role} · ${(manifest.size_bytes / 1e6).toFixed(1)} MB · ${(100 - 100 * manifest.test_accuracy).toFixed(2)} % errors`;
    this.element = el(
      "li",
      { class: `panel model ${model.colour}`, "data-model": name },
      el("div", { class: "who" }, el("div", { class: "row" }, el("h2", {}, name), this.gains), el("p", { class: "facts" }, facts, card)),
      this.figure,
      this.digit,
      this.verdict,
    );
  }

  /** Show what this model gains over the teacher: size, and the median inference time so far. */
  compare(teacher) {
    if (!teacher || teacher === this) return;
    const smaller = teacher.model.manifest.size_bytes / this.model.manifest.size_bytes;
    const chips = [[smaller, "smaller", "Size of the file"]];
    if (this.times.length >= MIN_RESPONSES) {
      chips.push([median(teacher.times) / median(this.times), "faster", `Median inference time of ${this.times.length} responses`]);
    }
    const shown = chips.filter(([gain]) => gain >= 1.05).map(([gain, what, title]) => el("span", { title }, `${gain.toFixed(1)}× ${what}`));
    this.gains.replaceChildren(...shown);
  }

  show({ predictions: [prediction], timing, trip }) {
    const { digit, probabilities, accepted, confidence } = prediction;
    this.times = [timing.inference_ms, ...this.times].slice(0, MAX_RESPONSES);
    this.digit.textContent = digit;
    this.bars.forEach((bar, index) => {
      bar.style.setProperty("--p", `${100 * probabilities[index]}%`);
      bar.classList.toggle("top", index === digit);
    });
    this.figure.setAttribute("aria-label", likeliest(probabilities));
    const parts = [el("span", {}, "inference ", el("b", {}, ms(timing.inference_ms))), el("span", {}, "round trip ", el("b", {}, ms(trip)))];
    if (prediction.model) {
      parts.push(el("span", { title: "The model of the cascade that predicted" }, "by ", el("b", {}, prediction.model)));
    }
    if (accepted !== null) {
      const text = `${accepted ? "✓ accepted" : "✗ not accepted"}: ${percent(confidence)}`;
      parts.push(el("span", { class: accepted ? "good" : "bad", title: "Confidence, and whether it reaches the model's threshold" }, text));
    }
    this.verdict.replaceChildren(...parts);
    this.element.classList.remove("stale");
  }

  showAgreement(agrees) {
    this.verdict.append(el("span", { class: agrees ? "good" : "bad" }, agrees ? "✓ agrees with teacher" : "✗ differs from teacher"));
  }

  fail(message) {
    this.clear();
    this.verdict.replaceChildren(el("span", { class: "bad" }, message));
  }

  clear() {
    this.digit.textContent = "·";
    for (const bar of this.bars) {
      bar.style.setProperty("--p", "0%");
      bar.classList.remove("top");
    }
    this.figure.setAttribute("aria-label", "no prediction");
    this.verdict.replaceChildren();
    this.element.classList.remove("stale");
  }
}

/** Return the three most probable digits as text. */
export function likeliest(probabilities) {
  const order = probabilities.map((p, digit) => [p, digit]).sort(([a], [b]) => b - a);
  return order
    .slice(0, 3)
    .map(([p, digit]) => `${digit}: ${percent(p)}`)
    .join(", ");
}

/** Show the rows in place of those before. */
export function showRows(rows) {
  $("models").replaceChildren(...rows.map((row) => row.element));
}

// The models of the service: their rows, and what each of them predicts.

import { showCard } from "./card.js";
import { $, count, el, ms, percent } from "./dom.js";

/** Return the models with their role and colour, the teacher first, then by size. */
export function withRoles(manifests) {
  const teacherOf = (manifest) => manifest.recipe.model?.distillation?.teacher;
  const teachers = new Set(manifests.map(teacherOf).filter(Boolean));
  const rank = (manifest) => (teachers.has(manifest.name) || manifest.name === "teacher" ? 1 : 0);
  const sorted = manifests.toSorted((a, b) => rank(b) - rank(a) || b.size_bytes - a.size_bytes);
  return sorted.map((manifest, index) => {
    const of = teacherOf(manifest);
    const role = rank(manifest) ? "teacher" : of ? `distilled from ${of}` : "trained without a teacher";
    const kind = manifest.precision === "int8" ? `${role}, int8` : role;
    return { name: manifest.name, manifest, role: kind, isTeacher: rank(manifest) === 1, colour: `m${index % 7}` };
  });
}

export class Row {
  constructor(model, teacher) {
    this.model = model;
    const { manifest } = model;
    const smaller = teacher && teacher !== model ? teacher.manifest.size_bytes / manifest.size_bytes : 1;
    const size = `${(manifest.size_bytes / 1e6).toFixed(1)} MB${smaller > 1.05 ? `, ${smaller.toFixed(1)}× smaller` : ""}`;
    this.digit = el("div", { class: "digit" }, "·");
    this.bars = Array.from({ length: 10 }, (_, digit) => el("i", {}, String(digit)));
    this.figure = el("div", { class: "bars", role: "img", "aria-label": "no prediction" }, ...this.bars);
    this.verdict = el("p", { class: "verdict" });
    const card = el("button", { click: () => showCard(model) }, "Model card");
    card.append(el("span", { class: "hidden" }, ` of ${model.name}`));
    this.element = el(
      "li",
      { class: `panel model ${model.colour}`, "data-model": model.name },
      el(
        "div",
        { class: "who" },
        el("h2", {}, model.name, card),
        el("p", { class: "facts" }, `${model.role} · ${size} · ${count(manifest.test_errors, "error")} in 10,000`),
      ),
      this.figure,
      this.digit,
      this.verdict,
    );
  }

  /** Show a prediction; `agrees` is undefined where there is no teacher to compare with. */
  show({ predictions: [prediction], timing, trip }, agrees) {
    const { digit, probabilities, accepted, confidence } = prediction;
    this.digit.textContent = digit;
    this.bars.forEach((bar, index) => {
      bar.style.setProperty("--p", `${100 * probabilities[index]}%`);
      bar.classList.toggle("top", index === digit);
    });
    this.figure.setAttribute("aria-label", likeliest(probabilities));
    const parts = [el("span", {}, "inference ", el("b", {}, ms(timing.inference_ms))), el("span", {}, "round trip ", el("b", {}, ms(trip)))];
    if (accepted !== null) {
      const text = `${accepted ? "✓ accepted" : "✗ not accepted"}, confidence ${percent(confidence)}`;
      parts.push(el("span", { class: accepted ? "good" : "bad" }, text));
    }
    if (agrees !== undefined) parts.push(el("span", { class: agrees ? "good" : "bad" }, agrees ? "✓ agrees with the teacher" : "✗ differs from the teacher"));
    this.verdict.replaceChildren(...parts);
    this.element.classList.remove("stale");
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

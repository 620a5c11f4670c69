// The race: the same digits through every model, interleaved; latencies fill live, errors are counted.

import { predict, ServiceError } from "./api.js";
import { $, count, el, median, ms, paint28 } from "./dom.js";
import { linkTo, resultIn } from "./permalink.js";
import { copy } from "./snippets.js";
import { sentence } from "./status.js";
import { testDigits } from "./test_digits.js";

const BINS = 64; // of equal width on a logarithmic scale
const [FROM, TO] = [0.01, 100]; // milliseconds
const WARM_UP = 3; // digits that are sent, and not counted
const RETRIES = 20;
const place = (value) => Math.min(1, Math.max(0, Math.log(value / FROM) / Math.log(TO / FROM)));
const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

class Latencies {
  values = [];
  bins = Array(BINS).fill(0);

  add(value) {
    this.values.push(value);
    this.bins[Math.min(BINS - 1, Math.floor(place(value) * BINS))] += 1;
  }

  get median() {
    return median(this.values);
  }

  toJSON() {
    return { median: Number(this.median.toPrecision(4)), bins: this.bins };
  }
}

/** One model in the figure; `result` has its errors and latencies, of this race or of a permalink. */
class Lane {
  constructor(name, colour, result) {
    Object.assign(this, { name, result });
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const shape = (tag) => svg.appendChild(document.createElementNS(svg.namespaceURI, tag));
    svg.setAttribute("viewBox", `0 0 ${BINS} 1`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    this.path = shape("path");
    this.line = shape("line");
    this.score = el("p", { class: "score" });
    this.slips = el("div", { class: "mistakes" });
    this.element = el("div", { class: `lane ${colour}`, "data-model": name }, el("h3", {}, name), svg, this.slips, this.score);
  }

  draw(measure, reference) {
    const { median: middle, bins } = this.result[measure];
    this.element.classList.toggle("empty", !middle);
    if (!middle) return;
    const top = Math.max(1, ...bins);
    this.path.setAttribute("d", `M0 1${bins.map((n, at) => `V${1 - n / top}H${at + 1}`).join("")}V1Z`);
    const x = place(middle) * BINS;
    for (const [name, value] of Object.entries({ x1: x, x2: x, y1: 0, y2: 1 })) this.line.setAttribute(name, value);
    const other = reference && reference !== this ? reference.result[measure].median : 0;
    const gain = other ? ` · ${compare(other, middle)}` : "";
    this.score.replaceChildren(el("b", {}, count(this.result.errors, "error")), el("br"), `${ms(middle)}${gain}`);
  }

  /** Show a digit that the model misread. */
  addMistake({ label, pixels }, digit, load) {
    const canvas = el("canvas", { width: 28, height: 28 });
    paint28(canvas, pixels);
    const title = `${label} read as ${digit}: load this digit`;
    this.slips.append(el("button", { class: "mistake", title, "aria-label": title, click: load }, canvas, `${label} → ${digit}`));
  }
}

/** Return in words how much faster something is that takes `time` instead of `other`. */
function compare(other, time) {
  const factor = (Math.max(other, time) / Math.min(other, time)).toFixed(1);
  if (factor === "1.0") return "as fast";
  return `${factor}× ${time < other ? "faster" : "slower"}`;
}

export class Race {
  constructor(models, useDigit) {
    Object.assign(this, { models, useDigit, lanes: [], running: false });
    $("race-start").addEventListener("click", () => (this.running ? (this.running = false) : this.run()));
    $("race-measure").addEventListener("change", () => this.draw());
    $("race-link").addEventListener("click", () => copy(this.link));
    addEventListener("hashchange", () => this.open());
    this.prepare(this.noResults());
    this.open();
  }

  /** Show the result in the address, if there is one. */
  open() {
    const result = resultIn(location.hash);
    if (result === undefined || this.running) return;
    $("race-note").textContent = result
      ? `A result from a link: ${result.digits} digits on ${result.date}. Start the race to measure here.`
      : "The link contains no valid result.";
    if (result) this.prepare(result.lanes);
    $("race").scrollIntoView();
  }

  noResults() {
    return this.models.map(({ name }) => ({ name, errors: 0, inference: new Latencies(), trip: new Latencies() }));
  }

  prepare(results) {
    const colour = (name, index) => this.models.find((model) => model.name === name)?.colour ?? `m${index % 7}`;
    this.lanes = results.map((result, index) => new Lane(result.name, colour(result.name, index), result));
    const teacher = this.models.find((model) => model.isTeacher)?.name ?? "teacher";
    this.reference = this.lanes.find((lane) => lane.name === teacher);
    const ticks = [FROM, 0.1, 1, 10, TO].map((value) => {
      const tick = el("span", {}, value === TO ? ms(value) : String(value));
      tick.style.left = `${100 * place(value)}%`;
      return tick;
    });
    $("race-figure").replaceChildren(...this.lanes.map((lane) => lane.element), el("div", { class: "axis", "aria-hidden": "true" }, ...ticks));
    this.draw();
  }

  draw() {
    for (const lane of this.lanes) lane.draw($("race-measure").value, this.reference);
  }

  async run() {
    this.running = true;
    $("race-start").textContent = "Stop";
    $("race-link").hidden = true;
    $("race-note").textContent = "";
    try {
      const chosen = Number($("race-count").value);
      const all = await testDigits();
      const digits = all.filter((_, index) => index % (all.length / chosen) === 0);
      this.prepare(this.noResults());
      $("race-progress").max = digits.length;
      for (const digit of digits.slice(0, WARM_UP)) await this.all(digit, 0, false);
      await this.through(digits);
    } catch (error) {
      if (!(error instanceof ServiceError)) throw error;
      $("race-note").textContent = `The race has stopped: ${sentence(error.message)}`;
    } finally {
      this.running = false;
      $("race-start").textContent = "Start the race";
    }
  }

  async through(digits) {
    let drawn = 0;
    for (const [index, digit] of digits.entries()) {
      if (!this.running) {
        $("race-note").textContent = "Stopped.";
        return;
      }
      await this.all(digit, index, true);
      $("race-progress").value = index + 1;
      if (performance.now() - drawn > 60) {
        this.draw();
        drawn = performance.now();
        await new Promise(requestAnimationFrame);
      }
    }
    this.draw();
    this.finish(digits.length);
  }

  /** Send one digit to every model, beginning with another one each time. */
  async all(digit, index, counts) {
    for (let step = 0; step < this.lanes.length; step += 1) {
      const lane = this.lanes[(index + step) % this.lanes.length];
      const answer = await this.patiently(lane.name, digit.pixels);
      if (!counts) continue;
      if (answer) {
        lane.result.inference.add(answer.timing.inference_ms);
        lane.result.trip.add(answer.trip);
      }
      const found = answer ? answer.predictions[0].digit : "not accepted";
      if (found === digit.label) continue;
      lane.result.errors += 1;
      lane.addMistake(digit, found, () => this.useDigit(digit));
    }
  }

  /** Predict; wait as an overloaded service requests; nothing for a digit that `--reject-unaccepted` rejects. */
  async patiently(name, pixels) {
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await predict(name, pixels);
      } catch (error) {
        if (error.code === "not_accepted") return undefined;
        if (![429, 503].includes(error.status) || attempt === RETRIES || !this.running) throw error;
        await pause(Math.max(1, error.wait));
      }
    }
  }

  /** The fastest model against the teacher, in words. */
  gain() {
    const of = (lane) => lane.result[$("race-measure").value].median;
    const fastest = this.lanes.toSorted((a, b) => of(a) - of(b))[0];
    if (!this.reference || fastest === this.reference) return "";
    const errors = `${count(fastest.result.errors, "error")} instead of ${this.reference.result.errors}`;
    const gain = compare(of(this.reference), of(fastest));
    return gain === "as fast" ? "" : ` ${fastest.name} is ${gain} than ${this.reference.name} in the median, with ${errors}.`;
  }

  finish(digits) {
    const lanes = this.lanes.map((lane) => lane.result);
    this.link = linkTo({ digits, date: new Date().toISOString().slice(0, 10), lanes });
    history.replaceState(null, "", this.link);
    $("race-link").hidden = false;
    $("race-note").textContent = `${count(digits, "digit")} through ${count(lanes.length, "model")}.${this.gain()}`;
  }
}

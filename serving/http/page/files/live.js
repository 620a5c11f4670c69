// The current digit and the predictions of all models for it, after every change: one round in flight, its responses
// dropped if the drawing was cleared or replaced meanwhile.

import { convert, predict, ServiceError } from "./api.js";
import { $, announce, count, ms, newest, paint28 } from "./dom.js";
import { fail, sentence, succeed } from "./status.js";

const SENT_WIDTH = 112; // four pixels per cell: less for the service to convert, with the same result

export class Live extends EventTarget {
  constructor(pad, rows) {
    super();
    this.pad = pad;
    this.rows = rows;
    this.teacher = rows.find((row) => row.model.isTeacher);
    this.generation = 0;
    this.pixels = undefined;
    this.ids = []; // of the requests for the present drawing, once all have been answered
    this.submit = newest((input) => this.round(input));
    for (const row of rows) row.compare(this.teacher);
    pad.addEventListener("change", () => this.drawn(false));
    pad.addEventListener("end", () => this.drawn(true));
  }

  /** Predict the drawing; `ended` after a stroke, when the result is announced. */
  drawn(ended) {
    this.label = undefined;
    if (this.pad.isEmpty) this.clear();
    else this.start({ picture: () => this.pad.picture(SENT_WIDTH), ended });
  }

  /** Predict a picture, which the service converts. */
  open(file) {
    this.label = undefined;
    this.generation += 1;
    this.start({ picture: async () => file, ended: true });
  }

  /** Predict 28×28 pixels as they are. */
  use(pixels, label) {
    this.label = label;
    this.generation += 1;
    this.start({ pixels, ended: true });
  }

  start(input) {
    this.ids = [];
    this.dispatchEvent(new Event("start"));
    this.latest = { ...input, generation: this.generation, started: performance.now() };
    this.submit(this.latest);
  }

  clear() {
    this.generation += 1;
    this.pixels = undefined;
    this.ids = [];
    for (const row of this.rows) row.clear();
    $("seen").getContext("2d").clearRect(0, 0, 28, 28);
    $("seen").setAttribute("aria-label", "The 28 by 28 input of the models: empty");
    $("summary").textContent = "Every model responds here";
    $("timing").textContent = "";
    this.dispatchEvent(new Event("clear"));
  }

  async round(input) {
    const isCurrent = () => input.generation === this.generation;
    if (!isCurrent()) return;
    try {
      const pixels = input.pixels ?? (await convert(await input.picture()));
      if (!isCurrent()) return;
      this.pixels = pixels;
      paint28($("seen"), pixels);
      const answers = await this.predictAll(pixels, isCurrent);
      if (!isCurrent()) return;
      succeed();
      if (input === this.latest) this.ids = [...answers.values()].map(({ id }) => id);
      this.summarise(answers, performance.now() - input.started, input.ended);
      performance.measure("responses", { start: input.started });
      this.dispatchEvent(new CustomEvent("digit", { detail: { pixels, ended: input.ended } }));
    } catch (error) {
      if (!isCurrent()) return;
      for (const row of this.rows) row.element.classList.add("stale");
      if (error instanceof ServiceError && [400, 413, 415, 422].includes(error.status)) {
        succeed(); // the service works
        for (const row of this.rows) row.clear();
        $("summary").textContent = sentence(error.message);
        if (input.ended) announce($("summary").textContent);
      } else {
        fail(error, () => this.submit(input));
      }
    }
  }

  /** Request every model at once and show each response as it comes. */
  async predictAll(pixels, isCurrent) {
    const shown = new Map();
    const one = async (row) => {
      const answer = await predict(row.model.name, pixels);
      if (!isCurrent()) return;
      shown.set(row, answer);
      row.show(answer);
      const reference = shown.get(this.teacher)?.predictions[0].digit;
      if (reference === undefined) return;
      for (const other of row === this.teacher ? shown.keys() : [row]) {
        if (other !== this.teacher) other.showAgreement(shown.get(other).predictions[0].digit === reference);
      }
    };
    const results = await Promise.allSettled(this.rows.map(one));
    const errors = results.filter((result) => result.status === "rejected").map((result) => result.reason);
    const general = errors.find((error) => !(error instanceof ServiceError) || error.status !== 422);
    if (general) throw general;
    results.forEach((result, index) => {
      if (result.status === "rejected") this.rows[index].fail(sentence(result.reason.message)); // --reject-unaccepted
    });
    for (const row of this.rows) row.compare(this.teacher);
    return shown;
  }

  summarise(answers, milliseconds, ended) {
    const digits = new Map();
    for (const { predictions } of answers.values()) {
      const { digit } = predictions[0];
      digits.set(digit, (digits.get(digit) ?? 0) + 1);
    }
    const most = [...digits].sort(([, a], [, b]) => b - a);
    const n = answers.size;
    let text = most.map(([digit, models]) => `${digit} from ${count(models, "model")}`).join(", ") || "No model accepts it";
    if (most.length === 1) text = n === 1 ? `It is a ${most[0][0]}` : `${n === 2 ? "Both" : `All ${n}`} models say ${most[0][0]}`;
    if (this.label !== undefined) text += `, the label says ${this.label}`;
    $("summary").textContent = text;
    $("timing").textContent = `${ms(milliseconds)} from the stroke to the last response`;
    if (ended) announce(text);
    $("seen").setAttribute("aria-label", `The 28 by 28 input of the models, ${text}`);
  }
}

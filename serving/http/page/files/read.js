// A line of digits through `/read`, with a box around each digit.

import { readNumber, ServiceError } from "./api.js";
import { $, el, newest, percent } from "./dom.js";
import { Pad } from "./draw.js";
import { acceptPictures, bitmapOf } from "./sources.js";
import { fail, sentence, succeed } from "./status.js";
import { testDigits } from "./test_digits.js";

const SENT_WIDTH = 640; // pixels, to which the service reduces larger pictures

export class Line {
  constructor() {
    this.pad = new Pad($("line"), 10);
    this.boxes = $("line").querySelector(".boxes");
    this.submit = newest((picture) => this.read(picture));
    this.pad.addEventListener("end", () => this.drawn());
    acceptPictures("line", $("line"), (file) => this.open(file));
    $("line-clear").addEventListener("click", () => this.pad.clear());
    $("line-undo").addEventListener("click", () => this.pad.undo());
    $("line-sample").addEventListener("click", () => this.sample());
  }

  drawn() {
    this.boxes.replaceChildren();
    $("number").textContent = "";
    const place = { scale: this.pad.canvas.width / SENT_WIDTH, left: 0, top: 0 };
    this.start(this.pad.isEmpty ? undefined : { picture: () => this.pad.picture(SENT_WIDTH), place });
  }

  /** Read a picture; responses to earlier ones are dropped. */
  start(input) {
    this.current = input;
    if (input) this.submit(input);
  }

  async open(file) {
    const bitmap = await bitmapOf(file);
    if (bitmap) this.pad.show(bitmap);
    this.boxes.replaceChildren();
    this.start({ picture: async () => file, place: bitmap && this.pad.items[0].place });
  }

  async sample() {
    try {
      const all = await testDigits();
      const four = Array.from({ length: 4 }, () => all[Math.floor(Math.random() * all.length)].pixels);
      this.pad.showDigits(four);
      this.drawn();
    } catch (error) {
      fail(error, () => this.sample());
    }
  }

  async read(input) {
    try {
      const { number, digits } = await readNumber(await input.picture());
      if (input !== this.current) return;
      succeed();
      $("number").replaceChildren(number, el("small", {}, digits.map(({ digit, confidence, probability }) => `${digit}: ${percent(confidence ?? probability)}`).join(" · ")));
      this.boxes.replaceChildren(...(input.place ? digits.map((digit) => this.box(digit, input.place)) : []));
    } catch (error) {
      if (input !== this.current) return;
      if (error instanceof ServiceError && [400, 413, 415, 422].includes(error.status)) {
        succeed();
        $("number").replaceChildren(el("small", {}, sentence(error.message)));
      } else {
        fail(error, () => this.start(input));
      }
    }
  }

  /** Return a box in the place of a digit; `scale` and offsets lead from the picture to the canvas. */
  box({ digit, box }, { scale, left, top }) {
    const { width, height } = this.pad.canvas;
    const node = el("span", {}, el("b", {}, String(digit)));
    Object.assign(node.style, {
      left: `${(100 * (left + scale * box.left)) / width}%`,
      top: `${(100 * (top + scale * box.top)) / height}%`,
      width: `${(100 * scale * box.width) / width}%`,
      height: `${(100 * scale * box.height) / height}%`,
    });
    return node;
  }
}

// A drawing area for mouse, touch, pen and keyboard. What it shows is a list of strokes and pictures, so that any of
// them can be undone. Events: "change" during a stroke, "end" after it.

import { announce } from "./dom.js";

const PAPER = "#fff";
const INK = "#000";

export class Pad extends EventTarget {
  constructor(box, cell) {
    super();
    this.box = box;
    this.canvas = box.querySelector("canvas");
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.cell = cell; // pixels of one cell: a 28th of the height of a digit
    this.items = [];
    this.erasing = false;
    this.cursor = { x: Math.floor(this.canvas.width / cell / 2), y: Math.floor(this.canvas.height / cell / 2) };
    this.marker = document.createElement("div");
    this.marker.className = "cell";
    this.marker.hidden = true;
    box.append(this.marker);
    this.redraw();
    this.listenToPointers();
    this.listenToKeys();
  }

  get isEmpty() {
    return !this.items.length;
  }

  /** Return the drawing as a PNG of `width` pixels. */
  async picture(width) {
    const height = Math.round((width * this.canvas.height) / this.canvas.width);
    const small = new OffscreenCanvas(width, height);
    const context = small.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(this.canvas, 0, 0, width, height);
    return small.convertToBlob({ type: "image/png" });
  }

  /** Show a picture in place of the drawing. */
  show(bitmap) {
    this.items = [{ bitmap }];
    this.redraw();
  }

  /** Show 28×28 digits side by side. */
  showDigits(digits) {
    const side = 28;
    const sheet = new OffscreenCanvas(side * digits.length, side);
    digits.forEach((pixels, index) => {
      const image = new ImageData(side, side);
      pixels.forEach((ink, at) => image.data.set([255 - ink, 255 - ink, 255 - ink, 255], 4 * at));
      sheet.getContext("2d").putImageData(image, side * index, 0);
    });
    this.show(sheet);
  }

  undo() {
    this.items.pop();
    this.redraw();
    this.emit("end");
  }

  clear() {
    this.items = [];
    this.redraw();
    this.emit("end");
  }

  emit(name) {
    this.dispatchEvent(new Event(name));
  }

  redraw() {
    this.context.fillStyle = PAPER;
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    for (const item of this.items) {
      if (item.bitmap) this.drawBitmap(item);
      else item.points.forEach((_, index) => this.drawSegment(item, index));
    }
    this.box.classList.toggle("inked", !this.isEmpty);
  }

  /** Fit a picture into the area; remember where it is. */
  drawBitmap(item) {
    const { width, height } = this.canvas;
    const scale = Math.min(width / item.bitmap.width, height / item.bitmap.height);
    item.place = { scale, left: (width - scale * item.bitmap.width) / 2, top: (height - scale * item.bitmap.height) / 2 };
    this.context.imageSmoothingQuality = "high";
    const { left, top } = item.place;
    this.context.drawImage(item.bitmap, left, top, scale * item.bitmap.width, scale * item.bitmap.height);
  }

  drawSegment({ points, erase }, index) {
    const to = points[index];
    const from = points[Math.max(0, index - 1)];
    this.context.strokeStyle = erase ? PAPER : INK;
    this.context.lineWidth = to.width * (erase ? 1.6 : 1);
    this.context.lineCap = "round";
    this.context.beginPath();
    this.context.moveTo(from.x, from.y);
    this.context.lineTo(to.x, to.y + (to === from ? 0.01 : 0));
    this.context.stroke();
  }

  begin(erase = this.erasing) {
    const item = { points: [], erase };
    this.items.push(item);
    this.box.classList.add("inked");
    return item;
  }

  extend(item, point) {
    item.points.push(point);
    this.drawSegment(item, item.points.length - 1);
  }

  listenToPointers() {
    let item;
    const point = (event) => {
      const { left, top, width } = this.canvas.getBoundingClientRect();
      const scale = this.canvas.width / width;
      const pressure = event.pointerType === "pen" && event.pressure ? 0.6 + 0.8 * event.pressure : 1;
      return { x: (event.clientX - left) * scale, y: (event.clientY - top) * scale, width: 2.1 * this.cell * pressure };
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      if (!event.isPrimary || event.button > 0) return;
      this.canvas.setPointerCapture(event.pointerId);
      this.marker.hidden = true;
      item = this.begin();
      this.extend(item, point(event));
      this.emit("change");
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!item || !event.isPrimary) return;
      const events = event.getCoalescedEvents?.() ?? [];
      for (const one of events.length ? events : [event]) this.extend(item, point(one));
      this.emit("change");
    });
    for (const name of ["pointerup", "pointercancel"]) {
      this.canvas.addEventListener(name, (event) => {
        if (!item || !event.isPrimary) return;
        item = undefined;
        this.emit("end");
      });
    }
  }

  listenToKeys() {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    this.canvas.addEventListener("keydown", (event) => {
      if (event.altKey || event.metaKey) return;
      if (event.ctrlKey) {
        if (event.key !== "z") return;
        this.undo();
      } else if (steps[event.key]) {
        this.step(steps[event.key], event.shiftKey);
      } else if (event.key === " ") {
        const item = this.begin(this.isInked());
        this.extend(item, this.center());
        this.emit("end");
        this.describeCell();
      } else if (event.key === "Delete" || event.key === "Backspace") {
        this.clear();
        announce("cleared");
      } else {
        return;
      }
      event.preventDefault();
    });
    this.canvas.addEventListener("blur", () => (this.marker.hidden = true));
  }

  step([x, y], draws) {
    const item = draws && this.begin();
    if (item) this.extend(item, this.center());
    const limit = (value, size) => Math.max(0, Math.min(size / this.cell - 1, value));
    this.cursor = { x: limit(this.cursor.x + x, this.canvas.width), y: limit(this.cursor.y + y, this.canvas.height) };
    if (item) {
      this.extend(item, this.center());
      this.emit("end");
    }
    this.describeCell();
  }

  center() {
    const { x, y } = this.cursor;
    return { x: (x + 0.5) * this.cell, y: (y + 0.5) * this.cell, width: 2 * this.cell };
  }

  isInked() {
    const { x, y } = this.center();
    return this.context.getImageData(x, y, 1, 1).data[0] < 128;
  }

  describeCell() {
    const [width, height] = [this.canvas.width, this.canvas.height].map((size) => size / this.cell);
    const percent = (value, size) => `${(100 * value) / size}%`;
    Object.assign(this.marker.style, {
      left: percent(this.cursor.x, width),
      top: percent(this.cursor.y, height),
      width: percent(1, width),
      height: percent(1, height),
    });
    this.marker.hidden = false;
    announce(`row ${this.cursor.y + 1}, column ${this.cursor.x + 1}${this.isInked() ? ", ink" : ""}`);
  }
}

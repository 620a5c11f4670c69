// The start of the page: what the service has, and what belongs together.

import { describe, sendLabels, setKey } from "./api.js";
import { $, el, count } from "./dom.js";
import { Pad } from "./draw.js";
import { Knowledge } from "./knowledge.js";
import { Live } from "./live.js";
import { Row, showRows, withRoles } from "./models.js";
import { Race } from "./race.js";
import { Line } from "./read.js";
import { enableCopying, showSnippets } from "./snippets.js";
import { acceptPaste, acceptPictures, bitmapOf } from "./sources.js";
import { fail, onKey, sentence, succeed } from "./status.js";
import { testDigits } from "./test_digits.js";

const pad = new Pad($("pad"), 20);
onKey(setKey);
enableCopying();
start();

async function start() {
  try {
    const service = await describe();
    succeed();
    open(service);
  } catch (error) {
    fail(error, start);
  }
}

function open(service) {
  const models = withRoles(service.models);
  const rows = models.map((model) => new Row(model));
  showRows(rows);
  $("version").textContent = `Distillery ${service.version}, ${count(models.length, "model")}.`;
  const live = new Live(pad, rows);
  const line = new Line();
  connectTools(live, line);
  connectCode(models, service.default, live);
  new Knowledge(models, live, service.max_images);
  new Race(models, (digit) => {
    useDigit(live, digit);
    $("draw").scrollIntoView();
  });
  if (service.feedback) connectFeedback(live);
  if (!pad.isEmpty) live.drawn(true); // drawn before the service responded
}

function useDigit(live, { label, pixels }) {
  pad.showDigits([pixels]);
  live.use(pixels, label);
}

function connectTools(live, line) {
  const open = async (file) => {
    const bitmap = await bitmapOf(file);
    if (bitmap) pad.show(bitmap);
    live.open(file);
  };
  acceptPictures("pad", $("pad"), open);
  acceptPaste((file, focused) => ($("read").contains(focused) ? line.open(file) : open(file)));
  const sample = async () => {
    try {
      const all = await testDigits();
      useDigit(live, all[Math.floor(Math.random() * all.length)]);
    } catch (error) {
      fail(error, sample);
    }
  };
  $("pad-sample").addEventListener("click", sample);
  $("pad-undo").addEventListener("click", () => pad.undo());
  $("pad-clear").addEventListener("click", () => pad.clear());
  $("pad-eraser").addEventListener("click", () => {
    pad.erasing = !pad.erasing;
    $("pad-eraser").setAttribute("aria-pressed", pad.erasing);
  });
}

function connectCode(models, chosen, live) {
  let pixels = new Uint8Array(784);
  for (const { name } of models) $("code-model").append(el("option", {}, name));
  $("code-model").value = chosen;
  const update = () => showSnippets($("code-model").value, pixels);
  $("code-model").addEventListener("change", update);
  live.addEventListener("digit", ({ detail }) => {
    ({ pixels } = detail);
    update();
  });
  update();
}

/** Send the true digit of what all models have classified, where the service counts it. */
function connectFeedback(live) {
  const [box, note] = [$("feedback").querySelector(".digits"), $("feedback").querySelector("p")];
  let drawing = {}; // its `sent` digit, or the one `chosen` before its predictions have come
  const send = async (digit) => {
    const current = drawing;
    let text = "A label cannot be changed: draw it again.";
    try {
      if ((current.sent ?? digit) === digit) {
        const { counted, repeated, rejected } = await sendLabels(live.ids, digit);
        if (counted + repeated) [current.sent, text] = [digit, `Thank you: a ${digit}.`];
        else if (rejected[0].code !== "already_labelled") text = sentence(rejected[0].message);
      }
      if (current === drawing) note.textContent = text;
    } catch (error) {
      fail(error, () => send(digit));
    }
  };
  const choose = (digit) => (live.ids.length ? send(digit) : (drawing.chosen = digit));
  for (let digit = 0; digit < 10; digit += 1) box.append(el("button", { click: () => choose(digit) }, String(digit)));
  live.addEventListener("digit", () => {
    if (drawing.chosen === undefined || !live.ids.length) return;
    send(drawing.chosen);
    drawing.chosen = undefined;
  });
  for (const event of ["start", "clear"]) live.addEventListener(event, () => ([drawing, note.textContent] = [{}, ""]));
  $("feedback").hidden = false;
}

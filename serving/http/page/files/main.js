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
  let sent = null; // of the present drawing, which may be classified again, under other ids
  const send = async (digit) => {
    try {
      if (sent !== null && sent !== digit) return void (note.textContent = "A label cannot be changed: draw it again.");
      const { counted, repeated, rejected } = await sendLabels(live.ids, digit);
      if (counted + repeated) [sent, note.textContent] = [digit, `Thank you: a ${digit}.`];
      else note.textContent = rejected[0].code === "already_labelled" ? "A label cannot be changed: draw it again." : sentence(rejected[0].message);
    } catch (error) {
      fail(error, () => send(digit));
    }
  };
  for (let digit = 0; digit < 10; digit += 1) box.append(el("button", { click: () => live.ids.length && send(digit) }, String(digit)));
  for (const event of ["change", "end"]) pad.addEventListener(event, () => ([sent, note.textContent] = [null, ""]));
  $("feedback").hidden = false;
}

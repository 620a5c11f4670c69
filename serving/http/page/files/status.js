// What is wrong at the moment, and when to try again.

import { ServiceError } from "./api.js";
import { $ } from "./dom.js";

let retry;
let timer;

/** Show an error; `again` is called when the service may respond again, or when there is a key. */
export function fail(error, again) {
  if (!(error instanceof ServiceError)) throw error;
  clearTimeout(timer);
  retry = again;
  const { status, wait } = error;
  if (status === 401) {
    if ($("key").hidden) {
      $("key").hidden = false;
      $("key-value").focus();
    } else {
      show("The API key is wrong.");
    }
    return;
  }
  const delay = status === 0 || [429, 502, 503, 504].includes(status) ? Math.max(wait, 1) : 0;
  const text = {
    0: "The service does not respond.",
    429: "The limit of requests of this API key is reached.",
    502: "The service does not respond.",
    503: "The service is overloaded.",
    504: "The service did not respond in time.",
  }[status];
  show(delay ? `${text} Next try in ${delay} s.` : sentence(error.message));
  if (delay) timer = setTimeout(() => retry(), 1000 * delay);
}

/** Show that the last request has succeeded. */
export function succeed() {
  clearTimeout(timer);
  $("problem").hidden = true;
  $("key").hidden = true;
}

function show(text) {
  if ($("problem").textContent !== text) $("problem").textContent = text;
  $("problem").hidden = false;
}

/** The service's messages begin with what was found, in lower case. */
export const sentence = (message) => message[0].toUpperCase() + message.slice(1);

export function onKey(use) {
  $("key").addEventListener("submit", (event) => {
    event.preventDefault();
    use($("key-value").value);
    $("key-value").value = "";
    retry();
  });
}

// The last request of the page as curl and Python, byte for byte; the key is left to the environment. The pixels are
// gzipped here to be short, and sent unzipped.

import { base, usesKey } from "./api.js";
import { $, announce } from "./dom.js";

export async function showSnippets(model, pixels) {
  const url = new URL(`predict/${model}`, base).href;
  const zipped = await new Response(new Blob([pixels]).stream().pipeThrough(new CompressionStream("gzip"))).arrayBuffer();
  const body = btoa(String.fromCharCode(...new Uint8Array(zipped)));
  const key = usesKey();
  $("curl").textContent = [
    `echo ${body} | base64 -d | gunzip |`,
    `  curl -s ${url} -H 'Content-Type: application/octet-stream'${key ? ` -H "X-API-Key: $DISTILLERY_API_KEY"` : ""} --data-binary @-`,
  ].join("\n");
  $("python").textContent = [
    "import base64, gzip, json, urllib.request",
    ...(key ? ["import os"] : []),
    "",
    `pixels = gzip.decompress(base64.b64decode("${body}"))  # 28 × 28 ink values`,
    `headers = {"Content-Type": "application/octet-stream"${key ? ', "X-API-Key": os.environ["DISTILLERY_API_KEY"]' : ""}}`,
    `request = urllib.request.Request("${url}", pixels, headers)`,
    "with urllib.request.urlopen(request) as response:",
    '    print(json.load(response)["predictions"][0])',
  ].join("\n");
}

/** Copy a text, also where the page has no secure connection, which the clipboard's own API needs. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  announce("copied");
}

export function enableCopying() {
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", () => copy($(button.dataset.copy).textContent));
  }
}

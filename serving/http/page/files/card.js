// The model card in a dialog: Markdown of the service, set as text, never as markup.

import { request, ServiceError } from "./api.js";
import { $, count, el } from "./dom.js";

export async function showCard({ name, manifest, role }) {
  $("card-title").textContent = name;
  $("card-body").replaceChildren("…");
  $("card").showModal();
  $("card-close").onclick = () => $("card").close();
  try {
    const text = await (await request(`models/${name}/card`)).text();
    $("card-body").replaceChildren(...blocks(text));
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    $("card-body").replaceChildren(...(error.status === 404 ? facts(manifest, role) : [error.message]));
  }
}

/** What the manifest says of a model that was published without a card. */
function facts(manifest, role) {
  const rows = [
    ["Role", role],
    ["Architecture", `${manifest.architecture}, ${count(manifest.parameters, "parameter")}`],
    ["Test errors", `${count(manifest.test_errors, "error")} in 10,000 digits`],
    ["File", `${count(manifest.size_bytes, "byte")}, ${manifest.precision}, SHA-256 ${manifest.sha256}`],
    ["Recipe", `${manifest.recipe.name ?? "?"}, seed ${manifest.recipe.seed ?? "?"}`],
  ];
  return [
    el("p", {}, "This model was published without a model card. Its manifest says:"),
    el("table", { tabindex: 0 }, ...rows.map(([title, value]) => el("tr", {}, el("th", { scope: "row" }, title), el("td", {}, value)))),
  ];
}

/** Convert the part of Markdown that model cards use: headings, tables, lists, paragraphs. */
function blocks(text) {
  const body = text.replace(/^---\n.*?\n---\n/s, "");
  return body
    .split(/\n\s*\n/)
    .map((block) => block.trim())
    .filter((block) => block)
    .map((block) => {
      const heading = /^(#+) (.*)/.exec(block);
      if (heading) return el(`h${Math.min(6, heading[1].length + 2)}`, {}, ...inline(heading[2]));
      const lines = block.split("\n");
      if (block.startsWith("|")) return table(lines);
      if (block.startsWith("- ")) return el("ul", {}, ...lines.map((line) => el("li", {}, ...inline(line.slice(2)))));
      return el("p", {}, ...inline(lines.join(" ")));
    });
}

function table([head, , ...rows]) {
  const cells = (line) => line.replace(/^\||\|\s*$/g, "").split("|");
  const row = (tag) => (line) => el("tr", {}, ...cells(line).map((cell) => el(tag, {}, ...inline(cell.trim()))));
  return el("table", { tabindex: 0 }, row("th")(head), ...rows.map(row("td")));
}

function inline(text) {
  return text.split(/(\*\*[^*]+\*\*|`[^`]+`)/).map((part) => {
    if (part.startsWith("**") && part.length > 4) return el("b", {}, part.slice(2, -2));
    if (part.startsWith("`") && part.length > 2) return el("code", {}, part.slice(1, -1));
    return part;
  });
}

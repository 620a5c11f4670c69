// Pictures from elsewhere: dropped, pasted, opened, photographed.

import { $ } from "./dom.js";

/** Call `use` with every picture for the pad in `box`; `name` is the prefix of its inputs. */
export function acceptPictures(name, box, use) {
  for (const input of [$(`${name}-file`), $(`${name}-photo`)]) {
    input.addEventListener("change", () => {
      if (input.files.length) use(input.files[0]);
      input.value = ""; // so that the same file can be opened again
    });
  }
  box.addEventListener("dragover", (event) => {
    event.preventDefault();
    box.classList.add("drop");
  });
  box.addEventListener("dragleave", () => box.classList.remove("drop"));
  box.addEventListener("drop", (event) => {
    event.preventDefault();
    box.classList.remove("drop");
    if (event.dataTransfer.files.length) use(event.dataTransfer.files[0]);
  });
}

/** Call `use` with every picture that is pasted, and the element that has the focus. */
export function acceptPaste(use) {
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
    if (file) use(file, document.activeElement);
  });
}

/** Return the picture upright, or nothing if the browser cannot show it; the service may still read it. */
export async function bitmapOf(file) {
  try {
    return await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    return undefined;
  }
}

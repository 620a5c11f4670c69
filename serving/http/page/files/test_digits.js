// The test digits, loaded when they are first used: 400 labels, then 400 images of 784 bytes.

import { request } from "./api.js";

const PIXELS = 784;
let loading;

/** Return a list of `{label, pixels}`. */
export function testDigits() {
  loading ??= load().catch((error) => {
    loading = undefined;
    throw error;
  });
  return loading;
}

async function load() {
  const bytes = new Uint8Array(await (await request("page/digits.bin")).arrayBuffer());
  const count = bytes.length / (PIXELS + 1);
  const pixels = (index) => bytes.slice(count + PIXELS * index, count + PIXELS * (index + 1));
  return Array.from({ length: count }, (_, index) => ({ label: bytes[index], pixels: pixels(index) }));
}

// A race's result in the address of the page: `#race=` and JSON in base64url. What comes from an address is checked.

const PREFIX = "#race=";

/** The address of the page with a result. */
export function linkTo(result) {
  const text = btoa(JSON.stringify(result)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return new URL(PREFIX + text, location.href).href;
}

/** Return the result in the address; undefined if there is none, null if it is invalid. */
export function resultIn(hash) {
  if (!hash.startsWith(PREFIX)) return undefined;
  try {
    const result = JSON.parse(atob(hash.slice(PREFIX.length).replaceAll("-", "+").replaceAll("_", "/")));
    return isValid(result) ? result : null;
  } catch {
    return null;
  }
}

const isCount = (value) => Number.isInteger(value) && value >= 0 && value <= 1e6;
const isTime = (value) => Number.isFinite(value) && value >= 0 && value < 1e6;
const isBins = (bins) => Array.isArray(bins) && bins.length <= 100 && bins.every(isCount);

function isValid({ digits, date, lanes }) {
  const ofLane = ({ name, errors, inference, trip }) =>
    /^[\w.-]{1,64}$/.test(name) &&
    isCount(errors) &&
    [inference, trip].every((one) => isTime(one.median) && isBins(one.bins));
  return isCount(digits) && digits > 0 && /^[\d-]{10}$/.test(date) && lanes.length > 0 && lanes.length <= 32 && lanes.every(ofLane);
}

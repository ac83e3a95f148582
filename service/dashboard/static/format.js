// Numbers as people read them; a dash stands for what is not known.

export const UNKNOWN = "–";
const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const BYTES = ["B", "KiB", "MiB", "GiB", "TiB"];

/** 12,345 below a hundred thousand, 1.2M above. */
export function count(value) {
  return value < 1e5 ? plain.format(value) : short.format(value);
}

/** A rate: one decimal while it is small. */
export function rate(value) {
  return value < 10 ? value.toFixed(1) : count(value);
}

/** 0.987 -> 98.7 %; never rounded up to 100. */
export function percent(share) {
  return `${(Math.floor(share * 1000) / 10).toFixed(share === 1 ? 0 : 1)} %`;
}

export function milliseconds(value) {
  return value === null ? UNKNOWN : `${value.toFixed(value < 100 ? 1 : 0)} ms`;
}

/** 75 -> 1 min 15 s. */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export function bytes(value) {
  const power = Math.min(BYTES.length - 1, Math.floor(Math.log2(Math.max(1, value)) / 10));
  return `${(value / 1024 ** power).toFixed(power ? 1 : 0)} ${BYTES[power]}`;
}

export function loss(value) {
  return value.toPrecision(3);
}

export function clock(unixSeconds) {
  return new Date(unixSeconds * 1000).toLocaleTimeString();
}

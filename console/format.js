/** Numbers as people read them. */

const number = (digits) => new Intl.NumberFormat('en', { maximumFractionDigits: digits });
const [whole, tenth] = [number(0), number(1)];

/** A probability: never a certainty that the number does not have. */
export function percent(share) {
  if (share > 0 && share < 0.005) return '<1%';
  if (share < 1 && share >= 0.995) return '>99%';
  return `${whole.format(share * 100)}%`;
}

/** A time in milliseconds. */
export const ms = (time) => `${time < 100 ? tenth.format(time) : whole.format(time)} ms`;

/** A size in bytes. */
export function bytes(size) {
  const units = ['bytes', 'kB', 'MB', 'GB'];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, size)) / 3));
  return `${(power > 1 ? tenth : whole).format(size / 1000 ** power)} ${units[power]}`;
}

/** `1 face`, `2 faces`. */
export const count = (n, word) => `${whole.format(n)} ${word}${n === 1 ? '' : 's'}`;

/** `a, b and c`. */
export const list = (words) => new Intl.ListFormat('en-GB', { type: 'conjunction' }).format(words);

/** With a capital letter at the beginning. */
export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** The two charts of the console: what the model believes of an age, and of labels. */

import { el, svg } from './dom.js';
import { percent, sentence } from './format.js';

const HEIGHT = 40;

/** The probability of each year as a curve over 0 to 100, its 68 % interval filled, its median a line. */
export function curve({ years, low, high, probabilities }) {
  const top = Math.max(...probabilities) * 1.06;
  const point = (year) => `${year} ${(HEIGHT * (1 - probabilities[year] / top)).toFixed(2)}`;
  const path = (from, to) => Array.from({ length: to - from + 1 }, (_, step) => point(from + step)).join('L');
  const area = (from, to) => `M${from} ${HEIGHT}L${path(from, to)}L${to} ${HEIGHT}Z`;
  const last = probabilities.length - 1;
  return svg('svg', {
    class: 'curve', viewBox: `0 0 ${last} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img',
    'aria-label': `Probability of each year: half of it below ${years}, 68 % from ${low} to ${high}`,
  },
  svg('path', { class: 'area', d: area(0, last) }),
  svg('path', { class: 'within', d: area(low, high) }),
  svg('line', { class: 'middle', x1: years, x2: years, y1: 0, y2: HEIGHT }),
  svg('path', { class: 'line', d: `M${path(0, last)}` }));
}

/** The years under a curve. */
export const axis = () => el('div', { class: 'axis', 'aria-hidden': 'true' }, [0, 20, 40, 60, 80, 100].map((year) => el('span', {}, year)));

/** The probability of each label as a bar. */
export function bars(task, { label: best, probabilities }) {
  const row = ([label, share]) => {
    const bar = el('span', { class: 'bar' });
    bar.style.setProperty('--share', share);
    return el('div', { class: label === best ? 'best' : undefined }, el('dt', {}, label), el('dd', {}, bar, el('span', {}, percent(share))));
  };
  return el('section', { class: 'bars', 'data-task': task },
    el('h3', {}, task === 'gender' ? 'Gender, as perceived' : sentence(task)),
    el('dl', {}, Object.entries(probabilities).map(row)));
}

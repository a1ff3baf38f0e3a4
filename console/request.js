/** Below the picture: where the time went, the same request by `curl`, and the answer as it came. */

import { address, key, query } from './api.js';
import { byId, el } from './dom.js';
import { ms } from './format.js';

const STAGES = [
  ['decode', 'decode_ms', 'decoding the picture'],
  ['detect', 'detect_ms', 'finding faces'],
  ['queue', 'queue_ms', 'waiting for the network'],
  ['inference', 'inference_ms', 'running the network'],
];

/** Shows what belongs to the picture's answer, or nothing. */
export function show(picture) {
  const below = byId('request');
  if (!picture.answer) return below.replaceChildren();
  // What a person has unfolded or selected here stays as it is.
  if (below.dataset.answer === picture.answer.id && below.hasChildNodes()) return undefined;
  below.dataset.answer = picture.answer.id;
  const answer = pretty(picture.answer);
  return below.replaceChildren(
    timings(picture),
    block('The same by curl', curl(picture)),
    el('details', { class: 'json' }, el('summary', {}, 'The answer as JSON'), block(undefined, answer)));
}

/** The command that asks the same of the server. */
export function curl({ path, settings }) {
  // In a form's value, curl reads commas and semicolons unless it is quoted.
  const plain = /^[\w./-]+$/.test(path);
  const part = plain ? `image=@${path}` : shell(`image=@"${path.replace(/[\\"]/g, '\\$&')}"`);
  const secret = key.get() ? '-H "authorization: Bearer $FACEWISE_KEY" ' : '';
  return `curl ${secret}-F ${part} \\\n  ${shell(`${address('v1/predict')}?${query(settings)}`)}`;
}

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** JSON to read: lists of numbers on one line. */
function pretty(answer) {
  return JSON.stringify(answer, null, 2).replace(/\[\s+([-\d.,\se]+?)\s+\]/g, (_, numbers) => `[${numbers.replace(/\s+/g, ' ')}]`);
}

function timings({ answer: { timings, model, version }, tripMs }) {
  const stages = STAGES.map(([name, field, what]) => ({ name, what, time: timings[field] })).filter(({ time }) => time > 0);
  const known = stages.reduce((sum, { time }) => sum + time, 0);
  stages.push({ name: 'other', what: 'receiving, aligning and answering', time: Math.max(0, timings.total_ms - known) });
  const part = ({ name, time }) => {
    const node = el('span', { class: name });
    node.style.flexGrow = time;
    return node;
  };
  const entry = ({ name, what, time }) => el('li', { class: name, title: what }, el('span', {}, name), ` ${ms(time)}`);
  return el('section', { class: 'timings' },
    el('h3', {}, ms(timings.total_ms)),
    el('p', { class: 'note' }, `in the server, by ${model} ${version}; ${ms(tripMs)} from here and back`),
    el('div', { class: 'stages', 'aria-hidden': 'true' }, stages.map(part)),
    el('ul', {}, stages.map(entry)));
}

function block(title, text) {
  const copy = el('button', { type: 'button', class: 'copy', 'aria-label': `Copy ${title ? title.replace(/^The/, 'the') : 'the answer'}` }, 'Copy');
  const pre = el('pre', { tabindex: 0, role: 'region', 'aria-label': title ?? 'The answer as JSON' }, el('code', {}, text));
  copy.addEventListener('click', () => copied(copy, text, pre));
  return el('section', { class: 'code' }, title && el('h3', {}, title), el('div', { class: 'copyable' }, pre, copy));
}

/** Pages without HTTPS have no clipboard: there the text is selected, for the person to copy. */
async function copied(button, text, pre) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = 'Copied';
  } catch {
    getSelection().selectAllChildren(pre);
    button.textContent = 'Selected: press Ctrl+C';
  }
  setTimeout(() => { button.textContent = 'Copy'; }, 2000);
}

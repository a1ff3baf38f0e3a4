/** All pictures in a row, where there are several: which is looked at, and how far the others are. */

import { byId, el, svg } from './dom.js';
import { count } from './format.js';

/** Side of a thumbnail, in pixels of its canvas. */
const SIDE = 144;

const entries = new Map();

/** Brings the row up to date with the pictures. */
export function show(pictures) {
  const gallery = byId('gallery');
  gallery.hidden = pictures.list.length < 2;
  for (const [picture, entry] of entries) {
    if (pictures.list.includes(picture)) continue;
    entry.remove();
    entries.delete(picture);
  }
  for (const picture of pictures.list) {
    if (!entries.has(picture)) {
      entries.set(picture, make(picture, pictures));
      gallery.append(entries.get(picture));
    }
    update(entries.get(picture), picture, pictures.selected === picture);
  }
}

function make(picture, pictures) {
  const canvas = el('canvas', { width: SIDE, height: SIDE, 'aria-hidden': 'true' });
  thumbnail(picture, canvas);
  const choose = el('button', { type: 'button', class: 'choose', click: () => pictures.select(picture) },
    canvas, el('span', { class: 'badge' }));
  const cross = svg('svg', { viewBox: '0 0 10 10', 'aria-hidden': 'true' }, svg('path', { d: 'M2 2l6 6M8 2L2 8' }));
  const remove = el('button', {
    type: 'button', class: 'remove', 'aria-label': `Remove ${picture.name}`, click: () => pictures.remove(picture),
  }, cross);
  const entry = el('li', {}, choose, remove);
  entry.addEventListener('keydown', (event) => {
    const step = { ArrowLeft: 'previousElementSibling', ArrowRight: 'nextElementSibling' }[event.key];
    if (step) entry[step]?.querySelector('.choose').focus();
    if (event.key === 'Delete') pictures.remove(picture);
    if (step || event.key === 'Delete') event.preventDefault();
  });
  return entry;
}

function update(entry, picture, selected) {
  const { state, answer, name } = picture;
  const choose = entry.querySelector('.choose');
  const told = {
    waiting: 'waits', running: 'being looked at', held: 'waits for the server', failed: 'failed',
    done: count(answer?.faces.length ?? 0, 'face'),
  }[state];
  choose.setAttribute('aria-label', `${name}: ${told}`);
  choose.setAttribute('aria-current', String(selected));
  entry.dataset.state = state;
  entry.querySelector('.badge').textContent = { done: answer?.faces.length, failed: '!' }[state] ?? '';
  if (selected && !entry.classList.contains('selected')) entry.scrollIntoView({ block: 'nearest', inline: 'nearest' });
  entry.classList.toggle('selected', selected);
}

async function thumbnail({ file }, canvas) {
  // What the browser cannot show has an empty thumbnail; it is looked at all the same.
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) return;
  const side = Math.min(bitmap.width, bitmap.height);
  const [x, y] = [(bitmap.width - side) / 2, (bitmap.height - side) / 2];
  canvas.getContext('2d').drawImage(bitmap, x, y, side, side, 0, 0, SIDE, SIDE);
  bitmap.close();
}

/** What was found out about the picture that is being looked at: a card for each face, or why there is none. */

import { axis, bars, curve } from './charts.js';
import { byId, el } from './dom.js';
import { count, percent, sentence } from './format.js';
import { pixels } from './stage.js';
import { gist, LABELS, labels, years } from './words.js';

/** Side of the cut-out of a face, in pixels of the screen. */
const CROP = 52;

/** What people can do about an error, where there is something. */
const REMEDIES = {
  unauthorized: 'Give a key under Settings.',
  forbidden: 'The key under Settings does not allow this.',
  unreachable: 'Is it still running?',
  overloaded: 'It was asked several times.',
  rate_limited: 'It was asked several times.',
};

/** Shows what is known. `actions`: `again` asks the server again, `asOne` takes the picture as one face. */
export function show(picture, actions) {
  const results = byId('results');
  results.setAttribute('aria-busy', String(picture.state !== 'done' && picture.state !== 'failed'));
  results.classList.toggle('stale', picture.state !== 'done' && Boolean(picture.answer));
  if (picture.state === 'failed') results.replaceChildren(failure(picture.problem, actions));
  else if (picture.answer) found(results, picture, actions);
  else results.replaceChildren(waiting(picture));
}

/** Opens a face's card and goes there. */
export function open(index) {
  const card = byId('results').querySelector(`details[data-face="${index}"]`);
  card.open = true;
  card.scrollIntoView({ block: 'nearest' });
  card.querySelector('summary').focus({ preventScroll: true });
}

function waiting({ state, seconds }) {
  const text = state === 'held' ? `The server is busy: asking again in ${count(Math.ceil(seconds), 'second')}.` : 'Looking at the picture …';
  const ghost = () => el('div', { class: 'ghost', 'aria-hidden': 'true' });
  return el('div', { class: 'waiting' }, el('p', { class: 'note' }, text), ghost(), ghost(), ghost());
}

function failure({ title, detail, code, request }, { again }) {
  return el('div', { class: 'failure' },
    el('h2', {}, title),
    detail && el('p', {}, `${sentence(detail).replace(/\.$/, '')}.`),
    REMEDIES[code] && el('p', {}, REMEDIES[code]),
    el('div', { class: 'actions' }, el('button', { type: 'button', click: again }, 'Try again')),
    request && el('p', { class: 'note' }, 'Request ', el('code', {}, request)));
}

function found(results, picture, { asOne }) {
  const { answer, settings } = picture;
  const { faces } = answer;
  // The same answer is not drawn twice: what a person has opened stays open.
  if (results.dataset.answer === answer.id && results.querySelector('.faces, .nobody')) return;
  results.dataset.answer = answer.id;
  if (!faces.length) {
    results.replaceChildren(el('div', { class: 'nobody' },
      el('h2', {}, 'No face found'),
      el('p', {}, settings.detect === 'true' && 'A lower confidence may find one. A picture that one face fills can be taken as such:'),
      el('div', { class: 'actions' }, el('button', { type: 'button', click: asOne }, 'It shows one face'))));
    return;
  }
  const cards = faces.map((face, index) => card(face, index, picture));
  const all = el('button', { type: 'button', class: 'quiet' }, 'Open all');
  all.addEventListener('click', () => {
    const open = cards.some((card) => !card.open);
    cards.forEach((card) => { card.open = open; });
    all.textContent = open ? 'Close all' : 'Open all';
  });
  results.replaceChildren(
    el('header', {}, el('h2', {}, count(faces.length, 'face')), faces.length > 1 && all),
    el('div', { class: 'faces' }, cards));
  crops(faces, cards);
}

/** How the face was come by. */
function whence({ confidence }, { detect }) {
  // `detect=crop` answers the centred square, with confidence 0, where no face is found.
  if (detect === 'false' || confidence === 0) return 'The centred square of the picture';
  return `Found with ${percent(confidence)} confidence`;
}

function card(face, index, { settings }) {
  const { age } = face;
  const words = labels(face);
  const number = el('span', { class: 'number' }, el('span', { class: 'visually-hidden' }, 'Face '), index + 1);
  const summary = el('summary', {},
    el('span', { class: 'crop' }, el('canvas', { width: CROP * 2, height: CROP * 2, 'aria-hidden': 'true' }), number),
    el('span', { class: 'gist' },
      age && el('span', { class: 'years' }, el('b', {}, years(age)), ' years',
        el('span', { class: 'interval' }, `${age.low}–${age.high}`)),
      el('span', { class: 'labels' }, words.join(' · ') || (age ? '' : gist(face)))),
    age && el('span', { class: 'spark', 'aria-hidden': 'true' }, curve(age)));
  return el('details', { class: 'face', 'data-face': index, open: index === 0 },
    summary, el('div', { class: 'more' }, age && ageOf(age), LABELS.filter((task) => face[task]).map((task) => bars(task, face[task])),
      el('p', { class: 'note' }, `${whence(face, settings)}, ${Math.round(face.box.width)} × ${Math.round(face.box.height)} pixels.`)));
}

function ageOf(age) {
  return el('section', { class: 'age' },
    el('h3', {}, 'Age'),
    el('p', {}, el('b', {}, `${age.years} years`), `, 68% from ${age.low} to ${age.high}, group ${age.group}`),
    curve(age), axis());
}

/** Cuts the faces out of the picture, as squares with some of what is around them. */
async function crops(faces, cards) {
  const image = await pixels();
  if (!image) return;
  faces.forEach(({ box }, index) => {
    const canvas = cards[index].querySelector('canvas');
    const side = Math.max(box.width, box.height) * 1.15;
    const [x, y] = [box.x + (box.width - side) / 2, box.y + (box.height - side) / 2];
    canvas.getContext('2d').drawImage(image, x, y, side, side, 0, 0, canvas.width, canvas.height);
    canvas.dataset.drawn = '';
  });
}

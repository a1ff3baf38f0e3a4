/** The picture that is being looked at, with its faces marked. */

import { byId, el } from './dom.js';
import { bytes, count } from './format.js';
import { marks } from './marks.js';

let shown = null;
let image = null;

/** Shows a picture as far as it is known. `press` hears the number of the face whose mark is pressed. */
export function show(picture, press) {
  const frame = byId('picture');
  if (picture.url !== shown) {
    shown = picture.url;
    image = load(picture, frame);
    frame.replaceChildren(image);
  }
  draw(frame, picture.answer, press);
  frame.classList.toggle('stale', picture.state !== 'done' && Boolean(picture.answer));
  image.alt = picture.answer ? `${picture.name}, with ${count(picture.answer.faces.length, 'face')} marked` : picture.name;
  caption(picture);
}

/** The marks of an answer; the same are not drawn twice, for one of them may have the focus. */
function draw(frame, answer, press) {
  const old = frame.querySelector('.marks');
  if (answer && old?.dataset.answer === answer.id) return;
  old?.remove();
  if (!answer) return;
  const drawn = marks(answer, { press });
  drawn.dataset.answer = answer.id;
  resize(frame, answer.image);
  frame.append(drawn);
}

/** The picture itself, once it can be drawn; nothing where the browser cannot show it. */
export async function pixels() {
  const asked = image;
  try {
    await asked.decode();
    return asked === image ? asked : null;
  } catch {
    return null;
  }
}

function load(picture, frame) {
  const image = el('img', { src: picture.url, alt: picture.name });
  frame.classList.remove('blind');
  image.addEventListener('load', () => resize(frame, { width: image.naturalWidth, height: image.naturalHeight }));
  // TIFF, mostly: the server reads more than browsers show.
  image.addEventListener('error', () => frame.classList.add('blind'));
  return image;
}

function resize(frame, { width, height }) {
  frame.style.setProperty('--width', width);
  frame.style.setProperty('--height', height);
}

function caption({ name, file, answer }) {
  const facts = [bytes(file.size)];
  if (answer) facts.unshift(`${answer.image.width} × ${answer.image.height}`);
  byId('caption').replaceChildren(el('b', {}, name), ` ${facts.join(' · ')}`);
}

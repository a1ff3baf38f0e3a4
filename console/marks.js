/** The faces of an answer, drawn over what shows the picture: outlines in SVG, and a mark for each face with its words. */

import { el, svg } from './dom.js';
import { gist, years } from './words.js';

/**
 * A layer to lie over the picture. With `press`, marks are buttons that call it with the number of their face. With `mirrored`,
 * left and right are exchanged, as on a camera's picture of oneself.
 */
export function marks(answer, { press, mirrored = false } = {}) {
  const { image, faces } = answer;
  const outlines = svg('svg', {
    viewBox: `0 0 ${image.width} ${image.height}`, preserveAspectRatio: 'none', 'aria-hidden': 'true',
    class: mirrored ? 'mirrored' : undefined,
  }, faces.map((face, index) => outline(face, index)));
  return el('div', { class: 'marks' }, outlines, faces.map((face, index) => mark(face, index, image, { press, mirrored })));
}

function outline({ box, landmarks }, index) {
  const radius = Math.min(box.width, box.height) * 0.12;
  const rectangle = (name) => svg('rect', {
    class: name, x: box.x, y: box.y, width: box.width, height: box.height, rx: radius,
  });
  const point = ([cx, cy]) => svg('circle', { cx, cy, r: Math.max(box.width * 0.022, 1) });
  return svg('g', { 'data-face': index }, rectangle('halo'), rectangle('line'), Object.values(landmarks ?? {}).map(point));
}

function mark(face, index, image, { press, mirrored }) {
  const { box } = face;
  const words = [years(face.age), face.emotion?.label ?? face.smile?.label ?? face.gender?.label].filter(Boolean).join(' · ');
  const tag = el('span', { class: 'tag' }, el('b', {}, index + 1), words && el('span', {}, words));
  const node = press
    ? el('button', { type: 'button', 'aria-label': `Face ${index + 1}: ${gist(face)}`, click: () => press(index) }, tag)
    : el('div', {}, tag);
  node.classList.add('mark');
  node.dataset.face = index;
  const left = mirrored ? image.width - box.x - box.width : box.x;
  // There the words grow to the left, for the picture ends on the right.
  node.classList.toggle('end', left + box.width > image.width * 0.75);
  const share = (part, whole) => `${(100 * part) / whole}%`;
  // Where a box begins above the picture, its words would be out of sight.
  const top = Math.max(box.y, 0);
  Object.assign(node.style, {
    left: share(left, image.width), top: share(top, image.height),
    width: share(box.width, image.width), height: share(box.height - (top - box.y), image.height),
  });
  return node;
}

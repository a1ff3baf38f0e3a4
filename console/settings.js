/** What a person asks for besides the picture. */

import { key } from './api.js';
import { byId, el } from './dom.js';

const form = byId('settings');
const { detect, min_confidence: confidence, model, landmarks, key: secret } = form.elements;
const toggle = byId('settings-toggle');

/** The settings as they stand. */
export const settings = () => ({
  detect: detect.value,
  confidence: Number(confidence.value),
  model: model.value,
  landmarks: landmarks.checked,
});

/** Listens: `changed` to what changes answers, `identified` to another key. */
export function listen({ changed, identified }) {
  secret.value = key.get();
  const write = () => { confidence.nextElementSibling.value = Number(confidence.value).toFixed(2); };
  confidence.addEventListener('input', write);
  // A page that comes back from the browser's memory has the values that it was left with.
  write();
  form.addEventListener('submit', (event) => event.preventDefault());
  form.addEventListener('change', ({ target }) => {
    secret.removeAttribute('aria-invalid');
    confidence.disabled = detect.value === 'false';
    if (target !== secret) return changed();
    key.set(secret.value.trim());
    return identified();
  });
  toggle.addEventListener('click', () => unfold(toggle.getAttribute('aria-expanded') !== 'true'));
}

/** Offers what the server has: models to choose from, and no search for faces where nothing can find them. */
export function offer({ attributes, detects }) {
  const chosen = model.value;
  byId('model-field').hidden = attributes.length < 2;
  const choices = attributes.map(({ name, default: first }) => el('option', { value: first ? '' : name }, name));
  model.replaceChildren(...choices);
  model.value = chosen;
  if (model.selectedIndex < 0) model.value = '';
  for (const choice of detect) choice.disabled = !detects && choice.value !== 'false';
  if (!detects) detect.value = 'false';
  confidence.disabled = detect.value === 'false';
}

/** Chooses how faces are looked for. */
export function choose(way) {
  detect.value = way;
  confidence.disabled = way === 'false';
}

/** Asks for a key, which the server wants. */
export function askForKey() {
  unfold(true);
  secret.setAttribute('aria-invalid', 'true');
  secret.focus();
}

function unfold(open) {
  toggle.setAttribute('aria-expanded', String(open));
  form.classList.toggle('open', open);
}

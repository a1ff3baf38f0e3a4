/** Evaluations of labelled sets: a form that starts one, and all of them with their progress and results. */

import { address, call, credentials, events, key, pause, Problem } from './api.js';
import { byId, el } from './dom.js';
import { bytes, count, sentence } from './format.js';

const PATH = 'v1/evaluations';
/** How often the list is asked for where nothing runs: others may start something, too. */
const QUIET = 5000;
/** Browsers open six connections to a server; so many of them are spent on progress. */
const WATCHED = 2;

const section = byId('view-evaluations');
const rows = el('div', { class: 'runs' });
const cards = new Map();
let models = [];
let visit = null;

/** Whether the server evaluates, for who asks. */
export async function isOffered() {
  try {
    await call(`${PATH}?limit=1`);
    return true;
  } catch {
    return false;
  }
}

/** Offers these models in the form. */
export function offer({ attributes }) {
  models = attributes;
  const choice = section.querySelector('select[name=model]');
  if (choice) choice.replaceWith(modelChoice());
}

/** Shows the section and follows what runs, until `close`. */
export async function open() {
  if (visit) return;
  visit = new AbortController();
  const { signal } = visit;
  if (!section.hasChildNodes()) section.append(el('h1', {}, 'Evaluations'), starter(), rows);
  while (!signal.aborted) {
    try {
      const all = await refresh(signal);
      const moving = all.filter(isMoving);
      if (moving.length) await watch(moving.slice(0, WATCHED), signal);
      await pause(moving.length ? 300 : QUIET, signal);
    } catch (problem) {
      if (signal.aborted) return;
      if (!(problem instanceof Problem)) throw problem;
      if (!cards.size) rows.replaceChildren(el('p', { class: 'note' }, `${problem.title}. ${problem.detail ?? ''}`));
      await pause(QUIET, signal).catch(() => {});
    }
  }
}

/** The section is left. */
export function close() {
  visit?.abort();
  visit = null;
}

async function refresh(signal) {
  const { evaluations } = await (await call(PATH, { signal })).json();
  const known = new Set(evaluations.map(({ id }) => id));
  for (const [id, card] of cards) {
    if (known.has(id)) continue;
    card.remove();
    cards.delete(id);
  }
  evaluations.forEach(update);
  if (!evaluations.length) rows.replaceChildren(el('p', { class: 'note' }, 'Nothing has been evaluated yet.'));
  else rows.querySelector(':scope > p')?.remove();
  evaluations.forEach(({ id }, at) => {
    // What stands in its place already is not moved: it might lose the focus.
    if (rows.children[at] !== cards.get(id)) rows.insertBefore(cards.get(id), rows.children[at] ?? null);
  });
  return evaluations;
}

/** Follows evaluations until one of them ends. */
async function watch(moving, signal) {
  const over = new AbortController();
  const either = AbortSignal.any([signal, over.signal]);
  const follow = async ({ id }) => {
    for await (const evaluation of events(`${PATH}/${id}/events`, either)) update(evaluation);
  };
  try {
    await Promise.race(moving.map(follow));
  } finally {
    over.abort();
  }
}

/* One evaluation */

/** What cannot change any more is drawn once; of the others only their progress changes, as long as their status does not. */
function update(evaluation) {
  const { id, status, progress } = evaluation;
  const old = cards.get(id);
  if (old?.dataset.status === status) {
    old.querySelector('.progress').replaceChildren(...bar(evaluation));
    old.dataset.done = progress.done;
    return;
  }
  const fresh = card(evaluation);
  cards.set(id, fresh);
  old?.replaceWith(fresh);
}

function card(evaluation) {
  const { id, status, dataset, error, report } = evaluation;
  const done = status === 'succeeded';
  return el('article', { class: 'run', 'data-id': id, 'data-status': status, 'aria-label': `Evaluation of ${dataset}` },
    el('header', {}, el('h2', {}, dataset), el('span', { class: 'chip' }, status)),
    el('p', { class: 'note' }, facts(evaluation)),
    el('div', { class: 'progress' }, bar(evaluation)),
    done && el('dl', { class: 'scores' }, Object.entries(report.tasks).map(score)),
    error && el('p', { class: 'bad' }, `${sentence(error).replace(/\.$/, '')}.`),
    el('div', { class: 'actions' },
      done && [link(id, 'report.html', 'Report'), link(id, 'report.json', 'JSON'), link(id, 'predictions.csv', 'Predictions')],
      status === 'interrupted' && doer('Restart', () => act(id, 'restart')),
      isMoving(evaluation) ? doer('Cancel', () => act(id, 'cancel')) : doer('Delete', () => remove(id))));
}

const isMoving = ({ status }) => status === 'running' || status === 'queued';

function facts({ created, model, version, detect, where, group_by: groups, limit }) {
  const faces = { manifest: 'faces as the set has them', crop: 'faces found', false: 'faces in the centre' }[detect];
  return [
    new Date(created).toLocaleString([], { dateStyle: 'medium', timeStyle: 'short' }), [model, version].filter(Boolean).join(' '),
    faces, where, limit && `the first ${limit}`, groups.length && `by ${groups.join(', ')}`,
  ].filter(Boolean).join(' · ');
}

function bar({ status, progress: { done, total } }) {
  if (status === 'queued') return ['Waits for its turn'];
  if (status !== 'running') return [];
  return [
    el('progress', { max: total || undefined, value: total ? done : undefined, 'aria-label': 'Progress' }),
    el('span', {}, `${done.toLocaleString('en')} of ${total.toLocaleString('en')}`),
  ];
}

/** The figure of a task that people ask for first. */
function score([task, { n, mae, accuracy }]) {
  if (!n) return undefined;
  const [value, what] = task === 'age' ? [mae.toFixed(2), 'years mean error'] : [`${(accuracy * 100).toFixed(1)}%`, 'right'];
  return el('div', {}, el('dt', {}, sentence(task)), el('dd', {}, el('b', {}, value), ` ${what}`, el('small', {}, count(n, 'face'))));
}

/** A part of the result. Links do not send a key: where there is one, the part is fetched and saved. */
function link(id, part, text) {
  const path = `${PATH}/${id}/${part}`;
  const anchor = el('a', { class: 'button', href: address(path), target: '_blank', rel: 'noopener' }, text);
  anchor.addEventListener('click', async (event) => {
    if (!key.get()) return;
    event.preventDefault();
    try {
      const url = URL.createObjectURL(await (await call(path)).blob());
      el('a', { href: url, download: `${id}-${part}` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10_000);
    } catch (problem) {
      complain(anchor, problem);
    }
  });
  return anchor;
}

/** A button that asks once more before it does something that cannot be undone; `Restart` does nothing of the kind. */
function doer(text, work) {
  const button = el('button', { type: 'button', class: 'quiet' }, text);
  let sure = text === 'Restart';
  button.addEventListener('click', async () => {
    if (!sure) {
      sure = true;
      button.textContent = `${text}: sure?`;
      setTimeout(() => { sure = false; button.textContent = text; }, 4000);
      return;
    }
    try {
      await work();
    } catch (problem) {
      complain(button, problem);
    }
  });
  return button;
}

/** Cancels or restarts an evaluation, and shows what has become of it. */
const act = async (id, action) => update(await (await call(`${PATH}/${id}/${action}`, { method: 'POST' })).json());

async function remove(id) {
  await call(`${PATH}/${id}`, { method: 'DELETE' }).catch((problem) => { if (problem.status !== 404) throw problem; });
  cards.get(id)?.remove();
  cards.delete(id);
}

const complain = (node, problem) => node.after(el('span', { class: 'bad', role: 'alert' }, problem.message));

/* The form */

const modelChoice = () => el('select', { name: 'model' }, models.map(({ name, default: first }) => el('option', { value: first ? '' : name }, name)));

/** How a label is written in a manifest, where that is not plain. */
const WRITTEN = { age: ' (years)', smile: ' (0, 1)' };

/** The labels that some model here can be scored by. */
function labels() {
  const tasks = [...new Set(models.flatMap((model) => model.tasks))];
  return tasks.flatMap((task, at) => [at ? ', ' : '', el('code', {}, task), WRITTEN[task] ?? '']);
}

function starter() {
  const field = (text, control, note) => el('label', { class: 'field' }, el('span', {}, text), control, note && el('small', {}, note));
  const state = el('div', { class: 'progress', role: 'status' });
  const button = el('button', { class: 'primary' }, 'Evaluate');
  const form = el('form', { class: 'starter' },
    field('Labelled set', el('input', { type: 'file', name: 'dataset', accept: '.zip,application/zip', required: true }), 'A zip'),
    field('Rows', el('input', { name: 'where', placeholder: 'split=test', autocomplete: 'off', spellcheck: 'false' }), 'All without it'),
    field('Groups', el('input', { name: 'group_by', placeholder: 'race', autocomplete: 'off', spellcheck: 'false' }), 'A column'),
    field('Model', modelChoice()),
    field('Faces', el('select', { name: 'detect' }, [
      ['manifest', 'as the set has them'], ['crop', 'find them'], ['false', 'take the centre'],
    ].map(([value, text]) => el('option', { value }, text)))),
    el('label', { class: 'field check' }, el('input', { type: 'checkbox', name: 'thumbnails' }), el('span', {}, 'Pictures of the worst errors in the report')),
    el('details', { class: 'note' }, el('summary', {}, 'What is in the zip?'),
      el('p', {}, el('code', {}, 'manifest.csv'), ' and the pictures that its column ', el('code', {}, 'path'), ' names. Other columns are labels, whichever there are: ',
        labels(), '. By all that remain, rows can be chosen and grouped.')),
    button,
    state);
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await start(form, state);
      form.elements.dataset.value = '';
      state.replaceChildren();
      close();
      open();
    } catch (problem) {
      state.replaceChildren(el('p', { class: 'bad', role: 'alert' }, `${problem.title ?? problem.message}. ${sentence(problem.detail ?? '')}`));
    }
    button.disabled = false;
  });
  return form;
}

/** Sends the form; `fetch` does not tell how much of a body has been sent. */
function start({ elements }, state) {
  const parameters = new URLSearchParams();
  for (const name of ['where', 'group_by', 'model', 'detect']) if (elements[name].value.trim()) parameters.set(name, elements[name].value.trim());
  if (elements.thumbnails.checked) parameters.set('thumbnails', true);
  const body = new FormData();
  body.append('dataset', elements.dataset.files[0]);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open('POST', address(`${PATH}?${parameters}`));
    for (const [name, value] of Object.entries(credentials())) request.setRequestHeader(name, value);
    request.upload.addEventListener('progress', ({ loaded, total }) => {
      state.replaceChildren(
        el('progress', { max: total, value: loaded, 'aria-label': 'Upload' }),
        el('span', {}, loaded < total ? `${bytes(loaded)} of ${bytes(total)} sent` : 'Sent: the set is being checked'));
    });
    request.addEventListener('error', () => reject(new Problem({ title: 'The set could not be sent', detail: 'The connection broke.' })));
    request.addEventListener('load', async () => {
      const response = new Response(request.responseText, { status: request.status });
      if (response.ok) resolve(JSON.parse(request.responseText));
      else reject(await Problem.of(response));
    });
    request.send(body);
  });
}

/** Evaluations of labelled sets: a form that starts one, and all of them with their progress and results. */

import { address, call, credentials, events, key, pause, Problem } from './api.js';
import { byId, el } from './dom.js';
import { bytes, count, percent, sentence } from './format.js';

const PATH = 'v1/evaluations';
/** How often the list is asked for where nothing runs: others may start something, too. */
const QUIET = 5000;
/** Browsers open six connections to a server; so many of them are spent on progress. */
const WATCHED = 2;

const section = byId('view-evaluations');
const rows = el('div', { class: 'runs' });
const cards = new Map();
const scores = new Map();
let models = [];
let visit = null;

/** Whether the server evaluates. One that asks for a key does. */
export async function isOffered() {
  try {
    await call(PATH);
    return true;
  } catch (problem) {
    return problem.status === 401 || problem.status === 403;
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
      const moving = all.filter(({ status }) => status === 'running' || status === 'queued');
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
  evaluations.forEach(({ id }) => rows.append(cards.get(id)));
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

function update(evaluation) {
  const fresh = card(evaluation);
  const old = cards.get(evaluation.id);
  cards.set(evaluation.id, fresh);
  if (!old) return;
  // What did not change stays, with the focus in it.
  if (old.dataset.told === fresh.dataset.told) cards.set(evaluation.id, old);
  else if (old.dataset.status === fresh.dataset.status) {
    cards.set(evaluation.id, old);
    old.dataset.told = fresh.dataset.told;
    for (const part of ['.progress', '.scores']) old.querySelector(part).replaceWith(fresh.querySelector(part));
  } else old.replaceWith(fresh);
}

function card(evaluation) {
  const { id, status, progress, error } = evaluation;
  const done = status === 'succeeded';
  const moving = status === 'running' || status === 'queued';
  const name = evaluation.dataset?.name ?? evaluation.name ?? id;
  const node = el('article', { class: 'run', 'data-id': id, 'data-status': status, 'aria-label': `Evaluation ${name}` },
    el('header', {}, el('h2', {}, name), el('span', { class: 'chip' }, status)),
    el('p', { class: 'note' }, facts(evaluation)),
    el('div', { class: 'progress' }, moving && progress && bar(progress)),
    el('div', { class: 'scores' }, done && results(evaluation)),
    error && el('p', { class: 'bad' }, sentence(typeof error === 'string' ? error : error.detail ?? error.title ?? '')),
    el('div', { class: 'actions' },
      done && [link(id, 'report.html', 'Report'), link(id, 'report.json', 'JSON'), link(id, 'predictions.csv', 'Predictions')],
      remover(id, moving ? 'Cancel' : 'Delete')));
  node.dataset.told = JSON.stringify([status, progress, scores.has(id)]);
  return node;
}

function facts({ created, model, where, group_by: groups, detect }) {
  const told = [created && new Date(created).toLocaleString(), model?.name ?? model, where, groups && `by ${groups}`, detect && `detect=${detect}`];
  return told.filter((fact) => typeof fact === 'string' && fact).join(' · ');
}

function bar({ done, total }) {
  const known = total > 0;
  return [
    el('progress', { max: known ? total : undefined, value: known ? done : undefined, 'aria-label': 'Progress' }),
    el('span', {}, known ? `${done.toLocaleString('en')} of ${total.toLocaleString('en')}` : 'about to begin'),
  ];
}

/** The figures that people ask for first. */
function results({ id, report }) {
  const known = report?.tasks ? report : scores.get(id);
  if (!known) {
    fetchReport(id);
    return undefined;
  }
  const figure = ([task, figures]) => {
    if (!figures?.n) return undefined;
    const [value, what] = task === 'age' ? [figures.mae.toFixed(2), 'years mean error'] : [percent1(figures.accuracy), 'right'];
    return el('div', {}, el('dt', {}, sentence(task)), el('dd', {}, el('b', {}, value), ` ${what}`, el('small', {}, count(figures.n, 'face'))));
  };
  return el('dl', {}, Object.entries(known.tasks).map(figure));
}

const percent1 = (share) => (share === 1 ? percent(1) : `${(share * 100).toFixed(1)}%`);

async function fetchReport(id) {
  if (scores.has(id)) return;
  scores.set(id, null);
  try {
    scores.set(id, await (await call(`${PATH}/${id}/report.json`)).json());
    cards.get(id)?.querySelector('.scores').replaceChildren(results({ id }) ?? '');
  } catch {
    scores.delete(id);
  }
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

/** A button that asks once more before it removes. */
function remover(id, text) {
  const button = el('button', { type: 'button', class: 'quiet' }, text);
  let sure = false;
  button.addEventListener('click', async () => {
    if (!sure) {
      sure = true;
      button.textContent = `${text}: sure?`;
      setTimeout(() => { sure = false; button.textContent = text; }, 4000);
      return;
    }
    try {
      await call(`${PATH}/${id}`, { method: 'DELETE' });
      cards.get(id)?.remove();
      cards.delete(id);
    } catch (problem) {
      if (problem.status !== 404) complain(button, problem);
    }
  });
  return button;
}

const complain = (node, problem) => node.after(el('span', { class: 'bad', role: 'alert' }, problem.message));

/* The form */

const modelChoice = () => el('select', { name: 'model' }, models.map(({ name, default: first }) => el('option', { value: first ? '' : name }, name)));

function starter() {
  const field = (text, control, note) => el('label', { class: 'field' }, el('span', {}, text), control, note && el('small', {}, note));
  const state = el('div', { class: 'progress', role: 'status' });
  const button = el('button', { class: 'primary' }, 'Evaluate');
  const form = el('form', { class: 'starter' },
    field('Labelled set', el('input', { type: 'file', name: 'dataset', accept: '.zip,application/zip', required: true }), 'A zip'),
    field('Rows', el('input', { name: 'where', placeholder: 'split=test', autocomplete: 'off', spellcheck: 'false' }), 'All without it'),
    field('Groups', el('input', { name: 'group_by', placeholder: 'race', autocomplete: 'off', spellcheck: 'false' }), 'A column'),
    field('Model', modelChoice()),
    button,
    state,
    el('details', { class: 'note' }, el('summary', {}, 'What is in the zip?'),
      el('p', {}, el('code', {}, 'manifest.csv'), ' and the pictures that it names. The column ', el('code', {}, 'path'),
        ' is one of them; ', el('code', {}, 'age'), ' (years), ', el('code', {}, 'gender'), ' (male, female), ', el('code', {}, 'smile'),
        ' (0, 1) and ', el('code', {}, 'emotion'), ' are labels, whichever there are. Every other column can choose rows and make groups.')));
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
  for (const name of ['where', 'group_by', 'model']) if (elements[name].value.trim()) parameters.set(name, elements[name].value.trim());
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

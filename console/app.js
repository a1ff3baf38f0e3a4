/** The console: ways for pictures to come in, and what is shown of them. Each part of the page has a module of its own. */

import { address, models, Problem } from './api.js';
import * as camera from './camera.js';
import { byId } from './dom.js';
import * as evaluations from './evaluations.js';
import * as faces from './faces.js';
import { count, list, sentence } from './format.js';
import * as gallery from './gallery.js';
import { dropped, Pictures } from './pictures.js';
import * as request from './request.js';
import * as form from './settings.js';
import * as stage from './stage.js';

/** More at once are a job for `facewise predict`. */
const MOST = 200;
const THEMES = ['', 'light', 'dark'];
const COLOURS = { '': 'as the system has them', light: 'light', dark: 'dark' };

const pictures = new Pictures(form.settings);

/* What comes in */

const actions = {
  pick: () => byId('files').click(),
  camera: () => camera.open({ taken: (file) => add([file]), settings: form.settings }),
  example,
  clear: () => pictures.clear(),
};

function add(files, path) {
  quiet();
  if (!files.length) return tell('There is no picture among what was given.');
  if (files.length > MOST) tell(`These are the first ${MOST} pictures. The command “facewise predict” takes whole folders.`);
  if (location.hash === '#evaluations') location.hash = '#faces';
  return pictures.add(files.slice(0, MOST), path);
}

async function example() {
  try {
    const blob = await (await fetch(address('console/example.jpg'))).blob();
    add([new File([blob], 'group.jpg', { type: blob.type })], () => 'examples/group.jpg');
  } catch {
    tell('The server cannot be reached.');
  }
}

document.addEventListener('click', ({ target }) => actions[target.closest?.('[data-action]')?.dataset.action]?.());

byId('files').addEventListener('change', ({ target }) => {
  add([...target.files]);
  // So that the same file can be chosen again.
  target.value = '';
});

document.addEventListener('paste', ({ clipboardData }) => {
  const files = [...clipboardData.files];
  if (files.length) add(files);
  else if (!document.activeElement?.matches('input')) tell('The clipboard has no picture.');
});

/** Whether files are dragged over the page, and not to a field that takes them itself. */
const hasFiles = ({ dataTransfer, target }) => dataTransfer?.types.includes('Files') && !target.closest?.('input[type=file]');
const curtain = (drawn) => { byId('curtain').hidden = !drawn; };

document.addEventListener('dragover', (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  curtain(true);
});
document.addEventListener('dragleave', ({ relatedTarget }) => { if (!relatedTarget) curtain(false); });
document.addEventListener('drop', async (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  curtain(false);
  add(await dropped(event.dataTransfer));
});

/* What is shown */

pictures.addEventListener('change', ({ detail: changed }) => {
  const { selected } = pictures;
  byId('welcome').hidden = Boolean(selected);
  byId('work').hidden = !selected;
  byId('actions').hidden = !selected;
  gallery.show(pictures);
  if (changed) announce(changed);
  if (!selected || (changed && changed !== selected)) return;
  stage.show(selected, faces.open);
  faces.show(selected, {
    again: () => pictures.again((picture) => picture === selected),
    asOne: () => { form.choose('crop'); pictures.again(); },
  });
  request.show(selected);
});

/** Tells people who hear the page what those who see it see. */
function announce({ state, name, answer, problem }) {
  if (state === 'done') byId('news').textContent = `${name}: ${count(answer.faces.length, 'face')}`;
  if (state === 'failed') byId('news').textContent = `${name}: ${problem.message}`;
  if (problem?.code === 'unauthorized') form.askForKey();
}

/** A face that is pointed at or focused, on the picture or in the list, is shown in both. */
function light({ target }) {
  const face = target.closest?.('[data-face]')?.dataset.face;
  for (const node of byId('work').querySelectorAll('[data-face]')) node.classList.toggle('lit', node.dataset.face === face);
}
document.addEventListener('pointerover', light);
document.addEventListener('focusin', light);

function tell(text) {
  byId('notice').textContent = text;
  byId('notice').hidden = false;
}

function quiet() {
  byId('notice').hidden = true;
}

/* The server */

async function greet() {
  try {
    const served = await models();
    quiet();
    form.offer(served);
    const model = served.attributes.find(({ default: first }) => first);
    byId('server').textContent = model ? `${model.name} ${model.version}` : 'no model';
    byId('server').dataset.state = model?.ready ? 'ready' : 'waiting';
    byId('tasks').textContent = model ? `${sentence(list(model.tasks))} of every face.` : '';
    evaluations.offer(served);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    byId('server').textContent = problem.code === 'unauthorized' ? 'needs a key' : 'not reached';
    byId('server').dataset.state = 'waiting';
    if (problem.code === 'unauthorized') form.askForKey();
    else tell(`${problem.title}. ${sentence(problem.detail ?? '')}`);
  }
  document.querySelector('.tabs a[href="#evaluations"]').hidden = !(await evaluations.isOffered());
}

form.listen({
  changed: () => pictures.again(),
  identified: async () => {
    await greet();
    pictures.again(({ state }) => state === 'failed');
  },
});

/* Sections and colours */

function turn() {
  const section = location.hash === '#evaluations' ? 'evaluations' : 'faces';
  for (const name of ['faces', 'evaluations']) byId(`view-${name}`).hidden = name !== section;
  for (const link of document.querySelectorAll('.tabs a')) {
    if (link.hash === `#${section}`) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  if (section === 'evaluations') evaluations.open();
  else evaluations.close();
}
addEventListener('hashchange', turn);

const root = document.documentElement;
function paint(theme) {
  if (theme) root.dataset.theme = theme;
  else delete root.dataset.theme;
  byId('theme').setAttribute('aria-label', `Colours: ${COLOURS[theme]}`);
}
byId('theme').addEventListener('click', () => {
  const theme = THEMES[(THEMES.indexOf(root.dataset.theme ?? '') + 1) % THEMES.length];
  if (theme) localStorage.setItem('facewise.theme', theme);
  else localStorage.removeItem('facewise.theme');
  paint(theme);
});

paint(root.dataset.theme ?? '');
byId('camera-note').hidden = camera.isAllowed();
for (const button of document.querySelectorAll('[data-action="camera"]')) {
  button.disabled = !camera.isAllowed();
  if (button.disabled) button.title = byId('camera-note').textContent;
}
greet().then(turn);

/** The pictures of this visit: what is known of each, and the small queue in which they go to the server. */

import { predict } from './api.js';

/** So many requests are under way at a time: the server has others to serve. */
const WIDTH = 2;

/**
 * A picture is `waiting`, `running`, `held` (the server is busy), `done` with its answer, or `failed` with its problem.
 * Whatever changes is told by the event `change`, whose `detail` is the picture, or nothing where the list changed.
 */
export class Pictures extends EventTarget {
  list = [];
  selected = null;
  #settings;

  /** `settings` tells what to ask for, at the moment of asking. */
  constructor(settings) {
    super();
    this.#settings = settings;
  }

  /** Adds files, shows the first of them and sends all to the server. */
  add(files, path = (file) => file.name) {
    const pictures = files.map((file) => ({
      file, path: path(file), name: file.name, url: URL.createObjectURL(file), state: 'waiting',
    }));
    this.list.push(...pictures);
    this.select(pictures[0]);
    this.#fill();
  }

  select(picture) {
    this.selected = picture;
    this.#tell();
  }

  remove(picture) {
    const at = this.list.indexOf(picture);
    this.#forget(picture);
    this.list.splice(at, 1);
    if (this.selected === picture) this.selected = this.list[Math.min(at, this.list.length - 1)] ?? null;
    this.#tell();
    this.#fill();
  }

  clear() {
    this.list.forEach((picture) => this.#forget(picture));
    this.list = [];
    this.select(null);
  }

  /** Asks again for all that fit, as after a change of settings. What was answered is shown until then. */
  again(fits = () => true) {
    for (const picture of this.list.filter(fits)) {
      picture.request?.abort();
      picture.state = 'waiting';
    }
    this.#tell();
    this.#fill();
  }

  #tell(picture) {
    this.dispatchEvent(new CustomEvent('change', { detail: picture }));
  }

  #forget(picture) {
    picture.request?.abort();
    URL.revokeObjectURL(picture.url);
  }

  /** Sends what waits, first the picture that is being looked at. */
  #fill() {
    const under = () => this.list.filter(({ state }) => state === 'running' || state === 'held').length;
    const waits = (picture) => picture?.state === 'waiting';
    while (under() < WIDTH) {
      const next = waits(this.selected) ? this.selected : this.list.find(waits);
      if (!next) return;
      this.#ask(next);
    }
  }

  async #ask(picture) {
    const request = new AbortController();
    const settings = this.#settings();
    const become = (state, what = {}) => {
      // The answer to a question that was taken back says nothing any more.
      if (request.signal.aborted) return;
      Object.assign(picture, { state }, what);
      this.#tell(picture);
    };
    picture.request = request;
    become('running', { problem: undefined });
    let begun = performance.now();
    const held = (seconds) => {
      become('held', { seconds });
      begun = performance.now() + seconds * 1000;
    };
    try {
      const answer = await predict(picture.file, settings, { signal: request.signal, held });
      become('done', { answer, settings, tripMs: performance.now() - begun });
    } catch (problem) {
      become('failed', { problem, answer: undefined });
    }
    this.#fill();
  }
}

/** The files that were dropped, those of folders too; of a folder only what looks like a picture. */
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.());
  const files = [...transfer.files];
  if (!entries.some((entry) => entry?.isDirectory)) return files;
  const nested = await Promise.all(entries.filter(Boolean).map(walk));
  return nested.flat();
}

async function walk(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    // A reader gives the first hundred, then the next.
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    found.push(...some);
  }
  const files = (await Promise.all(found.map(walk))).flat();
  return files.filter(({ type }) => type.startsWith('image/'));
}

/** The server's interface as the console uses it. Whatever goes wrong is a `Problem`, with words for people. */

/** So often is a request sent that a busy server turns away. */
const ATTEMPTS = 8;
const KEY = 'facewise.key';

/** What went wrong: the server's own words (RFC 9457) where it has some. */
export class Problem extends Error {
  constructor({ status = 0, code = 'unreachable', title, detail, request_id: request = '' }) {
    super(title);
    Object.assign(this, { status, code, title, detail, request });
  }

  static async of(response) {
    const body = await response.json().catch(() => ({}));
    return new Problem({
      title: 'The server answered with an error',
      detail: `HTTP ${response.status}, without an explanation.`,
      code: 'http',
      ...body,
      status: response.status,
    });
  }
}

/** The API key, for as long as the tab is open. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? '',
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** The headers by which the server knows who asks. */
export const credentials = () => (key.get() ? { authorization: `Bearer ${key.get()}` } : {});

/** The address of a resource, also where the server is behind a proxy with a path of its own. */
export const address = (path) => new URL(path, document.baseURI).href;

/** A request; the answer, or a `Problem`. */
export async function call(path, init = {}) {
  const headers = { ...credentials(), ...init.headers };
  const response = await fetch(address(path), { ...init, headers }).catch((error) => {
    if (error.name === 'AbortError') throw error;
    throw new Problem({
      title: 'The server cannot be reached',
      detail: 'It may have been stopped, or the connection is broken.',
    });
  });
  if (!response.ok) throw Object.assign(await Problem.of(response), { again: seconds(response.headers.get('retry-after')) });
  return response;
}

/** What is served; those that describe faces, and whether one finds them. */
export async function models() {
  const { models } = await (await call('v1/models')).json();
  return { attributes: models.filter(({ kind }) => kind === 'attributes'), detects: models.some(({ kind }) => kind === 'detector') };
}

/** The query of a prediction: only what differs from what the server does anyway. */
export function query({ detect, confidence, model, landmarks }) {
  const parameters = new URLSearchParams({ distributions: true });
  if (detect !== 'true') parameters.set('detect', detect);
  if (detect !== 'false' && confidence !== 0.5) parameters.set('min_confidence', confidence);
  if (model) parameters.set('model', model);
  if (landmarks) parameters.set('landmarks', true);
  return parameters.toString();
}

/**
 * The faces of a picture. A server that is busy is asked again when it says so; `held` hears for how many seconds.
 */
export async function predict(file, settings, { signal, held }) {
  const type = file.type.startsWith('image/') ? file.type : 'application/octet-stream';
  const request = { method: 'POST', headers: { 'content-type': type }, body: file, signal };
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await (await call(`v1/predict?${query(settings)}`, request)).json();
    } catch (problem) {
      const busy = problem.status === 429 || problem.status === 503;
      if (!busy || problem.again === undefined || attempt === ATTEMPTS) throw problem;
      held?.(problem.again);
      // Clients that were turned away together do not come back together.
      await pause(problem.again * 1000 * (1 + Math.random() / 4), signal);
    }
  }
}

/** The events of a stream (SSE) as they come. Unlike `EventSource`, it sends the key. */
export async function* events(path, signal) {
  const response = await call(path, { headers: { accept: 'text/event-stream' }, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split(/\r?\n\r?\n/);
    text = blocks.pop();
    for (const block of blocks) {
      const data = block.split(/\r?\n/).filter((line) => line.startsWith('data:')).map((line) => line.slice(5).trimStart());
      if (data.length) yield JSON.parse(data.join('\n'));
    }
  }
}

/** Waits, unless the signal ends it. */
export function pause(time, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, time);
    signal?.addEventListener('abort', () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

/** `Retry-After`: seconds or a date; nothing where there is none. */
function seconds(header) {
  if (!header) return undefined;
  const time = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(time) ? Math.min(60, Math.max(0.2, time)) : undefined;
}

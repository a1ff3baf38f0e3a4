/** The camera: a picture taken with it, and the faces in what it sees, live. */

import { pause, predict } from './api.js';
import { byId } from './dom.js';
import { count, ms } from './format.js';
import { marks } from './marks.js';

/** Longest side of the frames that are looked at live, in pixels. */
const LIVE = 640;

const dialog = byId('camera');
const viewfinder = byId('viewfinder');
const video = viewfinder.querySelector('video');
const state = byId('camera-state');
let stream = null;

/** Whether browsers give the camera to this page: over HTTPS and on localhost only. */
export const isAllowed = () => Boolean(navigator.mediaDevices?.getUserMedia);

/** Opens the camera. `taken` gets each picture as a file, `settings` tells what to ask for. */
export async function open({ taken, settings }) {
  dialog.showModal();
  state.textContent = 'Waiting for the camera …';
  byId('shoot').disabled = true;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 }, height: { ideal: 720 } } });
  } catch (error) {
    state.textContent = error.name === 'NotAllowedError'
      ? 'The camera may not be used: allow it in the browser’s settings for this page.'
      : 'No camera can be used: there is none, or another program has it.';
    return;
  }
  // Closed while the browser asked.
  if (!dialog.open) return stop();
  video.srcObject = stream;
  await video.play();
  viewfinder.style.setProperty('--width', video.videoWidth);
  viewfinder.style.setProperty('--height', video.videoHeight);
  byId('shoot').disabled = false;
  byId('shoot').onclick = async () => {
    const taking = frame(Infinity, 0.95);
    dialog.close();
    const time = new Date().toTimeString().slice(0, 8).replaceAll(':', '-');
    taken(new File([await taking], `camera-${time}.jpg`, { type: 'image/jpeg' }));
  };
  look(stream, settings);
}

byId('camera-close').addEventListener('click', () => dialog.close());
byId('live').addEventListener('change', () => viewfinder.querySelector('.marks')?.remove());
dialog.addEventListener('close', stop);

function stop() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  video.srcObject = null;
  viewfinder.querySelector('.marks')?.remove();
}

/** What the camera sees now, as a JPEG. */
function frame(longest, quality) {
  const { videoWidth: width, videoHeight: height } = video;
  const scale = Math.min(1, longest / Math.max(width, height));
  const canvas = new OffscreenCanvas(Math.round(width * scale), Math.round(height * scale));
  canvas.getContext('2d').drawImage(video, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: 'image/jpeg', quality });
}

/** Looks at one frame after the other, as fast as the server answers, as long as this stream is open. */
async function look(watched, settings) {
  const isLive = () => stream === watched && byId('live').checked;
  state.textContent = '';
  while (stream === watched) {
    if (isLive()) {
      try {
        const answer = await predict(await frame(LIVE, 0.85), settings(), {});
        if (!isLive()) continue;
        viewfinder.querySelector('.marks')?.remove();
        viewfinder.append(marks(answer, { mirrored: true }));
        const told = `${count(answer.faces.length, 'face')} in ${ms(answer.timings.total_ms)}`;
        // Screen readers hear of another number of faces, not of each frame.
        if (state.dataset.faces !== String(answer.faces.length)) state.textContent = told;
        state.dataset.faces = answer.faces.length;
      } catch (problem) {
        state.textContent = problem.message;
        await pause(2000);
      }
    }
    await (isLive() ? new Promise(requestAnimationFrame) : pause(200));
  }
}

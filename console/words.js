/** What an answer says about a face, in few words. A task that the server does not answer is not spoken of. */

/** The heads of an answer, in the order in which they are shown. */
export const LABELS = ['gender', 'smile', 'emotion'];

/** The age in whole years. */
export const years = (age) => age && String(Math.round(age.years));

/** The most probable label of each task; `neutral` of two of them is said once. */
export const labels = (face) => [...new Set(LABELS.map((task) => face[task]?.label).filter(Boolean))];

/** `about 31 years, male, smiling, happy`. */
export function gist(face) {
  const words = labels(face);
  if (face.age) words.unshift(`about ${years(face.age)} years`);
  return words.join(', ') || 'no attributes';
}

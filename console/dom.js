/** Elements made in code. What comes from a file or from the server is always text, never read as HTML. */

const SVG = 'http://www.w3.org/2000/svg';

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === 'function') node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat().filter((child) => child !== undefined && child !== null && child !== false));
  return node;
}

/** An HTML element: functions among its properties listen to the event of their name, the others are attributes. */
export const el = (name, properties = {}, ...children) => fill(document.createElement(name), properties, children);

/** The same for SVG. */
export const svg = (name, properties = {}, ...children) => fill(document.createElementNS(SVG, name), properties, children);

/** The element of this id, which the page has. */
export const byId = (id) => document.getElementById(id);

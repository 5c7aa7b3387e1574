/** The learning curve: the share of right guesses, over the last 20 and over all. */

import { $, percent } from "./parts.js";

const RECENT = 20;
const HEIGHT = 190;
const EDGE = { left: 38, right: 10, top: 10, bottom: 24 };

function shape(name, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

/** The two curves: after each interaction, the share of right guesses so far, and of the last 20. */
export function shares(rights) {
  const sums = [0];
  for (const right of rights) sums.push(sums.at(-1) + right);
  const since = (i, start) => (sums[i] - sums[start]) / (i - start);
  const counts = rights.map((_, i) => i + 1);
  return { all: counts.map((i) => since(i, 0)), recent: counts.map((i) => since(i, Math.max(0, i - RECENT))) };
}

export function drawCurve(rights) {
  const svg = $("curve");
  const width = Math.max(svg.clientWidth, 240);
  const last = Math.max(rights.length, RECENT);
  const x = (i) => EDGE.left + ((width - EDGE.left - EDGE.right) * i) / last;
  const y = (share) => EDGE.top + (HEIGHT - EDGE.top - EDGE.bottom) * (1 - share);
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.style.height = `${HEIGHT}px`;
  const grid = [0, 0.5, 1].flatMap((share) => [
    shape("line", { x1: x(0), x2: x(last), y1: y(share), y2: y(share), class: "grid" }),
    shape("text", { x: EDGE.left - 6, y: y(share) + 4, "text-anchor": "end" }, `${100 * share}%`),
  ]);
  const ends = [shape("text", { x: x(0), y: HEIGHT - 6 }, "first"), shape("text", { x: x(last), y: HEIGHT - 6, "text-anchor": "end" }, `${last} sentences`)];
  const { all, recent } = shares(rights);
  const line = (values, name) => shape("polyline", { class: name, points: values.map((share, i) => `${x(i + 1)},${y(share)}`).join(" ") });
  svg.replaceChildren(...grid, ...ends, line(all, "all"), line(recent, "recent"));
  if (rights.length) {
    svg.append(shape("circle", { class: "dot", cx: x(rights.length), cy: y(recent.at(-1)), r: 4 }));
    const few = Math.min(rights.length, RECENT);
    const right = rights.slice(-few).filter(Boolean).length;
    $("learning-note").textContent = `It guessed right ${right} of the last ${few} times, and ${percent(all.at(-1))} of all ${rights.length}.`;
  }
}

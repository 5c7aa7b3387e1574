/** Small parts that several views use. Text is only ever set as text, never as HTML. */

export const $ = (id) => document.getElementById(id);

/** A new element: make("li", {className: "word"}, "text", another element, ...). */
export function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

export const percent = (share) => {
  const whole = Math.round(100 * share);
  if (whole === 100 && share < 1) return "over 99 %";
  return whole === 0 && share > 0 ? "under 1 %" : `${whole} %`;
};

/** Text in quotation marks, cut where it is long. */
export const quoted = (text, most = 80) => {
  const letters = [...text];
  return `“${letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : text}”`;
};

/** Show a sentence until it is dismissed. The newest three stay. */
export function notice(text) {
  const close = make("button", { type: "button", ariaLabel: "Dismiss" }, "×");
  const box = make("p", { className: "notice" }, make("span", {}, text), close);
  close.onclick = () => box.remove();
  const before = [...$("notices").children].filter((other) => other.firstChild.textContent === text);
  for (const other of before) other.remove();
  $("notices").append(box);
  while ($("notices").children.length > 3) $("notices").firstChild.remove();
}

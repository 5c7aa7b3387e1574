/** The lamp and its switch. */

import { $, make } from "./parts.js";

let tags = null;

/** Build the switch. Pressing the state that is already set is a flip as well. */
export function buildSwitch(given, flip) {
  tags = given;
  const states = [...tags.states].sort((a, b) => a.level - b.level);
  const choices = states.map((state) => {
    const input = make("input", { type: "radio", name: "state", value: state.name });
    listen(input, () => flip(state.name));
    return make("label", {}, input, make("span", {}, state.label));
  });
  $("switch").replaceChildren($("switch").firstElementChild, ...choices, make("i", { ariaHidden: "true" }));
  $("switch").style.setProperty("--states", states.length);
  $("switch").classList.toggle("many", states.length > 4);
  document.title = `${tags.name} that learns`;
}

/** Browsers do not agree on whether a key on a radio button that is checked clicks it. */
function listen(input, flip) {
  let pressed = false;
  input.addEventListener("keydown", (event) => {
    if (event.repeat || !input.checked || ![" ", "Enter"].includes(event.key)) return;
    pressed = true;
    flip();
  });
  input.addEventListener("keyup", () => setTimeout(() => (pressed = false)));
  input.addEventListener("click", () => pressed || flip());
}

export const label = (tag) => tags.states.find((state) => state.name === tag)?.label ?? "nothing";

export function drawRoom(lamp, { before, byItself }) {
  const state = tags.states.find((candidate) => candidate.name === lamp);
  document.documentElement.style.setProperty("--level", state.level);
  const inputs = [...$("switch").querySelectorAll("input")];
  for (const input of inputs) input.checked = input.value === lamp;
  $("switch").style.setProperty("--place", inputs.findIndex((input) => input.checked));
  const sentence = `${tags.name}: ${state.label}${byItself ? ", by itself" : ""}`;
  $("lamp-now").textContent = sentence;
  $("picture-title").textContent = sentence;
  $("undo").disabled = before === lamp;
  $("undo").textContent = before === lamp ? "Undo" : `Undo: back to ${label(before)}`;
}

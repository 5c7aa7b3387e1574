/** What was said, and what each sentence taught. */

import { $, make, percent, quoted } from "./parts.js";
import { label } from "./room.js";
import { likeliest } from "./story.js";

const PAGE = 10;
const REASONS = {
  flip: "you flipped the switch",
  correction: "you corrected it",
  kept: "you kept what it did",
  silence: "you left the switch alone",
};

const items = new Map(); // utterance -> its element
let shown = PAGE;
let tags = null;
let actions = null;

/** actions: {teach(id, tag), forget(id), explain(id)}. */
export function buildConversation(given, doing) {
  [tags, actions] = [given, doing];
  items.clear();
  $("utterances").replaceChildren();
  $("earlier").onclick = () => {
    shown += PAGE;
    doing.redraw();
  };
}

/** Draw the utterances that changed. Each waits for a flip for `window` seconds after it was said. */
export function drawConversation(story, now, window) {
  const ids = [...story.utterances.keys()];
  const visible = new Set(ids.slice(-shown));
  for (const [id, item] of items) {
    if (visible.has(id)) continue;
    item.remove();
    items.delete(id);
  }
  for (const id of visible) {
    const isNew = !items.has(id);
    if (isNew) items.set(id, build(id));
    if (isNew || story.changed.has(id)) update(items.get(id), story.utterances.get(id), now, window);
  }
  place([...visible].reverse().map((id) => items.get(id)), story.waiting);
  story.changed.clear();
  $("earlier").hidden = ids.length <= shown;
  $("conversation-note").hidden = ids.length === 0;
}

/** Put the elements in order, and move none that is in its place: it may have the focus. */
function place(wanted, waiting) {
  const list = $("utterances");
  for (const old of list.querySelectorAll(".waiting")) old.remove();
  wanted.forEach((item, i) => list.children[i] !== item && list.insertBefore(item, list.children[i] ?? null));
  const pending = [...waiting.values()].reverse().map((text) => {
    return make("li", { className: "waiting" }, make("p", {}, quoted(text, 200)), make("small", {}, "kept, and not yet read"));
  });
  list.prepend(...pending);
}

function build(id) {
  const choices = [...tags.states.map((state) => [state.name, state.label]), [tags.none, "Nothing"]];
  const options = choices.map(([value, text]) => make("option", { value }, text));
  const select = make("select", {}, make("option", { value: "", hidden: true, disabled: true }, "…"), ...options);
  select.onchange = () => actions.teach(id, select.value);
  const forget = make("button", { type: "button", className: "forget" }, "Forget");
  forget.onclick = () => actions.forget(id);
  const guess = make("button", { type: "button", className: "guess" });
  guess.onclick = () => actions.explain(id);
  const text = make("p");
  const line = make("small", {}, guess, make("span"));
  return make("li", {}, text, make("div", { className: "lesson" }, select, forget), line);
}

function update(item, utterance, now, window) {
  const { guess, lesson, act } = utterance;
  const length = guess?.window ?? window; // seconds in which a flip belongs to it
  const left = utterance.time + length - now;
  const [text, { children: [select, forget] }, { children: [why, reason] }] = item.children;
  text.textContent = utterance.text + (utterance.cut ? " …" : "");
  select.value = lesson?.tag ?? "";
  select.style.setProperty("--tone", tags.states.find((state) => state.name === lesson?.tag)?.level ?? 0);
  select.ariaLabel = `What ${quoted(utterance.text)} should do`;
  forget.ariaLabel = `Forget ${quoted(utterance.text)}`;
  forget.disabled = "forget" in utterance;
  forget.textContent = forget.disabled ? "Forgetting…" : "Forget";
  why.hidden = !guess;
  if (guess) {
    const best = likeliest(guess);
    why.textContent = `${act ? "did" : "guessed"} ${label(best)}, ${percent(guess.probabilities[best])}`;
    why.className = lesson ? `guess ${best === lesson.tag ? "right" : "wrong"}` : "guess";
    why.ariaLabel = `${why.textContent}${lesson ? (best === lesson.tag ? ", right" : ", wrong") : ""}: show why`;
  }
  reason.textContent = lesson ? REASONS[lesson.reason] : left > 0 ? "waiting for your flip" : "";
  item.classList.toggle("open", !lesson && left > 0);
  item.style.setProperty("--window", `${length}s`);
  item.style.setProperty("--passed", `${left - length}s`);
}

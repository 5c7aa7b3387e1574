/** What the model thinks of one utterance: how sure it is, and why. */

import { $, make, percent, quoted } from "./parts.js";
import { label } from "./room.js";
import { likeliest } from "./story.js";

const WORDS = 6;
const SENTENCES = 3;

export function buildBars(tags) {
  const names = [...tags.states].sort((a, b) => b.level - a.level).map((state) => state.name);
  const rows = [...names, tags.none].map((tag) => {
    const bar = make("span", { className: "bar", ariaHidden: "true" }, make("i"));
    const text = tag === tags.none ? "Do nothing" : label(tag);
    return make("li", { className: tag === tags.none ? "none" : "" }, make("span", {}, text), bar, make("b", {}, "–"));
  });
  rows.forEach((row, i) => (row.dataset.tag = [...names, tags.none][i]));
  $("bars").replaceChildren(...rows);
}

export function drawThreshold(threshold) {
  const slider = $("threshold");
  if (document.activeElement !== slider || !slider.matches(":active")) slider.value = threshold;
  slider.ariaValueText = `${percent(slider.value)} sure`;
  $("threshold-value").textContent = percent(slider.value);
  $("thoughts").style.setProperty("--threshold", slider.value);
}

export function drawThoughts(utterance, story, tags, threshold) {
  if (!utterance) return;
  const { guess } = utterance;
  $("thought-about").textContent = quoted(utterance.text, 160);
  $("thought").textContent = sureness(utterance, tags, threshold);
  for (const row of $("bars").children) {
    const share = guess.probabilities[row.dataset.tag] ?? 0;
    row.style.setProperty("--share", share);
    row.lastElementChild.textContent = percent(share);
    row.classList.toggle("best", row.dataset.tag === likeliest(guess));
  }
  drawWhy(guess, story);
}

function sureness({ guess, act, lesson }, tags, threshold) {
  const best = likeliest(guess);
  const share = guess.probabilities[best];
  if (!guess.why.words.length && !guess.why.sentences.length && best === tags.none && !lesson) {
    return "It knows nothing like it yet, so it waits for you. Flip the switch, and it learns what you meant.";
  }
  if (best === tags.none) return `It is ${percent(share)} sure that there is nothing to do.`;
  if (act) return `It is ${percent(share)} sure that you want ${label(best)}, so it switched by itself.`;
  if (guess.act) return `It is ${percent(share)} sure that you want ${label(best)}; you were faster.`;
  const leans = `It leans to ${label(best)}, but is only ${percent(share)} sure.`;
  return share < threshold ? `${leans} It needs ${percent(threshold)}, so it leaves the switch to you.` : leans;
}

function drawWhy(guess, story) {
  const best = likeliest(guess);
  const words = guess.why.words.filter(([, tag, nats]) => tag === best && nats > 0).slice(0, WORDS);
  const most = Math.max(...words.map(([, , nats]) => nats));
  const chips = words.map(([text, , nats]) => {
    const chip = make("mark", { title: `speaks for it with ${nats.toFixed(1)} nats` }, text);
    chip.style.setProperty("--weight", nats / most);
    return chip;
  });
  $("why-words").replaceChildren(...chips.flatMap((chip) => [chip, " "]));
  const spoke = guess.why.sentences.filter(([id, tag]) => tag === best && story.utterances.has(id));
  const sentences = [...new Set(spoke.map(([id]) => story.utterances.get(id).text))].slice(0, SENTENCES);
  $("why-sentences").replaceChildren(...sentences.flatMap((text) => [make("div", {}, quoted(text))]));
  $("why").hidden = !chips.length && !sentences.length;
}

/** The processes behind the lamp, and their troubles. */

import { $, make } from "./parts.js";

const TROUBLES = 3;

export function drawMachinery(story, processes) {
  const rows = Object.entries(processes).map(([name, running]) => {
    return make("li", { className: running ? "running" : "stopped" }, `${name}${running ? "" : " (starting again)"}`);
  });
  $("processes").replaceChildren(...rows);
  const { trained } = story;
  $("trained").textContent = trained ? `Learned ${trained.lessons} lessons; the last update took ${trained.ms.toFixed(0)} ms.` : "";
  const troubles = story.troubles.slice(-TROUBLES).reverse().map((event) => {
    return make("li", {}, `${new Date(1000 * event.time).toLocaleTimeString()}, ${event.body.process}: ${event.body.why}`);
  });
  $("troubles").replaceChildren(...troubles);
}

/** The page of the lamp: it shows what the server tells, and tells the server what the person does. */

import { Connection } from "./connection.js";
import { buildConversation, drawConversation } from "./conversation.js";
import { drawCurve } from "./curve.js";
import { drawMachinery } from "./machinery.js";
import { microphone } from "./microphone.js";
import { $, notice } from "./parts.js";
import { buildSwitch, drawRoom, label } from "./room.js";
import { Story } from "./story.js";
import { buildBars, drawThoughts, drawThreshold } from "./thoughts.js";

let tags = null;
let server = ""; // which run of the server told the story
let story = null;
let state = null; // {lamp, settings, processes, time} as of the last news
let asked = null; // the utterance whose explanation is asked for; else the newest is explained
let drawing = false;

const connection = new Connection({
  resume: () => ({ server, after: story?.last ?? 0 }),
  onNews: hear,
  onRefusal: refused,
  onChange: (open) => {
    document.body.classList.toggle("away", !open);
    if (!open && state) say("The connection to the lamp is lost. Trying again.");
  },
});

/** Say why, and give words back that were not taken. */
function refused(why, message) {
  notice(why);
  if (message.do === "say" && !$("words").value) $("words").value = message.text;
}

function hear(news) {
  if (news.trouble) return notice(news.trouble);
  if (news.hello) begin(news.hello);
  const known = story.last;
  for (const event of news.events) story.add(event);
  story.drop(news.erased);
  const live = (event) => event.id > known && state && event.time > news.time - 60;
  announce(news.events.filter(live));
  state = news;
  draw();
}

function begin(hello) {
  ({ tags, server } = hello);
  story = new Story(tags.start);
  state = asked = null;
  buildSwitch(tags, (tag) => connection.send({ do: "flip", tag }));
  buildBars(tags);
  buildConversation(tags, {
    teach: (about, tag) => connection.send({ do: "lesson", about, tag }),
    forget: (about) => connection.send({ do: "forget", about }),
    explain: (about) => {
      asked = about;
      draw();
      $("thoughts").scrollIntoView({ block: "nearest" });
    },
    redraw: draw,
  });
  buildMicrophone(hello.transcriber);
}

function announce(events) {
  for (const event of events) {
    if (event.kind === "act") say(`By itself: ${label(event.body.tag)}.`);
    if (event.kind === "flip") say(label(event.body.tag));
    if (event.kind === "said") asked = null;
    if (event.kind === "refused" || event.kind === "trouble") notice(event.body.why);
  }
}

const say = (text) => ($("status").textContent = text);

/** Draw once a frame, however many events come. */
function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    const { threshold, window } = state.settings;
    drawRoom(state.lamp, story);
    drawThreshold(threshold);
    drawThoughts(story.utterances.get(asked) ?? story.newest, story, tags, threshold);
    drawConversation(story, state.time, window);
    drawCurve(story.rights);
    drawMachinery(story, state.processes);
  });
}

function buildMicrophone(transcriber) {
  const way = microphone(transcriber);
  const button = $("microphone");
  button.hidden = $("microphone-note").hidden = !way;
  if (!way) return;
  $("microphone-note").textContent = way.note;
  let stop = null;
  button.onclick = async () => {
    if (stop) return stop();
    button.ariaPressed = "true";
    const ended = () => {
      stop = null;
      button.ariaPressed = "false";
    };
    try {
      stop = await way.start({
        onText: (text) => connection.send({ do: "say", text, via: "speech" }),
        onSound: (wav) => connection.send({ do: "sound", wav }),
        onTrouble: notice,
        onEnd: ended,
      });
    } catch (error) {
      ended();
      notice(`The microphone cannot be used: ${error.message}`);
    }
  };
}

$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  connection.send({ do: "say", text: $("words").value, via: "typed" });
  $("words").value = "";
  $("words").focus();
});
$("undo").addEventListener("click", () => connection.send({ do: "flip", tag: story.before }));
$("threshold").addEventListener("input", () => drawThreshold(state.settings.threshold));
$("threshold").addEventListener("change", (event) => {
  connection.send({ do: "set", name: "threshold", value: Number(event.target.value) });
});
new ResizeObserver(() => state && drawCurve(story.rights)).observe($("curve"));

/** What happened so far, gathered from the events of the log. It draws nothing. */

export class Story {
  constructor(start) {
    this.last = 0; // the id of the newest event
    this.utterances = new Map(); // id -> {id, time, text, guess, act, lesson, ...}, the oldest first
    this.waiting = new Map(); // id of what was typed or recorded -> its text, until the recorder has taken it
    this.changed = new Set(); // utterances to draw anew
    this.lamp = this.before = start;
    this.byItself = false; // whether the model set the lamp
    this.trained = null;
    this.troubles = [];
  }

  add(event) {
    this.last = event.id;
    const utterance = this.utterances.get(event.about);
    if (event.kind === "typed") {
      this.waiting.delete(event.about);
      this.waiting.set(event.id, event.body.text);
    } else if (event.kind === "sound") {
      this.waiting.set(event.id, "a recording");
    } else if (event.kind === "said") {
      this.waiting.delete(event.about);
      this.utterances.set(event.id, { id: event.id, time: event.time, ...event.body });
      this.changed.add(event.id);
    } else if (event.kind === "refused") {
      this.waiting.delete(event.about);
    } else if (event.kind === "flip" || event.kind === "act") {
      if (event.body.tag !== this.lamp) this.before = this.lamp;
      this.lamp = event.body.tag;
      this.byItself = event.kind === "act";
    } else if (event.kind === "trained") {
      this.trained = event.body;
    } else if (event.kind === "trouble") {
      this.waiting.delete(event.about); // a recording that was not understood
      this.troubles.push(event);
    }
    if (utterance && ["guess", "act", "lesson", "forget"].includes(event.kind)) {
      utterance[event.kind] = event.body;
      this.changed.add(utterance.id);
    }
  }

  drop(erased) {
    for (const id of erased) this.utterances.delete(id);
  }

  get newest() {
    let newest = null;
    for (const utterance of this.utterances.values()) if (utterance.guess) newest = utterance;
    return newest;
  }

  /** For each utterance with a guess and a lesson, in order: was the most probable tag the lesson? */
  get rights() {
    const taught = [...this.utterances.values()].filter((utterance) => utterance.guess && utterance.lesson);
    return taught.map((utterance) => likeliest(utterance.guess) === utterance.lesson.tag);
  }
}

export function likeliest(guess) {
  return Object.entries(guess.probabilities).reduce((best, next) => (next[1] > best[1] ? next : best))[0];
}

/** Speech: recorded here for the lamp's own transcriber, or else recognised by the browser. */

const RATE = 16000; // samples a second, what transcribers expect
const LONGEST = 30; // seconds

const Recognition = window.SpeechRecognition ?? window.webkitSpeechRecognition;

/** Choose the way: {note, start}; start(hear) listens and gives a function that stops. None: null. */
export function microphone(transcriber) {
  const recording = navigator.mediaDevices?.getUserMedia && window.MediaRecorder && window.OfflineAudioContext;
  if (transcriber && recording) {
    return { note: "Your voice is written down on this machine.", start: record };
  }
  if (Recognition) {
    return {
      note: "The microphone button uses your browser's speech recognition, which may send the sound to the browser's "
        + "maker. Typing stays on this machine.",
      start: recognise,
    };
  }
  return null;
}

async function recognise({ onText, onTrouble, onEnd }) {
  const recognition = new Recognition();
  recognition.lang = navigator.language;
  if ("processLocally" in recognition) {
    const languages = { langs: [recognition.lang], processLocally: true };
    recognition.processLocally = (await Recognition.available(languages)) === "available";
  }
  recognition.onresult = (event) => onText(event.results[0][0].transcript);
  recognition.onerror = (event) => onTrouble(`The browser did not understand the sound (${event.error}).`);
  recognition.onend = onEnd;
  recognition.start();
  return () => recognition.stop();
}

async function record({ onSound, onTrouble, onEnd }) {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const recorder = new MediaRecorder(stream);
  const parts = [];
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = async () => {
    for (const track of stream.getTracks()) track.stop();
    onEnd();
    try {
      const packed = await new Blob(parts).arrayBuffer();
      const sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(packed); // resamples
      onSound(wav(mono(sound)));
    } catch (error) {
      onTrouble(`The recording could not be read (${error.message}). Please try again.`);
    }
  };
  recorder.start();
  setTimeout(() => recorder.state === "recording" && recorder.stop(), 1000 * LONGEST);
  return () => recorder.state === "recording" && recorder.stop();
}

function mono(sound) {
  const samples = new Float32Array(sound.length);
  for (let channel = 0; channel < sound.numberOfChannels; channel++) {
    sound.getChannelData(channel).forEach((sample, i) => (samples[i] += sample / sound.numberOfChannels));
  }
  return samples.subarray(0, LONGEST * RATE);
}

/** A WAV file of 16-bit samples, as text in base64. */
export function wav(samples) {
  const bytes = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const letters = (at, text) => [...text].forEach((letter, i) => bytes.setUint8(at + i, letter.charCodeAt(0)));
  letters(0, "RIFF");
  bytes.setUint32(4, 36 + 2 * samples.length, true);
  letters(8, "WAVEfmt ");
  bytes.setUint32(16, 16, true); // the size of this part
  bytes.setUint16(20, 1, true); // PCM
  bytes.setUint16(22, 1, true); // channels
  bytes.setUint32(24, RATE, true);
  bytes.setUint32(28, 2 * RATE, true); // bytes a second
  bytes.setUint16(32, 2, true); // bytes a sample
  bytes.setUint16(34, 16, true); // bits a sample
  letters(36, "data");
  bytes.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, i) => bytes.setInt16(44 + 2 * i, 32767 * Math.max(-1, Math.min(1, sample)), true));
  let text = "";
  for (let at = 0; at < bytes.byteLength; at++) text += String.fromCharCode(bytes.getUint8(at));
  return btoa(text);
}

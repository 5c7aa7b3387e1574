/** The connection to the lamp's server. It comes back by itself, and what was not answered is sent again. */

export class Connection {
  constructor({ resume, onNews, onRefusal, onChange }) {
    Object.assign(this, { resume, onNews, onRefusal, onChange });
    this.unanswered = new Map(); // key -> message; the server takes each key once
    this.pause = 250;
    this.open();
  }

  open() {
    const { server, after } = this.resume();
    const address = new URL(`events?server=${server}&after=${after}`, location.href.replace(/^http/, "ws"));
    this.socket = new WebSocket(address);
    this.socket.onopen = () => {
      this.pause = 250;
      this.onChange(true);
      for (const message of this.unanswered.values()) this.socket.send(message);
    };
    this.socket.onmessage = ({ data }) => {
      const news = JSON.parse(data);
      if (!("answer" in news)) return this.onNews(news);
      const message = this.unanswered.get(news.answer);
      this.unanswered.delete(news.answer);
      if (news.refused) this.onRefusal(news.refused, message ? JSON.parse(message) : {});
    };
    this.socket.onclose = () => {
      this.onChange(false);
      setTimeout(() => this.open(), this.pause);
      this.pause = Math.min(2 * this.pause, 4000);
    };
  }

  send(message) {
    const key = Array.from(crypto.getRandomValues(new Uint32Array(3)), (part) => part.toString(36)).join("-");
    const text = JSON.stringify({ ...message, key });
    this.unanswered.set(key, text);
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(text);
  }
}

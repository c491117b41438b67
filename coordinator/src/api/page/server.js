// Asks the server, with a key where it wants one. The key lives in this tab's session and is sent nowhere else.

const KEY = "phalanx.key";

class NeedsKey extends Error {}

class Server {
  constructor() {
    this.key = sessionStorage.getItem(KEY) ?? "";
  }

  set(key) {
    this.key = key;
    sessionStorage.setItem(KEY, key);
  }

  // Everything is asked for relative to the page, so that a proxy may put it elsewhere.
  async send(path, options = {}) {
    const headers = { ...options.headers };
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    const response = await fetch(path, { ...options, headers, cache: "no-store", redirect: "error" });
    if (response.status === 401) throw new NeedsKey(await reason(response));
    if (!response.ok) throw new Error(await reason(response));
    return response;
  }

  async ask(path) {
    return (await this.send(path)).json();
  }
}

async function reason(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

// The events of a stream, one after the other: its data, and the name from which it can be gone on with.
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const field = (name) => {
        const lines = event.split("\n").filter((line) => line.startsWith(`${name}:`));
        return lines.map((line) => line.slice(name.length + 1).trimStart()).join("\n");
      };
      if (field("data")) yield { data: field("data"), id: field("id") };
    }
  }
}

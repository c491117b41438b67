// Talks to the model as any client does, and keeps which experts computed each piece of an answer.

// A stream that breaks is gone on with where its server names its events; so often, and after so many milliseconds more
// each time.
const RESUMES = 5;
const PAUSE_MS = 250;
// Layers that are told in words; the formation shows all.
const LAYERS_TOLD = 8;

class Chat {
  constructor(page, server, formation) {
    Object.assign(this, { page, server, formation });
    this.messages = [];
    this.stop = null;
    this.pinned = null;
    // The experts of each piece of an answer.
    this.visited = new WeakMap();
    page.ask.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.stop) this.stop.abort();
      else this.send(page.question.value.trim());
    });
    page.question.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.stop) page.ask.requestSubmit();
    });
    page.clear.addEventListener("click", () => this.clear());
    page.talk.addEventListener("keydown", (event) => this.step(event));
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.pin(null));
  }

  // Questions to begin with, where it is known that the model can answer them.
  suggest(questions) {
    const buttons = questions.map((question) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", className: "plain", textContent: question });
      button.addEventListener("click", () => this.send(question));
      return button;
    });
    this.page.tries.replaceChildren(...buttons);
  }

  clear() {
    this.stop?.abort();
    this.messages = [];
    this.pin(null);
    this.page.talk.replaceChildren(this.page.hint);
    this.page.clear.hidden = true;
  }

  async send(question) {
    if (!question || this.stop) return;
    this.page.hint.remove();
    this.page.question.value = "";
    this.page.clear.hidden = false;
    this.pin(null);
    this.say("mine").textContent = question;
    this.messages.push({ role: "user", content: question });
    const messages = this.messages;
    const paragraph = this.say("model");
    this.stop = new AbortController();
    this.page.send.textContent = "Stop";
    try {
      await this.answer(messages, paragraph);
    } catch (error) {
      if (error.name !== "AbortError") {
        this.say("said").textContent = error.message;
        if (error instanceof NeedsKey) this.page.needKey(error.message);
      }
    }
    this.stop = null;
    this.page.send.textContent = "Send";
    if (paragraph.textContent) {
      messages.push({ role: "assistant", content: paragraph.textContent });
    } else {
      // A question without an answer is no part of the conversation: two in a row are what many models cannot read.
      paragraph.remove();
      messages.pop();
    }
    if (!this.pinned) this.formation.light(null);
  }

  say(kind) {
    const paragraph = document.createElement("p");
    paragraph.className = kind;
    this.page.talk.append(paragraph);
    this.page.talk.scrollTop = this.page.talk.scrollHeight;
    return paragraph;
  }

  async answer(messages, paragraph) {
    const temperature = Number(this.page.temperature.value);
    const body = JSON.stringify({ messages, temperature, stream: true, phalanx: { return_experts: true } });
    const telling = { paragraph, layers: [], visited: [], last: "" };
    for (let resumes = 0; ; resumes += 1) {
      try {
        if (await this.stream(body, telling)) return;
        throw new TypeError("the stream ended before the answer did");
      } catch (error) {
        // What the server says is its answer; what the network does to it is not.
        if (!(error instanceof TypeError) || !telling.last || resumes === RESUMES) throw error;
        await new Promise((done) => setTimeout(done, PAUSE_MS << resumes));
      }
    }
  }

  // Tells what comes; true when the answer is complete.
  async stream(body, telling) {
    const headers = { "Content-Type": "application/json" };
    if (telling.last) headers["Last-Event-ID"] = telling.last;
    const response = await this.server.send("v1/chat/completions", {
      method: "POST", headers, body, signal: this.stop.signal,
    });
    for await (const { data, id } of eventsOf(response)) {
      if (data === "[DONE]") return true;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      telling.last = id || telling.last;
      telling.layers = chunk.phalanx?.expert_layers ?? telling.layers;
      telling.visited.push(...(chunk.phalanx?.experts ?? []));
      const text = chunk.choices[0]?.delta?.content ?? "";
      if (text) this.tell(text, telling);
    }
    return false;
  }

  // A piece of text, with the experts of all tokens that it took.
  tell(text, telling) {
    const piece = document.createElement("span");
    piece.textContent = text;
    const tokens = telling.visited.splice(0);
    const visited = telling.layers.map((layer, at) => [layer, [...new Set(tokens.flatMap((token) => token[at] ?? []))]]);
    if (tokens.length) {
      this.visited.set(piece, visited);
      piece.addEventListener("pointerenter", () => this.show(piece));
      piece.addEventListener("pointerleave", () => this.show(this.pinned));
      piece.addEventListener("click", () => this.pin(this.pinned === piece ? null : piece));
      if (!this.pinned) this.formation.light(visited);
    }
    const { talk } = this.page;
    const follows = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 40;
    telling.paragraph.append(piece);
    if (follows) talk.scrollTop = talk.scrollHeight;
  }

  // Shows in the formation, and in words, where a piece was; null shows nothing.
  show(piece) {
    const visited = (piece && this.visited.get(piece)) ?? null;
    this.formation.light(visited);
    if (!visited) return;
    const told = visited.slice(0, LAYERS_TOLD).map(([layer, experts]) => `layer ${layer}: ${experts.join(", ")}`);
    const more = visited.length > LAYERS_TOLD ? `; and ${visited.length - LAYERS_TOLD} layers more` : "";
    this.page.detail.textContent = `“${piece.textContent}” was computed by experts of ${told.join("; ")}${more}.`;
  }

  // Keeps a piece shown, until another is, or none.
  pin(piece) {
    this.pinned?.classList.remove("lit");
    this.pinned = piece;
    piece?.classList.add("lit");
    this.show(piece);
  }

  step(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const pieces = [...this.page.talk.querySelectorAll(".model span")];
    if (!by || pieces.length === 0) return;
    event.preventDefault();
    const at = this.pinned ? pieces.indexOf(this.pinned) + by : by > 0 ? 0 : pieces.length - 1;
    const piece = pieces[Math.min(Math.max(at, 0), pieces.length - 1)];
    this.pin(piece);
    piece.scrollIntoView({ block: "nearest" });
  }
}

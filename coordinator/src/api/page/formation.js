// The formation: experts by layer, and devices by node, each drawn on one canvas, so that thousands cost no more than a
// picture. What is seen there can also be read: the cell under the pointer or the cursor is told in words.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A canvas as wide as its place and so high, with a context in CSS pixels.
function prepared(canvas, height) {
  const scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return { context, width, height };
}

// Between colours in equal steps.
function ramp(names) {
  const stops = names.map((name) => [1, 3, 5].map((at) => parseInt(colour(name).slice(at, at + 2), 16)));
  return (part) => {
    const at = Math.min(Math.max(part, 0), 1) * (stops.length - 1);
    const from = Math.min(Math.floor(at), stops.length - 2);
    const mixed = stops[from].map((value, i) => Math.round(value + (stops[from + 1][i] - value) * (at - from)));
    return `rgb(${mixed.join(" ")})`;
  };
}

const nodeColour = (index) => `hsl(${(index * 137.5 + 170) % 360} 45% 52%)`;

// About so high may all devices be.
const DEVICES_HIGH = 200;

class Formation {
  constructor(page) {
    this.page = page;
    this.layers = [];
    this.nodes = [];
    this.actors = [];
    this.rows = [];
    this.busy = [];
    this.by = "load";
    this.lit = null;
    this.cursor = null;
    this.held = null;
    this.base = document.createElement("canvas");
    const { grid, devices } = page;
    grid.addEventListener("pointermove", (event) => this.point(this.cellAt(event)));
    grid.addEventListener("pointerleave", () => this.point(null));
    grid.addEventListener("keydown", (event) => this.step(event));
    grid.addEventListener("blur", () => this.point(null));
    devices.addEventListener("pointermove", (event) => this.pointDevice(event));
    devices.addEventListener("pointerleave", () => this.hold(null));
    new ResizeObserver(() => this.draw()).observe(grid.parentElement);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  // Takes who holds what.
  setCluster(cluster) {
    this.layers = cluster.layers.map(({ layer, experts, dense }) => ({
      layer, dense, cells: Array.from({ length: experts }, (_, expert) => ({ layer, expert, actors: [] })),
    }));
    const byLayer = new Map(this.layers.map((layer) => [layer.layer, layer]));
    this.nodes = cluster.nodes.map((node, index) => ({
      ...node, index, devices: node.devices.map((device, number) => ({ ...device, node, number, holds: [] })),
    }));
    this.byNode = new Map(this.nodes.map((node) => [node.node, node]));
    this.actors = cluster.loads.map((load, index) => ({ ...load, index }));
    for (const actor of this.actors) {
      byLayer.get(actor.layer)?.cells[actor.expert]?.actors.push(actor);
      this.byNode.get(actor.node)?.devices[actor.device]?.holds.push(actor);
    }
    this.draw();
  }

  // Takes rates, in the order of the actors that `setCluster` was told.
  setRates(rows, busy) {
    this.rows = rows;
    this.busy = busy;
    this.draw();
  }

  colourBy(what) {
    this.by = what;
    this.draw();
  }

  // Shows the experts of a token, `[layer, [experts by rank]]`; null shows none.
  light(visited) {
    this.lit = visited;
    this.overlay();
  }

  rowsOf(cell) {
    // Every shard of an expert has all its rows.
    const whole = cell.actors.filter((actor) => actor.shard === 0);
    return whole.reduce((sum, actor) => sum + (this.rows[actor.index] ?? 0), 0);
  }

  replicasOf(cell) {
    return cell.actors.filter((actor) => actor.shard === 0).length;
  }

  draw() {
    this.drawGrid();
    this.drawDevices();
    this.overlay();
  }

  measure() {
    const columns = Math.max(...this.layers.map((layer) => layer.cells.length), 1);
    const left = 30;
    const top = 16;
    const width = Math.max(this.page.grid.clientWidth - left, columns);
    const cell = Math.min(width / columns, 56);
    const high = Math.min(Math.max(cell, 5), 24);
    this.place = { columns, left, top, cell, high, height: top + Math.max(this.layers.length, 1) * high };
    return this.place;
  }

  box(row, column) {
    const { left, top, cell, high } = this.place;
    const gap = cell >= 6 ? 1 : 0;
    const x = Math.round(left + column * cell);
    const y = Math.round(top + row * high);
    const [right, below] = [Math.round(left + (column + 1) * cell), Math.round(top + (row + 1) * high)];
    return [x, y, Math.max(right - x - gap, 1), Math.max(below - y - (high >= 5 ? 1 : 0), 1)];
  }

  drawGrid() {
    const { columns, cell, high, height } = this.measure();
    const { context } = prepared(this.page.grid, height);
    context.font = "10px system-ui, sans-serif";
    context.fillStyle = colour("--quiet");
    context.textBaseline = "middle";
    const every = [1, 2, 4, 5, 8, 10, 16, 32, 64].find((step) => step * cell >= 20) ?? 64;
    context.textAlign = "left";
    for (let column = 0; column < columns; column += every) context.fillText(column, this.box(0, column)[0], 8);
    const lines = [1, 2, 5, 10].find((step) => step * high >= 11) ?? 10;
    context.textAlign = "right";
    this.layers.forEach((layer, row) => {
      if (row % lines === 0) context.fillText(layer.layer, 24, this.box(row, 0)[1] + high / 2);
    });
    const paint = this.painter();
    this.layers.forEach((layer, row) => {
      layer.cells.forEach((of, column) => {
        const [x, y, w, h] = this.box(row, column);
        context.fillStyle = paint(of);
        context.fillRect(x, y, w, h);
        if (of.actors.length === 0) this.cross(context, x, y, w, h);
        else if (w >= 12 && this.by !== "replicas" && this.replicasOf(of) > 1) this.dot(context, x, y, w);
      });
    });
    this.base.width = this.page.grid.width;
    this.base.height = this.page.grid.height;
    this.base.getContext("2d").drawImage(this.page.grid, 0, 0);
  }

  // Says with form, and not with colour alone, that nobody holds an expert.
  cross(context, x, y, w, h) {
    context.strokeStyle = colour("--bad");
    context.lineWidth = 1;
    context.strokeRect(x + 0.5, y + 0.5, w - 1, h - 1);
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + w, y + h);
    context.moveTo(x + w, y);
    context.lineTo(x, y + h);
    context.stroke();
  }

  dot(context, x, y, w) {
    context.fillStyle = colour("--text");
    context.beginPath();
    context.arc(x + w - 4, y + 4, 1.5, 0, 2 * Math.PI);
    context.fill();
  }

  // What an expert's colour is, and what the legend says of it.
  painter() {
    const cells = this.layers.flatMap((layer) => layer.cells);
    const empty = colour("--empty");
    if (this.by === "nodes") {
      const shown = this.nodes.slice(0, 6).map((node) => [nodeColour(node.index), node.name]);
      this.legend(shown, this.nodes.length > 6 ? `and ${this.nodes.length - 6} more` : "");
      return (cell) => (cell.actors.length ? nodeColour(this.byNode.get(cell.actors[0].node)?.index ?? 0) : empty);
    }
    // Next to nothing is not to look like much.
    const most = cells.reduce((most, cell) => Math.max(most, this.worth(cell)), 1);
    const part = ramp(["--cold", "--warm", "--hot"]);
    if (this.by === "replicas") {
      const shown = Array.from({ length: Math.min(most, 6) }, (_, i) => [part(i / Math.max(most - 1, 1)), i + 1]);
      this.legend(shown, "replicas");
      return (cell) => (cell.actors.length ? part((this.replicasOf(cell) - 1) / Math.max(most - 1, 1)) : empty);
    }
    this.legend([0, 0.25, 0.5, 0.75, 1].map((at) => [part(at), ""]), `0 to ${count(most)} rows/s`);
    // The root shows what is little beside what is much.
    return (cell) => (cell.actors.length ? part(Math.sqrt(this.worth(cell) / most)) : empty);
  }

  worth(cell) {
    return this.by === "replicas" ? this.replicasOf(cell) : this.rowsOf(cell);
  }

  legend(entries, words) {
    const parts = entries.flatMap(([colour, name]) => {
      const patch = document.createElement("i");
      patch.style.color = colour;
      return name === "" ? [patch] : [patch, `${name}`];
    });
    this.page.legend.replaceChildren(...parts, words);
  }

  // What lies over the grid: a token's experts, what a node holds, the cursor.
  overlay() {
    const context = this.page.grid.getContext("2d");
    const scale = window.devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.page.grid.width, this.page.grid.height);
    context.drawImage(this.base, 0, 0);
    context.scale(scale, scale);
    if (this.held) {
      context.strokeStyle = colour("--text");
      context.lineWidth = 1.5;
      const is = (cell) => cell.actors.some((actor) => this.held(actor));
      this.each(is, (box) => context.strokeRect(...inner(box, 0.75)));
    }
    if (this.lit) {
      const { left, top, columns, cell, height } = this.place;
      context.globalAlpha = 0.6;
      context.fillStyle = colour("--card");
      context.fillRect(left, top, columns * cell, height - top);
      context.fillStyle = colour("--lit");
      for (const [layer, experts] of this.lit) {
        const row = this.layers.findIndex((of) => of.layer === layer);
        if (row < 0) continue;
        experts.forEach((expert, rank) => {
          context.globalAlpha = 1 - (0.5 * rank) / Math.max(experts.length - 1, 1);
          const [x, y, w, h] = this.box(row, expert);
          context.fillRect(x, y, Math.max(w, 2), h);
        });
      }
      context.globalAlpha = 1;
    }
    if (this.cursor) {
      context.strokeStyle = colour("--text");
      context.lineWidth = 2;
      context.strokeRect(...inner(this.box(this.cursor.row, this.cursor.column), -1));
    }
  }

  each(is, then) {
    this.layers.forEach((layer, row) => layer.cells.forEach((cell, column) => is(cell) && then(this.box(row, column))));
  }

  cellAt(event) {
    const { left, top, cell, high } = this.place;
    const column = Math.floor((event.offsetX - left) / cell);
    const row = Math.floor((event.offsetY - top) / high);
    return this.layers[row]?.cells[column] ? { row, column } : null;
  }

  step(event) {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const step = steps[event.key];
    if (!step || this.layers.length === 0) return;
    event.preventDefault();
    const within = (value, most) => Math.min(Math.max(value, 0), most);
    const row = this.cursor ? within(this.cursor.row + step[0], this.layers.length - 1) : 0;
    const column = this.cursor ? within(this.cursor.column + step[1], this.layers[row].cells.length - 1) : 0;
    this.point({ row, column });
  }

  point(cursor) {
    this.cursor = cursor;
    if (cursor) this.page.detail.textContent = this.words(this.layers[cursor.row].cells[cursor.column]);
    this.overlay();
  }

  words(cell) {
    const name = `Layer ${cell.layer}, expert ${cell.expert}`;
    if (cell.actors.length === 0) return `${name}: no holder. Rows that need it wait.`;
    const seats = cell.actors.map((actor) => {
      const shard = actor.shard > 0 ? ` (shard ${actor.shard})` : "";
      return `${this.byNode.get(actor.node)?.name ?? actor.node}, device ${actor.device}${shard}`;
    });
    const shown = seats.slice(0, 6).join("; ") + (seats.length > 6 ? `; and ${seats.length - 6} more` : "");
    return `${name}: ${count(this.rowsOf(cell))} rows/s, ${several(this.replicasOf(cell), "replica")} on ${shown}.`;
  }

  // Marks the experts that are held so.
  hold(is) {
    this.held = is;
    this.overlay();
  }

  holdNode(number) {
    this.hold((actor) => actor.node === number);
  }

  drawDevices() {
    const canvas = this.page.devices;
    const named = this.nodes.length <= 24;
    const left = named ? 76 : 0;
    const width = Math.max(canvas.clientWidth, 100 + left);
    const devices = this.nodes.reduce((sum, node) => sum + node.devices.length, 0);
    // As large as all of them find room.
    const room = Math.sqrt(((width - left) * DEVICES_HIGH) / Math.max(devices, 1));
    const size = Math.min(Math.max(Math.floor(room) - 1, 3), 12);
    const gap = size > 4 ? 1 : 0;
    const between = size > 4 ? 6 : 2;
    this.boxes = [];
    const labels = [];
    let [x, y] = [left, 0];
    for (const node of this.nodes) {
      if (named) {
        [x, y] = [left, labels.length ? y + size + 6 : 0];
        labels.push([node, y]);
      } else if (x + node.devices.length * (size + gap) > width && x > 0) {
        [x, y] = [0, y + size + between];
      }
      for (const device of node.devices) {
        if (x + size > width) [x, y] = [left, y + size + gap];
        this.boxes.push({ x, y, size, node, device });
        x += size + gap;
      }
      x += between;
    }
    const { context } = prepared(canvas, y + size + 2);
    const part = ramp(["--cold", "--warm", "--hot"]);
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "top";
    context.fillStyle = colour("--quiet");
    for (const [node, top] of labels) context.fillText(node.name.slice(0, 12), 0, top);
    for (const { x, y, size, node, device } of this.boxes) {
      const busy = device.holds.reduce((sum, actor) => sum + (this.busy[actor.index] ?? 0), 0);
      if (device.memory_bytes === 0 || node.state === "gone") {
        this.cross(context, x, y, size, size);
      } else if (device.holds.length === 0) {
        context.strokeStyle = colour("--quiet");
        context.lineWidth = 1;
        context.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
      } else {
        context.fillStyle = part(Math.sqrt(busy));
        context.fillRect(x, y, size, size);
      }
    }
  }

  pointDevice(event) {
    const at = this.boxes?.find(({ x, y, size }) =>
      event.offsetX >= x && event.offsetX <= x + size && event.offsetY >= y && event.offsetY <= y + size);
    if (!at) return this.hold(null);
    const { node, device } = at;
    const held = device.holds.slice(0, 6).map((actor) => `layer ${actor.layer} expert ${actor.expert}`);
    const more = device.holds.length > 6 ? ` and ${device.holds.length - 6} more` : "";
    const holds = device.memory_bytes === 0 ? "it is lost" : held.length ? `holds ${held.join(", ")}${more}` : "spare";
    this.page.detail.textContent = `${node.name}, device ${device.number} (${device.kind ?? "?"}): ${holds}.`;
    this.hold((actor) => actor.node === node.node && actor.device === device.number);
  }
}

const inner = ([x, y, w, h], by) => [x + by, y + by, w - 2 * by, h - 2 * by];

// Looks at the cluster once a second while somebody looks at the page: at its pulse, and at all of it when something has
// happened.

const LOOK_MS = 1000;
const AWAY_MS_MAX = 8000;
// Seconds over which percentiles are taken.
const WINDOW = 15;
const NODES_MAX = 12;
const SOUND = ["joined", "serving"];

const get = (id) => document.getElementById(id);
const PARTS = ["grid", "detail", "legend", "devices", "talk", "hint", "tries", "ask", "question", "send", "clear", "temperature"];
const page = Object.fromEntries(PARTS.map((id) => [id, get(id)]));
const server = new Server();
const formation = new Formation(page);
const chat = new Chat(page, server, formation);
const charts = {
  tokens: new Chart(get("chart-tokens"), get("chart-tokens-now"), count),
  rows: new Chart(get("chart-rows"), get("chart-rows-now"), (value) => (value === null ? "–" : count(value))),
  time: new Chart(get("chart-time"), get("chart-time-now"), seconds),
};

let known = "";
let pulses = [];
let away = 0;

page.needKey = (why) => {
  get("key").hidden = false;
  get("key-said").textContent = server.key ? why : "";
};

get("key").addEventListener("submit", (event) => {
  event.preventDefault();
  server.set(get("key-text").value.trim());
  get("key-text").value = "";
  get("key").hidden = true;
  look();
});

for (const input of document.querySelectorAll("input[name=colour]")) {
  input.addEventListener("change", () => formation.colourBy(input.value));
}

function show(state, missing) {
  const pill = get("state");
  if (pill.textContent !== state) pill.textContent = state;
  pill.className = `state ${state === "away" ? "away" : state}`;
  pill.title = missing.join("\n");
}

let timer = 0;
let looking = false;

async function look() {
  clearTimeout(timer);
  if (looking) return;
  if (document.hidden) return;
  looking = true;
  try {
    const pulse = await server.ask("cluster/pulse");
    const happened = `${pulse.epoch.term}.${pulse.epoch.number}/${pulse.event}`;
    if (happened !== known) {
      takeCluster(await server.ask("cluster"));
      known = happened;
    }
    takePulse(pulse);
    away = 0;
  } catch (error) {
    if (error instanceof NeedsKey) {
      show("key needed", []);
      page.needKey(error.message);
      looking = false;
      return;
    }
    away += 1;
    // What is counted may begin anew.
    pulses = [];
    known = "";
    show("away", [error.message]);
  }
  looking = false;
  timer = setTimeout(look, Math.min(LOOK_MS << Math.min(away, 4), away ? AWAY_MS_MAX : LOOK_MS));
}

document.addEventListener("visibilitychange", look);

function takePulse(pulse) {
  show(pulse.state, pulse.missing);
  const now = performance.now() / 1000;
  pulses.push({ now, pulse });
  const before = pulses.at(-2);
  while (pulses.length > 1 && now - pulses[0].now > WINDOW) pulses.shift();
  formation.setRates(pulse.rows_per_s, pulse.busy);
  const { data, latency } = pulse;
  get("requests").textContent = `${data.running} / ${data.waiting}`;
  get("pages").textContent = `${count(data.kv_pages - data.kv_pages_free)} of ${count(data.kv_pages)}`;
  if (!before) return;
  const elapsed = Math.max(now - before.now, 0.1);
  const more = (name) => Math.max(data[name] - before.pulse.data[name], 0);
  const tokens = more("tokens") / elapsed;
  get("tokens").textContent = count(tokens);
  showLinks(pulse.links, before.pulse.links, elapsed);
  showTrips(pulse.round_trips);
  const oldest = pulses[0].pulse.latency;
  const percentiles = (of) => {
    const counts = latency[of].counts.map((counted, bucket) => counted - oldest[of].counts[bucket]);
    return [0.5, 0.99].map((part) => percentile(latency.bounds_s, counts, part));
  };
  const [first, next] = [percentiles("first"), percentiles("next")];
  get("first").textContent = first[0] === null ? "–" : first.map(seconds).join(" / ");
  get("next").textContent = next[0] === null ? "–" : next.map(seconds).join(" / ");
  charts.tokens.push(tokens);
  charts.rows.push(more("batches") > 0 ? more("rows") / more("batches") : null);
  charts.time.push(...next);
}

function takeCluster(cluster) {
  document.title = `${cluster.model} · Phalanx`;
  const shards = cluster.shards > 1 ? `, ${cluster.shards} shards` : "";
  get("model").textContent = `${cluster.model}, ${cluster.numeric_class}${shards}`;
  const { experts, epoch } = cluster;
  get("experts").textContent = `${count(experts.held)} of ${several(experts.total, "expert")} held, ` +
    `${several(experts.replicas, "replica")}, epoch ${epoch.term}.${epoch.number}`;
  const devices = cluster.nodes.reduce((sum, node) => sum + node.devices.length, 0);
  get("devices-count").textContent =
    `${several(devices, "device")} of ${several(cluster.nodes.length, "node")}, ${count(experts.spares)} spare`;
  formation.setCluster(cluster);
  showNodes(cluster.nodes);
  showEvents(cluster.events);
  if (cluster.model === "demo-model" && !page.tries.hasChildNodes()) {
    chat.suggest(["sort 4921=", "add 417+385=", "rev abcde=", "day Fri+3="]);
  }
}

// What went over links since then: how long a dispatch took, and bytes in a second.
function showLinks(links, before, elapsed) {
  const earlier = new Map(before.map((link) => [link.node, link]));
  for (const link of links) {
    const row = document.querySelector(`#nodes tr[data-node="${link.node}"]`);
    const was = earlier.get(link.node);
    // One that was opened anew counts from nothing.
    if (!row || !was || link.bytes < was.bytes) continue;
    const returned = link.returned - was.returned;
    const [took, traffic] = [row.cells[6], row.cells[7]];
    if (returned > 0) took.textContent = seconds((link.service_us - was.service_us) / returned / 1e6);
    traffic.textContent = `${bytes((link.bytes - was.bytes) / elapsed)}/s`;
  }
}

// How long a message takes to a node and back.
function showTrips(trips) {
  for (const { node, round_trip_us } of trips) {
    const row = document.querySelector(`#nodes tr[data-node="${node}"]`);
    if (row) row.cells[5].textContent = seconds(round_trip_us / 1e6);
  }
}

function cell(text, kind) {
  const td = document.createElement("td");
  td.textContent = text;
  td.className = kind ?? "";
  return td;
}

function showNodes(nodes) {
  // Those that need a look come first; the order is otherwise theirs.
  const sorted = nodes.toSorted((a, b) => SOUND.includes(a.state) - SOUND.includes(b.state));
  const rows = sorted.slice(0, NODES_MAX).map((node) => {
    const sum = (of) => node.devices.reduce((sum, device) => sum + device[of], 0);
    const row = document.createElement("tr");
    const state = SOUND.includes(node.state) ? "" : node.state === "gone" ? "bad" : "late";
    row.append(
      cell(node.name), cell(node.state, state), cell(node.devices.length, "n"), cell(sum("actors"), "n"),
      cell(`${bytes(sum("used_bytes"))} of ${bytes(sum("memory_bytes"))}`, "n"),
      cell("–", "n"), cell("–", "n"), cell("–", "n"),
    );
    row.dataset.node = node.node;
    row.addEventListener("pointerenter", () => formation.holdNode(node.node));
    row.addEventListener("pointerleave", () => formation.hold(null));
    return row;
  });
  if (nodes.length > NODES_MAX) {
    const row = document.createElement("tr");
    const rest = cell(`and ${nodes.length - NODES_MAX} nodes more`);
    rest.colSpan = 8;
    row.append(rest);
    rows.push(row);
  }
  get("nodes").replaceChildren(...rows);
}

function showEvents(events) {
  const bad = ["lost", "waiting", "device_lost", "actor_fell", "not_loaded", "superseded"];
  const items = events.map((event) => {
    const item = document.createElement("li");
    const time = document.createElement("time");
    const at = new Date(event.at * 1000);
    time.dateTime = at.toISOString();
    time.textContent = at.toLocaleTimeString("en-GB");
    time.title = at.toLocaleString("en-GB");
    const text = document.createElement("span");
    text.textContent = event.text;
    text.className = bad.includes(event.kind) ? "bad" : event.kind === "late" ? "late" : "";
    item.append(time, text);
    return item;
  });
  get("events").replaceChildren(...items);
}

look();

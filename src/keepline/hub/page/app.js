// The hub's page: signs in, follows the channels that the role may see, and says how old what it shows is.
// The token lives in this module's memory alone; nothing is kept when the page is closed.
import { AnalyticsWebSocket, StopError } from "./client.js";

const CHANNELS = ["exposure-updates", "lp-performance", "routing-metrics", "alerts"];
const HEARTBEAT = 5_000; // ms of silence after which the hub is asked whether it is there
const STALE_AFTER = 7_000; // ms without a word, although it was asked
const MOST_ROWS = 50;
const MOST_KEYS = 500;
const LOOK_EVERY = 500;

const $ = (id) => document.getElementById(id);
let token = "";
let client;
let looking;

// tables: rows by key, written only when painted

class Table {
  #rows = new Map();
  #changed = new Set();

  constructor(body, cells, { most, newestFirst }) {
    this.body = body;
    this.cells = cells;
    this.most = most;
    this.newestFirst = newestFirst;
    this.next = 0;
  }

  put(key, value) {
    const known = this.#rows.get(key);
    if (known) known.value = value;
    else this.#rows.set(key, { value, row: undefined });
    this.#changed.add(key);
    if (this.#rows.size > this.most) this.remove(this.#rows.keys().next().value);
  }

  add(value) {
    this.put((this.next += 1), value);
  }

  remove(key) {
    this.#rows.get(key)?.row?.remove();
    this.#rows.delete(key);
    this.#changed.delete(key);
  }

  clear() {
    this.#rows.clear();
    this.#changed.clear();
    this.body.replaceChildren();
  }

  paint() {
    for (const key of this.#changed) {
      const entry = this.#rows.get(key);
      if (!entry.row) {
        entry.row = document.createElement("tr");
        if (this.newestFirst) this.body.prepend(entry.row);
        else this.body.append(entry.row);
      }
      write(entry.row, this.cells(entry.value));
    }
    this.#changed.clear();
  }
}

// a cell of ours that has a colour; what publishers send is a text or a number, or is not shown
class Moody {
  constructor(text, mood) {
    this.text = text;
    this.mood = mood;
  }
}

// nothing that a publisher sends may throw here: one such cell would keep all others from being painted
function wordsOf(value) {
  if (typeof value === "number") return number(value);
  return typeof value === "string" || typeof value === "boolean" ? String(value) : "-";
}

function write(row, cells) {
  cells.forEach((cell, n) => {
    const td = row.children[n] ?? row.appendChild(document.createElement("td"));
    const { text, mood } = cell instanceof Moody ? cell : { text: cell, mood: "" };
    const words = wordsOf(text);
    if (td.textContent !== words) td.textContent = words;
    td.classList.toggle("number", typeof text === "number");
    if ((td.dataset.mood ?? "") !== mood) td.dataset.mood = mood;
  });
}

function number(value) {
  return value.toLocaleString("en", { maximumFractionDigits: 3 });
}

function percent(value) {
  return typeof value === "number" ? `${number(value)} %` : "-";
}

function time(stamp) {
  const at = new Date(stamp ?? "");
  if (Number.isNaN(at.getTime())) return "earlier";
  const today = at.toDateString() === new Date().toDateString();
  return today ? at.toLocaleTimeString("en-GB") : at.toLocaleString("en-GB");
}

const MOODS = {
  low: "good", medium: "warn", high: "bad", critical: "bad",
  connected: "good", degraded: "warn", disconnected: "bad",
  info: "", warning: "warn", error: "bad",
};
const moody = (word) => new Moody(word, typeof word === "string" && Object.hasOwn(MOODS, word) ? MOODS[word] : "");

const tables = {
  exposure: new Table(
    $("exposure"),
    ({ key, data }) => [key || "all", data.netExposure, data.totalExposure, data.exposureLimit, percent(data.utilizationPct), moody(data.riskLevel)],
    { most: MOST_KEYS, newestFirst: false },
  ),
  lps: new Table(
    $("lps"),
    ({ data }) => [data.lpName, moody(data.status), data.avgSpread, data.latencyMs, data.quotesPerSecond, data.rejectRate],
    { most: MOST_KEYS, newestFirst: false },
  ),
  routing: new Table(
    $("routing"),
    ({ data, at }) => [at, data.symbol, data.side, data.volume, new Moody(data.routingDecision, data.routingDecision === "REJECT" ? "bad" : ""), data.lpSelected, data.executionTimeMs, data.slippage],
    { most: MOST_ROWS, newestFirst: true },
  ),
  alerts: new Table(
    $("alerts"),
    ({ data, at }) => [at, moody(data.severity), data.title, data.message, data.source],
    { most: MOST_ROWS, newestFirst: true },
  ),
};
const KEYED = { "exposure-updates": tables.exposure, "lp-performance": tables.lps };

function follow() {
  client = new AnalyticsWebSocket(
    {
      url: new URL("ws/analytics", location.href),
      channels: CHANNELS,
      pace: "frame",
      rate: 30,
      limits: { heartbeat: HEARTBEAT },
      token: () => {
        if (token) return token;
        throw new StopError("sign in");
      },
    },
    {
      onSnapshot: (message) => {
        if (!message.data.partial) KEYED[message.channel]?.clear();
      },
      onExposureUpdate: (data, message) => tables.exposure.put(message.key ?? "", { key: message.key, data }),
      onLPPerformance: (data, message) => tables.lps.put(message.key ?? data.lpName, { data }),
      onRoutingMetrics: (data, message) => tables.routing.add({ data, at: time(message.timestamp) }),
      onAlert: (data, message, arrival) => {
        tables.alerts.add({ data, at: time(message.timestamp) });
        if (!arrival.snapshot && data.severity === "critical") say(`Critical alert: ${data.title}`);
      },
      onRemoved: (channel, key) => KEYED[channel]?.remove(key),
      onState: (change) => {
        if (change.state === "stopped") signOut(`The connection has ended: ${change.reason || "no access"}`);
        else look();
      },
    },
  );
  void client.connect();
}

// what the page says of its own state

function look() {
  if (!client) return;
  for (const table of Object.values(tables)) table.paint();
  const { state, silence, stats, channels } = client;
  const stale = state === "live" && silence !== undefined && silence > STALE_AFTER;
  badge(stale ? "stale" : state);
  $("desk").toggleAttribute("data-stale", state !== "live" || stale);
  for (const cell of document.querySelectorAll("[data-count]")) {
    const value = stats[cell.dataset.count];
    const words = value === undefined ? "-" : number(Math.round(value));
    if (cell.textContent !== words) cell.textContent = words;
  }
  for (const panel of document.querySelectorAll("[data-channel]")) {
    const words = ageOf(channels.get(panel.dataset.channel));
    const place = panel.querySelector(".age");
    if (place.textContent !== words) place.textContent = words;
  }
}

function ageOf(channel) {
  if (!channel) return "";
  if (channel.standing === "refused") return "not for this role";
  if (channel.age === undefined) return "no data yet";
  const seconds = Math.floor(channel.age / 1000);
  return seconds < 1 ? "data age under 1 s" : `data age ${seconds} s`;
}

// only a change is written: what stands in a live region is read aloud
function badge(state, words = state) {
  const link = $("link");
  if (link.dataset.state !== state) link.dataset.state = state;
  if (link.textContent !== words) link.textContent = words;
}

function say(words) {
  $("notice").textContent = words;
}

// signing in and out

async function signIn(event) {
  event.preventDefault();
  say("");
  const password = $("password");
  const body = JSON.stringify({ username: $("username").value, password: password.value });
  password.value = "";
  try {
    const answer = await fetch(new URL("login", location.href), {
      method: "POST",
      headers: { "content-type": "application/json" },
      body,
      cache: "no-store",
      credentials: "omit",
    });
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.message ?? `the hub answers ${answer.status}`);
    token = told.token;
  } catch (error) {
    say(`Sign-in failed: ${error.message}`);
    password.focus();
    return;
  }
  show(true);
  follow();
  looking = setInterval(look, LOOK_EVERY);
}

function signOut(words = "") {
  token = "";
  clearInterval(looking);
  const ended = client;
  client = undefined;
  ended?.close();
  for (const table of Object.values(tables)) table.clear();
  badge("closed", "signed out");
  show(false);
  say(words);
}

function show(signedIn) {
  $("sign-in").hidden = signedIn;
  $("desk").hidden = !signedIn;
  $("counters").hidden = !signedIn;
  $("leave").hidden = !signedIn;
  if (!signedIn) $("username").focus();
}

$("sign-in").addEventListener("submit", (event) => void signIn(event));
$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "light" ? "dark" : "light";
});
$("leave").addEventListener("click", () => signOut());

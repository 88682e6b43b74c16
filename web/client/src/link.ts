/**
 * When to connect, what to say, what to pass on: the client without sockets, clock or timers.
 *
 * Every input takes `now` in milliseconds of a clock that only goes forward, and leaves effects to be carried out, in
 * order, by `take()`; `deadline` says when to call `tick`. Invariants: events of an attempt that was given up change
 * nothing; one token is asked for at a time; whatever a hub says, nothing throws.
 */
import { wait, type Backoff } from "./backoff.js";
import { BAD_FRAME, NO_ANSWER, TOKEN_EXPIRED, comesBack } from "./closing.js";
import {
  isControl,
  isData,
  readFrame,
  type ControlMessage,
  type DataMessage,
  type ErrorMessage,
  type GapMessage,
  type HubMessage,
  type OtherMessage,
  type Policy,
  type Position,
  type Request,
  type SnapshotMessage,
} from "./messages.js";
import { newStats, type Stats } from "./stats.js";
import { Subscription } from "./subscription.js";

/**
 * `closed`: nobody asked for a connection, or it was closed. `connecting`: the first try is under way. `live`.
 * `reconnecting`: it was lost and will be tried again. `paused`: given up while the page is hidden. `stopped`: the hub or
 * the token's source said not to come back; only `connect` begins again.
 */
export type LinkState = "closed" | "connecting" | "live" | "reconnecting" | "paused" | "stopped";

export interface StateChange {
  readonly state: LinkState;
  readonly previous: LinkState;
  /** The close code behind it, where there is one. */
  readonly code?: number;
  readonly reason?: string;
  /** Milliseconds until the next try, while `reconnecting`. */
  readonly retryIn?: number;
}

/** Something that went wrong without ending the connection. */
export interface Trouble {
  /** `hub`: an `error` message; `frame`: what came is no message; `token`: the callback failed. */
  readonly kind: "hub" | "frame" | "token" | "handler";
  /** The hub's code, where there is one. */
  readonly code?: string;
  readonly message: string;
  readonly channel?: string;
  readonly cause?: unknown;
}

export type Effect =
  | { readonly do: "token"; readonly attempt: number; readonly why: "connect" | "refresh" }
  | { readonly do: "open"; readonly attempt: number; readonly token: string }
  | { readonly do: "send"; readonly request: Request }
  | { readonly do: "shut"; readonly code: number; readonly reason: string }
  | { readonly do: "state"; readonly change: StateChange }
  | { readonly do: "control"; readonly message: ControlMessage }
  | {
      readonly do: "data";
      readonly message: DataMessage | SnapshotMessage | OtherMessage;
      readonly policy: Policy | undefined;
      readonly items: readonly OtherMessage[];
    }
  | { readonly do: "trouble"; readonly trouble: Trouble };

export interface LinkSettings {
  readonly autoReconnect: boolean;
  readonly backoff: Backoff;
  /** A connection that lived so long (ms) makes earlier failures count no more. */
  readonly settledAfter: number;
  /** From opening to the hub's welcome, ms. */
  readonly connectTimeout: number;
  /** Silence after which a ping is sent, ms. */
  readonly heartbeat: number;
  /** From a ping to the end of patience, ms. */
  readonly pongTimeout: number;
  /** From a request to asking again, ms. */
  readonly answerTimeout: number;
  /** From hiding the page to giving up what need not be seen, ms. */
  readonly hiddenAfter: number;
  /** Characters of a frame; a longer one ends the connection unread. */
  readonly longestFrame: number;
  /** Ids that are remembered of each channel. */
  readonly rememberedIds: number;
  /** The token is a text and not a callback: when it has expired there is no other. */
  readonly fixedToken: boolean;
  /** Frames per second to ask for; null for the hub's own pace. */
  readonly rate: number | null;
  /** Do not dial while the machine says that it is offline. */
  readonly waitsForNetwork: boolean;
}

export const DEFAULTS: LinkSettings = {
  autoReconnect: true,
  backoff: { least: 500, most: 20_000 },
  settledAfter: 10_000,
  connectTimeout: 15_000,
  heartbeat: 20_000,
  pongTimeout: 10_000,
  answerTimeout: 10_000,
  hiddenAfter: 5_000,
  longestFrame: 16 * 1024 * 1024,
  rememberedIds: 4096,
  fixedToken: false,
  rate: null,
  waitsForNetwork: true,
};

type Phase = "idle" | "asking" | "opening" | "live" | "waiting" | "resting";

const TOKEN = /^[A-Za-z0-9_.~+-]+$/;
const CHANNELS_PER_REQUEST = 64;
const TRY_AGAIN: ReadonlySet<string> = new Set(["unavailable", "rate_limited", "bad_resume"]);
const REFRESH_TRIES = 6;

export class Link {
  readonly stats: Stats = newStats();
  readonly #settings: LinkSettings;
  readonly #chance: () => number;
  readonly #subscriptions = new Map<string, Subscription>();
  #effects: Effect[] = [];
  #state: LinkState = "closed";
  #phase: Phase = "idle";
  #attempt = 0;
  #failures = 0;
  #first = true;
  #requests = 0;
  #retryAt = 0;
  #openBy = 0;
  #liveSince = 0;
  #heardAt = 0;
  #pinged: { readonly id: string; readonly at: number; readonly by: number } | undefined;
  #answered: { readonly id: string; readonly at: number } | undefined;
  #spared = false;
  #hidden = false;
  #hideAt: number | undefined;
  #resting = false;
  #offline = false;
  #token = "";
  #refresh: { id: string | undefined; tries: number; at: number | undefined } | undefined;
  #rate: number | null;

  constructor(settings: Partial<LinkSettings> = {}, chance: () => number = Math.random) {
    this.#settings = { ...DEFAULTS, ...settings };
    this.#chance = chance;
    this.#rate = this.#settings.rate;
  }

  get state(): LinkState {
    return this.#state;
  }

  /** The connection attempt whose events count. */
  get attempt(): number {
    return this.#attempt;
  }

  /** When anything was last heard of the hub, by the clock of `now`; 0 before the first. */
  get heardAt(): number {
    return this.#heardAt;
  }

  get subscriptions(): ReadonlyMap<string, Subscription> {
    return this.#subscriptions;
  }

  /** What is to be done, in this order; the list is empty afterwards. */
  take(): Effect[] {
    const effects = this.#effects;
    this.#effects = [];
    return effects;
  }

  /** When to call `tick`; undefined while nothing is due. */
  get deadline(): number | undefined {
    const times = [this.#phase === "idle" ? undefined : this.#hideAt, ...this.#due()].filter((at) => at !== undefined);
    return times.length > 0 ? Math.min(...times) : undefined;
  }

  #due(): (number | undefined)[] {
    switch (this.#phase) {
      case "waiting":
        return [this.#held() ? undefined : this.#retryAt];
      case "opening":
        return [this.#openBy];
      case "live":
        return [
          this.#pinged?.by ?? this.#heardAt + this.#settings.heartbeat,
          this.#refresh?.at,
          ...this.#standing("asked").map((subscription) => subscription.askBy),
        ];
      default:
        return [];
    }
  }

  // what the application wants

  connect(): void {
    if (this.#phase !== "idle") return;
    this.#failures = 0;
    this.#first = true;
    if (this.#resting) this.#rest("the page is hidden");
    else this.#dial();
  }

  close(code = 1000, reason = ""): void {
    if (this.#phase === "opening" || this.#phase === "live") this.#shut(code, reason);
    this.#leave("idle");
    this.#become("closed", { code, reason });
  }

  subscribe(names: Iterable<string>, now: number): void {
    for (const name of new Set(names)) {
      const known = this.#subscriptions.get(name);
      if (known === undefined) this.#subscriptions.set(name, this.#newSubscription(name));
      else if (known.standing === "refused") known.standing = "wanted";
    }
    this.#ask(now);
  }

  unsubscribe(names: Iterable<string>): void {
    const given: string[] = [];
    for (const name of new Set(names)) {
      const known = this.#subscriptions.get(name);
      this.#subscriptions.delete(name);
      if (known?.standing === "on" || known?.standing === "asked") given.push(name);
    }
    this.#giveUp(given);
  }

  /** Ask for this many frames per second, null for the hub's own pace; kept over reconnects. */
  setRate(rate: number | null): void {
    this.#rate = rate;
    if (this.#phase === "live") this.#send({ action: "rate", rate, id: this.#newId("r") });
  }

  // what the surroundings say

  hidden(now: number): void {
    if (this.#hidden) return;
    this.#hidden = true;
    this.#hideAt = now + this.#settings.hiddenAfter;
  }

  visible(now: number): void {
    if (!this.#hidden) return;
    this.#hidden = false;
    this.#hideAt = undefined;
    if (this.#resting) {
      this.#resting = false;
      for (const subscription of this.#standing("resting")) subscription.standing = "wanted";
    }
    if (this.#phase === "resting") this.#dial();
    else if (this.#phase === "waiting") this.#dial();
    else if (this.#phase === "live") this.#ping(now);
    this.#ask(now);
  }

  offline(now: number): void {
    this.#offline = true;
    if (this.#phase === "live") this.#ping(now);
  }

  online(now: number): void {
    this.#offline = false;
    this.#hurry(now);
  }

  /** The machine slept: nothing that was known of the link holds. */
  woke(now: number): void {
    this.#hurry(now);
  }

  // what comes of effects

  gotToken(attempt: number, token: unknown, now: number): void {
    if (attempt !== this.#attempt) return;
    if (typeof token !== "string" || !TOKEN.test(token)) {
      this.tokenFailed(attempt, "the token is no text of letters, digits and -._~+", false, now);
    } else if (this.#phase === "asking") {
      this.#token = token;
      this.#phase = "opening";
      this.#openBy = now + this.#settings.connectTimeout;
      this.#do({ do: "open", attempt, token });
    } else if (this.#phase === "live" && this.#refresh !== undefined) {
      this.#renew(token, now);
    }
  }

  /** The token's source has none: `stop` when there is no use in asking again. */
  tokenFailed(attempt: number, reason: string, stop: boolean, now: number, cause?: unknown): void {
    if (attempt !== this.#attempt) return;
    if (this.#phase === "asking") {
      if (stop || this.#settings.fixedToken) this.#stop({ reason });
      else {
        this.#trouble({ kind: "token", message: reason, cause });
        this.#retry({ reason }, now);
      }
    } else if (this.#phase === "live" && this.#refresh !== undefined) {
      this.#trouble({ kind: "token", message: reason, cause });
      if (stop) this.#refresh = undefined;
      else this.#refreshLater(now);
    }
  }

  /** The socket cannot even be made. */
  impossible(attempt: number, reason: string): void {
    if (attempt === this.#attempt && this.#phase === "opening") this.#stop({ reason });
  }

  closed(attempt: number, code: number, reason: string, now: number): void {
    if (attempt !== this.#attempt || (this.#phase !== "opening" && this.#phase !== "live")) return;
    this.#lost(code, reason, now);
  }

  received(attempt: number, text: unknown, now: number): void {
    if (attempt !== this.#attempt || (this.#phase !== "opening" && this.#phase !== "live")) return;
    this.#heard(now);
    if (typeof text !== "string" || text.length > this.#settings.longestFrame) {
      this.#trouble({ kind: "frame", message: "the hub sent what is no text or too long" });
      this.#shut(BAD_FRAME, "frame not understood");
      this.#lost(BAD_FRAME, "frame not understood", now);
      return;
    }
    const frame = readFrame(text);
    this.stats.frames += 1;
    this.stats.messages += frame.messages.length;
    this.stats.malformed += frame.bad;
    if (frame.bad > 0) {
      this.#trouble({ kind: "frame", message: `${frame.bad} of a frame are no messages` });
    }
    for (const message of frame.messages) this.#message(message, now);
  }

  tick(now: number): void {
    if (this.#hideAt !== undefined && now >= this.#hideAt) {
      this.#hideAt = undefined;
      this.#hide();
    }
    if (this.#phase === "waiting" && now >= this.#retryAt && !this.#held()) this.#dial();
    else if (this.#phase === "opening" && now >= this.#openBy) {
      this.#shut(NO_ANSWER, "no welcome in time");
      this.#lost(NO_ANSWER, "no welcome in time", now);
    } else if (this.#phase === "live") this.#lookAfter(now);
  }

  // the life of a connection

  #dial(): void {
    this.#attempt += 1;
    this.#phase = "asking";
    this.#become(this.#first ? "connecting" : "reconnecting");
    this.#do({ do: "token", attempt: this.#attempt, why: "connect" });
  }

  #welcomed(now: number): void {
    if (this.#phase !== "opening") return;
    this.#phase = "live";
    this.#liveSince = now;
    this.stats.connections += 1;
    this.#become("live");
    if (this.#rate !== null) this.setRate(this.#rate);
    this.#ask(now);
  }

  #lost(code: number, reason: string, now: number): void {
    const settled = this.#phase === "live" && now - this.#liveSince >= this.#settings.settledAfter;
    if (settled) this.#failures = 0;
    if (!comesBack(code) || (this.#settings.fixedToken && code === TOKEN_EXPIRED)) {
      this.#stop({ code, reason });
    } else if (!this.#settings.autoReconnect) {
      this.#leave("idle");
      this.#become("closed", { code, reason });
    } else {
      this.#retry({ code, reason }, now);
    }
  }

  #retry(why: { code?: number; reason: string }, now: number): void {
    if (!this.#settings.autoReconnect) {
      this.#leave("idle");
      this.#become("closed", why);
      return;
    }
    this.#leave("waiting");
    this.#first = false;
    const retryIn = wait(this.#settings.backoff, this.#failures, this.#chance());
    this.#failures += 1;
    this.stats.retries += 1;
    this.#retryAt = now + retryIn;
    this.#become("reconnecting", { ...why, retryIn });
    if (this.#resting && this.#nothingToHear()) this.#rest(why.reason);
  }

  #stop(why: { code?: number; reason: string }): void {
    this.#leave("idle");
    this.#become("stopped", why);
  }

  #rest(reason: string): void {
    this.#leave("resting");
    this.#first = true;
    this.#become("paused", { reason });
  }

  #leave(phase: Phase): void {
    this.#attempt += 1; // whatever still comes of the old one is nobody's
    this.#phase = phase;
    this.#pinged = undefined;
    this.#spared = false;
    this.#refresh = undefined;
    for (const subscription of this.#subscriptions.values()) subscription.dropped();
  }

  #become(state: LinkState, why: Omit<StateChange, "state" | "previous"> = {}): void {
    const previous = this.#state;
    if (state === previous && why.retryIn === undefined) return;
    this.#state = state;
    this.#do({ do: "state", change: { state, previous, ...why } });
  }

  /** The network is back, for others too: a short wait by chance, and is the link still one? */
  #hurry(now: number): void {
    const soon = now + this.#chance() * this.#settings.backoff.least;
    if (this.#phase === "waiting") this.#retryAt = Math.min(this.#retryAt, soon);
    else if (this.#phase === "live") this.#ping(now);
  }

  #held(): boolean {
    return this.#offline && this.#settings.waitsForNetwork;
  }

  // looking after a live connection

  #lookAfter(now: number): void {
    const pinged = this.#pinged;
    if (pinged === undefined) {
      if (now >= this.#heardAt + this.#settings.heartbeat) this.#ping(now);
    } else if (now >= pinged.by) {
      // a timer that comes very late was asleep, and so was the answer: ask once more before giving up
      const asleep = now - pinged.by >= this.#settings.pongTimeout && !this.#spared;
      if (!asleep) {
        this.#shut(NO_ANSWER, "no answer to a ping");
        this.#lost(NO_ANSWER, "no answer to a ping", now);
        return;
      }
      this.#pinged = undefined;
      this.#ping(now);
      this.#spared = true;
    }
    const refresh = this.#refresh;
    if (refresh?.at !== undefined && now >= refresh.at) {
      refresh.at = undefined;
      this.#do({ do: "token", attempt: this.#attempt, why: "refresh" });
    }
    const late = this.#standing("asked").filter((subscription) => now >= subscription.askBy);
    for (const subscription of late) subscription.standing = "wanted";
    if (late.length > 0) this.#ask(now);
  }

  #ping(now: number): void {
    if (this.#pinged !== undefined) return;
    const id = this.#newId("p");
    this.#pinged = { id, at: now, by: now + this.#settings.pongTimeout };
    this.#send({ action: "ping", id });
  }

  #heard(now: number): void {
    this.#heardAt = now;
    this.#spared = false;
    if (this.#pinged !== undefined) this.#answered = this.#pinged;
    this.#pinged = undefined;
  }

  // the token in a live connection

  #expiring(): void {
    if (this.#settings.fixedToken || this.#refresh !== undefined) return;
    this.#refresh = { id: undefined, tries: 0, at: undefined };
    this.#do({ do: "token", attempt: this.#attempt, why: "refresh" });
  }

  #renew(token: string, now: number): void {
    const refresh = this.#refresh;
    if (refresh === undefined || refresh.id !== undefined) return;
    if (token === this.#token) {
      this.#refreshLater(now); // the source has no newer one yet
      return;
    }
    this.#token = token;
    refresh.id = this.#newId("t");
    refresh.at = undefined;
    this.#send({ action: "refresh", token, id: refresh.id });
  }

  #refreshLater(now: number): void {
    const refresh = this.#refresh;
    if (refresh === undefined) return;
    refresh.id = undefined;
    refresh.tries += 1;
    if (refresh.tries >= REFRESH_TRIES) this.#refresh = undefined;
    else refresh.at = now + wait(this.#settings.backoff, refresh.tries, this.#chance());
  }

  // messages

  #message(message: HubMessage | OtherMessage, now: number): void {
    if (this.#phase !== "opening" && this.#phase !== "live") return;
    if (isData(message)) this.#data(message, now);
    else if (isControl(message)) this.#control(message, now);
  }

  #data(message: DataMessage | SnapshotMessage | OtherMessage, now: number): void {
    const subscription = this.#subscriptions.get(message.channel);
    if (subscription === undefined || subscription.standing !== "on") {
      this.stats.late += 1;
      return;
    }
    const verdict = subscription.judge(message);
    subscription.heardAt = now;
    this.stats.conflated += verdict.conflated;
    if (verdict.hole !== undefined) this.#hole(message.channel, message.timestamp, verdict.hole);
    if (!verdict.fresh) {
      this.stats.duplicates += 1;
      return;
    }
    this.#do({ do: "data", message, policy: subscription.policy, items: verdict.items });
  }

  #hole(channel: string, timestamp: string, hole: { from: number; to: number }): void {
    const data = { ...hole, count: hole.to - hole.from + 1, reason: "unannounced" } as const;
    this.#gap({ type: "gap", channel, timestamp, data });
  }

  #gap(message: GapMessage): void {
    this.stats.gaps += 1;
    this.stats.missed += message.data.count ?? 0;
    this.#do({ do: "control", message });
  }

  #control(message: ControlMessage, now: number): void {
    switch (message.type) {
      case "welcome":
        this.#do({ do: "control", message });
        this.#welcomed(now);
        return;
      case "subscribed": {
        const subscription = this.#subscriptions.get(message.channel);
        if (subscription === undefined || !subscription.expects(message.data)) return;
        subscription.began(message.data);
        break;
      }
      case "unsubscribed": {
        if (message.data.id !== undefined) return; // the answer to what we asked
        const subscription = this.#subscriptions.get(message.channel);
        if (subscription?.standing === "on") subscription.standing = "refused";
        break;
      }
      case "gap":
        if (this.#subscriptions.get(message.channel)?.standing !== "on") return;
        this.#subscriptions.get(message.channel)?.announced(message.data);
        this.#gap(message);
        return;
      case "error":
        this.#error(message, now);
        return;
      case "expiring":
        this.#do({ do: "control", message });
        this.#expiring();
        return;
      case "refreshed":
        this.#refresh = undefined;
        break;
      case "pong":
        if (message.data.id !== undefined && this.#answered?.id === message.data.id) {
          this.stats.roundTrip = now - this.#answered.at;
          this.#answered = undefined;
        }
        break;
    }
    this.#do({ do: "control", message });
  }

  #error(message: ErrorMessage, now: number): void {
    const { code, message: words, id } = message.data;
    const { channel } = message;
    this.stats.errors += 1;
    this.#do({ do: "control", message });
    this.#trouble({
      kind: "hub",
      code,
      message: words,
      ...(channel === undefined ? {} : { channel }),
    });
    if (id === undefined) return;
    if (this.#refresh?.id === id) this.#refreshLater(now);
    const meant = this.#standing("asked").filter(
      (each) => each.asked === id && (channel === undefined || channel === each.name),
    );
    for (const subscription of meant) {
      subscription.asked = undefined;
      if (code === "bad_resume") subscription.forget();
      if (TRY_AGAIN.has(code)) {
        subscription.askBy = now + wait(this.#settings.backoff, 2, this.#chance());
      } else {
        subscription.standing = "refused";
      }
    }
  }

  // channels

  #newSubscription(name: string): Subscription {
    const subscription = new Subscription(name, this.#settings.rememberedIds);
    if (this.#resting) subscription.standing = "resting";
    return subscription;
  }

  #standing(standing: Subscription["standing"]): Subscription[] {
    return [...this.#subscriptions.values()].filter((each) => each.standing === standing);
  }

  #ask(now: number): void {
    if (this.#phase !== "live") return;
    const wanted = this.#standing("wanted");
    for (let start = 0; start < wanted.length; start += CHANNELS_PER_REQUEST) {
      this.#askFor(wanted.slice(start, start + CHANNELS_PER_REQUEST), now);
    }
  }

  #askFor(wanted: readonly Subscription[], now: number): void {
    const id = this.#newId("s");
    const resume: [string, Position][] = [];
    for (const subscription of wanted) {
      subscription.standing = "asked";
      subscription.asked = id;
      subscription.askBy = now + this.#settings.answerTimeout;
      const { name, resumable } = subscription;
      if (resumable !== undefined) resume.push([name, resumable]);
    }
    this.#send({
      action: "subscribe",
      channels: wanted.map((subscription) => subscription.name),
      ...(resume.length > 0 ? { resume: Object.fromEntries(resume) } : {}),
      id,
    });
  }

  #giveUp(names: readonly string[]): void {
    if (names.length > 0 && this.#phase === "live") {
      this.#send({ action: "unsubscribe", channels: names, id: this.#newId("u") });
    }
  }

  /** Nobody looks: keep only what must not be missed. */
  #hide(): void {
    this.#resting = true;
    const given: string[] = [];
    for (const subscription of this.#subscriptions.values()) {
      if (subscription.policy === "never" || subscription.standing === "refused") continue;
      if (subscription.standing === "on" || subscription.standing === "asked") {
        given.push(subscription.name);
      }
      subscription.standing = "resting";
      subscription.asked = undefined;
      subscription.beginAnew();
    }
    if (this.#phase === "idle") return;
    if (!this.#nothingToHear()) this.#giveUp(given);
    else {
      if (this.#phase === "opening" || this.#phase === "live") {
        this.#shut(1000, "the page is hidden");
      }
      this.#rest("the page is hidden");
    }
  }

  #nothingToHear(): boolean {
    return [...this.#subscriptions.values()].every(
      (each) => each.standing === "resting" || each.standing === "refused",
    );
  }

  // effects

  #newId(kind: string): string {
    this.#requests += 1;
    return `${kind}${this.#requests}`;
  }

  #send(request: Request): void {
    this.#do({ do: "send", request });
  }

  #shut(code: number, reason: string): void {
    this.#do({ do: "shut", code, reason });
  }

  #trouble(trouble: Trouble): void {
    this.#do({ do: "trouble", trouble });
  }

  #do(effect: Effect): void {
    this.#effects.push(effect);
  }
}

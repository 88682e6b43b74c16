/**
 * When to connect, what to say, what to pass on: the client without sockets, clock or timers.
 *
 * Every input takes `now` in milliseconds of a clock that only goes forward, and leaves effects to be carried out, in
 * order, by `take()`; `deadline` says when to call `tick`. Invariants: events of an attempt that was given up change
 * nothing; one token is asked for at a time; whatever a hub says, nothing throws.
 */
import { wait } from "./backoff.js";
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
  type Request,
  type SnapshotMessage,
} from "./messages.js";
import type { Effect, LinkState, StateChange, Trouble } from "./effects.js";
import { Heartbeat } from "./heartbeat.js";
import { Renewal } from "./renewal.js";
import { Roster } from "./roster.js";
import { DEFAULTS, type LinkSettings } from "./settings.js";
import { newStats, type Stats } from "./stats.js";
import type { Subscription } from "./subscription.js";

type Phase = "idle" | "asking" | "opening" | "live" | "waiting" | "resting";

const TOKEN = /^[A-Za-z0-9_.~+-]+$/;

export class Link {
  readonly stats: Stats = newStats();
  readonly #settings: LinkSettings;
  readonly #chance: () => number;
  readonly #roster: Roster;
  readonly #heartbeat: Heartbeat;
  readonly #renewal: Renewal;
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
  #hidden = false;
  #hideAt: number | undefined;
  #offline = false;
  #token = "";
  #rate: number | null;

  constructor(settings: Partial<LinkSettings> = {}, chance: () => number = Math.random) {
    this.#settings = { ...DEFAULTS, ...settings };
    this.#chance = chance;
    this.#roster = new Roster(this.#settings, chance);
    this.#heartbeat = new Heartbeat(this.#settings);
    this.#renewal = new Renewal(this.#settings.backoff, chance);
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
    return this.#heartbeat.heardAt;
  }

  get subscriptions(): ReadonlyMap<string, Subscription> {
    return this.#roster.subscriptions;
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
        return [this.#heartbeat.deadline, this.#renewal.deadline, this.#roster.deadline];
      default:
        return [];
    }
  }

  // what the application wants

  connect(): void {
    if (this.#phase !== "idle") return;
    this.#failures = 0;
    this.#first = true;
    if (this.#roster.resting && this.#roster.quiet) this.#rest("the page is hidden");
    else this.#dial();
  }

  close(code = 1000, reason = ""): void {
    if (this.#phase === "opening" || this.#phase === "live") this.#shut(code, reason);
    this.#leave("idle");
    this.#become("closed", { code, reason });
  }

  subscribe(names: Iterable<string>, now: number): void {
    this.#roster.add(names);
    this.#ask(now);
  }

  unsubscribe(names: Iterable<string>): void {
    this.#giveUp(this.#roster.remove(names));
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
    this.#roster.wake();
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
    } else if (this.#phase === "live" && this.#renewal.running) {
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
    } else if (this.#phase === "live" && this.#renewal.running) {
      this.#trouble({ kind: "token", message: reason, cause });
      if (stop) this.#renewal.end();
      else this.#renewal.later(now);
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
    this.#heartbeat.heard(now);
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
    if (this.#roster.resting && this.#roster.quiet) this.#rest(why.reason);
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
    this.#heartbeat.reset();
    this.#renewal.end();
    this.#roster.dropped();
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
    const verdict = this.#heartbeat.look(now);
    if (verdict === "dead") {
      this.#shut(NO_ANSWER, "no answer to a ping");
      this.#lost(NO_ANSWER, "no answer to a ping", now);
      return;
    }
    if (verdict === "ask") this.#ping(now);
    if (this.#renewal.due(now)) this.#wantNewerToken();
    this.#roster.overdue(now);
    this.#ask(now);
  }

  #ping(now: number): void {
    const id = this.#newId("p");
    if (this.#heartbeat.ask(id, now)) this.#send({ action: "ping", id });
  }

  #wantNewerToken(): void {
    this.#do({ do: "token", attempt: this.#attempt, why: "refresh" });
  }

  #renew(token: string, now: number): void {
    const id = this.#newId("t");
    if (token === this.#token) {
      this.#renewal.later(now); // the source has no newer one yet
    } else if (this.#renewal.send(id)) {
      this.#token = token;
      this.#send({ action: "refresh", token, id });
    }
  }

  // messages

  #message(message: HubMessage | OtherMessage, now: number): void {
    if (this.#phase !== "opening" && this.#phase !== "live") return;
    if (isData(message)) this.#data(message, now);
    else if (isControl(message)) this.#control(message, now);
  }

  #data(message: DataMessage | SnapshotMessage | OtherMessage, now: number): void {
    const subscription = this.subscriptions.get(message.channel);
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
        const subscription = this.subscriptions.get(message.channel);
        if (subscription === undefined || !subscription.expects(message.data)) return;
        subscription.began(message.data);
        break;
      }
      case "unsubscribed": {
        if (message.data.id !== undefined) return; // the answer to what we asked
        const subscription = this.subscriptions.get(message.channel);
        if (subscription?.standing === "on") subscription.standing = "refused";
        break;
      }
      case "gap":
        if (this.subscriptions.get(message.channel)?.standing !== "on") return;
        this.subscriptions.get(message.channel)?.announced(message.data);
        this.#gap(message);
        return;
      case "error":
        this.#error(message, now);
        return;
      case "expiring":
        this.#do({ do: "control", message });
        if (!this.#settings.fixedToken && this.#renewal.begin()) this.#wantNewerToken();
        return;
      case "refreshed":
        this.#renewal.end();
        break;
      case "pong":
        this.stats.roundTrip = this.#heartbeat.roundTrip(message.data.id, now) ?? this.stats.roundTrip;
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
    this.#renewal.refused(id, now);
    this.#roster.refused(message, now);
  }

  // channels

  #ask(now: number): void {
    if (this.#phase !== "live") return;
    for (const request of this.#roster.requests(() => this.#newId("s"), now)) this.#send(request);
  }

  #giveUp(names: readonly string[]): void {
    if (names.length > 0 && this.#phase === "live") {
      this.#send({ action: "unsubscribe", channels: names, id: this.#newId("u") });
    }
  }

  /** Nobody looks: keep only what must not be missed. */
  #hide(): void {
    const given = this.#roster.rest();
    if (this.#phase === "idle") return;
    if (!this.#roster.quiet) this.#giveUp(given);
    else {
      if (this.#phase === "opening" || this.#phase === "live") {
        this.#shut(1000, "the page is hidden");
      }
      this.#rest("the page is hidden");
    }
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

/**
 * The face of the client: sockets, timers and callbacks around a `Link`, which decides.
 *
 * Invariants: one socket and one timer at a time; a handler that throws harms nobody; no token in a log or an error.
 */
import { NO_ANSWER } from "./closing.js";
import type { Effect, LinkState, StateChange, Trouble } from "./effects.js";
import { Link } from "./link.js";
import { Mailbox } from "./mailbox.js";
import type { ControlMessage, DataMessage, OtherMessage, SnapshotMessage } from "./messages.js";
import {
  ConnectionEnded,
  readAddress,
  readChannels,
  readRate,
  readSettings,
  readSocket,
  type AnalyticsHandlers,
  type AnalyticsWebSocketOptions,
  type Socket,
  type SocketConstructor,
  type TokenReason,
} from "./options.js";
import type { Stats } from "./stats.js";
import { listen, ownSurroundings, type Surroundings } from "./surroundings.js";

type DataEffect = Extract<Effect, { do: "data" }>;
interface Waiter {
  readonly promise: Promise<void>;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

const SUBPROTOCOL = "keepline.v1";
const LONGEST_TIMER = 2 ** 31 - 1;
const SLEPT = 5_000;

/** What is known of a channel. */
export interface ChannelState {
  readonly standing: "wanted" | "asked" | "on" | "resting" | "refused";
  readonly policy: "conflate" | "drop-oldest" | "never" | undefined;
  readonly epoch: string | undefined;
  readonly offset: number | undefined;
  /** Milliseconds since its newest data came; undefined before the first. */
  readonly age: number | undefined;
}

/** Live analytics of a hub: connects, comes back, resumes, and calls the handlers. */
export class AnalyticsWebSocket {
  readonly #handlers: AnalyticsHandlers;
  readonly #link: Link;
  readonly #address: string;
  readonly #token: AnalyticsWebSocketOptions["token"];
  readonly #make: SocketConstructor;
  readonly #mailbox: Mailbox<DataEffect> | undefined;
  readonly #surroundings: Surroundings;
  readonly #log: ((line: string) => void) | undefined;
  #socket: Socket | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #armed = Infinity;
  #painting = false;
  #working = false;
  #waiter: Waiter | undefined;
  #unlisten: (() => void) | undefined;
  #drift = 0;

  constructor(options: AnalyticsWebSocketOptions, handlers: AnalyticsHandlers = {}) {
    const address = readAddress(options.url);
    this.#handlers = handlers;
    this.#address = address.href;
    this.#token = options.token;
    this.#make = readSocket(options.webSocket);
    this.#link = new Link(readSettings(options, address));
    this.#mailbox = options.pace === "frame" ? new Mailbox(options.mostWaiting ?? 1000) : undefined;
    const { window, document } = options.surroundings ?? ownSurroundings();
    this.#surroundings = { window, document: options.pauseWhenHidden === false ? undefined : document };
    this.#log = logger(options.debug);
    this.#link.subscribe(readChannels(options.channels ?? []), now());
  }

  get state(): LinkState {
    return this.#link.state;
  }

  /** What was counted since the client was made. */
  get stats(): Readonly<Stats> {
    return { ...this.#link.stats };
  }

  /** Milliseconds since anything was heard of the hub; undefined before the first. */
  get silence(): number | undefined {
    return age(this.#link.heardAt);
  }

  /** What is known of each channel. */
  get channels(): ReadonlyMap<string, ChannelState> {
    const known = [...this.#link.subscriptions.values()].map((each): [string, ChannelState] => [
      each.name,
      {
        standing: each.standing,
        policy: each.policy,
        epoch: each.position?.epoch,
        offset: each.position?.offset,
        age: age(each.heardAt),
      },
    ]);
    return new Map(known);
  }

  /**
   * Connect, and stay connected until `close`.
   *
   * @returns a promise of the first live connection, which need not be awaited; it fails with `ConnectionEnded` when
   *   the client is closed or stops before that.
   */
  connect(): Promise<void> {
    if (this.#link.state === "live") return Promise.resolve();
    const waiter = (this.#waiter ??= newWaiter());
    this.#unlisten ??= this.#listen();
    this.#feed(() => this.#link.connect());
    return waiter.promise;
  }

  /** Subscribe to channels now, and again on each connection. */
  subscribe(channels: Iterable<string>): void {
    const names = readChannels(channels);
    this.#feed((at) => this.#link.subscribe(names, at));
  }

  /** Give channels up; nothing of them comes after this. */
  unsubscribe(channels: Iterable<string>): void {
    const names = readChannels(channels);
    this.#feed(() => this.#link.unsubscribe(names));
    for (const name of names) this.#mailbox?.clear(name);
  }

  /** Ask for this many frames per second, null for the hub's own pace. */
  setRate(rate: number | null): void {
    readRate(rate);
    this.#feed(() => this.#link.setRate(rate));
  }

  /** Close for good; `connect` begins again. */
  close(code = 1000, reason = ""): void {
    this.#feed(() => this.#link.close(code, reason));
  }

  // between the link and the world

  #feed(input: (at: number) => void): void {
    input(now());
    this.#work();
  }

  #work(): void {
    if (this.#working) return; // a handler called us: the loop below goes on
    this.#working = true;
    try {
      for (let effects = this.#link.take(); effects.length > 0; effects = this.#link.take()) {
        for (const effect of effects) this.#carryOut(effect);
      }
    } finally {
      this.#working = false;
    }
    this.#arm();
  }

  #carryOut(effect: Effect): void {
    switch (effect.do) {
      case "token":
        void this.#fetchToken(effect.attempt, effect.why);
        break;
      case "open":
        this.#open(effect.attempt, effect.token);
        break;
      case "send":
        this.#log?.(`> ${effect.request.action}`);
        this.#socket?.send(JSON.stringify(effect.request));
        break;
      case "shut":
        this.#shut(effect.code, effect.reason);
        break;
      case "state":
        this.#changed(effect.change);
        break;
      case "control":
        this.#controlled(effect.message);
        break;
      case "data":
        this.#arrived(effect);
        break;
      case "trouble":
        this.#trouble(effect.trouble);
        break;
    }
  }

  #arm(): void {
    const deadline = this.#link.deadline ?? Infinity;
    if (deadline >= this.#armed && deadline !== Infinity) return; // it fires too early, and is set anew then
    clearTimeout(this.#timer);
    this.#armed = deadline;
    if (deadline === Infinity) return;
    const delay = Math.min(Math.max(0, Math.ceil(deadline - now())), LONGEST_TIMER);
    this.#timer = setTimeout(() => {
      this.#armed = Infinity;
      this.#feed((at) => {
        if (this.#slept()) this.#link.woke(at);
        this.#link.tick(at);
      });
    }, delay);
  }

  /** The wall clock went on and ours did not: the machine was asleep. */
  #slept(): boolean {
    const drift = Date.now() - now();
    const slept = drift - this.#drift > SLEPT;
    this.#drift = drift;
    return slept;
  }

  #listen(): () => void {
    this.#drift = Date.now() - now();
    return listen(this.#surroundings, {
      hidden: () => this.#feed((at) => this.#link.hidden(at)),
      visible: () => this.#feed((at) => this.#link.visible(at)),
      online: () => this.#feed((at) => this.#link.online(at)),
      offline: () => this.#feed((at) => this.#link.offline(at)),
    });
  }

  async #fetchToken(attempt: number, why: TokenReason): Promise<void> {
    try {
      const token = typeof this.#token === "function" ? await this.#token(why) : this.#token;
      this.#feed((at) => this.#link.gotToken(attempt, token, at));
    } catch (error) {
      const stop = (error as { kind?: unknown } | null)?.kind === "stop";
      const reason = `no token: ${error instanceof Error ? error.message : String(error)}`;
      this.#feed((at) => this.#link.tokenFailed(attempt, reason, stop, at, error));
    }
  }

  #open(attempt: number, token: string): void {
    let socket: Socket;
    try {
      socket = new this.#make(this.#address, [SUBPROTOCOL, `bearer.${token}`]);
    } catch (error) {
      // its words may quote the token: only the name is passed on
      const name = error instanceof Error ? error.name : "an error";
      this.#link.impossible(attempt, `the WebSocket could not be made: ${name}`);
      return;
    }
    this.#socket = socket;
    socket.addEventListener("message", (event: { data: unknown }) => {
      this.#feed((at) => this.#link.received(attempt, event.data, at));
    });
    socket.addEventListener("close", (event: { code: number; reason: string }) => {
      if (this.#socket === socket) this.#socket = undefined;
      this.#feed((at) => this.#link.closed(attempt, event.code, event.reason, at));
    });
    socket.addEventListener("error", () => undefined); // a close follows, and says more
  }

  #shut(code: number, reason: string): void {
    const socket = this.#socket as (Socket & { terminate?: () => void }) | undefined;
    this.#socket = undefined;
    if (code === NO_ANSWER && socket?.terminate) socket.terminate(); // nobody is there to say goodbye to
    else socket?.close(code, reason);
  }

  // to the handlers

  #changed(change: StateChange): void {
    const { state, previous, code, reason, retryIn } = change;
    const again = retryIn === undefined ? "" : `, again in ${Math.round(retryIn)} ms`;
    this.#log?.(`${previous} -> ${state}${code ? ` (${code})` : ""} ${reason ?? ""}${again}`);
    const ended = state === "closed" || state === "stopped";
    if (ended) {
      this.#unlisten?.();
      this.#unlisten = undefined;
      this.#flush();
    }
    this.#call(() => this.#handlers.onState?.(change));
    if (state === "live") this.#waiter?.resolve();
    else if (ended) this.#waiter?.reject(new ConnectionEnded(code, reason ?? ""));
    if (ended || state === "live") this.#waiter = undefined;
  }

  #controlled(message: ControlMessage): void {
    const handlers = this.#handlers;
    this.#call(() => handlers.onControl?.(message));
    if (message.type === "gap") this.#call(() => handlers.onGap?.(message));
    else if (message.type === "subscribed") this.#call(() => handlers.onSubscribed?.(message));
    else if (message.type === "unsubscribed") this.#call(() => handlers.onUnsubscribed?.(message));
  }

  #arrived(effect: DataEffect): void {
    const { message, policy } = effect;
    const mailbox = this.#mailbox;
    const partial = isSnapshot(message) && message.data.partial;
    if (mailbox === undefined || policy === "never") {
      this.#deliver(effect);
    } else if (partial) {
      this.#flush();
      this.#deliver(effect);
    } else {
      if (isSnapshot(message) && policy === "conflate") mailbox.clear(message.channel);
      mailbox.put(message.channel, policy === "conflate" ? placeOf(message) : undefined, effect);
      this.#paintSoon();
    }
  }

  #paintSoon(): void {
    if (this.#painting) return;
    this.#painting = true;
    const paint = (): void => {
      this.#painting = false;
      this.#flush();
    };
    if (typeof requestAnimationFrame === "function") requestAnimationFrame(paint);
    else setTimeout(paint, 16);
  }

  #flush(): void {
    if (this.#mailbox === undefined || this.#mailbox.size === 0) return;
    const { items, dropped } = this.#mailbox.take();
    for (const [channel, count] of dropped) {
      this.#link.stats.dropped += count;
      this.#call(() => this.#handlers.onDropped?.(channel, count));
    }
    for (const effect of items) this.#deliver(effect);
  }

  #deliver({ message, items }: DataEffect): void {
    this.#call(() => this.#handlers.onMessage?.(message));
    if (!isSnapshot(message)) {
      this.#dispatch(message, false);
      return;
    }
    this.#call(() => this.#handlers.onSnapshot?.(message));
    for (const item of items) this.#dispatch(item, true);
  }

  #dispatch(given: DataMessage | OtherMessage, snapshot: boolean): void {
    const handlers = this.#handlers;
    if (given.data === null || given.data === undefined) {
      this.#call(() => handlers.onRemoved?.(given.channel, given.key ?? "", given));
      return;
    }
    const message = given as DataMessage; // of another type if none of the cases below
    const arrival = { snapshot };
    this.#call(() => {
      switch (message.type) {
        case "routing-decision":
          return handlers.onRoutingMetrics?.(message.data, message, arrival);
        case "lp-metrics":
          return handlers.onLPPerformance?.(message.data, message, arrival);
        case "exposure-change":
          return handlers.onExposureUpdate?.(message.data, message, arrival);
        case "alert":
          return handlers.onAlert?.(message.data, message, arrival);
        default:
          return handlers.onOther?.(given.data, given, arrival);
      }
    });
  }

  #call(handler: () => unknown): void {
    const fail = (error: unknown): void => {
      const words = error instanceof Error ? error.message : String(error);
      this.#trouble({ kind: "handler", message: `a handler failed: ${words}`, cause: error });
    };
    try {
      const done = handler();
      if (done instanceof Promise) done.catch(fail);
    } catch (error) {
      fail(error);
    }
  }

  #trouble(trouble: Trouble): void {
    this.#log?.(`! ${trouble.kind}: ${trouble.message}`);
    try {
      this.#handlers.onError?.(trouble);
    } catch {
      this.#log?.("! onError itself failed");
    }
  }
}

function isSnapshot(
  message: DataMessage | SnapshotMessage | OtherMessage,
): message is SnapshotMessage {
  return message.type === "snapshot";
}

function placeOf(message: DataMessage | SnapshotMessage | OtherMessage): string {
  return isSnapshot(message) ? "snapshot" : `key ${message.key ?? ""}`;
}

function now(): number {
  return performance.now();
}

function age(at: number): number | undefined {
  return at === 0 ? undefined : now() - at;
}

function logger(debug: AnalyticsWebSocketOptions["debug"]): ((line: string) => void) | undefined {
  if (typeof debug === "function") return debug;
  return debug ? (line) => console.debug(`keepline: ${line}`) : undefined;
}

function newWaiter(): Waiter {
  let resolve = (): void => undefined;
  let reject = (_: Error): void => undefined;
  const promise = new Promise<void>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  promise.catch(() => undefined); // who does not await it is not punished for it
  return { promise, resolve, reject };
}

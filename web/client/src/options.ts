/** What a client is made with: its options, its handlers, and how both are read. */
import type { StateChange, Trouble } from "./effects.js";
import type {
  Alert,
  AlertMessage,
  ControlMessage,
  DataMessage,
  ExposureUpdate,
  ExposureUpdateMessage,
  GapMessage,
  LPPerformance,
  LPPerformanceMessage,
  OtherMessage,
  RoutingMetrics,
  RoutingMetricsMessage,
  SnapshotMessage,
  SubscribedMessage,
  UnsubscribedMessage,
} from "./messages.js";
import { DEFAULTS, type LinkSettings } from "./settings.js";
import type { Surroundings } from "./surroundings.js";

/** What this package needs of a WebSocket: a browser's, Node's own from version 22 on, or npm `ws`. */
export interface Socket {
  send(text: string): void;
  close(code?: number, reason?: string): void;
  addEventListener(type: "message" | "close" | "error", listener: (event: any) => void): void;
}

export type SocketConstructor = new (url: string, protocols: string[]) => Socket;

/** Why a token is asked for: a new connection, or the renewal of one that is live. */
export type TokenReason = "connect" | "refresh";

/** A token, or where to get one: asked anew for each connection and before each expiry. */
export type TokenSource = string | ((reason: TokenReason) => string | Promise<string>);

/** Thrown by a token callback when there is no use in asking again: the client stops. */
export class StopError extends Error {
  readonly kind = "stop";
  override readonly name = "StopError";
}

/** A connection that was asked for and did not come about, or ended before it did. */
export class ConnectionEnded extends Error {
  override readonly name = "ConnectionEnded";

  constructor(
    readonly code: number | undefined,
    readonly reason: string,
  ) {
    super(reason === "" ? "the connection has ended" : reason);
  }
}

export interface AnalyticsWebSocketOptions {
  /** The hub: `https://host:7999`, or the whole address of its WebSocket. In a page it may be relative. */
  readonly url: string | URL;
  readonly token: TokenSource;
  /** Channels to subscribe to from the beginning. */
  readonly channels?: Iterable<string>;
  /** Come back after a loss; true by default. */
  readonly autoReconnect?: boolean;
  /** Say what happens, on the console or to a function; never a token. */
  readonly debug?: boolean | ((line: string) => void);
  /** The WebSocket to use; the global one by default. Node 20 has none: give npm `ws`. */
  readonly webSocket?: SocketConstructor;
  /** Give up channels that may be dropped while the page is hidden; true by default. */
  readonly pauseWhenHidden?: boolean;
  /** `frame`: hand messages out once per painting, the newest of each key; alerts always come at once. */
  readonly pace?: "immediate" | "frame";
  /** Messages of a channel that may wait for a painting; 1000 by default. */
  readonly mostWaiting?: number;
  /** Frames per second to ask the hub for; null, the default, for the hub's own pace. */
  readonly rate?: number | null;
  /** Times in milliseconds, and bounds; see `LinkSettings`. */
  readonly limits?: Partial<Omit<LinkSettings, "autoReconnect" | "fixedToken" | "rate">>;
  /** Where to hear of hiding and of the network; the browser's own by default. */
  readonly surroundings?: Surroundings;
}

/** How a message came: as an item of a snapshot, or by itself. */
export interface Arrival {
  readonly snapshot: boolean;
}

type Handler<Message> = (message: Message) => unknown;
type DataHandler<Data, Message> = (data: Data, message: Message, arrival: Arrival) => unknown;

/** What to call; each may be left out. What one throws is told to `onError` and harms no other. */
export interface AnalyticsHandlers {
  readonly onRoutingMetrics?: DataHandler<RoutingMetrics, RoutingMetricsMessage>;
  readonly onLPPerformance?: DataHandler<LPPerformance, LPPerformanceMessage>;
  readonly onExposureUpdate?: DataHandler<ExposureUpdate, ExposureUpdateMessage>;
  readonly onAlert?: DataHandler<Alert, AlertMessage>;
  /** Messages of other types, the `system` channel's among them. */
  readonly onOther?: DataHandler<unknown, OtherMessage>;
  /** A key is no more. */
  readonly onRemoved?: (channel: string, key: string, message: OtherMessage) => unknown;
  /**
   * Before its items come to the handlers above. On a channel that conflates, one that is not partial replaces what was
   * known; on any other its items are the newest messages, of which the handlers get those that they did not get before.
   */
  readonly onSnapshot?: Handler<SnapshotMessage>;
  /** Every data message as it came, before the handlers above. */
  readonly onMessage?: Handler<DataMessage | SnapshotMessage | OtherMessage>;
  readonly onSubscribed?: Handler<SubscribedMessage>;
  /** The hub has ended a subscription. */
  readonly onUnsubscribed?: Handler<UnsubscribedMessage>;
  /** Messages are missing. */
  readonly onGap?: Handler<GapMessage>;
  /** Messages that waited for a painting gave way to newer ones. */
  readonly onDropped?: (channel: string, count: number) => unknown;
  /** Every message that has no place in a channel. */
  readonly onControl?: Handler<ControlMessage>;
  readonly onState?: (change: StateChange) => unknown;
  readonly onError?: (trouble: Trouble) => unknown;
}

const PATH = "/ws/analytics";
const LOOPBACK = /^(localhost|127(\.\d+){3}|\[::1\])$/;

/** The WebSocket's address, without anything that could end up in a log. */
export function readAddress(url: string | URL): URL {
  const base = (globalThis as { location?: { href: string } }).location?.href;
  let address: URL;
  try {
    address = new URL(url, base);
  } catch {
    throw new TypeError("url is no address; give one like https://host:7999");
  }
  const scheme = { "http:": "ws:", "https:": "wss:", "ws:": "ws:", "wss:": "wss:" }[address.protocol];
  if (scheme === undefined) throw new TypeError("url begins with http, https, ws or wss");
  if (address.username !== "" || address.password !== "") {
    throw new TypeError("url holds a user or a password; give a token instead");
  }
  if (address.searchParams.has("token")) {
    throw new TypeError("url holds a token, which would stand in logs; give it as token");
  }
  address = new URL(scheme + address.href.slice(address.protocol.length));
  address.hash = "";
  if (address.pathname === "/") address.pathname = PATH;
  return address;
}

/** The names of channels. */
export function readChannels(channels: Iterable<string>): string[] {
  const names = typeof channels === "string" ? [channels] : [...channels];
  for (const name of names) {
    if (typeof name !== "string" || name === "" || name.length > 255) {
      throw new TypeError("a channel is named by a text of 1 to 255 characters");
    }
  }
  return names;
}

/** The WebSocket to use. */
export function readSocket(given: SocketConstructor | undefined): SocketConstructor {
  const socket = given ?? (globalThis as { WebSocket?: SocketConstructor }).WebSocket;
  if (socket === undefined) {
    throw new TypeError("there is no WebSocket here; give one as webSocket, such as npm ws has");
  }
  return socket;
}

/** The settings of the link behind the options. */
export function readSettings(options: AnalyticsWebSocketOptions, address: URL): LinkSettings {
  const { token } = options;
  if (typeof token !== "function" && (typeof token !== "string" || token === "")) {
    throw new TypeError("token is a text, or a function that gives one");
  }
  readRate(options.rate ?? null);
  return {
    ...DEFAULTS,
    waitsForNetwork: !LOOPBACK.test(address.hostname),
    ...options.limits,
    autoReconnect: options.autoReconnect ?? true,
    fixedToken: typeof token === "string",
    rate: options.rate ?? null,
  };
}

/** A rate that the hub understands. */
export function readRate(rate: number | null): number | null {
  if (rate !== null && !(rate >= 0.1 && rate <= 1000)) {
    throw new RangeError("rate is a number of frames per second from 0.1 to 1000, or null");
  }
  return rate;
}

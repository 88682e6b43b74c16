/**
 * What crosses the wire, in types: data messages, control messages, requests.
 *
 * A data message has a channel, an offset and an epoch; a control message has no offset.
 */

/** The last message of a channel that was seen: where to resume. */
export interface Position {
  readonly epoch: string;
  readonly offset: number;
}

/** What a channel does when a reader is slow. */
export type Policy = "conflate" | "drop-oldest" | "never";

/** How a decision was routed. */
export type Routing = "ABOOK" | "BBOOK" | "HYBRID" | "PARTIAL_HEDGE" | "REJECT";

export interface RoutingMetrics {
  readonly symbol: string;
  readonly side: string;
  readonly volume: number;
  readonly routingDecision: Routing;
  readonly lpSelected: string | null;
  /** Milliseconds. */
  readonly executionTimeMs: number;
  readonly spread: number;
  readonly slippage: number;
}

export interface LPPerformance {
  readonly lpName: string;
  readonly status: "connected" | "degraded" | "disconnected";
  readonly avgSpread: number;
  readonly executionQuality: number;
  /** Milliseconds. */
  readonly latencyMs: number;
  readonly quotesPerSecond: number;
  readonly rejectRate: number;
  readonly uptime: number;
}

export interface ExposureUpdate {
  readonly totalExposure: number;
  readonly netExposure: number;
  readonly exposureLimit: number;
  readonly utilizationPct: number;
  readonly riskLevel: "low" | "medium" | "high" | "critical";
  readonly bySymbol: Readonly<Record<string, number>>;
  readonly byLP: Readonly<Record<string, number>>;
}

export interface Alert {
  readonly severity: "info" | "warning" | "error" | "critical";
  readonly category: string;
  readonly title: string;
  readonly message: string;
  readonly source: string;
  readonly actionItems: readonly string[];
}

interface Envelope<Type extends string, Data> {
  readonly type: Type;
  readonly channel: string;
  readonly offset: number;
  readonly epoch: string;
  /** ISO 8601 in UTC with milliseconds; "" for an item of a snapshot that does not say it. */
  readonly timestamp: string;
  /** What the message is about: on a channel that conflates, the newest of each key counts. */
  readonly key?: string;
  /** The publisher's own: two messages of one id are one. */
  readonly id?: string;
  readonly data: Data;
}

export type RoutingMetricsMessage = Envelope<"routing-decision", RoutingMetrics>;
export type LPPerformanceMessage = Envelope<"lp-metrics", LPPerformance>;
export type ExposureUpdateMessage = Envelope<"exposure-change", ExposureUpdate>;
export type AlertMessage = Envelope<"alert", Alert>;

/** A data message of a type that this package has no name for, or one whose data is null: its key is gone. */
export type OtherMessage = Envelope<string, unknown>;

export interface SnapshotItem {
  readonly type: string;
  readonly key: string;
  readonly offset: number;
  readonly data: unknown;
  /** When it was published, which may be long before the snapshot. */
  readonly timestamp?: string;
  /** The publisher's own, where it gave one. */
  readonly id?: string;
}

/** Many values at once. `partial`: only the keys that changed; otherwise the whole state, which replaces what was. */
export type SnapshotMessage = Envelope<
  "snapshot",
  { readonly items: readonly SnapshotItem[]; readonly partial: boolean }
>;

/** The data messages whose shape is known; tell them apart by `type`. */
export type DataMessage =
  | RoutingMetricsMessage
  | LPPerformanceMessage
  | ExposureUpdateMessage
  | AlertMessage;

interface Control<Type extends string, Data> {
  readonly type: Type;
  readonly timestamp: string;
  readonly data: Data;
}
type Id = string | number;

export type WelcomeMessage = Control<"welcome", Readonly<Record<string, unknown>>>;
export type SubscribedMessage = Control<
  "subscribed",
  {
    readonly policy: Policy;
    readonly epoch: string;
    readonly offset: number;
    readonly recovered: boolean;
    readonly id?: Id;
  }
> & { readonly channel: string };
export type UnsubscribedMessage = Control<"unsubscribed", { readonly id?: Id }> & {
  readonly channel: string;
};
/** Messages that this client does not get. `from` and `to` are null when the count began anew. */
export type GapMessage = Control<
  "gap",
  {
    readonly from: number | null;
    readonly to: number | null;
    readonly count: number | null;
    readonly reason: "slow" | "retention" | "epoch" | "future" | "unannounced";
  }
> & { readonly channel: string };
export type ErrorMessage = Control<
  "error",
  { readonly code: string; readonly message: string; readonly id?: Id }
> & { readonly channel?: string };
export type ExpiringMessage = Control<"expiring", Readonly<Record<string, unknown>>>;
export type RefreshedMessage = Control<"refreshed", Readonly<Record<string, unknown>>>;
export type PongMessage = Control<"pong", { readonly id?: Id }>;

export type ControlMessage =
  | WelcomeMessage
  | SubscribedMessage
  | UnsubscribedMessage
  | GapMessage
  | ErrorMessage
  | ExpiringMessage
  | RefreshedMessage
  | PongMessage;

/** Everything that a hub says; tell it apart by `type`. */
export type HubMessage = DataMessage | SnapshotMessage | ControlMessage;

export type Request =
  | {
      readonly action: "subscribe";
      readonly channels: readonly string[];
      readonly resume?: Readonly<Record<string, Position>>;
      readonly id: Id;
    }
  | { readonly action: "unsubscribe"; readonly channels: readonly string[]; readonly id: Id }
  | { readonly action: "refresh"; readonly token: string; readonly id: Id }
  | { readonly action: "rate"; readonly rate: number | null; readonly id: Id }
  | { readonly action: "ping"; readonly id: Id };

/** A frame, read; what has not the shape of a message is counted in `bad`. */
export interface Frame {
  readonly messages: readonly (HubMessage | OtherMessage)[];
  readonly bad: number;
}

const CONTROL: ReadonlySet<string> = new Set<ControlMessage["type"]>([
  "welcome",
  "subscribed",
  "unsubscribed",
  "gap",
  "error",
  "expiring",
  "refreshed",
  "pong",
]);
const ABOUT_A_CHANNEL: ReadonlySet<string> = new Set(["subscribed", "unsubscribed", "gap"]);

/** The messages of a frame; nothing that comes over the wire throws. */
export function readFrame(text: string): Frame {
  let whole: unknown;
  try {
    whole = JSON.parse(text);
  } catch {
    return { messages: [], bad: 1 };
  }
  if (!Array.isArray(whole)) return { messages: [], bad: 1 };
  const messages = whole.filter(isMessage);
  return { messages, bad: whole.length - messages.length };
}

/** Whether it has a place in a channel. */
export function isData(
  message: HubMessage | OtherMessage,
): message is DataMessage | SnapshotMessage | OtherMessage {
  return "offset" in message;
}

/** Whether it is about the connection or a subscription. */
export function isControl(message: HubMessage | OtherMessage): message is ControlMessage {
  return !isData(message) && CONTROL.has(message.type);
}

function isMessage(value: unknown): value is HubMessage | OtherMessage {
  if (!isRecord(value) || typeof value["type"] !== "string") return false;
  if (!("offset" in value)) return isControlShape(value);
  return (
    typeof value["channel"] === "string" &&
    typeof value["epoch"] === "string" &&
    isOffset(value["offset"]) &&
    isTextOrAbsent(value["id"]) &&
    isTextOrAbsent(value["key"]) &&
    (value["type"] !== "snapshot" || isSnapshotData(value["data"]))
  );
}

function isControlShape(value: Record<string, unknown>): boolean {
  const type = String(value["type"]);
  if (!isRecord(value["data"])) return false;
  return typeof value["channel"] === "string" || !ABOUT_A_CHANNEL.has(type);
}

function isSnapshotData(data: unknown): boolean {
  return isRecord(data) && Array.isArray(data["items"]) && data["items"].every(isItem);
}

function isItem(item: unknown): boolean {
  return (
    isRecord(item) &&
    typeof item["type"] === "string" &&
    typeof item["key"] === "string" &&
    isOffset(item["offset"]) &&
    isTextOrAbsent(item["id"]) &&
    isTextOrAbsent(item["timestamp"])
  );
}

function isTextOrAbsent(value: unknown): boolean {
  return value === undefined || typeof value === "string";
}

function isOffset(value: unknown): boolean {
  return Number.isSafeInteger(value) && Number(value) >= 0;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Live desk analytics from a Keepline hub, for browsers and Node. */
export { AnalyticsWebSocket, type ChannelState } from "./client.js";
export { comesBack } from "./closing.js";
export {
  ConnectionEnded,
  StopError,
  type AnalyticsHandlers,
  type AnalyticsWebSocketOptions,
  type Arrival,
  type Socket,
  type SocketConstructor,
  type TokenReason,
  type TokenSource,
} from "./options.js";
export type { LinkState, StateChange, Trouble } from "./effects.js";
export type { LinkSettings } from "./settings.js";
export type { Stats } from "./stats.js";
export type { Surroundings } from "./surroundings.js";
export type * from "./messages.js";

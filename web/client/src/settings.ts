/** The times and bounds of a link. */
import type { HeartbeatSettings } from "./heartbeat.js";
import type { RosterSettings } from "./roster.js";

export interface LinkSettings extends HeartbeatSettings, RosterSettings {
  readonly autoReconnect: boolean;
  /** A connection that lived so long (ms) makes earlier failures count no more. */
  readonly settledAfter: number;
  /** From opening to the hub's welcome, ms. */
  readonly connectTimeout: number;
  /** From hiding the page to giving up what need not be seen, ms. */
  readonly hiddenAfter: number;
  /** Characters of a frame; a longer one ends the connection unread. */
  readonly longestFrame: number;
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

/** What a link wants done, and what it tells of itself. */
import type {
  ControlMessage,
  DataMessage,
  OtherMessage,
  Policy,
  Request,
  SnapshotMessage,
} from "./messages.js";

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

/** What a client counts; nothing is ever counted down, and it lives as long as the client. */
export interface Stats {
  /** Connections that the hub welcomed. */
  connections: number;
  /** Tries that were planned after a loss. */
  retries: number;
  frames: number;
  messages: number;
  /** Messages whose newer one came instead of them: normal on a channel that conflates. */
  conflated: number;
  /** Breaks in a channel that were told, or found. */
  gaps: number;
  /** Messages in those breaks, as far as their number is known. */
  missed: number;
  /** Messages that were there already. */
  duplicates: number;
  /** Messages of a subscription that had ended. */
  late: number;
  /** Messages that waited for a painting and were dropped for newer ones. */
  dropped: number;
  /** What came and was no message. */
  malformed: number;
  /** `error` messages of the hub. */
  errors: number;
  /** The last ping's way there and back, ms; undefined before the first. */
  roundTrip: number | undefined;
}

export function newStats(): Stats {
  return {
    connections: 0,
    retries: 0,
    frames: 0,
    messages: 0,
    conflated: 0,
    gaps: 0,
    missed: 0,
    duplicates: 0,
    late: 0,
    dropped: 0,
    malformed: 0,
    errors: 0,
    roundTrip: undefined,
  };
}

/** How long to wait before the next try: full jitter, so that a thousand clients do not come back together. */

export interface Backoff {
  /** Milliseconds; no wait is shorter. */
  readonly least: number;
  /** Milliseconds; no wait is longer. */
  readonly most: number;
}

/**
 * The wait before a try, in milliseconds.
 *
 * @param failures - tries that failed since the last good connection, 0 for none.
 * @param chance - evenly from 0 up to, not including, 1.
 */
export function wait(backoff: Backoff, failures: number, chance: number): number {
  const room = backoff.least * 2 ** Math.min(failures, 30);
  return Math.min(backoff.most, backoff.least + chance * room);
}

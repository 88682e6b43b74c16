/** What a close code says about coming back: from 3000 on the range decides, so that a new code needs no new client. */

/** The hub's codes that a client treats in a way of their own. */
export const TOKEN_EXPIRED = 3002;

/** What this client says when the hub did not answer in time. */
export const NO_ANSWER = 4000;

/** What this client says to a frame that it does not read. */
export const BAD_FRAME = 4001;

/** RFC 6455's codes after which the same would happen again, and the one that says that all is done. */
const FINAL: ReadonlySet<number> = new Set([1000, 1002, 1003, 1007, 1008, 1009, 1010]);

/**
 * Whether to connect again after a close with this code.
 *
 * Below 3000 the transport speaks (RFC 6455): do not after a normal end or when what we sent was wrong, otherwise do,
 * 1005 and 1006 (no code was sent) among them. From 3000 on the lower half of each thousand means "come
 * back", the upper half "do not": 3000-3999 are the hub's, 4000-4999 an application's.
 */
export function comesBack(code: number): boolean {
  return code < 3000 ? !FINAL.has(code) : code % 1000 < 500;
}

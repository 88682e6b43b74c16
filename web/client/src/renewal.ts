/** A newer token for a live connection: one question at a time, a bounded number of times. */
import { wait, type Backoff } from "./backoff.js";

const MOST_TRIES = 6;

export class Renewal {
  readonly #backoff: Backoff;
  readonly #chance: () => number;
  #running = false;
  #tries = 0;
  #sent: string | undefined;
  #at: number | undefined;

  constructor(backoff: Backoff, chance: () => number) {
    this.#backoff = backoff;
    this.#chance = chance;
  }

  /** Whether a newer token is wanted. */
  get running(): boolean {
    return this.#running;
  }

  /** When to ask its source again; undefined while nothing is due. */
  get deadline(): number | undefined {
    return this.#at;
  }

  /** A newer token is wanted; false when that was known. */
  begin(): boolean {
    if (this.#running) return false;
    this.#running = true;
    this.#tries = 0;
    return true;
  }

  /** It has come, cannot come, or the connection is gone. */
  end(): void {
    this.#running = false;
    this.#sent = undefined;
    this.#at = undefined;
  }

  /** Whether the source is to be asked again now. */
  due(now: number): boolean {
    if (this.#at === undefined || now < this.#at) return false;
    this.#at = undefined;
    return true;
  }

  /** The source has given a newer token: it may be sent, under this id, unless one is under way. */
  send(id: string): boolean {
    if (!this.#running || this.#sent !== undefined) return false;
    this.#sent = id;
    this.#at = undefined;
    return true;
  }

  /** The source had none, or the old one: ask again later. */
  later(now: number): void {
    this.#sent = undefined;
    this.#tries += 1;
    if (this.#tries >= MOST_TRIES) this.end();
    else this.#at = now + wait(this.#backoff, this.#tries, this.#chance());
  }

  /** The hub refuses what was sent under this id. */
  refused(id: string | number, now: number): void {
    if (this.#sent === id) this.later(now);
  }
}

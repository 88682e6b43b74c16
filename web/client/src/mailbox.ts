/**
 * What waits for the next painting: bounded, by the policy of the channel it came on.
 *
 * Invariants: what has a key waits once per key, the newest; of what has none at most `most` wait per channel, the
 * oldest leave and are counted; what may never be dropped is not put in here at all.
 */

interface Entry<Item> {
  readonly item: Item;
  readonly channel: string;
  readonly keyed: boolean;
}

export class Mailbox<Item> {
  readonly #waiting = new Map<string, Entry<Item>>();
  readonly #unkeyed = new Map<string, number>();
  readonly #dropped = new Map<string, number>();
  #next = 0;

  constructor(readonly most: number) {}

  get size(): number {
    return this.#waiting.size;
  }

  /** Let it wait; a key names what a newer item replaces. */
  put(channel: string, key: string | undefined, item: Item): void {
    const keyed = key !== undefined;
    const place = JSON.stringify(keyed ? [channel, key] : this.#next++);
    this.#waiting.delete(place); // the newest stands where it came
    this.#waiting.set(place, { item, channel, keyed });
    if (keyed) return;
    const count = (this.#unkeyed.get(channel) ?? 0) + 1;
    this.#unkeyed.set(channel, count);
    if (count > this.most) this.#dropOldest(channel);
  }

  /** A channel begins anew: what waits of it is replaced. */
  clear(channel: string): void {
    for (const [place, entry] of this.#waiting) {
      if (entry.channel === channel) this.#waiting.delete(place);
    }
    this.#unkeyed.delete(channel);
  }

  /** All that waits, in the order of coming, and how many were dropped by channel since the last time. */
  take(): { readonly items: readonly Item[]; readonly dropped: ReadonlyMap<string, number> } {
    const items = [...this.#waiting.values()].map((entry) => entry.item);
    const dropped = new Map(this.#dropped);
    this.#waiting.clear();
    this.#unkeyed.clear();
    this.#dropped.clear();
    return { items, dropped };
  }

  #dropOldest(channel: string): void {
    for (const [place, entry] of this.#waiting) {
      if (entry.keyed || entry.channel !== channel) continue;
      this.#waiting.delete(place);
      this.#unkeyed.set(channel, (this.#unkeyed.get(channel) ?? 1) - 1);
      this.#dropped.set(channel, (this.#dropped.get(channel) ?? 0) + 1);
      return;
    }
  }
}

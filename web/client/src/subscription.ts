/**
 * What a client knows of one channel: whether it is subscribed, where it is, and which messages are new.
 *
 * Invariants: a message is given out once per epoch and offset, and once per id; a hole that the hub did not announce is
 * found; what comes before the hub's `subscribed` belongs to an earlier subscription and does not count.
 */
import { RecentIds } from "./recent.js";
import type {
  DataMessage,
  GapMessage,
  OtherMessage,
  Policy,
  Position,
  SnapshotMessage,
  SubscribedMessage,
} from "./messages.js";

/** `resting`: given up while the page is hidden; `refused`: the hub said no. */
export type Standing = "wanted" | "asked" | "on" | "resting" | "refused";

/** What a message is to a client. */
export interface Verdict {
  readonly fresh: boolean;
  /** Messages whose newest key came instead of them (`conflate`). */
  readonly conflated: number;
  /** Messages that should have come and did not. */
  readonly hole: { readonly from: number; readonly to: number } | undefined;
  /** Of a snapshot: its items; where it replaces nothing, those that were not given out before. */
  readonly items: readonly OtherMessage[];
}

const STALE: Verdict = { fresh: false, conflated: 0, hole: undefined, items: [] };

export class Subscription {
  standing: Standing = "wanted";
  policy: Policy | undefined;
  position: Position | undefined;
  /** The id of the request whose answer is awaited. */
  asked: string | undefined;
  /** When to ask again, if no answer has come. */
  askBy = 0;
  /** When the newest data came, by the caller's clock; 0 before the first. */
  heardAt = 0;
  #expected: number | undefined;
  #anew = false;
  readonly #ids: RecentIds;

  constructor(
    readonly name: string,
    remembered: number,
  ) {
    this.#ids = new RecentIds(remembered);
  }

  /** The connection is gone: the place is kept, to resume from. */
  dropped(): void {
    if (this.standing === "asked" || this.standing === "on") this.standing = "wanted";
    else if (this.standing === "refused") this.standing = "wanted"; // another token may have other rights
    this.asked = undefined;
  }

  /** Where the next subscription resumes; undefined for a snapshot. */
  get resumable(): Position | undefined {
    return this.#anew ? undefined : this.position;
  }

  /** The next subscription asks for a snapshot instead of what was missed; what was seen is still known. */
  beginAnew(): void {
    this.#anew = true;
    this.#expected = undefined;
  }

  /** The place is worth nothing: the hub counts differently. */
  forget(): void {
    this.position = undefined;
    this.#expected = undefined;
  }

  /** Whether this is the answer that is awaited, or word of a channel that the hub begins anew by itself. */
  expects(told: SubscribedMessage["data"]): boolean {
    return told.id === undefined ? this.standing === "on" : told.id === this.asked;
  }

  /** The hub has answered. */
  began(told: SubscribedMessage["data"]): void {
    this.standing = "on";
    this.asked = undefined;
    this.policy = told.policy;
    if (!told.recovered) this.#expected = undefined;
  }

  /** The hub says what is missing. */
  announced(gap: GapMessage["data"]): void {
    this.#expected = gap.to === null ? undefined : gap.to + 1;
  }

  /** Judge a message, and move to it. */
  judge(message: DataMessage | SnapshotMessage | OtherMessage): Verdict {
    if (this.standing !== "on") return STALE;
    if (this.position?.epoch !== message.epoch) this.forget(); // the count began anew
    const before = this.position?.offset;
    if (isSnapshot(message)) return this.#snapshot(message, before);
    if (before !== undefined && message.offset <= before) return STALE;
    const verdict: Verdict = {
      fresh: message.id === undefined || this.#ids.add(message.id),
      conflated: this.#conflated(message.offset, before, 1),
      hole: this.#hole(message.offset),
      items: [],
    };
    this.#moveTo(message);
    return verdict;
  }

  #snapshot(message: SnapshotMessage, before: number | undefined): Verdict {
    if (message.data.partial && before !== undefined && message.offset <= before) return STALE;
    const replaces = this.policy === "conflate"; // then what was given out is worth nothing without it
    const known = replaces ? undefined : before;
    const items = message.data.items.filter(
      (item) =>
        (known === undefined || item.offset > known) &&
        (item.id === undefined || this.#ids.add(item.id) || replaces),
    );
    const conflated = message.data.partial
      ? this.#conflated(message.offset, before, message.data.items.length)
      : 0;
    this.#moveTo(message);
    const { channel, epoch } = message;
    return {
      fresh: true,
      conflated,
      hole: undefined,
      items: items.map((item) => ({ channel, epoch, timestamp: "", ...item })),
    };
  }

  #conflated(offset: number, before: number | undefined, got: number): number {
    if (this.policy !== "conflate" || before === undefined) return 0;
    return Math.max(0, offset - before - got);
  }

  #hole(offset: number): Verdict["hole"] {
    const expected = this.#expected;
    if (this.policy === "conflate" || expected === undefined || offset <= expected) return undefined;
    return { from: expected, to: offset - 1 };
  }

  #moveTo(message: { readonly epoch: string; readonly offset: number }): void {
    this.position = { epoch: message.epoch, offset: message.offset };
    this.#expected = message.offset + 1;
    this.#anew = false;
  }
}

function isSnapshot(
  message: DataMessage | SnapshotMessage | OtherMessage,
): message is SnapshotMessage {
  return message.type === "snapshot";
}

/**
 * The channels that are wanted: which to ask for, which to give up.
 *
 * Invariants: a channel is asked for once until it is answered or overdue; nothing that may be dropped is asked for while
 * nobody looks.
 */
import { wait, type Backoff } from "./backoff.js";
import type { ErrorMessage, Position, Request } from "./messages.js";
import { Subscription } from "./subscription.js";

export interface RosterSettings {
  readonly backoff: Backoff;
  /** From a request to asking again, ms. */
  readonly answerTimeout: number;
  /** Ids that are remembered of each channel. */
  readonly rememberedIds: number;
}

const CHANNELS_PER_REQUEST = 64;
const TRY_AGAIN: ReadonlySet<string> = new Set(["unavailable", "rate_limited", "bad_resume"]);

export class Roster {
  readonly subscriptions = new Map<string, Subscription>();
  /** Nobody looks. */
  resting = false;
  readonly #settings: RosterSettings;
  readonly #chance: () => number;

  constructor(settings: RosterSettings, chance: () => number) {
    this.#settings = settings;
    this.#chance = chance;
  }

  /** When to ask again for what was not answered; undefined while nothing is due. */
  get deadline(): number | undefined {
    let first: number | undefined;
    for (const { standing, askBy } of this.subscriptions.values()) {
      if (standing === "asked" && (first === undefined || askBy < first)) first = askBy;
    }
    return first;
  }

  /** Whether there is no channel to connect for. */
  get quiet(): boolean {
    return [...this.subscriptions.values()].every(
      (each) => each.standing === "resting" || each.standing === "refused",
    );
  }

  add(names: Iterable<string>): void {
    for (const name of new Set(names)) {
      const known = this.subscriptions.get(name);
      if (known?.standing === "refused") known.standing = "wanted";
      if (known !== undefined) continue;
      const subscription = new Subscription(name, this.#settings.rememberedIds);
      if (this.resting) subscription.standing = "resting";
      this.subscriptions.set(name, subscription);
    }
  }

  /** Want these no more; those that the hub knows of. */
  remove(names: Iterable<string>): string[] {
    const given: string[] = [];
    for (const name of new Set(names)) {
      if (knownToHub(this.subscriptions.get(name))) given.push(name);
      this.subscriptions.delete(name);
    }
    return given;
  }

  /** The connection is gone. */
  dropped(): void {
    for (const subscription of this.subscriptions.values()) subscription.dropped();
  }

  /** The requests for what is wanted, with an id of its own each. */
  requests(newId: () => string, now: number): Request[] {
    const wanted = this.#standing("wanted");
    const found: Request[] = [];
    for (let start = 0; start < wanted.length; start += CHANNELS_PER_REQUEST) {
      found.push(this.#request(wanted.slice(start, start + CHANNELS_PER_REQUEST), newId(), now));
    }
    return found;
  }

  /** What was asked for and not answered is wanted anew. */
  overdue(now: number): void {
    for (const subscription of this.#standing("asked")) {
      if (now >= subscription.askBy) subscription.standing = "wanted";
    }
  }

  /** The hub has answered a request with an error. */
  refused({ data, channel }: ErrorMessage, now: number): void {
    for (const subscription of this.#standing("asked")) {
      if (subscription.asked !== data.id) continue;
      if (channel !== undefined && channel !== subscription.name) continue;
      subscription.asked = undefined;
      if (data.code === "bad_resume") subscription.forget();
      if (TRY_AGAIN.has(data.code)) {
        subscription.askBy = now + wait(this.#settings.backoff, 2, this.#chance());
      } else {
        subscription.standing = "refused";
      }
    }
  }

  /** Nobody looks: keep only what must not be missed; those given up that the hub knows of. */
  rest(): string[] {
    this.resting = true;
    const given: string[] = [];
    for (const subscription of this.subscriptions.values()) {
      if (subscription.policy === "never" || subscription.standing === "refused") continue;
      if (knownToHub(subscription)) given.push(subscription.name);
      subscription.standing = "resting";
      subscription.asked = undefined;
      subscription.beginAnew();
    }
    return given;
  }

  /** Somebody looks. */
  wake(): void {
    this.resting = false;
    for (const subscription of this.#standing("resting")) subscription.standing = "wanted";
  }

  #request(wanted: readonly Subscription[], id: string, now: number): Request {
    const resume: [string, Position][] = [];
    for (const subscription of wanted) {
      subscription.standing = "asked";
      subscription.asked = id;
      subscription.askBy = now + this.#settings.answerTimeout;
      const { name, resumable } = subscription;
      if (resumable !== undefined) resume.push([name, resumable]);
    }
    return {
      action: "subscribe",
      channels: wanted.map((subscription) => subscription.name),
      ...(resume.length > 0 ? { resume: Object.fromEntries(resume) } : {}),
      id,
    };
  }

  #standing(standing: Subscription["standing"]): Subscription[] {
    return [...this.subscriptions.values()].filter((each) => each.standing === standing);
  }
}

function knownToHub(subscription: Subscription | undefined): boolean {
  return subscription?.standing === "on" || subscription?.standing === "asked";
}

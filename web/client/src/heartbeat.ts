/** Whether the hub is still there: silence is asked about, and a question without an answer is the end. */

export interface HeartbeatSettings {
  /** Silence after which a ping is sent, ms. */
  readonly heartbeat: number;
  /** From a ping to the end of patience, ms. */
  readonly pongTimeout: number;
}

interface Asked {
  readonly id: string;
  readonly at: number;
}

export class Heartbeat {
  /** When anything was last heard; 0 before the first. */
  heardAt = 0;
  readonly #settings: HeartbeatSettings;
  #asked: (Asked & { readonly by: number }) | undefined;
  #answered: Asked | undefined;
  #spared = false;

  constructor(settings: HeartbeatSettings) {
    this.#settings = settings;
  }

  get deadline(): number {
    return this.#asked?.by ?? this.heardAt + this.#settings.heartbeat;
  }

  /** The connection is gone. */
  reset(): void {
    this.#asked = undefined;
    this.#answered = undefined;
    this.#spared = false;
  }

  heard(now: number): void {
    this.heardAt = now;
    this.#spared = false;
    this.#answered = this.#asked ?? this.#answered;
    this.#asked = undefined;
  }

  /** A ping is to be sent under this id; false when one is under way. */
  ask(id: string, now: number): boolean {
    if (this.#asked !== undefined) return false;
    this.#asked = { id, at: now, by: now + this.#settings.pongTimeout };
    return true;
  }

  /** What a look at the clock says. */
  look(now: number): "fine" | "ask" | "dead" {
    const asked = this.#asked;
    if (asked === undefined) return now >= this.deadline ? "ask" : "fine";
    if (now < asked.by) return "fine";
    // a timer that comes very late was asleep, and so was the answer: ask once more before giving up
    if (this.#spared || now - asked.by < this.#settings.pongTimeout) return "dead";
    this.#asked = undefined;
    this.#spared = true;
    return "ask";
  }

  /** A pong has come: the way there and back in ms, if it answers the newest ping. */
  roundTrip(id: string | number | undefined, now: number): number | undefined {
    const answered = this.#answered;
    if (answered === undefined || answered.id !== id) return undefined;
    this.#answered = undefined;
    return now - answered.at;
  }
}

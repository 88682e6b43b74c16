/** A link with a clock that is a number, and somebody who plays hub, token source and socket. */
import type { Effect, StateChange } from "../../src/effects.js";
import { Link } from "../../src/link.js";
import type { LinkSettings } from "../../src/settings.js";
import type { Request } from "../../src/messages.js";

export const STAMP = "2026-01-05T09:30:00.000Z";

export class Rig {
  readonly link: Link;
  readonly effects: Effect[] = [];
  now = 1000;

  constructor(settings: Partial<LinkSettings> = {}, chance: () => number = () => 0.5) {
    this.link = new Link(settings, chance);
  }

  /** Do something to the link; what comes of it is noted, and returned. */
  do(act: (link: Link, now: number) => void): Effect[] {
    act(this.link, this.now);
    const effects = this.link.take();
    this.effects.push(...effects);
    return effects;
  }

  /** Let time pass, with a tick at each deadline. */
  pass(ms: number): Effect[] {
    const end = this.now + ms;
    const before = this.effects.length;
    for (let at = this.link.deadline; at !== undefined && at <= end; at = this.link.deadline) {
      this.now = Math.max(this.now, at);
      this.do((link, now) => link.tick(now));
    }
    this.now = end;
    return this.effects.slice(before);
  }

  token(token: unknown = "a.b.c"): Effect[] {
    return this.do((link, now) => link.gotToken(link.attempt, token, now));
  }

  says(...messages: object[]): Effect[] {
    return this.do((link, now) => link.received(link.attempt, JSON.stringify(messages), now));
  }

  closes(code = 1006, reason = ""): Effect[] {
    return this.do((link, now) => link.closed(link.attempt, code, reason, now));
  }

  /** From nothing, or from a planned try, to a welcomed connection. */
  live(): Effect[] {
    if (this.link.state === "closed") this.do((link) => link.connect());
    else this.pass(20_000);
    this.token();
    return this.says(welcome());
  }

  requests(effects: readonly Effect[] = this.effects): Request[] {
    return effects.flatMap((effect) => (effect.do === "send" ? [effect.request] : []));
  }

  states(effects: readonly Effect[] = this.effects): StateChange[] {
    return effects.flatMap((effect) => (effect.do === "state" ? [effect.change] : []));
  }

  troubles(effects: readonly Effect[] = this.effects): string[] {
    return effects.flatMap((effect) =>
      effect.do === "trouble" ? [`${effect.trouble.kind} ${effect.trouble.code ?? ""}`.trim()] : [],
    );
  }

  /** The offsets of the data that was passed on. */
  offsets(effects: readonly Effect[] = this.effects): number[] {
    return effects.flatMap((effect) => (effect.do === "data" ? [effect.message.offset] : []));
  }

  /** The newest request of a kind. */
  last<Action extends Request["action"]>(action: Action): Extract<Request, { action: Action }> {
    const found = this.requests().filter((request) => request.action === action);
    const last = found[found.length - 1];
    if (last === undefined) throw new Error(`no ${action} was sent`);
    return last as Extract<Request, { action: Action }>;
  }

  /** The hub takes the newest subscription. */
  subscribed(policy: string, extra: object = {}): Effect[] {
    const { channels, id } = this.last("subscribe");
    const told = { policy, epoch: "e", offset: 0, recovered: false, id, ...extra };
    return this.says(
      ...channels.map((channel) => ({ type: "subscribed", channel, timestamp: STAMP, data: told })),
    );
  }
}

export function welcome(): object {
  return { type: "welcome", timestamp: STAMP, data: { client: "c1" } };
}

export function control(type: string, data: object = {}, channel?: string): object {
  return { type, timestamp: STAMP, data, ...(channel === undefined ? {} : { channel }) };
}

export function alert(offset: number, extra: object = {}): object {
  const data = { severity: "info", title: String(offset) };
  return { type: "alert", channel: "alerts", offset, epoch: "e", timestamp: STAMP, data, ...extra };
}

export function snapshot(channel: string, offset: number, items: object[], partial = false): object {
  const data = { items, partial };
  return { type: "snapshot", channel, offset, epoch: "e", timestamp: STAMP, data };
}

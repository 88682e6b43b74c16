/** Any schedule of publishes, losses, repeats and resumes: no message twice, no hole that is not announced. */
import { expect, it } from "vitest";
import fc from "fast-check";
import { Rig, alert, control, welcome } from "./rig.js";

/** A hub that keeps so many messages of one channel. */
const KEPT = 4;

class ModelHub {
  offset = 0;
  epoch = 0;

  /** What it says to the newest subscription. */
  answer(rig: Rig): object[] {
    const { id, resume } = rig.last("subscribe");
    const position = resume?.["alerts"];
    const oldest = Math.max(1, this.offset - KEPT + 1);
    const same = position?.epoch === `e${this.epoch}`;
    const recovered = same && position.offset + 1 >= oldest;
    const told = { policy: "never", epoch: `e${this.epoch}`, offset: this.offset, recovered, id };
    const said: object[] = [control("subscribed", told, "alerts")];
    if (position !== undefined && !recovered) said.push(this.gap(position, oldest, same));
    const first = recovered ? position.offset + 1 : oldest;
    for (let offset = first; offset <= this.offset; offset += 1) said.push(this.message(offset));
    return said;
  }

  gap(position: { offset: number }, oldest: number, same: boolean): object {
    const from = same ? position.offset + 1 : null;
    const to = same ? oldest - 1 : null;
    const count = from !== null && to !== null ? to - from + 1 : null;
    return control("gap", { from, to, count, reason: same ? "retention" : "epoch" }, "alerts");
  }

  message(offset: number): object {
    return alert(offset, { epoch: `e${this.epoch}` });
  }
}

const step = fc.constantFrom("publish", "publish", "publish", "lose", "repeat", "back", "restart", "cut");

it("gives a view without a repeat and without an unannounced hole, and the end is reached", () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), fc.nat(), (steps, seed) => {
      let state = seed;
      const chance = () => (state = (state * 16_807 + 11) % 65_537) / 65_537;
      const rig = new Rig({ heartbeat: 1e9 }, chance);
      const hub = new ModelHub();
      rig.do((link, now) => link.subscribe(["alerts"], now));
      const online = () => rig.link.state === "live";
      const comeBack = () => {
        if (rig.link.state === "closed") rig.do((link) => link.connect());
        else rig.pass(20_000);
        rig.token();
        rig.says(welcome());
        rig.says(...hub.answer(rig));
      };
      for (const what of steps) {
        if (what === "publish") {
          hub.offset += 1;
          if (online()) rig.says(hub.message(hub.offset));
        } else if (what === "repeat" && online() && hub.offset > 0) {
          rig.says(hub.message(Math.max(1, hub.offset - 1)), hub.message(hub.offset));
        } else if (what === "lose" && online()) {
          rig.closes(3001);
        } else if (what === "cut" && online()) {
          hub.offset += 1; // the message is on its way when the link dies
          rig.closes(1006);
        } else if (what === "restart") {
          if (online()) rig.closes(1006);
          hub.epoch += 1;
          hub.offset = 0;
        } else if (what === "back" && !online()) {
          comeBack();
        }
      }
      if (!online()) comeBack();

      let last: { epoch: string; offset: number } | undefined;
      let expected: number | undefined;
      const seen = new Set<string>();
      for (const effect of rig.effects) {
        if (effect.do === "control" && effect.message.type === "gap") {
          const { to, reason } = effect.message.data;
          expect(reason).not.toBe("unannounced");
          expected = to === null ? undefined : to + 1;
        } else if (effect.do === "data") {
          const { epoch, offset } = effect.message;
          expect(seen.has(`${epoch} ${offset}`)).toBe(false);
          seen.add(`${epoch} ${offset}`);
          if (last?.epoch === epoch && expected !== undefined) expect(offset).toBe(expected);
          last = { epoch, offset };
          expected = offset + 1;
        }
      }
      if (hub.offset > 0) expect(last).toEqual({ epoch: `e${hub.epoch}`, offset: hub.offset });
    }),
    { numRuns: 500 },
  );
});

it("never throws, whatever a hub says in whatever order, and knows its next deadline", () => {
  const name = fc.constantFrom("alerts", "lp-performance", "other");
  const id = fc.option(fc.constantFrom("s1", "s2", "t1", "u1"), { nil: undefined });
  const told = fc.record({
    policy: fc.constantFrom("never", "conflate", "drop-oldest", "novel"),
    epoch: fc.constantFrom("e", "f"),
    offset: fc.nat(9),
    recovered: fc.boolean(),
    id,
    code: fc.constantFrom("forbidden", "unavailable", "bad_resume", "bad_token"),
    message: fc.string(),
    from: fc.option(fc.nat(9)),
    to: fc.option(fc.nat(9)),
    count: fc.option(fc.nat(9)),
  });
  const type = fc.constantFrom("welcome", "subscribed", "unsubscribed", "gap", "error", "expiring", "refreshed", "pong");
  const said = fc.oneof(
    fc.tuple(type, told, name).map(([kind, data, channel]) => control(kind, data, channel)),
    fc.tuple(fc.nat(9), name).map(([offset, channel]) => alert(offset, { channel })),
    fc.object().map((thing) => thing as object),
  );
  const move = fc.oneof(
    said,
    fc.constantFrom("token", "close", "hidden", "visible", "online", "offline", "pass", "stop", "connect", "woke"),
  );
  fc.assert(
    fc.property(fc.array(move, { maxLength: 40 }), (moves) => {
      const rig = new Rig();
      rig.do((link, now) => link.subscribe(["alerts", "lp-performance"], now));
      rig.do((link) => link.connect());
      for (const what of moves) {
        if (typeof what === "object") rig.says(what);
        else if (what === "token") rig.token();
        else if (what === "close") rig.closes(3001);
        else if (what === "stop") rig.closes(3500);
        else if (what === "pass") rig.pass(7000);
        else if (what === "connect") rig.do((link) => link.connect());
        else rig.do((link, now) => link[what](now));
        const { deadline, state } = rig.link;
        if (deadline !== undefined) expect(Number.isFinite(deadline)).toBe(true);
        if (state === "stopped" || state === "paused") expect(rig.requests(rig.pass(0))).toEqual([]);
      }
    }),
    { numRuns: 500 },
  );
});

import { describe, expect, it } from "vitest";
import { Rig, STAMP, alert, control, snapshot, welcome } from "./rig.js";

describe("connecting", () => {
  it("asks for a token, opens, and is live with the welcome", () => {
    const rig = new Rig();
    expect(rig.link.state).toBe("closed");
    expect(rig.do((link) => link.connect()).map((effect) => effect.do)).toEqual(["state", "token"]);
    const [open] = rig.token("x.y.z");
    expect(open).toMatchObject({ do: "open", token: "x.y.z" });
    expect(rig.link.state).toBe("connecting");
    rig.says(welcome());
    expect(rig.states().map((change) => change.state)).toEqual(["connecting", "live"]);
  });

  it("twice is once", () => {
    const rig = new Rig();
    rig.do((link) => link.connect());
    expect(rig.do((link) => link.connect())).toEqual([]);
  });

  it("gives a hub that sends no welcome 15 seconds", () => {
    const rig = new Rig();
    rig.do((link) => link.connect());
    rig.token();
    expect(rig.pass(14_999)).toEqual([]);
    const effects = rig.pass(1);
    expect(effects[0]).toMatchObject({ do: "shut", code: 4000 });
    expect(rig.link.state).toBe("reconnecting");
  });

  it("asks for a token anew at each try, and forgets the answers of tries that are over", () => {
    const rig = new Rig();
    rig.do((link) => link.connect());
    const first = rig.link.attempt;
    rig.token();
    rig.closes();
    rig.pass(20_000);
    expect(rig.effects.filter((effect) => effect.do === "token")).toHaveLength(2);
    expect(rig.do((link, now) => link.gotToken(first, "old", now))).toEqual([]);
    expect(rig.do((link, now) => link.closed(first, 3500, "", now))).toEqual([]);
    expect(rig.do((link, now) => link.tokenFailed(first, "", true, now))).toEqual([]);
    expect(rig.link.state).toBe("reconnecting");
  });

  it("ends when asked, whatever comes after", () => {
    const rig = new Rig();
    rig.live();
    const { attempt } = rig.link;
    expect(rig.do((link) => link.close(1000, "bye"))[0]).toEqual({ do: "shut", code: 1000, reason: "bye" });
    expect(rig.link.state).toBe("closed");
    expect(rig.do((link, now) => link.closed(attempt, 1006, "", now))).toEqual([]);
    expect(rig.do((link, now) => link.received(attempt, "[]", now))).toEqual([]);
    expect(rig.link.deadline).toBeUndefined();
    rig.live();
    expect(rig.link.state).toBe("live");
  });
});

describe("coming back", () => {
  it("waits by chance, longer each time, and never more than 20 seconds", () => {
    const rig = new Rig();
    rig.do((link) => link.connect());
    for (let n = 0; n < 9; n += 1) {
      rig.token();
      rig.closes();
      rig.pass(20_000);
    }
    const waits = rig.states().map((change) => change.retryIn).filter((ms) => ms !== undefined);
    expect(waits).toEqual([750, 1000, 1500, 2500, 4500, 8500, 16_500, 20_000, 20_000]);
  });

  it("a connection that was welcomed and lost at once makes the next wait no shorter", () => {
    const rig = new Rig();
    rig.live();
    for (let n = 0; n < 3; n += 1) {
      rig.closes(3001);
      rig.live();
    }
    rig.closes(3001);
    expect(rig.states().map((change) => change.retryIn).filter(Boolean)).toEqual([750, 1000, 1500, 2500]);
  });

  it("one that lived 10 seconds does", () => {
    const rig = new Rig();
    rig.live();
    rig.closes();
    rig.live();
    rig.pass(10_000);
    rig.closes();
    expect(rig.states().at(-1)).toMatchObject({ retryIn: 750 });
  });

  it.each([3000, 3001, 3002, 3010, 3499, 4000, 4499, 1001, 1005, 1006, 1011, 1012])("%i: tries again", (code) => {
    const rig = new Rig();
    rig.live();
    rig.closes(code, "words");
    expect(rig.states().at(-1)).toMatchObject({ state: "reconnecting", code, reason: "words" });
    rig.live();
    expect(rig.link.state).toBe("live");
  });

  it.each([1000, 1002, 1009, 3500, 3502, 3999, 4500, 4999])("%i: stops, until connect is called", (code) => {
    const rig = new Rig();
    rig.live();
    rig.closes(code, "words");
    expect(rig.states().at(-1)).toMatchObject({ state: "stopped", code, reason: "words" });
    expect(rig.link.deadline).toBeUndefined();
    rig.do((link) => link.connect());
    expect(rig.link.state).toBe("connecting");
  });

  it("not with autoReconnect: false", () => {
    const rig = new Rig({ autoReconnect: false });
    rig.live();
    rig.closes(1006);
    expect(rig.states().at(-1)).toMatchObject({ state: "closed", code: 1006 });
    expect(rig.link.deadline).toBeUndefined();
  });

  it("a fixed token that has expired is the end: there is no other", () => {
    const rig = new Rig({ fixedToken: true });
    rig.live();
    rig.closes(3002, "expired");
    expect(rig.link.state).toBe("stopped");
  });

  it("a socket that cannot even be made is the end", () => {
    const rig = new Rig();
    rig.do((link) => link.connect());
    rig.token();
    rig.do((link) => link.impossible(link.attempt, "no"));
    expect(rig.states().at(-1)).toMatchObject({ state: "stopped", reason: "no" });
  });
});

describe("the token's source", () => {
  it("fails: it is asked again", () => {
    const rig = new Rig();
    rig.do((link) => link.connect());
    rig.do((link, now) => link.tokenFailed(link.attempt, "down", false, now));
    expect(rig.troubles()).toEqual(["token"]);
    expect(rig.states().at(-1)).toMatchObject({ state: "reconnecting", retryIn: 750, reason: "down" });
    rig.live();
    expect(rig.link.state).toBe("live");
  });

  it("fails and there is to be one try only: closed", () => {
    const rig = new Rig({ autoReconnect: false });
    rig.do((link) => link.connect());
    rig.do((link, now) => link.tokenFailed(link.attempt, "down", false, now));
    expect(rig.states().at(-1)).toMatchObject({ state: "closed", reason: "down" });
  });

  it("says stop: the client stops", () => {
    const rig = new Rig();
    rig.do((link) => link.connect());
    rig.do((link, now) => link.tokenFailed(link.attempt, "signed out", true, now));
    expect(rig.states().at(-1)).toMatchObject({ state: "stopped", reason: "signed out" });
  });

  it.each([null, "", 7, "two words", "a,b"])("gives %j, which is no token: never sent", (token) => {
    const rig = new Rig();
    rig.do((link) => link.connect());
    rig.token(token);
    expect(rig.troubles()).toEqual(["token"]);
    expect(rig.effects.some((effect) => effect.do === "open")).toBe(false);
  });

  it("is asked when the token expires, and the new one goes over the same connection", () => {
    const rig = new Rig();
    rig.live();
    expect(rig.says(control("expiring"))).toContainEqual({ do: "token", attempt: rig.link.attempt, why: "refresh" });
    rig.says(control("expiring")); // one at a time
    expect(rig.effects.filter((effect) => effect.do === "token")).toHaveLength(2);
    rig.token("new.t.k");
    expect(rig.last("refresh").token).toBe("new.t.k");
    rig.says(control("refreshed"));
    expect(rig.says(control("expiring")).some((effect) => effect.do === "token")).toBe(true);
    expect(rig.link.state).toBe("live");
  });

  it("has no newer one yet: asked again later, not without end", () => {
    const rig = new Rig({ heartbeat: 1e9 });
    rig.live();
    rig.says(control("expiring"));
    for (let n = 0; n < 10; n += 1) {
      rig.token("a.b.c"); // the same as before
      rig.pass(20_000);
    }
    expect(rig.requests().filter((request) => request.action === "refresh")).toEqual([]);
    expect(rig.effects.filter((effect) => effect.do === "token" && effect.why === "refresh")).toHaveLength(6);
  });

  it("a token that the hub refuses is not the end of the connection; another is asked for", () => {
    const rig = new Rig({ heartbeat: 1e9 });
    rig.live();
    rig.says(control("expiring"));
    rig.token("bad.t.k");
    rig.says(control("error", { code: "bad_token", message: "no", id: rig.last("refresh").id }));
    expect(rig.troubles()).toEqual(["hub bad_token"]);
    rig.pass(2000);
    rig.token("good.t.k");
    expect(rig.last("refresh").token).toBe("good.t.k");
  });

  it("says stop at a renewal: the connection lives on to its end", () => {
    const rig = new Rig();
    rig.live();
    rig.says(control("expiring"));
    rig.do((link, now) => link.tokenFailed(link.attempt, "signed out", true, now));
    expect(rig.link.state).toBe("live");
    rig.closes(3002);
    expect(rig.link.state).toBe("reconnecting"); // and the next question for a token is answered with stop
  });

  it("is never given: a renewal that hangs ends with its connection, and the next one renews", () => {
    const rig = new Rig();
    rig.live();
    rig.says(control("expiring"));
    rig.closes(3002);
    rig.live();
    expect(rig.says(control("expiring"))).toContainEqual({ do: "token", attempt: rig.link.attempt, why: "refresh" });
  });

  it("is given after the client was closed: nothing is opened", () => {
    const rig = new Rig();
    rig.do((link) => link.connect());
    const { attempt } = rig.link;
    expect(rig.pass(1e6)).toEqual([]); // a person may be asked, who takes their time
    rig.do((link) => link.close());
    expect(rig.do((link, now) => link.gotToken(attempt, "a.b.c", now))).toEqual([]);
    rig.do((link) => link.connect());
    expect(rig.do((link, now) => link.gotToken(attempt, "a.b.c", now))).toEqual([]);
    expect(rig.token()).toMatchObject([{ do: "open" }]);
  });

  it("a fixed token cannot be renewed: nothing is asked", () => {
    const rig = new Rig({ fixedToken: true });
    rig.live();
    expect(rig.says(control("expiring")).map((effect) => effect.do)).toEqual(["control"]);
  });
});

describe("the heartbeat", () => {
  it("pings after silence and lives on with the answer", () => {
    const rig = new Rig();
    rig.live();
    rig.pass(20_000);
    const ping = rig.last("ping");
    rig.now += 40;
    rig.says(control("pong", { id: ping.id }));
    expect(rig.link.stats.roundTrip).toBe(40);
    rig.pass(19_999);
    expect(rig.requests()).toHaveLength(1);
    expect(rig.link.state).toBe("live");
  });

  it("anything that is heard puts it off", () => {
    const rig = new Rig();
    rig.live();
    for (let n = 0; n < 10; n += 1) {
      rig.pass(19_000);
      rig.says();
    }
    expect(rig.requests()).toEqual([]);
  });

  it("no answer in 10 seconds is the end of the link", () => {
    const rig = new Rig();
    rig.live();
    rig.pass(29_999);
    expect(rig.link.state).toBe("live");
    const effects = rig.pass(1);
    expect(effects[0]).toMatchObject({ do: "shut", code: 4000 });
    expect(rig.states(effects)[0]).toMatchObject({ state: "reconnecting", code: 4000 });
  });

  it("a timer that slept asks once more before it gives up, and only once", () => {
    const rig = new Rig();
    rig.live();
    rig.pass(20_000);
    rig.now += 60_000;
    rig.do((link, now) => link.tick(now));
    expect(rig.link.state).toBe("live");
    expect(rig.requests().map((request) => request.action)).toEqual(["ping", "ping"]);
    rig.now += 60_000;
    rig.do((link, now) => link.tick(now));
    expect(rig.link.state).toBe("reconnecting");
  });

  it("after waking up the link is asked at once", () => {
    const rig = new Rig();
    rig.live();
    expect(rig.requests(rig.do((link, now) => link.woke(now)))).toHaveLength(1);
  });
});

describe("subscribing", () => {
  it("waits for the welcome, and names each channel once", () => {
    const rig = new Rig();
    rig.do((link, now) => link.subscribe(["alerts", "alerts", "lp-performance"], now));
    rig.live();
    expect(rig.requests()).toEqual([
      { action: "subscribe", channels: ["alerts", "lp-performance"], id: "s1" },
    ]);
    expect(rig.requests(rig.do((link, now) => link.subscribe(["alerts"], now)))).toEqual([]);
  });

  it("a thousand channels are several requests", () => {
    const rig = new Rig();
    rig.live();
    rig.do((link, now) => link.subscribe(Array.from({ length: 100 }, (_, n) => `c${n}`), now));
    expect(rig.requests().map((request) => request.action === "subscribe" && request.channels.length)).toEqual([64, 36]);
  });

  it("resumes after a drop where it was, by channel", () => {
    const rig = new Rig();
    rig.do((link, now) => link.subscribe(["alerts", "lp-performance"], now));
    rig.live();
    rig.subscribed("never");
    rig.says(alert(7));
    rig.closes();
    rig.live();
    expect(rig.last("subscribe")).toMatchObject({
      channels: ["alerts", "lp-performance"],
      resume: { alerts: { epoch: "e", offset: 7 } },
    });
  });

  it("a channel that is named like a part of an object is a channel", () => {
    const rig = new Rig();
    rig.do((link, now) => link.subscribe(["__proto__"], now));
    rig.live();
    rig.subscribed("never");
    rig.says({ ...alert(3), channel: "__proto__" });
    rig.closes();
    rig.live();
    expect(JSON.stringify(rig.last("subscribe").resume)).toBe('{"__proto__":{"epoch":"e","offset":3}}');
  });

  it("is asked again when no answer comes, and not when one came", () => {
    const rig = new Rig({ heartbeat: 1e9 });
    rig.do((link, now) => link.subscribe(["alerts"], now));
    rig.live();
    rig.pass(10_000);
    expect(rig.requests()).toHaveLength(2);
    rig.subscribed("never");
    rig.pass(60_000);
    expect(rig.requests()).toHaveLength(2);
  });

  it("that is refused is told, and tried again only with another connection or when asked", () => {
    const rig = new Rig({ heartbeat: 1e9 });
    rig.do((link, now) => link.subscribe(["alerts", "exposure-updates"], now));
    rig.live();
    const { id } = rig.last("subscribe");
    rig.says(control("error", { code: "forbidden", message: "no", id }, "exposure-updates"));
    rig.subscribed("never");
    expect(rig.troubles()).toEqual(["hub forbidden"]);
    expect(rig.link.subscriptions.get("exposure-updates")?.standing).toBe("refused");
    rig.pass(60_000);
    expect(rig.requests()).toHaveLength(1);
    rig.do((link, now) => link.subscribe(["exposure-updates"], now));
    expect(rig.last("subscribe").channels).toEqual(["exposure-updates"]);
    rig.closes();
    rig.live();
    expect(rig.last("subscribe").channels).toEqual(["alerts", "exposure-updates"]);
  });

  it.each(["unavailable", "rate_limited"])("that the hub cannot do now (%s) is tried again", (code) => {
    const rig = new Rig({ heartbeat: 1e9 });
    rig.do((link, now) => link.subscribe(["alerts"], now));
    rig.live();
    rig.says(control("error", { code, message: "later", id: "s1" }));
    rig.pass(5000);
    expect(rig.requests()).toHaveLength(2);
  });

  it("a place that the hub does not take is forgotten", () => {
    const rig = new Rig({ heartbeat: 1e9 });
    rig.do((link, now) => link.subscribe(["alerts"], now));
    rig.live();
    rig.subscribed("never");
    rig.says(alert(7));
    rig.closes();
    rig.live();
    rig.says(control("error", { code: "bad_resume", message: "?", id: rig.last("subscribe").id }));
    rig.pass(5000);
    expect(rig.last("subscribe").resume).toBeUndefined();
  });

  it("ends: told to the hub if it knew of it, and nothing comes after", () => {
    const rig = new Rig();
    rig.do((link, now) => link.subscribe(["alerts"], now));
    expect(rig.do((link) => link.unsubscribe(["alerts"]))).toEqual([]);
    rig.do((link, now) => link.subscribe(["alerts"], now));
    rig.live();
    rig.subscribed("never");
    rig.do((link) => link.unsubscribe(["alerts", "unheard-of"]));
    expect(rig.last("unsubscribe").channels).toEqual(["alerts"]);
    rig.says(alert(1));
    expect(rig.offsets()).toEqual([]);
    expect(rig.link.stats.late).toBe(1);
    rig.closes();
    expect(rig.requests(rig.live())).toEqual([]);
  });

  it("anew begins anew: what still comes of the old subscription does not count", () => {
    const rig = new Rig();
    rig.do((link, now) => link.subscribe(["alerts"], now));
    rig.live();
    const first = rig.last("subscribe");
    rig.do((link, now) => {
      link.unsubscribe(["alerts"]);
      link.subscribe(["alerts"], now);
    });
    const told = { policy: "never", epoch: "e", offset: 0, recovered: false, id: first.id };
    rig.says(control("subscribed", told, "alerts"), alert(1), control("unsubscribed", { id: "u2" }, "alerts"));
    expect(rig.offsets()).toEqual([]);
    rig.subscribed("never");
    rig.says(alert(1));
    expect(rig.offsets()).toEqual([1]);
  });

  it("the hub may end it, and begin it anew", () => {
    const rig = new Rig();
    rig.do((link, now) => link.subscribe(["alerts"], now));
    rig.live();
    rig.subscribed("never");
    rig.says(alert(5));
    const told = { policy: "never", epoch: "f", offset: 2, recovered: false };
    rig.says(control("subscribed", told, "alerts"), alert(1, { epoch: "f" }));
    expect(rig.offsets()).toEqual([5, 1]);
    rig.says(control("unsubscribed", {}, "alerts"), alert(2, { epoch: "f" }));
    expect(rig.offsets()).toEqual([5, 1]);
    expect(rig.link.subscriptions.get("alerts")?.standing).toBe("refused");
  });
});

describe("what comes", () => {
  function following(policy: string, channel = "alerts"): Rig {
    const rig = new Rig();
    rig.do((link, now) => link.subscribe([channel], now));
    rig.live();
    rig.subscribed(policy);
    return rig;
  }

  it("twice is passed on once: by offset, and by id over epochs", () => {
    const rig = following("never");
    rig.says(alert(1, { id: "a" }), alert(2, { id: "b" }), alert(2, { id: "b" }), alert(1, { id: "a" }));
    rig.says(alert(3, { id: "a" }));
    rig.says(alert(1, { epoch: "f", id: "b" }), alert(2, { epoch: "f", id: "c" }));
    expect(rig.offsets()).toEqual([1, 2, 2]);
    expect(rig.link.stats.duplicates).toBe(4);
    rig.closes();
    rig.live();
    expect(rig.last("subscribe").resume).toEqual({ alerts: { epoch: "f", offset: 2 } });
  });

  it("remembers a bounded number of ids", () => {
    const rig = new Rig({ rememberedIds: 2 });
    rig.do((link, now) => link.subscribe(["alerts"], now));
    rig.live();
    rig.subscribed("never");
    for (const [n, id] of ["a", "b", "c", "b", "a"].entries()) rig.says(alert(n + 1, { id }));
    expect(rig.offsets()).toEqual([1, 2, 3, 5]);
  });

  it("with a hole that the hub announces is a gap, counted", () => {
    const rig = following("drop-oldest");
    rig.says(alert(1));
    const effects = rig.says(
      control("gap", { from: 2, to: 4, count: 3, reason: "slow" }, "alerts"),
      alert(5),
    );
    expect(effects.map((effect) => effect.do)).toEqual(["control", "data"]);
    expect(rig.link.stats).toMatchObject({ gaps: 1, missed: 3 });
  });

  it("with a hole that it does not is one, too", () => {
    const rig = following("drop-oldest");
    const [, gap] = rig.says(alert(1), alert(4));
    expect(gap).toMatchObject({
      do: "control",
      message: { type: "gap", channel: "alerts", data: { from: 2, to: 3, count: 2, reason: "unannounced" } },
    });
    expect(rig.offsets()).toEqual([1, 4]);
  });

  it("with a new epoch has no hole", () => {
    const rig = following("drop-oldest");
    rig.says(alert(1), alert(9, { epoch: "f" }));
    expect(rig.link.stats.gaps).toBe(0);
  });

  it("a gap of unknown size counts as one gap", () => {
    const rig = following("never");
    rig.says(control("gap", { from: null, to: null, count: null, reason: "epoch" }, "alerts"), alert(9));
    expect(rig.link.stats).toMatchObject({ gaps: 1, missed: 0 });
  });

  it("on a channel that conflates jumps, which is counted and no gap", () => {
    const rig = following("conflate", "lp-performance");
    const lp = (offset: number) => ({ ...alert(offset), channel: "lp-performance", key: "LP1" });
    rig.says(snapshot("lp-performance", 3, []), lp(5), lp(9));
    expect(rig.link.stats).toMatchObject({ conflated: 4, gaps: 0 });
    const items = [{ type: "lp-metrics", key: "LP1", offset: 12, data: {} }];
    rig.says(snapshot("lp-performance", 14, items, true), snapshot("lp-performance", 14, items, true));
    expect(rig.link.stats).toMatchObject({ conflated: 8, duplicates: 1 });
  });

  it("a whole snapshot is passed on with its items, those known already left out where nothing is replaced", () => {
    const items = [1, 2, 3].map((offset) => ({ type: "alert", key: "", offset, data: { offset } }));
    const rig = following("drop-oldest");
    rig.says(alert(2));
    const [effect] = rig.says(snapshot("alerts", 3, items));
    expect(effect).toMatchObject({ do: "data", items: [{ type: "alert", offset: 3, channel: "alerts", epoch: "e" }] });
    const other = following("conflate");
    other.says(alert(2));
    const [whole] = other.says(snapshot("alerts", 3, items));
    expect(whole).toMatchObject({ items: [{ offset: 1 }, { offset: 2 }, { offset: 3 }] });
  });

  it("of a snapshot that replaces what was known is passed on whole, ids that were seen among it", () => {
    const rig = following("conflate", "lp-performance");
    const lp = { ...alert(5, { id: "a" }), channel: "lp-performance", key: "LP1" };
    const item = { type: "lp-metrics", key: "LP1", offset: 5, timestamp: STAMP, id: "a", data: {} };
    rig.says(lp);
    const [whole] = rig.says(snapshot("lp-performance", 5, [item]));
    expect(whole).toMatchObject({ items: [{ key: "LP1", offset: 5 }] });
    const [anew] = rig.says({ ...snapshot("lp-performance", 1, [{ ...item, offset: 1 }]), epoch: "f" });
    expect(anew).toMatchObject({ items: [{ key: "LP1", epoch: "f", offset: 1 }] });
  });

  it("of a snapshot after a new epoch comes once, by its id, with its own time", () => {
    const rig = following("never");
    rig.says(alert(7, { id: "a" }));
    const then = "2026-01-04T08:00:00.000Z";
    const item = (offset: number, id: string) => ({ type: "alert", key: "", offset, timestamp: then, id, data: {} });
    const [effect] = rig.says({ ...snapshot("alerts", 2, [item(1, "a"), item(2, "b")]), epoch: "f" });
    expect(effect).toMatchObject({ items: [{ id: "b", epoch: "f", timestamp: then }] });
    rig.says(alert(3, { id: "b", epoch: "f" }));
    expect(rig.link.stats.duplicates).toBe(1);
  });

  it("of a snapshot is known by its id, too, where it has one", () => {
    const rig = following("never");
    const item = { type: "alert", key: "", offset: 4, data: {}, id: "a", timestamp: STAMP };
    rig.says(snapshot("alerts", 4, [item]), alert(1, { epoch: "f", id: "a" }), alert(2, { epoch: "f", id: "b" }));
    const passed = rig.effects.flatMap((effect) => (effect.do === "data" ? [effect] : []));
    expect(passed[0]?.items[0]).toMatchObject({ timestamp: STAMP });
    expect(passed.map((effect) => effect.message.offset)).toEqual([4, 2]);
  });

  it("and is no message is counted and told, and the rest is read", () => {
    const rig = following("never");
    rig.do((link, now) => link.received(link.attempt, "{", now));
    rig.says({ type: 1 }, alert(1));
    expect(rig.link.stats.malformed).toBe(2);
    expect(rig.troubles()).toEqual(["frame", "frame"]);
    expect(rig.offsets()).toEqual([1]);
  });

  it.each([
    ["binary", new Uint8Array(3)],
    ["longer than the limit", "x".repeat(101)],
  ])("and is %s ends the connection, and it comes back", (_, frame) => {
    const rig = new Rig({ longestFrame: 100 });
    rig.live();
    const effects = rig.do((link, now) => link.received(link.attempt, frame, now));
    expect(effects.find((effect) => effect.do === "shut")).toMatchObject({ code: 4001 });
    expect(rig.link.state).toBe("reconnecting");
  });

  it("of a kind that is not known yet harms nothing", () => {
    const rig = following("never");
    expect(rig.says(control("novelty"), { type: "bare", timestamp: "", data: {} })).toEqual([]);
  });
});

describe("a hidden page", () => {
  function following(): Rig {
    const rig = new Rig({ heartbeat: 1e9 });
    rig.do((link, now) => link.subscribe(["alerts", "lp-performance"], now));
    rig.live();
    const { id } = rig.last("subscribe");
    const told = { epoch: "e", offset: 0, recovered: false, id };
    rig.says(
      control("subscribed", { ...told, policy: "never" }, "alerts"),
      control("subscribed", { ...told, policy: "conflate" }, "lp-performance"),
      alert(1),
      { ...alert(8), channel: "lp-performance" },
    );
    return rig;
  }

  it("that is soon seen again changes nothing", () => {
    const rig = following();
    const before = rig.requests().length;
    rig.do((link, now) => link.hidden(now));
    rig.pass(4999);
    rig.do((link, now) => link.visible(now));
    rig.pass(60_000);
    const after = rig.requests().slice(before);
    expect(after.map((request) => request.action)).toEqual(["ping"]); // whether the link still is one
  });

  it("keeps what must not be missed, and begins the rest anew when it is seen", () => {
    const rig = following();
    rig.do((link, now) => link.hidden(now));
    rig.pass(5000);
    expect(rig.last("unsubscribe").channels).toEqual(["lp-performance"]);
    rig.says({ ...alert(9), channel: "lp-performance" }, alert(2));
    expect(rig.offsets()).toEqual([1, 8, 2]);
    rig.do((link, now) => link.visible(now));
    expect(rig.last("subscribe")).toMatchObject({ channels: ["lp-performance"] });
    expect(rig.last("subscribe").resume).toBeUndefined();
    expect(rig.link.state).toBe("live");
  });

  it("does not show again what was seen before it was hidden", () => {
    const rig = new Rig();
    rig.do((link, now) => link.subscribe(["routing-metrics"], now));
    rig.live();
    rig.subscribed("drop-oldest");
    rig.says({ ...alert(7), channel: "routing-metrics" });
    rig.do((link, now) => link.hidden(now));
    rig.pass(5000);
    rig.do((link, now) => link.visible(now));
    rig.token();
    rig.says(welcome());
    expect(rig.last("subscribe").resume).toBeUndefined();
    rig.subscribed("drop-oldest");
    const items = [6, 7, 20].map((offset) => ({ type: "alert", key: "", offset, data: {} }));
    const [effect] = rig.says(snapshot("routing-metrics", 20, items));
    expect(effect).toMatchObject({ items: [{ offset: 20, timestamp: "" }] });
    rig.says({ ...alert(21), channel: "routing-metrics" });
    expect(rig.link.stats.gaps).toBe(0);
    rig.closes();
    rig.live();
    expect(rig.last("subscribe").resume).toEqual({ "routing-metrics": { epoch: "e", offset: 21 } });
  });

  it("comes back after a drop for what must not be missed", () => {
    const rig = following();
    rig.do((link, now) => link.hidden(now));
    rig.pass(5000);
    rig.closes();
    rig.live();
    expect(rig.last("subscribe")).toMatchObject({ channels: ["alerts"], resume: { alerts: { offset: 1 } } });
    rig.do((link, now) => link.subscribe(["routing-metrics"], now));
    expect(rig.last("subscribe").channels).toEqual(["alerts"]); // later, when somebody looks
    rig.do((link, now) => link.visible(now));
    expect(rig.last("subscribe").channels).toEqual(["lp-performance", "routing-metrics"]);
  });

  it("without such a channel gives the connection up, and comes back when it is seen", () => {
    const rig = new Rig();
    rig.do((link, now) => link.subscribe(["lp-performance"], now));
    rig.live();
    rig.subscribed("conflate");
    rig.do((link, now) => link.hidden(now));
    const effects = rig.pass(5000);
    expect(effects.find((effect) => effect.do === "shut")).toMatchObject({ code: 1000 });
    expect(rig.link.state).toBe("paused");
    expect(rig.pass(1e6)).toEqual([]);
    rig.do((link, now) => link.visible(now));
    rig.token();
    rig.says(welcome());
    expect(rig.last("subscribe")).toMatchObject({ channels: ["lp-performance"] });
  });

  it("that is hidden while it connects gives that up, and begins again when it is seen", () => {
    const rig = new Rig();
    rig.do((link, now) => link.subscribe(["lp-performance"], now));
    rig.do((link) => link.connect());
    rig.token();
    const { attempt } = rig.link;
    rig.do((link, now) => link.hidden(now));
    expect(rig.pass(5000).find((effect) => effect.do === "shut")).toMatchObject({ code: 1000 });
    expect(rig.do((link, now) => link.closed(attempt, 1000, "", now))).toEqual([]); // our own goodbye stops nothing
    expect(rig.link.state).toBe("paused");
    rig.do((link, now) => link.visible(now));
    rig.token();
    rig.says(welcome());
    expect(rig.last("subscribe").channels).toEqual(["lp-performance"]);
  });

  it("does not dial for nothing: not after a loss, not when it is opened in the background", () => {
    const rig = new Rig();
    rig.do((link, now) => link.subscribe(["lp-performance"], now));
    rig.do((link, now) => link.hidden(now));
    rig.do((link) => link.connect());
    rig.pass(5000);
    expect(rig.link.state).toBe("paused");
    rig.do((link) => link.close());
    rig.do((link) => link.connect());
    expect(rig.link.state).toBe("paused");
    rig.do((link, now) => link.visible(now));
    expect(rig.link.state).toBe("connecting");
  });

  it("seen again does not wait for the next try", () => {
    const rig = following();
    rig.do((link, now) => link.hidden(now));
    rig.closes();
    rig.do((link, now) => link.visible(now));
    expect(rig.effects.at(-1)).toMatchObject({ do: "token", why: "connect" });
  });
});

describe("the network", () => {
  it("that is gone is not dialled; back again, not all dial at once", () => {
    const rig = new Rig();
    rig.live();
    rig.do((link, now) => link.offline(now));
    expect(rig.last("ping")).toBeDefined(); // it may still be a link
    rig.closes();
    expect(rig.pass(1e6).filter((effect) => effect.do === "token")).toEqual([]);
    rig.do((link, now) => link.online(now));
    rig.closes();
    expect(rig.link.deadline).toBeLessThanOrEqual(rig.now + 250);
    rig.live();
    expect(rig.link.state).toBe("live");
  });

  it("does not matter to a hub on this machine", () => {
    const rig = new Rig({ waitsForNetwork: false });
    rig.do((link, now) => link.offline(now));
    rig.do((link) => link.connect());
    rig.token();
    rig.closes();
    expect(rig.pass(20_000).some((effect) => effect.do === "token")).toBe(true);
  });
});

describe("the rate", () => {
  it("is asked for on each connection", () => {
    const rig = new Rig({ rate: 10 });
    rig.live();
    expect(rig.last("rate").rate).toBe(10);
    rig.do((link) => link.setRate(null));
    expect(rig.last("rate").rate).toBeNull();
    rig.do((link) => link.setRate(5));
    rig.closes();
    expect(rig.requests(rig.live())).toMatchObject([{ action: "rate", rate: 5 }]);
  });
});

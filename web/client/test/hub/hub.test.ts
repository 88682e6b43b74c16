import { describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { alert, control, has, lp, publish, screen, signIn, token } from "./house.js";

const CHANNELS = ["routing-metrics", "lp-performance", "exposure-updates", "alerts"];
let unique = 0;
/** A name that no other test uses: they share one hub. */
const fresh = (word: string): string => `${word}-${process.pid}-${(unique += 1)}`;

describe("a signed-in screen", () => {
  it("sees every channel live, and the state of each when it comes late", async () => {
    const jwt = await signIn("ann", "correct-horse-7-staple");
    const { client, journal } = screen({ token: jwt, channels: CHANNELS });
    await client.connect();
    await journal.until(has(...CHANNELS.map((channel) => `subscribed ${channel} false`)));
    const [name, title] = [fresh("LP"), fresh("late")];
    await publish(
      { channel: "routing-metrics", type: "routing-decision", data: { symbol: name, routingDecision: "ABOOK" } },
      lp(name, 4),
      { channel: "exposure-updates", type: "exposure-change", key: name, data: { netExposure: 7 } },
      alert(title),
    );
    await journal.until(has(`routing ${name}`, `lp ${name} 4`, "exposure 7", `alert ${title}`));
    expect(client.stats.gaps).toBe(0);

    const late = screen({ token: jwt, channels: CHANNELS });
    void late.client.connect();
    await late.journal.until(has(`routing ${name}`, `lp ${name} 4`, "exposure 7", `alert ${title}`));
    await publish({ ...lp(name, 0), data: null });
    await late.journal.until(has(`removed lp-performance ${name}`));
  });

  it.each([true, false])("with deflate %s", async (perMessageDeflate) => {
    class Socket extends WebSocket {
      constructor(url: string, protocols: string[]) {
        super(url, protocols, { perMessageDeflate });
      }
    }
    const { client, journal } = screen({ token: await token("admin"), channels: ["alerts"], webSocket: Socket });
    await client.connect();
    await journal.until(has("subscribed alerts false"));
    const title = fresh("squeezed ".repeat(50));
    await publish(alert(title));
    await journal.until(has(`alert ${title}`));
  });

  it("sees only what its role may, is told of the rest, and loses nothing by it", async () => {
    const { client, journal } = screen({ token: await token("viewer"), channels: ["exposure-updates", "alerts", "no-such"] });
    await client.connect();
    await journal.until(
      has("subscribed alerts false", "error hub forbidden exposure-updates", "error hub unknown_channel no-such"),
    );
    expect(client.channels.get("exposure-updates")?.standing).toBe("refused");
    expect(client.state).toBe("live");
  });

  it("asks for a slower pace and still ends with the newest of each key", async () => {
    const { client, journal } = screen({ token: await token("admin"), channels: ["lp-performance"], rate: 20 });
    await client.connect();
    await journal.until(has("subscribed lp-performance false"));
    const name = fresh("LP");
    await publish(...Array.from({ length: 200 }, (_, n) => lp(name, n)));
    await journal.until(has(`lp ${name} 199`));
    expect(client.stats.conflated).toBeGreaterThan(0);
    client.setRate(null);
    await publish(lp(name, 200));
    await journal.until(has(`lp ${name} 200`));
    expect(journal.entries.filter((entry) => entry.startsWith("error"))).toEqual([]);
  });

  it("gives a channel up and takes it again", async () => {
    const { client, journal } = screen({ token: await token("admin"), channels: ["lp-performance"] });
    await client.connect();
    await journal.until(has("subscribed lp-performance false"));
    client.unsubscribe(["lp-performance"]);
    client.subscribe(["alerts"]);
    await journal.until(has("subscribed alerts false"));
    const name = fresh("LP");
    await publish(lp(name, 1));
    client.subscribe(["lp-performance"]);
    await journal.until(has(`lp ${name} 1`)); // of the snapshot
    expect(journal.entries.filter((entry) => entry === `lp ${name} 1`)).toHaveLength(1);
  });

  it("measures the way to the hub and back", async () => {
    const { client, journal } = screen({ token: await token("viewer"), limits: { heartbeat: 1 } });
    await client.connect();
    await journal.until((entries) => entries.filter((entry) => entry === "pong").length >= 2);
    expect(client.stats.roundTrip).toBeGreaterThan(0);
    expect(client.state).toBe("live");
  });
});

describe("after a loss", () => {
  it("exactly what was missed comes, in order, each once", async () => {
    const base = fresh("seq");
    let gate = Promise.resolve();
    const { client, journal } = screen({
      channels: ["alerts", "routing-metrics"],
      token: async () => {
        await gate; // it stays away until all is published
        return token("admin");
      },
    });
    await client.connect();
    await journal.until(has("subscribed alerts false", "subscribed routing-metrics false"));
    await publish(alert(`${base} 0`, `${base}-0`), { channel: "routing-metrics", type: "routing-decision", data: { symbol: `${base} 0` } });
    await journal.until(has(`alert ${base} 0`, `routing ${base} 0`));
    for (let round = 0; round < 3; round += 1) {
      let open = (): void => undefined;
      gate = new Promise<void>((resolve) => {
        open = resolve;
      });
      await control("cut");
      await journal.until((entries) => entries.filter((entry) => entry.startsWith("state reconnecting")).length > round);
      const drafts = Array.from({ length: 30 }, (_, n) => `${base} ${round * 30 + n + 1}`);
      await publish(
        ...drafts.map((title) => alert(title, title.replace(" ", "-"))),
        ...drafts.map((symbol) => ({ channel: "routing-metrics", type: "routing-decision", data: { symbol } })),
      );
      open();
      await journal.until(has(`alert ${drafts.at(-1)}`, `routing ${drafts.at(-1)}`));
    }
    const numbers = (kind: string): number[] =>
      journal.entries.flatMap((entry) => (entry.startsWith(`${kind} ${base} `) ? [Number(entry.split(" ")[2])] : []));
    const all = Array.from({ length: 91 }, (_, n) => n);
    expect(numbers("alert")).toEqual(all);
    expect(numbers("routing")).toEqual(all);
    expect(client.stats).toMatchObject({ gaps: 0, duplicates: 0 });
  });

  it("of the whole hub: alerts go on, and other channels begin anew", async () => {
    const [name, title] = [fresh("LP"), fresh("restart")];
    const { client, journal } = screen({ token: () => token("admin"), channels: ["alerts", "lp-performance"] });
    await client.connect();
    await journal.until(has("subscribed alerts false", "subscribed lp-performance false"));
    await publish(alert(`${title} 1`), lp(name, 1));
    await journal.until(has(`alert ${title} 1`, `lp ${name} 1`));
    await control("restart");
    await journal.until(has("subscribed alerts true", "gap lp-performance epoch"));
    await publish(alert(`${title} 2`), lp(name, 2));
    await journal.until(has(`alert ${title} 2`, `lp ${name} 2`));
    expect(journal.entries).toContain("state reconnecting 3001");
    expect(journal.entries.filter((entry) => entry === `alert ${title} 1`)).toHaveLength(1);
  });
});

describe("the token", () => {
  it("that is bad: stopped, and the reason is known", async () => {
    const { client } = screen({ token: "a.b.c" });
    await expect(client.connect()).rejects.toMatchObject({ code: 3500 });
    expect(client.state).toBe("stopped");
  });

  it("that has expired: the callback is asked for another", async () => {
    const tokens = [await token("viewer", -3600), await token("viewer")];
    const { client, journal } = screen({ token: () => tokens.shift() ?? "" });
    await client.connect();
    expect(journal.entries).toContain("state reconnecting 3002");
  });

  it("that is about to expire is renewed in the connection", async () => {
    const user = fresh("brief");
    let asked = 0;
    const { client, journal } = screen({ token: () => token("viewer", (asked += 1) === 1 ? 3 : 3600, user), channels: ["alerts"] });
    await client.connect();
    await journal.until(has("expiring", "refreshed"));
    expect(asked).toBe(2);
    expect(client.stats.connections).toBe(1);
  });

  it("that is withdrawn: stopped", async () => {
    const user = fresh("gone");
    const { client, journal } = screen({ token: await token("viewer", 3600, user) });
    await client.connect();
    await control("revoke", { user });
    await journal.until(has("state stopped 3502"));
  });

  it("of another origin's page: stopped", async () => {
    class Foreign extends WebSocket {
      constructor(url: string, protocols: string[]) {
        super(url, protocols, { origin: "https://elsewhere.example" });
      }
    }
    const { client } = screen({ token: await token("admin"), webSocket: Foreign });
    await expect(client.connect()).rejects.toMatchObject({ code: 3504 });
  });
});

it("a hidden page keeps its alerts and has a fresh state of the rest when it is seen", async () => {
  class Page extends EventTarget {
    hidden = false;
  }
  const page = new Page();
  const { client, journal } = screen({
    token: await token("admin"),
    channels: ["alerts", "lp-performance"],
    surroundings: { document: page },
    limits: { hiddenAfter: 0 },
  });
  await client.connect();
  await journal.until(has("subscribed alerts false", "subscribed lp-performance false"));
  const turn = (hidden: boolean): void => {
    page.hidden = hidden;
    page.dispatchEvent(new Event("visibilitychange"));
  };
  turn(true);
  const [name, title] = [fresh("LP"), fresh("hidden")];
  await control("unwatched", { channel: "lp-performance" });
  await publish(lp(name, 1), lp(name, 2), alert(title));
  await journal.until(has(`alert ${title}`));
  expect(journal.entries.filter((entry) => entry.startsWith(`lp ${name}`))).toEqual([]);
  turn(false);
  await journal.until(has(`lp ${name} 2`));
  expect(journal.entries).not.toContain(`lp ${name} 1`);
  expect(client.stats.connections).toBe(1);
});


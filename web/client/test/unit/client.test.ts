/** The face on real sockets: npm `ws` is the hub. */
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { WebSocket, WebSocketServer } from "ws";
import {
  AnalyticsWebSocket,
  ConnectionEnded,
  StopError,
  type AnalyticsHandlers,
  type AnalyticsWebSocketOptions,
  type StateChange,
} from "../../src/index.js";
import { STAMP, alert, control, snapshot, welcome } from "./rig.js";

let server: WebSocketServer;
let clients: AnalyticsWebSocket[];

beforeEach(async () => {
  server = new WebSocketServer({ port: 0, host: "127.0.0.1", handleProtocols: () => "keepline.v1" });
  clients = [];
  await once(server, "listening");
});

afterEach(async () => {
  for (const client of clients) client.close();
  for (const socket of server.clients) socket.terminate();
  server.close();
  await once(server, "close");
});

function make(options: Partial<AnalyticsWebSocketOptions> = {}, handlers: AnalyticsHandlers = {}): AnalyticsWebSocket {
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const client = new AnalyticsWebSocket(
    { url, token: "a.b.c", webSocket: WebSocket, limits: { backoff: { least: 1, most: 2 } }, ...options },
    handlers,
  );
  clients.push(client);
  return client;
}

/** The next connection, with what it offered and a queue of what it says. */
async function accepted(): Promise<Peer> {
  const [socket, request] = (await once(server, "connection")) as [WebSocket, { headers: Record<string, string>; url: string }];
  return new Peer(socket, request.headers["sec-websocket-protocol"] ?? "", request.url);
}

class Peer {
  readonly #said: string[] = [];
  readonly #waiting: ((text: string) => void)[] = [];

  constructor(
    readonly socket: WebSocket,
    readonly protocols: string,
    readonly url: string,
  ) {
    socket.on("message", (data) => {
      const next = this.#waiting.shift();
      if (next) next(String(data));
      else this.#said.push(String(data));
    });
  }

  async hears(): Promise<Record<string, unknown>> {
    const text = this.#said.shift() ?? (await new Promise<string>((resolve) => this.#waiting.push(resolve)));
    return JSON.parse(text) as Record<string, unknown>;
  }

  says(...messages: object[]): void {
    this.socket.send(JSON.stringify(messages));
  }

  async subscribes(policy: string): Promise<void> {
    const { channels, id } = (await this.hears()) as { channels: string[]; id: string };
    const told = { policy, epoch: "e", offset: 0, recovered: false, id };
    this.says(...channels.map((channel) => control("subscribed", told, channel)));
  }
}

/** A promise of the next call of a handler, and the handler. */
function awaited<Args extends unknown[]>(count = 1): { handler: (...args: Args) => void; calls: Promise<Args[]> } {
  const got: Args[] = [];
  let done = (_: Args[]): void => undefined;
  const calls = new Promise<Args[]>((resolve) => {
    done = resolve;
  });
  return {
    calls,
    handler: (...args) => {
      got.push(args);
      if (got.length === count) done(got);
    },
  };
}

describe("a connection", () => {
  it("offers the protocol and the token, asks nothing of the address, and is live with the welcome", async () => {
    const client = make({ channels: ["alerts"] });
    const live = client.connect();
    const peer = await accepted();
    expect(peer.protocols).toBe("keepline.v1,bearer.a.b.c");
    expect(peer.url).toBe("/ws/analytics");
    peer.says(welcome());
    await live;
    expect(client.state).toBe("live");
    expect(await peer.hears()).toMatchObject({ action: "subscribe", channels: ["alerts"] });
    expect(client.silence).toBeGreaterThanOrEqual(0);
    await client.connect(); // at once
    client.close(1000, "bye");
    const [code, reason] = (await once(peer.socket, "close")) as [number, Buffer];
    expect([code, String(reason)]).toEqual([1000, "bye"]);
  });

  it("comes back after a loss with another token, and resumes", async () => {
    const states: string[] = [];
    const asked: string[] = [];
    const client = make(
      {
        channels: ["alerts"],
        token: async (reason) => {
          asked.push(reason);
          return `t.${asked.length}.s`;
        },
      },
      { onState: (change) => states.push(change.state) },
    );
    void client.connect();
    let peer = await accepted();
    peer.says(welcome());
    await peer.subscribes("never");
    peer.says(alert(7));
    const back = accepted();
    peer.socket.close(3001, "restart");
    peer = await back;
    expect(peer.protocols).toBe("keepline.v1,bearer.t.2.s");
    peer.says(welcome());
    expect(await peer.hears()).toMatchObject({ resume: { alerts: { epoch: "e", offset: 7 } } });
    expect(asked).toEqual(["connect", "connect"]);
    expect(states).toEqual(["connecting", "live", "reconnecting", "live"]);
    expect(client.stats).toMatchObject({ connections: 2, retries: 1 });
  });

  it("that the hub ends for good fails the promise, and says why", async () => {
    const client = make();
    const live = client.connect();
    const peer = await accepted();
    peer.socket.close(3500, "sign in");
    const error = await live.catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(ConnectionEnded);
    expect(error).toMatchObject({ code: 3500, message: "sign in" });
    expect(client.state).toBe("stopped");
  });

  it("whose promise nobody awaits may be closed without a crash", () => {
    const client = make();
    void client.connect();
    client.close();
    expect(client.state).toBe("closed");
  });

  it("stops when the token's source says so, and tries again when it merely fails", async () => {
    const troubles: string[] = [];
    let calls = 0;
    const client = make(
      {
        token: () => {
          calls += 1;
          if (calls === 1) throw new Error("busy");
          throw new StopError("signed out");
        },
      },
      { onError: (trouble) => troubles.push(trouble.message) },
    );
    await expect(client.connect()).rejects.toThrow("no token: signed out");
    expect(troubles).toEqual(["no token: busy"]);
    expect(client.state).toBe("stopped");
  });

  it("renews its token without a new connection", async () => {
    let calls = 0;
    const client = make({ token: () => `t.${(calls += 1)}.s` });
    void client.connect();
    const peer = await accepted();
    peer.says(welcome(), control("expiring"));
    expect(await peer.hears()).toMatchObject({ action: "refresh", token: "t.2.s" });
    peer.says(control("refreshed"));
    expect(server.clients.size).toBe(1);
    expect(client.state).toBe("live");
  });

  it("that does not answer is cut off", async () => {
    const client = make({ limits: { heartbeat: 1, pongTimeout: 1, backoff: { least: 1, most: 1 } } });
    void client.connect();
    const peer = await accepted();
    peer.says(welcome());
    expect(await peer.hears()).toMatchObject({ action: "ping" });
    await accepted(); // it is there again
    expect(client.state).toBe("reconnecting");
  });

  it("a WebSocket that cannot be made stops the client, and its words are not repeated", async () => {
    class Broken {
      constructor(_: string, protocols: string[]) {
        throw new SyntaxError(`bad ${protocols}`);
      }
      send(): void {}
      close(): void {}
      addEventListener(): void {}
    }
    const client = make({ webSocket: Broken });
    await expect(client.connect()).rejects.toThrow("the WebSocket could not be made: SyntaxError");
  });

  it("never says a token, not even when debugging", async () => {
    const lines: string[] = [];
    const client = make({ debug: (line) => lines.push(line), token: () => "se.cr.et", channels: ["alerts"] });
    void client.connect();
    const peer = await accepted();
    peer.says(welcome());
    await peer.subscribes("never");
    client.close();
    expect(lines.join("\n")).toContain("connecting -> live");
    expect(lines.join("\n")).not.toContain("se.cr.et");
  });
});

describe("the handlers", () => {
  const envelope = (channel: string, offset: number, extra: object): object => ({
    channel,
    offset,
    epoch: "e",
    timestamp: STAMP,
    ...extra,
  });

  it("get each type, with its message, by itself or of a snapshot", async () => {
    const got: unknown[] = [];
    const end = awaited<[string, string]>();
    const client = make(
      { channels: ["all"] },
      {
        onRoutingMetrics: (data, message) => got.push(["routing", data.symbol, message.type]),
        onLPPerformance: (data, message, { snapshot }) => got.push(["lp", data.lpName, message.key, snapshot]),
        onExposureUpdate: (data) => got.push(["exposure", data.netExposure]),
        onAlert: (data, message) => got.push(["alert", data.title, message.id]),
        onOther: (data, message) => got.push(["other", message.type, data]),
        onSnapshot: (message) => got.push(["snapshot", message.data.partial]),
        onRemoved: end.handler,
      },
    );
    void client.connect();
    const peer = await accepted();
    peer.says(welcome());
    await peer.subscribes("conflate");
    peer.says(
      snapshot("all", 2, [{ type: "lp-metrics", key: "LP1", offset: 2, data: { lpName: "LP1" } }]),
      envelope("all", 3, { type: "routing-decision", data: { symbol: "EURUSD" } }),
      envelope("all", 4, { type: "exposure-change", data: { netExposure: 5 } }),
      envelope("all", 5, { type: "alert", id: "a-1", data: { title: "Hello" } }),
      envelope("all", 6, { type: "stream", data: [1] }),
      envelope("all", 7, { type: "lp-metrics", key: "LP1", data: null }),
    );
    const [removed] = await end.calls;
    expect(removed?.slice(0, 2)).toEqual(["all", "LP1"]);
    expect(got).toEqual([
      ["snapshot", false],
      ["lp", "LP1", "LP1", true],
      ["routing", "EURUSD", "routing-decision"],
      ["exposure", 5],
      ["alert", "Hello", "a-1"],
      ["other", "stream", [1]],
    ]);
    expect(client.channels.get("all")).toMatchObject({ standing: "on", policy: "conflate", epoch: "e", offset: 7 });
  });

  it("may throw, now or later, and may be missing: the others are called", async () => {
    const troubles: unknown[] = [];
    const end = awaited<[unknown]>();
    const client = make(
      { channels: ["alerts"] },
      {
        onMessage: () => {
          throw new Error("first");
        },
        onControl: async () => Promise.reject(new Error("later")),
        onError: (trouble) => {
          troubles.push(trouble.message);
          throw new Error("even this");
        },
        onAlert: end.handler,
      },
    );
    void client.connect();
    const peer = await accepted();
    peer.says(welcome());
    await peer.subscribes("never");
    peer.says(alert(1));
    await end.calls;
    expect(troubles).toContain("a handler failed: first");
    expect(troubles).toContain("a handler failed: later");
    expect(client.state).toBe("live");
  });

  it("may call the client: what they ask is done after what they were called for", async () => {
    const client = make(
      { channels: ["alerts"] },
      {
        onSubscribed: (message) => {
          if (message.channel === "alerts") client.subscribe(["lp-performance"]);
        },
        onGap: () => client.close(),
      },
    );
    void client.connect();
    const peer = await accepted();
    peer.says(welcome());
    await peer.subscribes("never");
    expect(await peer.hears()).toMatchObject({ action: "subscribe", channels: ["lp-performance"] });
    peer.says(control("gap", { from: 1, to: 2, count: 2, reason: "retention" }, "alerts"), alert(3));
    await once(peer.socket, "close");
    expect(client.stats).toMatchObject({ gaps: 1, missed: 2 });
  });

  it("with pace frame: the newest of each key and the newest of the rest, alerts at once", async () => {
    const got: string[] = [];
    const dropped = awaited<[string, number]>();
    const end = awaited<[unknown]>();
    const client = make(
      { channels: ["alerts", "lp-performance", "routing-metrics"], pace: "frame", mostWaiting: 2 },
      {
        onMessage: (message) => {
          got.push(`${message.channel} ${message.offset}`);
          if (message.offset === 99) end.handler(message);
        },
        onDropped: dropped.handler,
      },
    );
    void client.connect();
    const peer = await accepted();
    peer.says(welcome());
    const { id } = (await peer.hears()) as { id: string };
    const told = { epoch: "e", offset: 0, recovered: false, id };
    const lp = (offset: number) => envelope("lp-performance", offset, { type: "lp-metrics", key: "LP1", data: {} });
    const routing = (offset: number) => envelope("routing-metrics", offset, { type: "routing-decision", data: {} });
    peer.says(
      control("subscribed", { ...told, policy: "never" }, "alerts"),
      control("subscribed", { ...told, policy: "conflate" }, "lp-performance"),
      control("subscribed", { ...told, policy: "drop-oldest" }, "routing-metrics"),
      lp(1), lp(2), routing(1), lp(3), routing(2), routing(3), alert(1), routing(99),
    );
    await end.calls;
    expect(await dropped.calls).toEqual([["routing-metrics", 2]]);
    expect(got).toEqual(["alerts 1", "lp-performance 3", "routing-metrics 3", "routing-metrics 99"]);
    expect(client.stats.dropped).toBe(2);
  });
});

it("with pace frame a partial snapshot comes after what waits, and a whole one replaces it", async () => {
  const got: string[] = [];
  const end = awaited<[unknown]>();
  const client = make(
    { channels: ["lp"], pace: "frame" },
    {
      onMessage: (message) => {
        got.push(`${message.type} ${message.offset}`);
        if (message.offset === 9) end.handler(message);
      },
    },
  );
  void client.connect();
  const peer = await accepted();
  peer.says(welcome());
  await peer.subscribes("conflate");
  const lp = (offset: number) => alert(offset, { channel: "lp", key: "LP1" });
  const gone = alert(1, { channel: "lp", key: "LP0" });
  peer.says(gone, snapshot("lp", 2, []), lp(3), snapshot("lp", 5, [], true), lp(9));
  await end.calls;
  expect(got).toEqual(["snapshot 2", "alert 3", "snapshot 5", "alert 9"]);
});

it("with pace frame a snapshot of what does not conflate replaces nothing that waits", async () => {
  const got: string[] = [];
  const end = awaited<[unknown]>();
  const note = (message: { offset: number }) => {
    got.push(`alert ${message.offset}`);
    if (message.offset === 9) end.handler(message);
  };
  const client = make({ channels: ["routing"], pace: "frame" }, { onAlert: (_, message) => note(message) });
  void client.connect();
  const peer = await accepted();
  peer.says(welcome());
  await peer.subscribes("drop-oldest");
  const routing = (offset: number) => alert(offset, { channel: "routing" });
  const items = [2, 3].map((offset) => ({ type: "alert", key: "", offset, timestamp: STAMP, data: {} }));
  peer.says(routing(1), routing(2), snapshot("routing", 3, items), routing(9));
  await end.calls;
  expect(got).toEqual(["alert 1", "alert 2", "alert 3", "alert 9"]);
});

it("the end of an old connection is not the end of a new one", async () => {
  const made: WebSocket[] = [];
  class Noted extends WebSocket {
    constructor(url: string, protocols: string[]) {
      super(url, protocols);
      made.push(this);
    }
  }
  const client = make({ webSocket: Noted });
  const first = accepted();
  void client.connect();
  const old = await first;
  old.says(welcome());
  await client.connect();
  old.socket.pause(); // it does not say goodbye yet
  client.close();
  const second = accepted();
  void client.connect();
  const peer = await second;
  peer.says(welcome());
  await client.connect();
  const gone = once(made[0] as WebSocket, "close");
  old.socket.resume();
  await gone; // the client heard of it first
  client.subscribe(["alerts"]);
  expect(await peer.hears()).toMatchObject({ action: "subscribe", channels: ["alerts"] });
});

describe("a page around it", () => {
  class Page extends EventTarget {
    hidden = false;

    turn(hidden: boolean): void {
      this.hidden = hidden;
      this.dispatchEvent(new Event("visibilitychange"));
    }
  }

  it("that is hidden costs the hub nothing, and is fresh when it is seen again", async () => {
    const page = new Page();
    const paused = awaited<[StateChange]>();
    const client = make(
      { channels: ["lp-performance"], surroundings: { document: page }, limits: { hiddenAfter: 0, backoff: { least: 1, most: 1 } } },
      { onState: (change) => (change.state === "paused" ? paused.handler(change) : undefined) },
    );
    void client.connect();
    let peer = await accepted();
    peer.says(welcome());
    await peer.subscribes("conflate");
    page.turn(true);
    await paused.calls;
    const back = accepted();
    page.turn(false);
    peer = await back;
    peer.says(welcome());
    expect(await peer.hears()).toEqual({ action: "subscribe", channels: ["lp-performance"], id: expect.any(String) });
  });

  it("with pauseWhenHidden: false stays as it is", async () => {
    const page = new Page();
    page.hidden = true;
    const client = make({ pauseWhenHidden: false, surroundings: { document: page }, limits: { hiddenAfter: 0 } });
    const live = client.connect();
    (await accepted()).says(welcome());
    await live;
  });

  it("that is online again is asked whether the link still is one, and not after the end", async () => {
    const machine = new EventTarget();
    const client = make({ surroundings: { window: machine } });
    const live = client.connect();
    const peer = await accepted();
    peer.says(welcome());
    await live;
    machine.dispatchEvent(new Event("online"));
    const ping = await peer.hears();
    peer.says(control("pong", { id: ping["id"] }));
    client.close();
    machine.dispatchEvent(new Event("offline"));
    expect(client.state).toBe("closed");
  });
});

it("another rate is asked for, and a channel can be given up", async () => {
  const client = make({ channels: ["alerts"], rate: 10 });
  void client.connect();
  const peer = await accepted();
  peer.says(welcome());
  expect(await peer.hears()).toMatchObject({ action: "rate", rate: 10 });
  await peer.subscribes("never");
  client.setRate(null);
  expect(await peer.hears()).toMatchObject({ action: "rate", rate: null });
  client.unsubscribe(["alerts"]);
  expect(client.channels.size).toBe(0);
});

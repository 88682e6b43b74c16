import { describe, expect, it } from "vitest";
import { AnalyticsWebSocket, type SocketConstructor } from "../../src/index.js";
import { readAddress } from "../../src/options.js";

describe("the address", () => {
  it.each([
    ["http://127.0.0.1:7999", "ws://127.0.0.1:7999/ws/analytics"],
    ["https://desk.example/", "wss://desk.example/ws/analytics"],
    ["wss://desk.example/hub/ws/analytics?x=1#top", "wss://desk.example/hub/ws/analytics?x=1"],
  ])("%s means %s", (given, meant) => {
    expect(readAddress(given).href).toBe(meant);
  });

  it.each(["no address", "ftp://desk.example", "https://ann:pw@desk.example", "wss://desk.example/?token=x"])(
    "%s is refused in words that repeat no secret",
    (given) => {
      expect(() => readAddress(given)).toThrow(TypeError);
      expect(() => readAddress(given)).not.toThrow(/pw|token=x/);
    },
  );
});

describe("an option that cannot be meant", () => {
  class Socket {
    send(): void {}
    close(): void {}
    addEventListener(): void {}
  }
  const webSocket: SocketConstructor = Socket;
  const good = { url: "http://h.example", token: "t", webSocket };

  it("is refused when the client is made", () => {
    expect(() => new AnalyticsWebSocket({ ...good, token: "" })).toThrow("token is a text");
    expect(() => new AnalyticsWebSocket({ ...good, channels: [""] })).toThrow("1 to 255");
    expect(() => new AnalyticsWebSocket({ ...good, rate: 0 })).toThrow(RangeError);
    expect(() => new AnalyticsWebSocket(good).setRate(Number.NaN)).toThrow(RangeError);
    expect(() => new AnalyticsWebSocket(good).subscribe(["x".repeat(256)])).toThrow(TypeError);
  });

  it("a lone channel's name is one channel, not its letters", () => {
    const client = new AnalyticsWebSocket({ ...good, channels: "alerts" });
    expect([...client.channels.keys()]).toEqual(["alerts"]);
  });

  it.runIf(!("WebSocket" in globalThis))("says what to do where there is no WebSocket", () => {
    expect(() => new AnalyticsWebSocket({ url: good.url, token: "t" })).toThrow("webSocket");
  });
});

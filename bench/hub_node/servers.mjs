// Peers of the bench of the hub on Node and Bun: `node servers.mjs ws|socketio PORT RATE each|joined plain|deflate`,
// `bun servers.mjs bun …`. A line on standard input starts the publisher: the messages that are due, every 16 ms.
const [name, port, rate, style, wire] = process.argv.slice(2);
const deflate = wire === "deflate";

function message(number, stamp) {
  const channel = number % 4;
  return `{"type":"routing-decision","channel":"desk-${channel}","offset":${number},"epoch":"k3j9x2",` +
    `"timestamp":"2026-11-20T09:00:00.000Z","data":{"symbol":"SYM${number % 50}","side":"BUY","volume":1.5,` +
    `"routingDecision":"ABOOK","lpSelected":"LP-ALPHA","at":"@${stamp}"}}`;
}

const wall = () => Math.round((performance.timeOrigin + performance.now()) * 1000);

function publisher(send) {
  process.stdin.once("data", () => {
    const began = performance.now(), wallBegan = wall();
    let done = 0, ticks = 0;
    const quiet = rate < 60;
    const tick = () => {
      const due = Math.floor((performance.now() - began) * rate / 1000);
      const texts = [];
      for (; done < due; done++)
        texts.push(message(done, quiet ? wall() : wallBegan + Math.round(done * 1e6 / rate)));
      if (texts.length) {
        if (style === "joined") send(`[${texts.join(",")}]`);
        else texts.forEach(send);
      }
      ticks++;
      const next = quiet ? (done + 1) * 1000 / rate : Math.max(ticks * 16, 0);
      setTimeout(tick, Math.max(0, began + next - performance.now()));
    };
    tick();
  });
}

if (name === "bun") {
  const server = Bun.serve({
    port: Number(port),
    hostname: "127.0.0.1",
    fetch: (request, self) => self.upgrade(request) ? undefined : new Response("no"),
    websocket: {
      perMessageDeflate: deflate ? { compress: "shared", decompress: "shared" } : false,
      open: (socket) => socket.subscribe("all"),
      message() {},
    },
  });
  publisher((text) => server.publish("all", text, deflate));
} else if (name === "ws") {
  const { WebSocketServer, WebSocket } = await import("ws");
  const server = new WebSocketServer({
    port: Number(port),
    host: "127.0.0.1",
    perMessageDeflate: deflate ? { serverNoContextTakeover: true, clientNoContextTakeover: true } : false,
  });
  publisher((text) => {
    for (const client of server.clients) if (client.readyState === WebSocket.OPEN) client.send(text);
  });
} else {
  const { createServer } = await import("node:http");
  const { Server } = await import("socket.io");
  const http = createServer();
  const io = new Server(http, { transports: ["websocket"] });
  io.on("connection", () => {});
  http.listen(Number(port), "127.0.0.1");
  publisher((text) => io.emit("messages", text));
}

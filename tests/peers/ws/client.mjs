// A client of the hub with npm `ws`, which is strict: it closes with an error on whatever a server may not send.
// One JSON line from standard input: {url, token, deflate, subprotocol, wanted}; what happens goes out as JSON lines.
import { createInterface } from "node:readline";
import WebSocket from "ws";

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const { url, token, deflate, subprotocol, wanted } = JSON.parse((await lines.next()).value);

const protocols = subprotocol ? ["keepline.v1", `bearer.${token}`] : [];
const headers = subprotocol ? {} : { Authorization: `Bearer ${token}` };
const socket = new WebSocket(url, protocols, { perMessageDeflate: deflate, headers });

const numbers = [];
let finished = false;
socket.on("open", () => {
  say({ open: true, extensions: socket.extensions, protocol: socket.protocol });
  socket.send(JSON.stringify({ action: "subscribe", channels: ["routing-metrics"], id: "ünï→𝄞" }));
});
socket.on("message", (data, binary) => {
  if (binary) say({ problem: "a binary message" });
  for (const message of JSON.parse(data.toString())) {
    if (message.type === "subscribed") say({ subscribed: message.data.id });
    if (message.type === "error") say({ problem: message.data.code });
    if (message.type === "numbered") numbers.push(message.data.number);
  }
  if (numbers.length >= wanted && !finished) {
    finished = true;
    // a request larger than ws's threshold for compression, then a ping, then the end
    socket.send(JSON.stringify({ action: "ping", id: "last" }).padEnd(5000));
    socket.ping("between");
  }
});
socket.on("pong", (data) => {
  say({ numbers, pong: data.toString() });
  socket.close(4001, "für heute");
});
socket.on("unexpected-response", (_, response) => {
  say({ status: response.statusCode });
  socket.terminate();
});
socket.on("error", (error) => say({ problem: error.message }));
socket.on("close", (code, reason) => {
  say({ code, reason: reason.toString() });
  process.exit(0);
});

// Does with the official client what it is told, a line of JSON each way, and ends with its standard input.
import readline from 'node:readline';

import * as signalr from '@microsoft/signalr';
import { MessagePackHubProtocol } from '@microsoft/signalr-protocol-msgpack';

const transports = {
  websockets: signalr.HttpTransportType.WebSockets,
  events: signalr.HttpTransportType.ServerSentEvents,
  polling: signalr.HttpTransportType.LongPolling,
};
const hubs = new Map();
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const words = (error) => error?.message ?? null;

// the items of an upload come when they are told, or at once
const uploads = new Map();
const subject = ({ name, items }) => {
  const made = new signalr.Subject();
  if (name) uploads.set(name, made);
  return [made, () => { for (const item of items ?? []) made.next(item); if (!name) made.complete(); }];
};
const withUploads = (plain, streams, call) => {
  const made = (streams ?? []).map(subject);
  const [first, ...rest] = made.map(([stream]) => stream);
  // this client overlooks a stream that stands right after another one
  const called = first ? call(first, ...plain, ...rest) : call(...plain);
  for (const [, begin] of made) begin();
  return called;
};

const build = ({ hub, url, transport, messagepack, token, skipNegotiation, stateful, reconnect, keepAlive, serverTimeout }) => {
  const options = {};
  if (transport) options.transport = transports[transport];
  if (skipNegotiation) options.skipNegotiation = true;
  if (token) options.accessTokenFactory = () => { say({ event: 'token', hub }); return token; };
  const builder = new signalr.HubConnectionBuilder().withUrl(url, options).configureLogging(signalr.LogLevel.None);
  if (messagepack) builder.withHubProtocol(new MessagePackHubProtocol());
  if (stateful) builder.withStatefulReconnect(stateful);
  if (reconnect) builder.withAutomaticReconnect(reconnect);
  if (keepAlive) builder.withKeepAliveInterval(keepAlive);
  if (serverTimeout) builder.withServerTimeout(serverTimeout);
  const made = builder.build();
  made.onclose((error) => say({ event: 'closed', hub, error: words(error) }));
  made.onreconnecting((error) => say({ event: 'reconnecting', hub, error: words(error) }));
  made.onreconnected((id) => say({ event: 'reconnected', hub, id }));
  hubs.set(hub, made);
};

const streams = new Map();
const open = ({ hub, name, target, args, up }) => withUploads(args, up, (...all) => {
  const observer = {
    next: (item) => say({ event: 'item', name, item }),
    complete: () => say({ event: 'end', name, error: null }),
    error: (error) => say({ event: 'end', name, error: words(error) }),
  };
  streams.set(name, hubs.get(hub).stream(target, ...all).subscribe(observer));
});

const on = ({ hub, target, answer }) => hubs.get(hub).on(target, (...args) => {
  say({ event: 'call', hub, target, args });
  if (answer === 'fail') throw new Error('the handler failed');
  return answer === undefined ? undefined : [answer, ...args];
});

const work = {
  build,
  on,
  stream: open,
  start: ({ hub }) => hubs.get(hub).start(),
  stop: ({ hub }) => hubs.get(hub).stop(),
  id: ({ hub }) => hubs.get(hub).connectionId,
  state: ({ hub }) => hubs.get(hub).state,
  invoke: ({ hub, target, args, up }) => withUploads(args, up, (...all) => hubs.get(hub).invoke(target, ...all)),
  send: ({ hub, target, args }) => hubs.get(hub).send(target, ...args),
  dispose: ({ name }) => streams.get(name).dispose(),
  next: ({ name, item }) => uploads.get(name).next(item),
  complete: ({ name }) => uploads.get(name).complete(),
  abort: ({ name, error }) => uploads.get(name).error(new Error(error)),
};

readline.createInterface({ input: process.stdin }).on('line', async (line) => {
  const told = JSON.parse(line);
  try {
    say({ id: told.id, result: (await work[told.do](told)) ?? null });
  } catch (error) {
    say({ id: told.id, error: words(error) });
  }
}).on('close', () => process.exit(0));
say({ event: 'ready' });

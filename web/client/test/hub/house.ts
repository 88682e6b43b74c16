/** The real hub, which tests/peers/test_web_client.py starts; without it these tests fail and say so. */
import { afterEach } from "vitest";
import { WebSocket } from "ws";
import {
  AnalyticsWebSocket,
  type AnalyticsHandlers,
  type AnalyticsWebSocketOptions,
  type OtherMessage,
} from "../../src/index.js";

function variable(name: string): string {
  const value = process.env[name];
  if (value) return value;
  throw new Error(`${name} is not set: run these tests by pytest tests/peers/test_web_client.py`);
}

export const HUB = variable("KEEPLINE_HUB_URL");
const CONTROL = variable("KEEPLINE_HUB_CONTROL");

/** Have the Python side do something to the hub. */
export async function control<Answer>(action: string, body: object = {}): Promise<Answer> {
  const answer = await fetch(`${CONTROL}/${action}`, { method: "POST", body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(`${action}: ${answer.status} ${await answer.text()}`);
  return (await answer.json()) as Answer;
}

export async function token(role: string, seconds = 3600, user = `${role}-1`): Promise<string> {
  return (await control<{ token: string }>("token", { role, seconds, user })).token;
}

/** Sign in as a person does. */
export async function signIn(username: string, password: string): Promise<string> {
  const answer = await fetch(`${HUB}/login`, { method: "POST", body: JSON.stringify({ username, password }) });
  return ((await answer.json()) as { token: string }).token;
}

export interface Draft {
  readonly channel: string;
  readonly type: string;
  readonly data: unknown;
  readonly key?: string;
  readonly id?: string;
}

export async function publish(...drafts: Draft[]): Promise<void> {
  const answer = await fetch(`${HUB}/api/publish`, {
    method: "POST",
    headers: { authorization: `Bearer ${await token("service")}` },
    body: drafts.map((draft) => JSON.stringify(draft)).join("\n"),
  });
  if (!answer.ok) throw new Error(`publish: ${answer.status} ${await answer.text()}`);
}

export function alert(title: string, id?: string): Draft {
  const data = { severity: "info", category: "test", title, message: "", source: "vitest", actionItems: [] };
  return { channel: "alerts", type: "alert", data, ...(id === undefined ? {} : { id }) };
}

export function lp(name: string, latencyMs: number): Draft {
  return { channel: "lp-performance", type: "lp-metrics", key: name, data: { lpName: name, latencyMs } };
}

/** Awaits what a test is after: `until` resolves when the condition holds, asked after each `note`. */
export class Journal<Entry> {
  readonly entries: Entry[] = [];
  #waiting: (() => void)[] = [];

  readonly note = (entry: Entry): void => {
    this.entries.push(entry);
    for (const wake of this.#waiting.splice(0)) wake();
  };

  async until(condition: (entries: readonly Entry[]) => boolean): Promise<readonly Entry[]> {
    while (!condition(this.entries)) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    return this.entries;
  }
}

/** A client and everything that it was told, as short texts. */
export interface Screen {
  readonly client: AnalyticsWebSocket;
  readonly journal: Journal<string>;
}

const screens: Screen[] = [];
afterEach(() => {
  for (const { client } of screens.splice(0)) client.close();
});

export function screen(
  options: Partial<AnalyticsWebSocketOptions> & Pick<AnalyticsWebSocketOptions, "token">,
  handlers: AnalyticsHandlers = {},
): Screen {
  const journal = new Journal<string>();
  const { note } = journal;
  const client = new AnalyticsWebSocket(
    { url: HUB, webSocket: WebSocket, limits: { backoff: { least: 10, most: 50 } }, ...options },
    {
      onRoutingMetrics: (data) => note(`routing ${data.symbol}`),
      onLPPerformance: (data) => note(`lp ${data.lpName} ${data.latencyMs}`),
      onExposureUpdate: (data) => note(`exposure ${data.netExposure}`),
      onAlert: (data) => note(`alert ${data.title}`),
      onOther: (_, message: OtherMessage) => note(`other ${message.type}`),
      onRemoved: (channel, key) => note(`removed ${channel} ${key}`),
      onSubscribed: (message) => note(`subscribed ${message.channel} ${message.data.recovered}`),
      onUnsubscribed: (message) => note(`unsubscribed ${message.channel}`),
      onGap: (message) => note(`gap ${message.channel} ${message.data.reason}`),
      onControl: (message) => (message.type === "subscribed" ? undefined : note(message.type)),
      onState: (change) => note(`state ${change.state}${change.code ? ` ${change.code}` : ""}`),
      onError: (trouble) => note(`error ${trouble.kind} ${trouble.code ?? trouble.message} ${trouble.channel ?? ""}`.trim()),
      ...handlers,
    },
  );
  const made = { client, journal };
  screens.push(made);
  return made;
}

export function has(...wanted: string[]): (entries: readonly string[]) => boolean {
  return (entries) => wanted.every((each) => entries.includes(each));
}

/** The page as the hub sends it, in a document of its own. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { Window } from "happy-dom";
import { afterAll, beforeAll, expect, it, vi } from "vitest";
import { WebSocket } from "ws";
import { HUB, alert, control, lp, publish } from "./house.js";

const window = new Window({ url: `${HUB}/` });
const { document } = window;
const folder = mkdtempSync(join(tmpdir(), "keepline-page-"));
let html = "";

function text(selector: string): string {
  return document.querySelector(selector)?.textContent ?? "";
}

/** Resolves when something on the page has changed so that the condition holds. */
async function seen(condition: () => boolean): Promise<void> {
  if (condition()) return;
  await new Promise<void>((resolve) => {
    const observer = new window.MutationObserver(() => {
      if (!condition()) return;
      observer.disconnect();
      resolve();
    });
    observer.observe(document, { subtree: true, childList: true, characterData: true, attributes: true });
  });
}

function submit(name: string, password: string): void {
  (document.querySelector("#username") as unknown as { value: string }).value = name;
  (document.querySelector("#password") as unknown as { value: string }).value = password;
  document.querySelector("#sign-in")?.dispatchEvent(new window.Event("submit", { cancelable: true }));
}

beforeAll(async () => {
  html = await (await fetch(`${HUB}/`)).text();
  for (const name of ["app.js", "client.js"]) {
    const answer = await fetch(`${HUB}/${name}`);
    expect(answer.headers.get("content-type")).toContain("javascript");
    writeFileSync(join(folder, name), await answer.text());
  }
  writeFileSync(join(folder, "package.json"), '{"type": "module"}');
  document.write(html);
  Object.assign(globalThis, { document, location: window.location, WebSocket });
  await import(/* @vite-ignore */ pathToFileURL(join(folder, "app.js")).href);
});

afterAll(async () => {
  rmSync(folder, { recursive: true });
  await window.happyDOM.close();
});

it("is sent with a policy that it keeps: nothing inline, nothing foreign", async () => {
  const answer = await fetch(`${HUB}/`);
  const policy = answer.headers.get("content-security-policy") ?? "";
  expect(policy).toContain("script-src 'self'");
  expect(policy).not.toContain("unsafe");
  expect(html).not.toMatch(/<script(?![^>]*src=)|<style|\sstyle=|\son\w+=|https?:/);
});

it("says why nobody is let in", async () => {
  submit("ann", "not her password at all");
  await seen(() => text("#notice").startsWith("Sign-in failed: "));
  expect(document.querySelector("#desk")?.hasAttribute("hidden")).toBe(true);
});

it("shows what is live, how old it is, and what was conflated", async () => {
  submit("ann", "correct-horse-7-staple");
  await seen(() => text("#link") === "live");
  expect(document.querySelector("#link")?.getAttribute("role")).toBe("status");
  expect((document.querySelector("#password") as unknown as { value: string }).value).toBe("");
  const mark = `<b>${process.pid}`;
  await publish(
    lp(mark, 1),
    lp(mark, 7.5),
    { channel: "exposure-updates", type: "exposure-change", key: mark, data: { netExposure: 1234.5, riskLevel: "high", utilizationPct: 91 } },
    { channel: "routing-metrics", type: "routing-decision", data: { symbol: mark, routingDecision: "REJECT", volume: 1 } },
    alert(`${mark} first`),
    { ...alert(`${mark} second`), data: { severity: "critical", title: `${mark} second` } },
  );
  await seen(() => ["#lps", "#exposure", "#routing", "#alerts"].every((id) => text(id).includes(mark)));
  await seen(() => text("#alerts tr:first-child").includes(`${mark} second`));
  const row = [...document.querySelectorAll("#lps tr")].find((each) => each.textContent.includes(mark));
  expect(row?.children[3]?.textContent).toBe("7.5");
  expect(document.querySelector("#lps b")).toBeNull(); // text stays text
  expect(text("#exposure")).toContain("1,234.5");
  expect(text("#notice")).toBe(`Critical alert: ${mark} second`);
  await seen(() => /^data age/.test(text('[data-channel="alerts"] .age')));
  expect(Number(text('[data-count="messages"]').replace(",", ""))).toBeGreaterThan(4);

  await publish({ ...lp(mark, 0), data: null });
  await seen(() => !text("#lps").includes(mark));
});

it("shows what it understands of data that is not as agreed, and goes on", async () => {
  const mark = `odd ${process.pid}`;
  const odd = { toString: 1, valueOf: 1 };
  await publish(
    { channel: "lp-performance", type: "lp-metrics", key: `${mark} 1`, data: { lpName: `${mark} 1`, status: odd, avgSpread: ["x", odd] } },
    { channel: "lp-performance", type: "lp-metrics", key: `${mark} 2`, data: { lpName: `${mark} 2`, status: "constructor", avgSpread: 2 } },
  );
  await seen(() => text("#lps").includes(`${mark} 2`));
  const cells = (name: string) =>
    [...([...document.querySelectorAll("#lps tr")].find((each) => each.textContent.includes(name))?.children ?? [])];
  expect(cells(`${mark} 1`).map((cell) => cell.textContent)).toEqual([`${mark} 1`, "-", "-", "-", "-", "-"]);
  const [, status] = cells(`${mark} 2`);
  expect(status?.textContent).toBe("constructor");
  expect(status?.getAttribute("data-mood") ?? "").toBe("");
});

it("comes back by itself, and says so", async () => {
  await control("cut");
  await seen(() => text("#link") === "reconnecting");
  await seen(() => text("#link") === "live");
  expect(text('[data-count="retries"]')).not.toBe("0");
});

it("after the hub's restart shows what the hub knows, and each alert once", async () => {
  const mark = `kept ${process.pid}`;
  await publish(lp(mark, 1), alert(mark));
  await seen(() => text("#lps").includes(mark) && text("#alerts").includes(mark));
  await control("restart");
  await seen(() => !text("#lps").includes(mark));
  await publish(alert(`${mark} after`));
  await seen(() => text("#alerts").includes(`${mark} after`));
  expect(text("#alerts").split(mark).length - 1).toBe(2);
});

it("forgets everything when its user signs out", async () => {
  (document.querySelector("#leave") as unknown as { click(): void }).click();
  expect(text("#link")).toBe("signed out");
  expect(text("#alerts") + text("#lps")).toBe("");
  expect(document.querySelector("#sign-in")?.hasAttribute("hidden")).toBe(false);
});

it("shows what was said before in its own time, with the day where it is another", async () => {
  const mark = `before ${process.pid}`;
  await publish({ channel: "routing-metrics", type: "routing-decision", id: mark, data: { symbol: mark, volume: 1 } });
  vi.useFakeTimers({ toFake: ["Date"], now: Date.now() + 48 * 3_600_000 });
  try {
    submit("ann", "correct-horse-7-staple");
    await seen(() => text("#routing").includes(mark));
    const row = [...document.querySelectorAll("#routing tr")].find((each) => each.textContent.includes(mark));
    expect(row?.children[0]?.textContent).toMatch(/^\d\d\/\d\d\/\d{4}, \d\d:\d\d:\d\d$/);
  } finally {
    vi.useRealTimers();
    (document.querySelector("#leave") as unknown as { click(): void }).click();
  }
});

it("signs out who loses access, and says why", async () => {
  submit("ann", "correct-horse-7-staple");
  await seen(() => text("#link") === "live");
  await control("revoke", { user: "ann" });
  await seen(() => text("#notice").startsWith("The connection has ended: "));
  expect(text("#link")).toBe("signed out");
});

import { expect, it } from "vitest";
import fc from "fast-check";
import { Mailbox } from "../../src/mailbox.js";

it("keeps the newest of each key, where it came", () => {
  const mailbox = new Mailbox<number>(2);
  mailbox.put("lp", "a", 1);
  mailbox.put("lp", "b", 2);
  mailbox.put("lp", "a", 3);
  mailbox.put("lp", "c", 4);
  expect(mailbox.take()).toEqual({ items: [2, 3, 4], dropped: new Map() });
  expect(mailbox.take().items).toEqual([]);
});

it("drops the oldest of a channel beyond its bound, and says how many", () => {
  const mailbox = new Mailbox<number>(2);
  mailbox.put("lp", "a", 0);
  for (const n of [1, 2, 3, 4]) mailbox.put("routing", undefined, n);
  expect(mailbox.take()).toEqual({ items: [0, 3, 4], dropped: new Map([["routing", 2]]) });
  expect(mailbox.take().dropped.size).toBe(0);
});

it("forgets a channel that begins anew", () => {
  const mailbox = new Mailbox<number>(2);
  mailbox.put("lp", "a", 0);
  mailbox.put("routing", undefined, 1);
  mailbox.put("routing", undefined, 2);
  mailbox.clear("routing");
  mailbox.put("routing", undefined, 3);
  mailbox.put("routing", undefined, 4);
  expect(mailbox.take()).toEqual({ items: [0, 3, 4], dropped: new Map() });
});

it("never holds more than its bound and the keys, and loses nothing uncounted", () => {
  const put = fc.record({ channel: fc.constantFrom("a", "b"), key: fc.option(fc.constantFrom("x", "y"), { nil: undefined }) });
  fc.assert(
    fc.property(fc.array(put, { maxLength: 60 }), (puts) => {
      const mailbox = new Mailbox<number>(3);
      puts.forEach(({ channel, key }, n) => mailbox.put(channel, key, n));
      expect(mailbox.size).toBeLessThanOrEqual(2 * (3 + 2));
      const { items, dropped } = mailbox.take();
      const unkeyed = puts.filter(({ key }) => key === undefined).length;
      const kept = items.filter((n) => puts[n]?.key === undefined).length;
      expect(kept + [...dropped.values()].reduce((sum, n) => sum + n, 0)).toBe(unkeyed);
      expect(items).toEqual([...items].sort((a, b) => a - b));
    }),
  );
});

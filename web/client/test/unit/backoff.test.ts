import { describe, expect, it } from "vitest";
import fc from "fast-check";
import { wait } from "../../src/backoff.js";
import { comesBack } from "../../src/closing.js";

const backoff = { least: 500, most: 20_000 };

describe("the wait before a try", () => {
  it("grows with the failures, by chance, from 0.5 to 20 seconds", () => {
    expect(wait(backoff, 0, 0)).toBe(500);
    expect(wait(backoff, 0, 0.5)).toBe(750);
    expect(wait(backoff, 3, 0.5)).toBe(2500);
    expect(wait(backoff, 10, 0)).toBe(500); // full jitter: even late tries may come early
    expect(wait(backoff, 10, 0.999)).toBe(20_000);
  });

  it("stays within its bounds whatever happens", () => {
    fc.assert(
      fc.property(fc.nat(), fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), (n, chance) => {
        const ms = wait(backoff, n, chance);
        return ms >= 500 && ms <= 20_000;
      }),
    );
  });
});

describe("whether to come back", () => {
  it.each([1001, 1005, 1006, 1011, 1012, 1013, 1014, 3000, 3001, 3002, 3010, 3499, 4000, 4499])("%i: yes", (code) => {
    expect(comesBack(code)).toBe(true);
  });
  it.each([1000, 1002, 1003, 1007, 1008, 1009, 1010, 3500, 3502, 3999, 4500, 4999])("%i: no", (code) => {
    expect(comesBack(code)).toBe(false);
  });
});

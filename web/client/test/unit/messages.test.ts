import { describe, expect, it } from "vitest";
import fc from "fast-check";
import { isControl, isData, readFrame } from "../../src/messages.js";

const data = { type: "alert", channel: "alerts", offset: 1, epoch: "e", timestamp: "t", data: {} };

describe("a frame", () => {
  it("is an array of messages", () => {
    const welcome = { type: "welcome", timestamp: "t", data: {} };
    const { messages, bad } = readFrame(JSON.stringify([welcome, data]));
    expect(bad).toBe(0);
    expect(messages.map(isControl)).toEqual([true, false]);
    expect(messages.map(isData)).toEqual([false, true]);
  });

  it.each([
    ["not JSON", "[{"],
    ["no array", JSON.stringify(data)],
    ["empty", ""],
  ])("that is %s holds nothing and is counted", (_, text) => {
    expect(readFrame(text)).toEqual({ messages: [], bad: 1 });
  });

  it.each([
    ["null", null],
    ["an array", []],
    ["without a type", { data: {} }],
    ["with a type that is no text", { type: 1, data: {} }],
    ["with half an offset", { ...data, offset: 1.5 }],
    ["with a negative offset", { ...data, offset: -1 }],
    ["with an offset that a number cannot hold", { ...data, offset: 2 ** 53 }],
    ["with an offset and no epoch", { ...data, epoch: undefined }],
    ["with an offset and no channel", { ...data, channel: 7 }],
    ["a snapshot without items", { ...data, type: "snapshot", data: {} }],
    ["a snapshot with an item that is none", { ...data, type: "snapshot", data: { items: [null], partial: false } }],
    ["with an id that is no text", { ...data, id: 7 }],
    ["with a key that is no text", { ...data, key: {} }],
    ["subscribed to nothing", { type: "subscribed", timestamp: "t", data: {} }],
    ["a control message without data", { type: "pong", timestamp: "t" }],
  ])("leaves out what is %s", (_, message) => {
    expect(readFrame(JSON.stringify([message, data]))).toEqual({ messages: [data], bad: 1 });
  });

  it("may hold anything without an exception", () => {
    fc.assert(
      fc.property(fc.oneof(fc.json(), fc.string()), (text) => {
        const { messages } = readFrame(text);
        return messages.every((message) => isData(message) || typeof message.type === "string");
      }),
    );
  });
});

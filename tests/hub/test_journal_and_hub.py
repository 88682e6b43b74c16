"""The journal and the hub together: a client that was away has every alert once and in order, also after a restart."""

import json
from pathlib import Path

from keepline.hub.channels import Channel, Policy
from keepline.hub.entries import Entry
from keepline.hub.fanout import Hub
from keepline.hub.journal import MessageJournal
from keepline.hub.limits import Limits
from keepline.hub.stored import StoredMessages


class Life:
    """One life of a hub with its journal: what is stored is delivered, what is asked for again is read."""

    def __init__(self, path: Path) -> None:
        self.journal = MessageJournal(path, on_stored=self.deliver)
        self.now = 100.0

    async def start(self) -> None:
        await self.journal.start()
        place = await self.journal.position("alerts")
        self.made = StoredMessages("alerts", place.epoch)
        self.channel = Channel("alerts", Policy.NEVER, epoch=place.epoch, history_count=3)
        newest = [self.made.message(e, 0.0) for e in await self.journal.latest("alerts", limit=3)]
        self.channel.restore(newest, offset=place.offset, epoch=place.epoch)
        self.channel.retained = place.oldest
        self.hub = Hub([self.channel], Limits(client_buffer=8, refill=5))

    def deliver(self, entry: Entry) -> None:
        if self.channel.retained is None:
            self.channel.retained = entry.offset
        self.hub.deliver(self.made.message(entry, 0.0))

    async def ticks(self, number: int = 100) -> list[dict]:
        """Let so many frames pass; what the clients were sent."""
        sent: list[dict] = []
        for _ in range(number):
            self.now += 0.02
            work = self.hub.tick(self.now)
            for delivery in work.deliveries:
                while delivery.waiting:
                    for _client in self.hub.hand(delivery):
                        sent += json.loads(
                            bytes(delivery.frame).split(b"[", 1)[1].join([b"[", b""])
                        )
            for refill in work.refills:
                entries = await self.journal.read("alerts", refill.after, limit=refill.limit)
                messages = [self.made.message(entry, 0.0) for entry in entries]
                self.hub.refilled(refill, messages, self.now)
        return sent

    def subscribe(self, name: str, **resume: object) -> None:
        client = self.hub.connect(name, self.now)
        request = {"action": "subscribe", "channels": ["alerts"]}
        if resume:
            request["resume"] = {"alerts": resume}
        self.hub.receive(client, json.dumps(request).encode(), self.now, lambda _: True)


def offsets(sent: list[dict]) -> list[int]:
    return [message["offset"] for message in sent if message["type"] == "alert"]


async def test_what_was_missed_comes_from_the_journal_once_and_in_order(
    clean_environment: Path,
) -> None:
    life = Life(clean_environment / "data" / "j")
    await life.start()
    life.subscribe("before")
    assert offsets(await life.ticks(5)) == []
    for number in range(30):
        await life.journal.append("alerts", "alert", b"%d" % number, id=f"a{number}")
    await life.journal.append("alerts", "alert", b"0", id="a0")  # known: not delivered again
    first = await life.ticks()
    assert offsets(first) == list(range(1, 31))
    epoch = first[-1]["epoch"]
    await life.journal.close()

    again = Life(clean_environment / "data" / "j")
    await again.start()
    again.subscribe("after", epoch=epoch, offset=4)
    sent = await again.ticks()
    assert offsets(sent) == list(range(5, 31))
    missed = [message for message in first if message.get("offset", 0) > 4]
    assert [m for m in sent if m["type"] == "alert"] == [m for m in missed if m["type"] == "alert"]
    assert not [message for message in sent if message["type"] == "gap"]
    await again.journal.append("alerts", "alert", b"30")
    assert offsets(await again.ticks(5)) == [31]
    await again.journal.close()

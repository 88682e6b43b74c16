"""What faults do to frames, and the messages that no client expects.

Invariants: pieces of text end between characters; joined or cut, the bytes are the same.
"""

from collections.abc import Iterable, Mapping

from keepline.stream.codec import codec
from keepline.stream.framing import RECORD_SEPARATOR, frame_binary
from keepline.stream.messages import Completion, Invocation, Message, Sequence, StreamItem

__all__ = ["joined", "pieces", "strange"]

_STRANGE: Mapping[str, Message] = {
    "completion": Completion("no-such-call", result=1),
    "item": StreamItem("no-such-stream", 1),
    "call": Invocation("NobodyHasThis", (), id="s999"),
    "sequence": Sequence(0),
}
_BYTES = {
    ("unknown_type", False): b'{"type":42,"target":"?"}' + RECORD_SEPARATOR,
    ("unknown_type", True): frame_binary(b"\x92\x2a\xa1?"),
    ("not_json", False): b"{not json" + RECORD_SEPARATOR,
    ("not_json", True): b"\xff\xff\xff\xff\xff\x01",  # a length of more than five bytes
    ("not_utf8", False): b'{"type":1,"target":"\xff\xfe","arguments":[]}' + RECORD_SEPARATOR,
    ("not_utf8", True): frame_binary(b"\x96\x01\x80\xc0\xa2\xff\xfe\x90\x90"),
}


def joined(messages: Iterable[bytes]) -> list[bytes]:
    """All of them in one frame."""
    return [b"".join(messages)]


def pieces(messages: Iterable[bytes], *, size: int, binary: bool) -> list[bytes]:
    """Each of them in frames of so many bytes, or characters of text."""
    found: list[bytes] = []
    for message in messages:
        whole = message if binary else message.decode(errors="surrogateescape")
        cut = [whole[at : at + size] for at in range(0, len(whole), size)]
        found += [
            part if isinstance(part, bytes) else part.encode(errors="surrogateescape")
            for part in cut
        ]
    return found


def strange(form: str, *, binary: bool) -> bytes:
    """A message of the fault `strange_message`."""
    message = _STRANGE.get(form)
    if message is None:
        return _BYTES[form, binary]
    return codec("messagepack" if binary else "json").encode(message)

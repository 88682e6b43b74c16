"""Private files: atomic, durable, 0600, ours alone.

Invariants: owner, mode and kind are checked on the open descriptor, never by name; no symbolic link is followed; a
file changes only by rename of a complete and synced one, so a reader sees the old bytes or the new ones; after a failed
fsync the file is written anew, because the kernel may have dropped what it could not write. Every failure is a
`StorageError` that names the path and the remedy. On Windows, which has neither owner nor mode bits, those checks are
left out.
"""

from keepline.files.directories import (
    private_directory,
    runtime_directory,
    strangers_can_write,
)
from keepline.files.private import (
    Reservation,
    append_private,
    erase,
    read_private,
    reserve,
    write_private,
)

__all__ = [
    "Reservation",
    "append_private",
    "erase",
    "private_directory",
    "read_private",
    "reserve",
    "runtime_directory",
    "strangers_can_write",
    "write_private",
]

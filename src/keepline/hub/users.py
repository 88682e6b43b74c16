"""The users of the hub and what was revoked, in one private file of JSON lines.

Invariants: there is no user that nobody added; names are NFC and unique whatever their case; a change is made under a
lock and replaces the file whole; a file that is damaged after the start changes nothing: the last good one counts until
it is mended. A user who is removed leaves a revocation behind, so that tokens do not come back to life with the name.
"""

import logging
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec
from msgspec import Struct

from keepline import files, telemetry
from keepline.errors import ConfigError, StorageError
from keepline.files.locking import alone_in, signature
from keepline.hub.access import Standing
from keepline.hub.passwords import ARGON2ID, Argon2id, check_strength, hash_password, parameters_of

__all__ = ["Revocation", "User", "UserBook", "UsersFile", "user_name"]

log = logging.getLogger("keepline.hub")

_LARGEST_FILE = 8 << 20
_MOST_ENTRIES = 10_000
_ROLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class User(Struct, frozen=True, tag="user", tag_field="kind", forbid_unknown_fields=True):
    """One user.

    Attributes:
        name: NFC.
        role: what they may do.
        account: the account they belong to, may be "".
        password: the Argon2id hash in PHC form, parameters included.
        created_at: epoch seconds.
        disabled: locked out, the name stays taken.
    """

    name: str
    role: str
    password: str
    account: str = ""
    created_at: float = 0.0
    disabled: bool = False

    def __repr__(self) -> str:
        return f"<User {self.name}, {self.role}{', disabled' if self.disabled else ''}>"


class Revocation(
    Struct, frozen=True, tag="revocation", tag_field="kind", forbid_unknown_fields=True
):
    """All tokens of a user up to an instant are void, whoever issued them.

    Attributes:
        name: the user, NFC.
        before: epoch seconds.
    """

    name: str
    before: float


_line_decoder = msgspec.json.Decoder(User | Revocation)


class UserBook:
    """The users and revocations at a moment; changing it gives another one."""

    __slots__ = ("_folded", "revocations", "users")

    def __init__(self, users: Iterable[User] = (), revocations: Iterable[Revocation] = ()) -> None:
        self.users: Mapping[str, User] = MappingProxyType({user.name: user for user in users})
        self.revocations: Mapping[str, float] = MappingProxyType(
            {entry.name: entry.before for entry in revocations}
        )
        self._folded = {name.casefold(): name for name in self.users}

    @classmethod
    def parse(cls, data: bytes) -> "UserBook":
        """Read the file's content.

        Raises:
            ValueError: says which line is wrong.
        """
        users: dict[str, User] = {}
        revocations: dict[str, Revocation] = {}
        for number, line in enumerate(data.splitlines(), start=1):
            if not line.strip():
                continue
            try:
                entry = _line_decoder.decode(line)
                if isinstance(entry, User):
                    _check_user(entry, users)
                    users[entry.name] = entry
                else:
                    revocations[entry.name] = entry
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise ValueError(f"line {number} is wrong: {_reason(error)}") from None
        return cls(users.values(), revocations.values())

    def encode(self) -> bytes:
        """The file's content."""
        entries = [*self.users.values(), *(Revocation(*each) for each in self.revocations.items())]
        return b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries)

    def find(self, name: str) -> User | None:
        """The user of that name, normalised; case counts."""
        return self.users.get(unicodedata.normalize("NFC", name))

    def standing(self, user: str) -> Standing | None:
        """What counts for tokens of ours."""
        found = self.users.get(user)
        return None if found is None else Standing(found.role, found.account, found.disabled)

    def revoked_before(self, user: str) -> float | None:
        """The instant up to which this user's tokens are void."""
        return self.revocations.get(user)

    def with_user(self, user: User) -> "UserBook":
        """A book with this user added or replaced."""
        return UserBook([*{**self.users, user.name: user}.values()], self._entries())

    def without_user(self, name: str) -> "UserBook":
        """A book without them; revoke their tokens as well."""
        return UserBook([u for u in self.users.values() if u.name != name], self._entries())

    def revoked(self, name: str, now: float) -> "UserBook":
        """A book in which every token of the user up to `now` (epoch seconds) is void.

        Raises:
            ConfigError: too many revocations are kept already.
        """
        before = max(now, self.revocations.get(name, now))
        if name not in self.revocations and len(self.revocations) >= _MOST_ENTRIES:
            raise ConfigError(f"more than {_MOST_ENTRIES} revocations: remove old lines by hand")
        entries = {**self.revocations, name: before}
        return UserBook(self.users.values(), (Revocation(*each) for each in entries.items()))

    def taken(self, name: str) -> str | None:
        """The user whose name differs from this one at most in case, None when it is free."""
        return self._folded.get(name.casefold())

    def usual_parameters(self) -> Argon2id:
        """The Argon2id parameters of most users: what the work for an unknown name has to look like."""
        counted = Counter(parameters_of(user.password) for user in self.users.values())
        return counted.most_common(1)[0][0] if counted else ARGON2ID

    def _entries(self) -> list[Revocation]:
        return [Revocation(*each) for each in self.revocations.items()]

    def __len__(self) -> int:
        return len(self.users)

    def __repr__(self) -> str:
        return f"<UserBook of {len(self.users)}>"


class UsersFile:
    """The book on disk; may block, so keep it off the event loop. Safe to use from several threads.

    Args:
        path: the file, mode 0600, ours; it need not exist.
        parameters: of new password hashes.
    """

    def __init__(self, path: Path, *, parameters: Argon2id = ARGON2ID) -> None:
        self.path = path
        self.parameters = parameters
        self._book = UserBook()
        self._mark: tuple[int, ...] | None = None
        self._good = True
        self._lock = threading.Lock()

    @property
    def book(self) -> UserBook:
        """The last good one, from memory."""
        return self._book

    def load(self) -> UserBook:
        """Read it now.

        Raises:
            StorageError: not private, not ours, or damaged; says the line.
        """
        with self._lock:
            return self._load()

    def refreshed(self) -> bool:
        """Read it again if it changed; True when the book is another one now.

        A file that cannot be read is reported once, and the last good book stays.
        """
        with self._lock:
            if signature(self.path) == self._mark:
                return False
            before = self._book
            try:
                self._load()
            except StorageError as error:
                self._mark = signature(self.path)
                if self._good:
                    telemetry.event(log, logging.ERROR, "Users file not read", reason=str(error))
                self._good = False
                return False
            self._good = True
            return self._book is not before

    def change(self, edit: Callable[[UserBook], UserBook]) -> UserBook:
        """Read, edit and replace the file, with other processes kept out meanwhile.

        Raises:
            StorageError: it cannot be read or written.
            ConfigError: what `edit` refused.
        """
        with self._lock, alone_in(self.path.parent):
            book = edit(self._load())
            files.write_private(self.path, book.encode())
            return self._load()

    def add(
        self,
        name: str,
        password: str,
        *,
        role: str,
        account: str = "",
        now: float,
        replace: bool = False,
    ) -> User:
        """Add a user, or give one a new password, role and account; that ends the tokens they had.

        Raises:
            ConfigError: a name or role that cannot be one, a weak password, a name that is taken.
            StorageError: as `change`.
        """
        name = user_name(name)
        if not _ROLE.fullmatch(role):
            raise ConfigError(
                "a role is 1 to 64 letters, digits, dashes and underscores", key="role"
            )
        if len(account) > 64 or not account.isprintable():
            raise ConfigError("an account is at most 64 printable characters", key="account")
        check_strength(password, name=name)
        phc = hash_password(password, parameters=self.parameters)

        def edit(book: UserBook) -> UserBook:
            taken = book.taken(name)
            if taken is not None and (not replace or taken != name):
                advice = (
                    "say --replace to give a new password" if taken == name else "choose another"
                )
                raise ConfigError(f"there is a user {taken!r} already; {advice}", key="name")
            user = User(name, role, phc, account, now)
            return (book.revoked(name, now) if taken else book).with_user(user)

        return self.change(edit).users[name]

    def remove(self, name: str, *, now: float) -> None:
        """Remove a user and end their tokens.

        Raises:
            ConfigError: there is no such user.
            StorageError: as `change`.
        """
        self.change(
            lambda book: book.revoked(_known(book, name), now).without_user(_known(book, name))
        )

    def disable(self, name: str, *, now: float) -> None:
        """Lock a user out and end their tokens; the name stays taken.

        Raises:
            ConfigError: there is no such user.
            StorageError: as `change`.
        """

        def edit(book: UserBook) -> UserBook:
            user = book.users[_known(book, name)]
            return book.revoked(user.name, now).with_user(
                msgspec.structs.replace(user, disabled=True)
            )

        self.change(edit)

    def revoke(self, name: str, *, now: float) -> None:
        """End every token of a user up to `now`, also of one whom another issuer knows.

        Raises:
            StorageError: as `change`.
        """
        self.change(lambda book: book.revoked(user_name(name), now))

    def rehash(self, user: User, password: str) -> None:
        """Replace a hash by one with today's parameters, unless the user changed meanwhile.

        Raises:
            StorageError: as `change`.
        """
        phc = hash_password(password, parameters=self.parameters)

        def edit(book: UserBook) -> UserBook:
            if book.users.get(user.name) != user:
                return book
            return book.with_user(msgspec.structs.replace(user, password=phc))

        self.change(edit)

    def _load(self) -> UserBook:
        mark = signature(self.path)
        data = files.read_private(self.path, limit=_LARGEST_FILE)
        try:
            self._book = UserBook.parse(data or b"")
        except ValueError as error:
            raise StorageError(f"{error}; mend or remove that line", path=self.path) from None
        self._mark = mark
        return self._book

    def __repr__(self) -> str:
        return f"<UsersFile {self.path}, {len(self._book)} users>"


def user_name(name: str) -> str:
    """The name as it is kept: NFC, 1 to 64 printable characters without spaces.

    Raises:
        ConfigError: it cannot be a name.
    """
    normal = unicodedata.normalize("NFC", name)
    if not 1 <= len(normal) <= 64 or not normal.isprintable() or re.search(r"\s", normal):
        raise ConfigError(
            "a user's name is 1 to 64 printable characters without spaces", key="name"
        )
    return normal


def _known(book: UserBook, name: str) -> str:
    user = book.find(name)
    if user is None:
        there = ", ".join(sorted(book.users)) or "nobody is"
        raise ConfigError(f"there is no such user; known: {there}", key="name")
    return user.name


def _check_user(user: User, others: Mapping[str, User]) -> None:
    if user_name(user.name) != user.name:
        raise ValueError("the name is not in normal form (NFC)")
    if user.name in others:
        raise ValueError("this user is there twice")
    if not _ROLE.fullmatch(user.role):
        raise ValueError("the role cannot be one")
    parameters_of(user.password)


def _reason(error: Exception) -> str:
    if isinstance(error, msgspec.ValidationError):
        return str(error)
    return "it is not JSON" if isinstance(error, msgspec.MsgspecError) else str(error)

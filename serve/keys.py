"""API keys: made, told once, kept hashed, looked up, revoked. No HTTP and no printing.

A key is 32 random bytes, so that its SHA-256 is enough: nobody guesses 2**256, so there is nothing that a slow hash or a salt would
slow down, and the hash can be looked up in an index. A password, which people choose, would need both.
"""

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from engine.core.registry import unknown
from engine.errors import DefinitionError, StoreUnavailable, UnknownName
from engine.records import KeyEntry, Records
from serve.errors import KeyNotFound, Unauthorized

ROLES = ("viewer", "operator", "admin")
"""Each may do what those before it may: look; run; make keys."""
FIRST = "first"
"""The name of the key that is made where there is none."""
BELIEVED = 2.0
"""Seconds for which a key that was looked up is believed: so long a revoked one may still open another replica."""
MOST_BELIEVED = 1024
NOTED = 60.0
"""Seconds between two notes of when a key was used."""
_PREFIX = "gk_"
_LONGEST = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A key that was just made."""

    entry: KeyEntry
    key: str
    """The key itself, which nobody can tell again."""


def hash_of(key: str) -> str:
    """Return what is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class Keys:
    """The API keys of one place."""

    def __init__(self, records: Records) -> None:
        """Look at nothing yet."""
        self._records = records
        self._believed: OrderedDict[str, tuple[float, KeyEntry]] = OrderedDict()
        self._noted: dict[str, float] = {}

    async def make(self, name: str, role: str, *, lifetime: float | None = None, tenant: str = "") -> Made:
        """Make a key.

        Args:
            lifetime: Seconds after which it opens nothing any more; None: it does not expire.

        Raises: DefinitionError for a name or a lifetime that cannot be one, UnknownName for a role that is none.
        """
        if role not in ROLES:
            raise UnknownName(unknown("role", role, ROLES), where="role")
        if not name.strip() or len(name) > _LONGEST or not name.isprintable():
            raise DefinitionError(f"the name of a key is a text of 1 to {_LONGEST} printable characters, not {name!r:.80}", where="name")
        if lifetime is not None and not 0 < lifetime <= 1e9:
            raise DefinitionError(f"a key lives for more than 0 and at most 1e9 seconds, not {lifetime!r:.40}", where="expires_in")
        now = time.time()
        key = f"{_PREFIX}{secrets.token_urlsafe(32)}"
        entry = KeyEntry(
            id=f"key_{secrets.token_hex(6)}", name=name, hash=hash_of(key), role=role, tenant=tenant, created_at=now,
            expires_at=None if lifetime is None else now + lifetime,
        )  # fmt: skip
        await self._records.put_key(entry)
        return Made(entry=entry, key=key)

    async def make_first(self) -> Made | None:
        """Make an admin's key where there is none at all; None where there is one, also one that opens nothing any more."""
        return None if await self._records.list_keys() else await self.make(FIRST, "admin")

    async def known(self) -> Sequence[KeyEntry]:
        """Return all keys, oldest first."""
        return await self._records.list_keys()

    async def revoke(self, id: str) -> KeyEntry:
        """Make a key open nothing any more. Raises: KeyNotFound."""
        try:
            entry = await self._records.revoke_key(id, time.time())
        except UnknownName as error:
            raise KeyNotFound(str(error), where="key_id") from error
        self._believed.pop(entry.hash, None)
        return entry

    async def open(self, key: str) -> KeyEntry:
        """Return whom a key belongs to.

        Raises: Unauthorized, StoreUnavailable where nobody can say.
        """
        wanted = hash_of(key)
        now = time.time()
        until, entry = self._believed.get(wanted, (0.0, None))
        if entry is None or not now < until <= now + BELIEVED:
            entry = await self._records.find_key(wanted)
            if entry is None or not hmac.compare_digest(entry.hash, wanted):
                raise Unauthorized("the API key is unknown: `gecko keys list` shows which there are", code="invalid_token")
            self._believe(wanted, now + BELIEVED, entry)
        if entry.revoked_at is not None:
            raise Unauthorized(f"the API key {entry.id!r} was revoked; ask an admin for another", code="invalid_token")
        if not entry.is_valid(now):
            raise Unauthorized(f"the API key {entry.id!r} has expired; ask an admin for another", code="token_expired")
        await self._note(entry.id, now)
        return entry

    def _believe(self, hash: str, until: float, entry: KeyEntry) -> None:
        self._believed[hash] = until, entry
        self._believed.move_to_end(hash)
        while len(self._believed) > MOST_BELIEVED:
            self._believed.popitem(last=False)

    async def _note(self, id: str, now: float) -> None:
        if now - self._noted.get(id, 0.0) < NOTED:
            return
        if len(self._noted) > MOST_BELIEVED:
            self._noted.clear()
        self._noted[id] = now
        try:
            await self._records.use_key(id, now)
        except StoreUnavailable:  # when a key was used is no reason to refuse it
            del self._noted[id]

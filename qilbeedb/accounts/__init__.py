"""Who may use the server, how they prove it, and what they did: no HTTP in here."""

from importlib import import_module
from typing import TYPE_CHECKING

from qilbeedb.accounts.caller import Caller
from qilbeedb.accounts.permissions import Permission, Principal
from qilbeedb.accounts.settings import AccountSettings

if TYPE_CHECKING:
    from qilbeedb.accounts.accounts import Accounts
else:

    def __getattr__(name: str) -> object:
        if name != "Accounts":  # imported when it is first asked for: it needs the extra "server"
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = import_module("qilbeedb.accounts.accounts").Accounts
        return value


__all__ = ["AccountSettings", "Accounts", "Caller", "Permission", "Principal"]

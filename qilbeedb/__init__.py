"""QilbeeDB, wherever it is: behind a server, or embedded in this process.

>>> from qilbeedb import QilbeeDB
>>> from qilbeedb.memory import Episode
>>> with QilbeeDB({"uri": "unused", "backend": "ephemeral"}) as db:
...     memory = db.agent_memory("my-agent")
...     id = memory.store_episode(Episode.conversation("my-agent", "Where is my order?", "On its way."))
...     memory.get_recent_episodes(limit=1)[0].content["agent_response"]
'On its way.'
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qilbeedb.aio import AsyncQilbeeDB
    from qilbeedb.client import QilbeeDB
else:
    # Imported when they are first asked for (PEP 562): the command line is in this package too.
    _WHERE = {"AsyncQilbeeDB": "qilbeedb.aio", "QilbeeDB": "qilbeedb.client"}

    def __getattr__(name: str) -> object:
        if name not in _WHERE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_WHERE[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_WHERE})


__all__ = ["AsyncQilbeeDB", "QilbeeDB", "__version__"]

__version__ = version("qilbee-core")

"""Whether the time of a refused login tells if there is such a user, and what a credential costs each request.

    python benchmarks/logins.py

Known and unknown names take turns, from a new address each time, so that nobody is locked out. The ratio of the medians
should lie within 5 % of 1; the time of a password hash alone, in the same run, is what both should mostly be. Below it:
``authenticate`` and ``check_rate``, as each request calls them, beside one read of the engine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from _measure import console, machine, verdict
from rich.table import Table

from qilbee_core import AuthenticationError, open_store
from qilbeedb.accounts import Accounts, Caller
from qilbeedb.accounts.passwords import verify_password

LOGINS = 200
CALLS = 20_000
ROUNDS = 5
APART_MOST = 1.05
PASSWORD = "correct horse battery"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--logins", type=int, default=LOGINS, help="of each kind (default: %(default)s)")
    logins = parser.parse_args().logins
    console.print(machine())
    with tempfile.TemporaryDirectory() as directory, open_store(Path(directory) / "data") as store:
        accounts = Accounts.open(store, environ={"QILBEE_ADMIN_PASSWORD": PASSWORD})
        _show_logins(accounts, logins)
        _show_requests(accounts)
        accounts.close()


def _show_logins(accounts: Accounts, logins: int) -> None:
    user = accounts.users.create(Caller(), "ann", PASSWORD)
    accounts.users.create(Caller(), "disabled", PASSWORD)
    accounts.users.update(Caller(), accounts.users.named("disabled").id, is_active=False)
    password_hash = "$argon2id$v=19$m=19456,t=2,p=1$" + "A" * 22 + "$" + "A" * 43

    def refused(number: int, username: str) -> None:
        caller = Caller(address=f"198.{18 + (number >> 16)}.{number >> 8 & 255}.{number & 255}")
        try:
            accounts.sessions.login(caller, username, "not the password")
        except AuthenticationError:
            return
        raise AssertionError

    arms: dict[str, Callable[[int], object]] = {
        "a hash alone": lambda _: verify_password(password_hash, "not the password"),
        "a known name": lambda number: refused(number, user.username),
        "an unknown name": lambda number: refused(number, f"nobody {number}"),
        "a disabled user": lambda number: refused(number, "disabled"),
    }
    took_ms: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(logins):
        names = list(arms) if number % 2 else list(arms)[::-1]
        for place, name in enumerate(names):
            began_s = time.perf_counter()
            arms[name](number * len(arms) + place)
            took_ms[name].append(1e3 * (time.perf_counter() - began_s))
    table = Table(title=f"Refused logins, {logins} of each kind", title_justify="left")
    for heading in ("", "ms, median", "beside a known name", "target", ""):
        table.add_column(heading, justify="right" if heading else "left")
    known = median(took_ms["a known name"])
    for name, times in took_ms.items():
        ratio = median(times) / known
        apart = max(ratio, 1 / ratio)
        is_target = name in {"an unknown name", "a disabled user"}
        target = (f"within {APART_MOST - 1:.0%}", verdict(apart, APART_MOST)) if is_target else ("", "")
        table.add_row(name, f"{median(times):.2f}", f"{ratio:.3f}", *target)
    console.print(table)


def _show_requests(accounts: Accounts) -> None:
    caller = Caller(address="127.0.0.1")
    login = accounts.sessions.login(caller, "admin", PASSWORD)
    bearer = f"Bearer {login.access_token}"
    principal = accounts.authenticate(bearer, None)
    key = accounts.keys.create(caller, principal.user_id, "benchmark").key
    row = accounts.tables.rows.get
    name = f"user/{principal.user_id}"

    def after_a_write() -> None:
        accounts.tables.rows.write({"benchmark": b""})
        accounts.authenticate(bearer, None)

    arms: dict[str, Callable[[], object]] = {
        "a row of the engine": lambda: row(name),
        "a write of accounts": lambda: accounts.tables.rows.write({"benchmark": b""}),
        "authenticate, access token": lambda: accounts.authenticate(bearer, None),
        "authenticate, API key": lambda: accounts.authenticate(None, key),
        "a write of accounts, and authenticate": after_a_write,
        "check_rate": lambda: accounts.check_rate("GeneralApi", principal, "127.0.0.1", "/memory/bot/episodes"),
    }
    took_us: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(ROUNDS):
        for name_of_arm, call in arms.items():
            began_s = time.perf_counter()
            for _ in range(CALLS):
                call()
            took_us[name_of_arm].append(1e6 * (time.perf_counter() - began_s) / CALLS)
    table = Table(title="What each request pays", title_justify="left")
    for heading in ("", "us, median", "beside a row"):
        table.add_column(heading, justify="right" if heading else "left")
    floor = median(took_us["a row of the engine"])
    for name_of_arm, times in took_us.items():
        table.add_row(name_of_arm, f"{median(times):.2f}", f"{median(times) / floor:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()

"""The command ``qilbee`` with everything that is installed: that of ``qilbee_core.cli``, and what runs a server."""

from qilbee_core.cli import app, main, read_settings_as
from qilbeedb.cli.accounts import apikey_app, audit_app, user_app
from qilbeedb.cli.serving import serve
from qilbeedb.server.settings import ServiceSettings

__all__ = ["app", "main"]

# One file of settings serves all commands, so they all know the tables of the server.
read_settings_as(ServiceSettings)
app.command()(serve)
app.add_typer(user_app, name="user", help="Make and change the users of a server.")
app.add_typer(apikey_app, name="apikey", help="Make and revoke API keys.")
app.add_typer(audit_app, name="audit", help="Check the audit log.")

"""The HTTP server: an ASGI application on an open store, and the program that serves it.

:mod:`~qilbeedb.server.route` has what a route is, :mod:`~qilbeedb.server.memory_routes`,
:mod:`~qilbeedb.server.system_routes` and ``account_routes`` have the tables of them, :mod:`~qilbeedb.server.app`
answers requests by the tables, and :mod:`~qilbeedb.server.serve` runs it all. docs/server.md tells how to use it.
"""

"""Our own consolidation policies: docs/consolidation.md says what each does.

Each is pure: it gets episodes, gives a :class:`~qilbee_core.episode.Plan`, and never sees the store.
"""

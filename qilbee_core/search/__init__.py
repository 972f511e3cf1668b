"""Finding episodes by words, by meaning, by who spoke and when: docs/search.md.

Nothing here knows of a store. An :class:`~qilbee_core.search.index.AgentIndex` is made of the forward rows of one
agent's episodes, and answers from RAM.
"""

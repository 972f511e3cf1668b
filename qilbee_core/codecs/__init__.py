"""Codecs: each module one way to make values smaller."""

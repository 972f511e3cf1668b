"""Serializers: each module one way from a document to bytes and back."""

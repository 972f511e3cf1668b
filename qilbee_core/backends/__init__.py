"""Storage engines: each module one engine behind StorageBackend."""

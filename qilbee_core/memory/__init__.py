"""An agent's memory on top of the bytes."""

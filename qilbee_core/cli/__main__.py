"""``python -m qilbee_core.cli``, the same as ``qilbee``."""

from qilbee_core.cli import main

main()

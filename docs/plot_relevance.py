"""Draws docs/relevance.svg: how memories fade, and what brings them back, by the functions that the store uses.

Run it as ``python docs/plot_relevance.py``.
"""

from __future__ import annotations

from pathlib import Path

from qilbee_core.memory.relevance import Order, reinforced, relevance, vitality

TARGET = Path(__file__).with_name("relevance.svg")
DAY_US = 86_400_000_000
DAYS = 180
WIDTH, HEIGHT, LEFT, TOP = 720, 300, 50, 20
EPISODIC = Order(0, "episodic", 30 * DAY_US, 0)
SEMANTIC = Order(1, "semantic", 180 * DAY_US, 0)

# Name, colour, order, and how far the memory is moved on which day; 30 days and 0.2 are the defaults.
CURVES: list[tuple[str, str, Order, dict[int, float]]] = [
    ("pinned", "#777777", Order(2, "factual", None, 0), {}),
    ("semantic, never read", "#2a7f62", SEMANTIC, {}),
    ("episodic, read each 20 days", "#b3541e", EPISODIC, dict.fromkeys(range(20, DAYS, 20), 0.2)),
    ("episodic, boosted on day 90", "#6a4fb3", EPISODIC, {90: 0.5}),
    ("episodic, never read", "#1f5fa8", EPISODIC, {}),
]


def points(order: Order, moves: dict[int, float]) -> list[tuple[int, float]]:
    """Day and relevance; twice on a day when it is moved."""
    strength, since_us = 1.0, 0
    found = []
    for day in range(DAYS + 1):
        value = relevance(order, vitality(order, strength, since_us), day * DAY_US)
        found.append((day, value))
        if share := moves.get(day):
            strength, since_us = reinforced(value, share), day * DAY_US
            found.append((day, strength))
    return found


def drawing() -> str:
    """The whole picture, as SVG."""

    def x(day: float) -> float:
        return LEFT + day / DAYS * WIDTH

    def y(value: float) -> float:
        return TOP + (1 - value) * HEIGHT

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + LEFT + 20} {HEIGHT + TOP + 150}">',
        "<style>text { font: 13px sans-serif }</style>",
        "<title>Relevance over half a year</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for tenth in range(0, 11, 2):
        value = tenth / 10
        lines.append(f'<path d="M{LEFT} {y(value):.1f}h{WIDTH}" stroke="#dddddd"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value}</text>')
    lines += [
        f'<text x="{x(day):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{day} d</text>'
        for day in range(0, DAYS + 1, 30)
    ]
    for number, (name, colour, order, moves) in enumerate(CURVES):
        path = " ".join(f"{x(day):.1f},{y(value):.1f}" for day, value in points(order, moves))
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        label_y = TOP + HEIGHT + 45 + 20 * number
        lines.append(f'<path d="M{LEFT} {label_y - 4}h30" stroke="{colour}" stroke-width="2"/>')
        lines.append(f'<text x="{LEFT + 40}" y="{label_y}">{name}</text>')
    return "\n".join([*lines, "</svg>\n"])


if __name__ == "__main__":
    TARGET.write_text(drawing())

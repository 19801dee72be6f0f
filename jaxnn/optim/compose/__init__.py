"""The machinery: named stages and groups, and what can be asked of them. Algorithms are in the room beside it."""

"""The engine on a card, end to end: `python -m benchmarks gpu --out DIR`."""

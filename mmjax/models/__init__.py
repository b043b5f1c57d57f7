"""Networks as pairs of pure functions over plain dicts of arrays; the only room that imports flax."""

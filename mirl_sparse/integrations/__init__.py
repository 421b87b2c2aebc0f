"""Let other programs load what this package writes."""

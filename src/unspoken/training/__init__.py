"""Training methods: each a file, a frozen dataclass, on one trainer."""

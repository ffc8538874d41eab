"""Benchmarks: one file each, with examples, prompts and grades. No torch, no model."""

"""Tuning by target: record, plan, try the other methods, verify on held-out prompts."""

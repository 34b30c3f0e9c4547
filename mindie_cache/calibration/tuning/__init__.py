"""Tuning by target: record, plan, try the other methods, verify on prompts that nothing was chosen on."""

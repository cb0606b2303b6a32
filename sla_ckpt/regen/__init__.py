"""Regeneration: give a checkpoint its SLA state back. See docs/regen.md."""

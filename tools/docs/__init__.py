"""Keeps README.md and docs/ true: runs their command blocks, and writes what they printed."""

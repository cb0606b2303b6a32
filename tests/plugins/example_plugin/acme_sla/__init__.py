"""A plug-in for sla-ckpt; each module is one entry point of pyproject.toml."""

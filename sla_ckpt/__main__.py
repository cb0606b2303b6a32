"""``python -m sla_ckpt``."""

from sla_ckpt.cli.main import run

if __name__ == "__main__":
    run()

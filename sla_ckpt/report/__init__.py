"""The HTML page of ``sla-ckpt verify --format html``: one file, no scripts, no network. No torch.

``collect`` verifies the targets and gathers what the page shows, ``to_html`` writes it.
"""

from sla_ckpt.report.collect import Run, Snapshot, collect, judged_reports
from sla_ckpt.report.page import to_html

__all__ = ["Run", "Snapshot", "collect", "judged_reports", "to_html"]

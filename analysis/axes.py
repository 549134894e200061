"""Ablation tables and plots of a study: python analysis/axes.py STORE STUDY, e.g. prism-store nano/axes."""

import sys
from pathlib import Path

from prism_sweeps.reporting.report import terminal_table, write_report
from prism_sweeps.tracking.records import Store

if len(sys.argv) != 3:
    sys.exit(__doc__)
store, study = Store.open(Path(sys.argv[1])), sys.argv[2]
terminal_table(store, study)
print(write_report(store, study))

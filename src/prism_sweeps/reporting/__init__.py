"""From records to statistics, tables, plots and one page."""

"""Records -> one self-contained HTML page, tables, comparisons and expected scores (docs/reports.md).

Imports runs' records, scoring's metrics and statistics; never torch or a method: a page is made from records alone.
"""

"""What people look at: one self-contained HTML page a registration. Never computes a transform or changes a result."""

from verimorph.report.page import render, write_report

__all__ = ["render", "write_report"]

"""Pictures, tables and the HTML report: draws results, never computes them."""

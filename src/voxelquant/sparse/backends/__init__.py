"""Executions of the sparse ops: the reference in plain torch, and faster ones."""

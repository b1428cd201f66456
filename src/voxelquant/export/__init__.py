"""Exported files: writer, reader, validator and the integer runner."""

"""Workflows: the only room that composes the others."""

"""Rows: files and tables, read and checked before anything trains. Knows no Ray."""

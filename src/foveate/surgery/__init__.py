"""Edits: a model goes in, a changed one comes out, with a table of what was changed."""

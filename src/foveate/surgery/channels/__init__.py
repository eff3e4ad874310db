"""Channels of any network: which of them go together, and how they are removed."""

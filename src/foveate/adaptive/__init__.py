"""Networks that compute as much as an input asks for."""

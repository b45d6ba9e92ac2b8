"""Training an adapter with DDPO."""

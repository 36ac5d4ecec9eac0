"""A name → problems and their verifier."""

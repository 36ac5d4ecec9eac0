"""BRPO on TRL: settings, advantages, packed trees, the trainer, what it records."""

"""Every byte on disk: files that are whole or not there, records, rollouts, manifests."""

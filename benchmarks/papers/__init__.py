"""Papers on initial weights and signal propagation, each measured again on this machine; see docs/papers.md."""

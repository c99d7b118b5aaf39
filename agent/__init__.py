"""The daemon of one node: tracks its volumes, backs them up and restores them."""

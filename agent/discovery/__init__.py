"""Discovery: which volumes containers use on this node, and what becomes of each.

`docker` asks the engine, `places` looks at the paths, `ledger` decides. Nothing here reads a
volume, and nothing here changes anything in the engine.
"""

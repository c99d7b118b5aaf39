"""The command line: a thin gRPC client of the coordinator, one file per noun.

It must never import the catalog, the repository or a database: whatever it knows, it asked for.
What every noun shares lies beside them: `command` (options that all have), `contexts` (which
coordinator), `client` (the only gRPC), `documents` (messages to JSON), `output`, `waiting`.
"""

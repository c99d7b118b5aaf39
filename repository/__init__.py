"""The stored format and the stores; knows no gRPC, no SQL and no daemon."""

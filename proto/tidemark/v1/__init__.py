"""Version 1 of the protocol; every *_pb2 file here is made by `make proto`."""

"""The protocol between the processes, and the code generated from it."""

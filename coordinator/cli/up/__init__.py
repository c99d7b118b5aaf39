"""`tidemark up`: coordinator and agent as two real processes on one machine."""

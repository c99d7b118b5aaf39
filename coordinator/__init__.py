"""The service of one cluster, and the command line that speaks to it."""

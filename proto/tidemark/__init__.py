"""Packages of the protocol, one folder per version."""

"""Buckets of S3, and of what speaks as S3 does, as stores.

`location` says which, `opening` opens it, `probe` finds what it can do, and `check` what is wrong
with it. None of them loads the library that speaks S3 before a store is opened.
"""

"""How the catalog's tables came to be, step by step; run in-process when it is opened."""

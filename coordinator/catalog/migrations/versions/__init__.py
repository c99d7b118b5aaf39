"""One module per step, named v<number>_<what>. A step that was released is never edited."""

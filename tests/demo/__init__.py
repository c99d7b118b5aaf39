"""`make demo`: the product does its main job on real data, before your eyes."""

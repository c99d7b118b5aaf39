"""Side by side with restic and borg: the same data, in one run, on this machine (`make bench`)."""

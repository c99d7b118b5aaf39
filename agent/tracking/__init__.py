"""Learning what changed in a volume from filesystem events, so that a backup costs what changed.

source ──► names touched ──► dirty set of an epoch ──► backup ──► dropped with its commit
  ▲                               │                       │
  └─ fanotify, inotify            └── lost: sweep         └── failed: merged back
"""

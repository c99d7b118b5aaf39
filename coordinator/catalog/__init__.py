"""The coordinator's database: what is known of nodes, volumes, jobs, packs and snapshots."""

from coordinator.catalog.interface import (
    Catalog,
    CommitPlan,
    PackPlace,
    TokenRecord,
)
from coordinator.catalog.sql import open_catalog

__all__ = ["Catalog", "CommitPlan", "PackPlace", "TokenRecord", "open_catalog"]

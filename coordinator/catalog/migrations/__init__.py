"""How the catalog's tables came to be, step by step; run in-process when an older one is opened."""

from pathlib import Path

import alembic.command
from alembic.config import Config
from sqlalchemy.engine import Connection


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the steps that this catalog has not seen yet, inside the transaction that is open.

    Up to the newest, or to another revision, as a test may want it.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, revision)

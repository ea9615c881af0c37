"""The directions of samples, from the pose tables beside their shards."""

from pathlib import Path
from typing import Final

import pyarrow as pa

from hpe.core.errors import UserError
from hpe.data.pose_tables import DIRECTION_PREFIX, read_metadata, read_pose_table, table_of_shard
from hpe.data.shards import Manifest, ShardInfo

OURS: Final = "ours"
"""The direction rule that is used where tables have several."""


class DirectionTables:
    """The pose tables of some shards, and the direction rule to use.

    Attributes:
        folder: of the tables, one per shard.
        rule: its name.
        column: the column of that rule's directions.
    """

    def __init__(self, manifest: Manifest, folder: Path, rule: str | None) -> None:
        """Find the tables.

        Args:
            rule: None: the only one in the tables, or else ``ours``.

        Raises:
            UserError: no such folder, a shard without a table, or no such rule in them.
        """
        self.folder = folder
        try:
            found = folder.is_dir()
            absent = [s.name for s in manifest.shards if not self.path(s).is_file()]
        except OSError as error:
            raise UserError(f"{folder}: cannot be read: {error.strerror}; expected a folder of pose tables") from error
        if not found:
            raise UserError(f"{folder}: no such folder; expected pose tables, as `hpe pose SHARDS` writes them")
        if absent:
            raise UserError(
                f"{folder}: no table for {len(absent):,} of {len(manifest.shards):,} shards, such as {absent[0]}; "
                "run `hpe pose` on them first"
            )
        self.rule = self._chosen_rule(self.path(manifest.shards[0]), rule)
        self.column = DIRECTION_PREFIX + self.rule
        self._columns: pa.Schema | None = None

    def _chosen_rule(self, table: Path, rule: str | None) -> str:
        rules = read_metadata(table).rules
        if rule is None and len(rules) != 1 and OURS not in rules:
            raise UserError(f"{self.folder}: direction rules {', '.join(rules) or 'none'}; name one with --rule")
        chosen = rule or (rules[0] if len(rules) == 1 else OURS)
        if chosen not in rules:
            raise UserError(f"--rule {chosen}: the tables in {self.folder} have {', '.join(rules) or 'none'}")
        return chosen

    def path(self, shard: ShardInfo) -> Path:
        """The table of a shard."""
        return table_of_shard(self.folder, shard.name)

    def read(self, shard: ShardInfo) -> pa.Table:
        """A shard's table.

        Raises:
            UserError: it cannot be read, its rows are not the shard's samples, or its columns differ from those of
                the tables read before (they will be joined to new ones).
        """
        path = self.path(shard)
        table = read_pose_table(path)
        if absent := {"key", self.column} - set(table.column_names):
            raise UserError(f"{path}: no column {', '.join(sorted(absent))}; run `hpe pose` again")
        if table.num_rows != shard.samples:
            raise UserError(f"{path}: {table.num_rows:,} rows for {shard.samples:,} samples; run `hpe pose` again")
        kind = table.schema.field(self.column).type
        if not pa.types.is_integer(kind):
            raise UserError(f"{path}: {self.column} is a column of {kind}, expected whole numbers of 0..4")
        made_for = (table.schema.metadata or {}).get(b"hpe.shard_sha256", b"").decode("utf-8", "replace")
        if made_for and made_for != shard.sha256:
            raise UserError(
                f"{path}: made for a shard with sha256 {made_for[:12]}…, {shard.name} has {shard.sha256[:12]}…; "
                "run `hpe pose` on these shards"
            )
        columns = table.schema.remove_metadata()
        before = self._columns = self._columns or columns
        if other := sorted({f"{field.name} ({field.type})" for field in {*columns} ^ {*before}}):
            raise UserError(
                f"{path}: its columns are not those of the tables before it: {', '.join(other)}; "
                "remove the tables and run `hpe pose` again"
            )
        return table

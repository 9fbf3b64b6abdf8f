"""Rows in batches: `accumulate` adds them up, `row_store` keeps what a second look needs, `streamed` fits the sums."""

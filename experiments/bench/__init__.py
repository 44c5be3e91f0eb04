"""Speed, measured: each script prints one table, as ratios against a named peer in the same process."""

"""`extract-flow`: shards of RGB and flow from clips."""
